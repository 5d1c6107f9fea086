"""Invented streets: where the road, parked and moving vehicles and people are."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from skd_core.synthetic.objects import Shapes, Thing, Wardrobe
from skd_core.synthetic.world import NOWHERE, Road


@dataclass
class Plan:
    """Footprints already taken, as oriented rectangles (s, t, heading, l, w)."""

    taken: list[tuple[float, float, float, float, float]] = field(default_factory=list)

    def free(self, s: float, t: float, heading: float, length: float, width: float, margin: float = 0.3) -> bool:
        """Whether a rectangle keeps ``margin`` from all others (separating axes)."""
        r = np.array(self.taken).reshape(-1, 5)
        ds, dt = r[:, 0] - s, r[:, 1] - t
        near = ds * ds + dt * dt < (0.5 * np.hypot(r[:, 3], r[:, 4]) + 0.5 * math.hypot(length, width) + margin) ** 2
        if not near.any():
            return True
        r, ds, dt = r[near], ds[near], dt[near]
        cr, sr, c, sn = np.cos(r[:, 2]), np.sin(r[:, 2]), math.cos(heading), math.sin(heading)
        apart = np.zeros(len(r), bool)
        dot, cross = np.abs(c * cr + sn * sr), np.abs(c * sr - sn * cr)
        a, b = 0.5 * length + margin, 0.5 * width + margin
        la, lb = 0.5 * r[:, 3], 0.5 * r[:, 4]
        apart |= np.abs(c * ds + sn * dt) > a + la * dot + lb * cross
        apart |= np.abs(c * dt - sn * ds) > b + la * cross + lb * dot
        apart |= np.abs(cr * ds + sr * dt) > la + a * dot + b * cross
        apart |= np.abs(cr * dt - sr * ds) > lb + a * cross + b * dot
        return bool(apart.all())

    def take(self, s: float, t: float, heading: float, length: float, width: float) -> None:
        self.taken.append((s, t, heading, length, width))


def draw_road(rng: np.random.Generator, crossing: bool = True) -> tuple[str, int, Road]:
    """A street's style (``city``, ``residential``, ``avenue``, ``country``), lanes each way, and measures."""
    style = ("city", "residential", "avenue", "country")[int(rng.choice(4, p=[0.35, 0.35, 0.15, 0.15]))]
    town, quiet = style != "country", style == "residential"
    lanes = int(rng.integers(1, 3)) if style == "city" else int(rng.integers(2, 4)) if style == "avenue" else 1
    lane = rng.uniform(2.7, 3.1) if quiet else rng.uniform(3.0, 3.6)
    parked = rng.random() < {"city": 0.75, "residential": 0.8, "avenue": 0.4, "country": 0.0}[style]
    parking = (5.2 if rng.random() < 0.2 else 2.2) if parked else 0.3
    crossed = crossing and rng.random() < 0.55
    road = Road(
        half=lanes * lane + parking,
        walk=rng.uniform(1.8, 4.5) if town else rng.uniform(0.3, 1.0),
        kerb=rng.uniform(0.08, 0.14) if town else 0.02,
        lane=0.0 if quiet and rng.random() < 0.6 else lane,
        parking=parking,
        cross=rng.uniform(16, 50) if crossed else NOWHERE,
        cross_half=rng.uniform(3.0, 7.5),
        zebra=crossed and rng.random() < 0.6,
        grass=not town or rng.random() < (0.7 if quiet else 0.2),
        seed=int(rng.integers(1 << 20)),
    )
    return style, lanes, road


class Street:
    """Fills a street with road users.

    Attributes:
        things: placed so far.
        plan: footprints of the things, the ego's among them.
        ego: (s, t) of the camera.
        speed: of the ego, metres per second.
    """

    def __init__(self, rng: np.random.Generator, shapes: Shapes, length: float) -> None:
        self.rng, self.length = rng, length
        self.wardrobe = Wardrobe(rng, shapes)
        self.things: list[Thing] = []
        self.plan = Plan()
        self.style, self.lanes, self.road = draw_road(rng)
        self.lane = (self.road.half - self.road.parking) / self.lanes
        self.ego = (0.0, (int(rng.integers(self.lanes)) + 0.5) * self.lane + 0.2 * rng.standard_normal())
        self.plan.take(-0.5, self.ego[1], 0.0, 9.0, 2.2)
        self.speed = float(rng.uniform(5, 11))
        self.far = length + 72

    def add(self, label: str, s: float, t: float, heading: float, speed: float = 0.0, turn: float = 0.0) -> None:
        """Place a road user unless the place is taken."""
        template, size, palette = self.wardrobe.road_user(label)
        seed, road = int(self.rng.integers(1 << 30)), self.road
        if not self.plan.free(s, t, heading, size[0], size[1]):
            return
        self.plan.take(s, t, heading, size[0], size[1])
        lift = 0.0 if abs(t) < road.half or abs(s - road.cross) < road.cross_half else road.kerb
        reach = road.half + 0.7 * road.walk if label == "Pedestrian" else math.inf
        self.things.append(Thing(label, template, size, s, t, heading, palette, seed, lift, speed, turn, reach))

    def vehicle(self, van: float = 0.10, truck: float = 0.05) -> str:
        """A vehicle's type at random."""
        r = self.rng.random()
        return "Van" if r < van else "Truck" if r < van + truck else "Car"

    def either_way(self) -> int:
        """1 or -1."""
        return 1 if self.rng.random() < 0.5 else -1

    def populate(self) -> None:
        """Parked rows, traffic, crossing vehicles, people."""
        if self.road.parking > 1.0:
            bay_angle = math.radians((90, 60, 45)[int(self.rng.integers(3))]) if self.road.parking > 3 else 0.0
            for side in (1, -1):
                if self.rng.random() < 0.85:
                    self._parked_row(side, bay_angle)
        self._traffic()
        if self.road.cross < NOWHERE:
            self._crossing()
        if self.length == 0:  # anything, anywhere: all yaws must occur
            for _ in range(int(self.rng.integers(0, 3))):
                s, t = self.rng.uniform(8, self.far), self.rng.uniform(-1, 1) * self.road.half
                self.add(self.vehicle(), s, t, self.rng.uniform(-math.pi, math.pi))
        self._people()
        if self.length > 0:
            self._clear_way()

    def _parked_row(self, side: int, bay_angle: float) -> None:
        """Cars along one kerb, or in bays at an angle to it."""
        rng, road = self.rng, self.road
        fullness = rng.uniform(0.1, 0.85)
        s = rng.uniform(-2, 6)
        while s < self.far:
            if abs(s - road.cross) > road.cross_half + 4 and rng.random() < fullness:
                heading = (0.0 if side > 0 else math.pi) + side * bay_angle + 0.035 * rng.standard_normal()
                if rng.random() < (0.4 if bay_angle else 0.12):
                    heading += math.pi
                half_depth = 2.1 * abs(math.sin(heading)) + 0.85 * abs(math.cos(heading))
                self.add(self.vehicle(0.10, 0.01), s, side * (road.half - half_depth - rng.uniform(0.05, 0.3)), heading)
            s += rng.uniform(2.6, 3.2) / math.sin(bay_angle) if bay_angle else rng.uniform(5.0, 6.6)

    def _traffic(self) -> None:
        rng = self.rng
        density = rng.uniform(0.05, 0.6)
        for k in range(self.lanes):
            for way in (1, -1):
                speed = self.speed * rng.uniform(1.0, 1.15) if way > 0 else rng.uniform(5, 13)  # of the whole lane
                s = rng.uniform(6, 25) if way > 0 else rng.uniform(3, 30)
                while s < self.far:
                    if rng.random() < density:
                        t = way * (k + 0.5) * self.lane + 0.2 * rng.standard_normal()
                        yawing = 0.03 * rng.standard_normal() if self.length == 0 else 0.0
                        self.add(self.vehicle(), s, t, (0.0 if way > 0 else math.pi) + yawing, speed)
                    s += rng.uniform(8, 30)

    def _crossing(self) -> None:
        """Vehicles on the crossing street, and some that turn."""
        rng, road = self.rng, self.road
        for _ in range(int(rng.integers(0, 6))):
            way = self.either_way()
            s = road.cross - way * 0.5 * road.cross_half + 0.2 * rng.standard_normal()
            heading = way * math.pi / 2 + 0.05 * rng.standard_normal()
            self.add(self.vehicle(), s, rng.uniform(-30, 30), heading, rng.uniform(3, 9))
        for _ in range(int(rng.integers(0, 3))):
            s, t = road.cross + rng.uniform(-1, 1) * road.cross_half, rng.uniform(-1, 1) * road.half
            self.add(self.vehicle(), s, t, rng.uniform(-math.pi, math.pi), rng.uniform(2, 5), rng.uniform(-0.4, 0.4))

    def _people(self) -> None:
        rng, road = self.rng, self.road
        busy = {"city": 5.0, "residential": 2.0, "avenue": 3.5, "country": 0.7}[self.style]
        longer = 1 + self.length / 60
        for _ in range(int(rng.poisson(busy * longer))):
            side = 1 if rng.random() < 0.55 else -1
            s = rng.uniform(4, 55 + self.length)
            t = side * (road.half + rng.uniform(0.3, max(0.4, road.walk - 0.3)))
            heading = (0.0 if rng.random() < 0.5 else math.pi) + 0.2 * rng.standard_normal()
            if rng.random() < 0.15:
                heading = rng.uniform(-math.pi, math.pi)
            for _ in range(1 if rng.random() < 0.7 else int(rng.integers(2, 4))):
                self.add("Pedestrian", s, t, heading, 1.3)
                s, t = s + rng.uniform(-0.8, 0.8), t + rng.uniform(-0.5, 0.9)
        for _ in range(int(rng.poisson(0.8 * longer))):  # crossing the road
            s = rng.uniform(7, 45 + self.length)
            if road.zebra and rng.random() < 0.7:
                s = road.cross - road.cross_half - 3 + rng.uniform(-1.2, 1.2)
            heading = self.either_way() * math.pi / 2 + 0.2 * rng.standard_normal()
            self.add("Pedestrian", s, rng.uniform(-1, 1) * road.half, heading, 1.3)
        for _ in range(int(rng.poisson(1.5 * longer))):
            way = 1 if rng.random() < 0.6 else -1
            lane_edge, pavement = road.half - road.parking - rng.uniform(0.3, 0.9), road.half + rng.uniform(0.4, 1.2)
            t = way * (lane_edge if rng.random() < 0.7 else pavement)
            heading, s = (0.0 if way > 0 else math.pi) + 0.1 * rng.standard_normal(), rng.uniform(5, 50 + self.length)
            if rng.random() < 0.15 and self.length == 0:
                heading, t = rng.uniform(-math.pi, math.pi), rng.uniform(-1, 1) * road.half
            self.add("Cyclist", s, t, heading, 4.5)

    def _clear_way(self) -> None:
        """Take away whatever the ego would run into on its drive."""
        times = np.arange(0, self.length / self.speed, 0.25)
        ego_s = self.ego[0] + self.speed * times

        def met(thing: Thing) -> bool:
            s, t = np.array([thing.at(float(time))[:2] for time in times]).T
            reach = 0.5 * float(thing.size[0]) + 2.5
            return bool(((np.abs(s - ego_s) < reach) & (np.abs(t - self.ego[1]) < 1.6)).any())

        self.things = [thing for thing in self.things if not met(thing)]
