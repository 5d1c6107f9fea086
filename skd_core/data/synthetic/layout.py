"""Where things stand: invented streets, and streets around the objects of real KITTI labels.

Street coordinates: s along the road, t to its right, both on the ground, metres; headings turn right. The ego drives in
the right-hand lane. The ground seen from the camera is ``y = h + a x + b z + c z^2``: camera height, roll, pitch plus
slope, and the road's vertical curve.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from skd_core.data.synthetic import meshes, shading
from skd_core.data.synthetic.objects import Shapes, Thing, Wardrobe

Array = NDArray[np.float64]

WALLS = np.array(
    [
        [0.42, 0.38, 0.30],
        [0.45, 0.42, 0.38],
        [0.34, 0.20, 0.15],
        [0.28, 0.13, 0.09],
        [0.50, 0.46, 0.32],
        [0.30, 0.30, 0.31],
        [0.40, 0.31, 0.24],
        [0.55, 0.54, 0.52],
    ]
)
ROOFS = np.array([[0.16, 0.06, 0.04], [0.10, 0.09, 0.09], [0.20, 0.10, 0.06], [0.07, 0.07, 0.08]])
GREENS = np.array([[0.07, 0.14, 0.03], [0.05, 0.11, 0.03], [0.10, 0.16, 0.04], [0.12, 0.12, 0.03], [0.16, 0.10, 0.03]])


@dataclass
class Scene:
    """Everything the renderer needs, in street coordinates.

    Attributes:
        things: road users and furniture.
        road: the shader's road array (shading.py names its entries) without the ego's pose.
        ground: shape (5,), (h, a, b, c, sink), see the module's text.
        light: the shader's light array.
        ego: (s, t, heading) of the camera at time 0.
        speed: of the ego, metres per second.
    """

    things: list[Thing]
    road: Array
    ground: Array
    light: Array
    ego: tuple[float, float, float]
    speed: float


@dataclass
class _Plan:
    """Footprints already taken, as oriented rectangles (s, t, heading, l, w)."""

    taken: list[tuple[float, float, float, float, float]] = field(default_factory=list)

    def free(self, s: float, t: float, heading: float, length: float, width: float, margin: float = 0.3) -> bool:
        """Whether a rectangle keeps ``margin`` from all others (separating axes)."""
        if not self.taken:
            return True
        r = np.array(self.taken)
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


def _light(rng: np.random.Generator) -> Array:
    overcast = rng.random() < 0.35
    elevation, azimuth = math.radians(rng.uniform(18, 65)), rng.uniform(0, 2 * math.pi)
    sun = (math.cos(elevation) * math.sin(azimuth), -math.sin(elevation), math.cos(elevation) * math.cos(azimuth))
    haze = rng.uniform(250, 900)
    if overcast:
        grey = rng.uniform(0.55, 0.9)
        return np.array(
            [
                *sun,
                0.12,
                1.05,
                haze,
                rng.uniform(0.6, 1.0),
                grey,
                grey,
                1.02 * grey,
                0.75 * grey,
                0.78 * grey,
                0.84 * grey,
            ]
        )
    warm = rng.uniform(0.9, 1.0)
    blue = rng.uniform(0.6, 1.0)
    return np.array(
        [
            *sun,
            rng.uniform(1.3, 2.0),
            rng.uniform(0.55, 0.8),
            haze,
            rng.uniform(0.0, 0.7),
            0.75,
            0.80 * warm,
            0.88 * warm,
            0.16 * blue,
            0.34 * blue,
            0.72 * blue,
        ]
    )


class _Street:
    """Builds one invented street."""

    def __init__(self, rng: np.random.Generator, shapes: Shapes, length: float) -> None:
        self.rng, self.length = rng, length
        self.wardrobe = Wardrobe(rng, shapes)
        self.things: list[Thing] = []
        self.plan = _Plan()
        self.style = ("city", "residential", "avenue", "country")[int(rng.choice(4, p=[0.35, 0.35, 0.15, 0.15]))]
        style = self.style
        self.lanes = {
            "city": int(rng.integers(1, 3)),
            "residential": 1,
            "avenue": int(rng.integers(2, 4)),
            "country": 1,
        }[style]
        self.lane = rng.uniform(2.7, 3.1) if style == "residential" else rng.uniform(3.0, 3.6)
        parked = rng.random() < {"city": 0.75, "residential": 0.8, "avenue": 0.4, "country": 0.0}[style]
        self.bays = parked and rng.random() < 0.2  # parked across the street, not along it
        self.parking = (5.2 if self.bays else 2.2) if parked else 0.3
        self.bay_angle = math.radians((90, 60, 45)[int(rng.integers(3))])
        self.half = self.lanes * self.lane + self.parking
        self.walk = rng.uniform(1.8, 4.5) if style != "country" else rng.uniform(0.3, 1.0)
        crossing = rng.random() < 0.55
        self.cross = rng.uniform(16, 50) if crossing else 1e6
        self.cross_half = rng.uniform(3.0, 7.5)
        self.kerb = rng.uniform(0.08, 0.14) if style != "country" else 0.02
        lane = int(rng.integers(self.lanes))
        self.ego = (0.0, (lane + 0.5) * self.lane + 0.2 * rng.standard_normal(), 0.0)
        self.plan.take(-0.5, self.ego[1], 0.0, 9.0, 2.2)
        self.speed = float(rng.uniform(5, 11))

    def road(self) -> Array:
        rng = self.rng
        zebra = float(self.cross < 1e5 and rng.random() < 0.6)
        grass = float(
            self.style == "country" or (self.style == "residential" and rng.random() < 0.7) or rng.random() < 0.2
        )
        marked = 0.0 if self.style == "residential" and rng.random() < 0.6 else self.lane
        return np.array(
            [
                0,
                0,
                0,
                1,
                self.half,
                self.walk,
                self.cross,
                self.cross_half,
                self.kerb,
                marked,
                self.parking,
                grass,
                float(rng.integers(1 << 20)),
                zebra,
            ],
            dtype=float,
        )

    def on_road(self, s: float, t: float) -> bool:
        return abs(t) < self.half or abs(s - self.cross) < self.cross_half

    def add(
        self, label: str, s: float, t: float, heading: float, speed: float = 0.0, turn: float = 0.0, kerbside: int = 0
    ) -> Thing | None:
        """Place a road user unless the place is taken; ``kerbside`` +-1: its side stands |t| from the kerb."""
        template, size, palette = self.wardrobe.road_user(label)
        seed = int(self.rng.integers(1 << 30))
        if kerbside:
            extent = abs(size[0] * math.sin(heading)) + abs(size[1] * math.cos(heading))
            t = kerbside * (self.half - 0.5 * extent - abs(t))
        if not self.plan.free(s, t, heading, size[0], size[1]):
            return None
        self.plan.take(s, t, heading, size[0], size[1])
        thing = Thing(
            label, template, size, s, t, heading, palette, seed, 0.0 if self.on_road(s, t) else self.kerb, speed, turn
        )
        self.things.append(thing)
        return thing

    def vehicle(self, van: float = 0.10, truck: float = 0.05) -> str:
        r = self.rng.random()
        return "Van" if r < van else "Truck" if r < van + truck else "Car"

    def populate(self) -> None:
        """Parked rows, traffic, crossing vehicles, people."""
        rng = self.rng
        far = self.length + 72
        if self.parking > 1.0:
            for side in (1, -1):
                if rng.random() < 0.15:
                    continue
                fullness = rng.uniform(0.1, 0.85)
                s = rng.uniform(-2, 6)
                while s < far:
                    step = rng.uniform(2.6, 3.2) / math.sin(self.bay_angle) if self.bays else rng.uniform(5.0, 6.6)
                    clear = abs(s - self.cross) > self.cross_half + 4
                    if clear and rng.random() < fullness:
                        along = 0.0 if side > 0 else math.pi
                        heading = (
                            along + (side * self.bay_angle if self.bays else 0.0)
                        ) + 0.035 * rng.standard_normal()
                        if rng.random() < (0.4 if self.bays else 0.12):
                            heading += math.pi
                        self.add(self.vehicle(0.10, 0.01), s, rng.uniform(0.05, 0.3), heading, kerbside=side)
                    s += step
        density = rng.uniform(0.05, 0.6)
        for k in range(self.lanes):
            for way in (1, -1):
                s = rng.uniform(6, 25) if way > 0 else rng.uniform(3, 30)
                while s < far:
                    if rng.random() < density:
                        t = way * (k + 0.5) * self.lane + 0.2 * rng.standard_normal()
                        heading = (0.0 if way > 0 else math.pi) + 0.03 * rng.standard_normal()
                        speed = self.speed * rng.uniform(0.95, 1.15) if way > 0 else rng.uniform(5, 13)
                        label = "Cyclist" if rng.random() < 0.04 else self.vehicle()
                        self.add(label, s, t, heading, speed if label != "Cyclist" else 5.0)
                    s += rng.uniform(8, 30)
        if self.cross < 1e5:
            for _ in range(int(rng.integers(0, 6))):
                way = 1 if rng.random() < 0.5 else -1
                s = self.cross - way * 0.5 * self.cross_half + 0.2 * rng.standard_normal()
                self.add(
                    self.vehicle(),
                    s,
                    rng.uniform(-30, 30),
                    way * math.pi / 2 + 0.05 * rng.standard_normal(),
                    rng.uniform(3, 9),
                )
            for _ in range(int(rng.integers(0, 3))):  # turning
                s = self.cross + rng.uniform(-1, 1) * self.cross_half
                self.add(
                    self.vehicle(),
                    s,
                    rng.uniform(-1, 1) * self.half,
                    rng.uniform(-math.pi, math.pi),
                    rng.uniform(2, 5),
                    rng.uniform(-0.4, 0.4),
                )
        for _ in range(int(rng.integers(0, 3))):  # anything, anywhere
            self.add(
                self.vehicle(), rng.uniform(8, far), rng.uniform(-1, 1) * self.half, rng.uniform(-math.pi, math.pi), 1.0
            )
        self._people(far)

    def _people(self, far: float) -> None:
        rng = self.rng
        busy = {"city": 5.0, "residential": 2.0, "avenue": 3.5, "country": 0.7}[self.style] * (1 + self.length / 60)
        for _ in range(int(rng.poisson(busy))):
            side = 1 if rng.random() < 0.55 else -1
            s, t = (
                4 + (min(far, 55 + self.length) - 4) * rng.random(),
                side * (self.half + rng.uniform(0.3, max(0.4, self.walk - 0.3))),
            )
            heading = (0.0 if rng.random() < 0.5 else math.pi) + 0.25 * rng.standard_normal()
            if rng.random() < 0.15:
                heading = rng.uniform(-math.pi, math.pi)
            for _ in range(1 if rng.random() < 0.7 else int(rng.integers(2, 4))):
                self.add("Pedestrian", s, t, heading, 1.3)
                s, t = s + rng.uniform(-0.8, 0.8), t + rng.uniform(-0.5, 0.9)
        for _ in range(int(rng.poisson(0.8))):  # crossing the road
            at_zebra = self.cross < 1e5 and rng.random() < 0.7
            s = self.cross - self.cross_half - 3 + rng.uniform(-1.2, 1.2) if at_zebra else rng.uniform(7, 45)
            self.add(
                "Pedestrian",
                s,
                rng.uniform(-1, 1) * self.half,
                (1 if rng.random() < 0.5 else -1) * math.pi / 2 + 0.2 * rng.standard_normal(),
                1.3,
            )
        for _ in range(int(rng.poisson(1.5))):
            way = 1 if rng.random() < 0.6 else -1
            t = (
                way * (self.half - self.parking - rng.uniform(0.3, 0.9))
                if rng.random() < 0.7
                else way * (self.half + rng.uniform(0.4, 1.2))
            )
            heading = (0.0 if way > 0 else math.pi) + 0.1 * rng.standard_normal()
            s = rng.uniform(5, 50 + self.length)
            if rng.random() < 0.15:
                heading, t = rng.uniform(-math.pi, math.pi), rng.uniform(-1, 1) * self.half
            self.add("Cyclist", s, t, heading, 4.5)


class _Furniture:
    """Buildings, trees, poles, signs and hedges along both sides."""

    def __init__(self, rng: np.random.Generator, road: Array, plan: _Plan, length: float, style: str) -> None:
        self.rng, self.road, self.plan, self.length, self.style = rng, road, plan, length, style
        self.things: list[Thing] = []
        self.sights: list[tuple[float, float, float, float]] = []
        """Lines of sight (from s, t to s, t) that buildings must not cut."""

    def add(
        self,
        template: meshes.Template,
        s: float,
        t: float,
        heading: float,
        size: tuple[float, float, float],
        palette: Array,
        lift: float,
        footprint: tuple[float, float] | None = None,
    ) -> bool:
        length, width = footprint or size[:2]
        if not self.plan.free(s, t, heading, length, width, 0.1):
            return False
        self.plan.take(s, t, heading, length, width)
        self.things.append(
            Thing("", template, np.array(size), s, t, heading, palette, int(self.rng.integers(1 << 30)), lift)
        )
        return True

    def cuts_sight(self, s: float, t: float, length: float, width: float) -> bool:
        """Whether a rectangle along the street lies on a line of sight."""
        for s0, t0, s1, t1 in self.sights:
            k = np.linspace(0, 1, 40)
            inside = (np.abs(s0 + k * (s1 - s0) - s) < 0.5 * length + 1) & (
                np.abs(t0 + k * (t1 - t0) - t) < 0.5 * width + 1
            )
            if inside.any():
                return True
        return False

    def colours(self, *rows: Array) -> Array:
        palette = np.full((8, 3), 0.3)
        for k, row in enumerate(rows):
            palette[k] = np.clip(row[int(self.rng.integers(len(row)))] * self.rng.uniform(0.8, 1.2), 0, 0.85)
        return palette

    def build(self) -> list[Thing]:
        for side in (1, -1):
            if self.style != "country":
                self._fronts(side)
            self._row(side)
        if self.style == "country" or self.rng.random() < 0.4:
            self._scatter()
        return self.things

    def _fronts(self, side: int) -> None:
        rng, road = self.rng, self.road
        edge, kerb = road[shading.HALF] + road[shading.WALK], road[shading.KERB_HEIGHT]
        houses = self.style == "residential"
        setback = rng.uniform(3, 8) if houses else rng.uniform(0, 2) if self.style == "city" else rng.uniform(1, 12)
        fence = houses and rng.random() < 0.7
        s = rng.uniform(-14, -6)
        while s < self.length + 125:
            width, depth = (
                (rng.uniform(8, 14), rng.uniform(8, 11)) if houses else (rng.uniform(9, 26), rng.uniform(10, 14))
            )
            height = rng.uniform(6.5, 10) if houses else rng.uniform(8, 20)
            middle, at = s + 0.5 * width, side * (edge + setback + 0.5 * depth + rng.uniform(0, 0.4))
            blocked = abs(middle - road[shading.CROSS]) < road[shading.CROSS_HALF] + road[shading.WALK] + 0.5 * width
            if not blocked and rng.random() < 0.92 and not self.cuts_sight(middle, at, width, depth):
                white = np.array([[0.6, 0.6, 0.58], [0.3, 0.3, 0.3], [0.12, 0.08, 0.06]])
                palette = self.colours(WALLS, white, ROOFS)
                kind = "house" if houses or rng.random() < 0.3 else "building"
                self.add(meshes.prop(kind), middle, at, 0.0, (width, depth, height + 2), palette, kerb - 2.0)
                if fence and rng.random() < 0.8:
                    low = "hedge" if rng.random() < 0.6 else "wall"
                    palette = self.colours(GREENS if low == "hedge" else WALLS, WALLS, WALLS)
                    if not self.cuts_sight(middle, side * (edge + 0.4), width, 0.6):
                        self.add(
                            meshes.prop(low),
                            middle,
                            side * (edge + 0.4),
                            0.0,
                            (width - 1.5, 0.5, rng.uniform(0.7, 1.6)),
                            palette,
                            kerb,
                        )
            s += width + (rng.uniform(2, 7) if houses else 0.0 if rng.random() < 0.8 else rng.uniform(2, 10))

    def _row(self, side: int) -> None:
        """Trees, lamps, poles and signs between kerb and front."""
        rng, road = self.rng, self.road
        half, kerb = road[shading.HALF], road[shading.KERB_HEIGHT]
        trees = rng.random() < 0.55
        s = rng.uniform(2, 12)
        while s < self.length + 110:
            clear = abs(s - road[shading.CROSS]) > road[shading.CROSS_HALF] + 1
            t, r = side * (half + 0.7), rng.random()
            if clear and trees and r < 0.6:
                self._tree(s, t + side * 0.4, kerb)
            elif clear and r < 0.75:
                self.add(
                    meshes.prop("lamp"),
                    s,
                    t,
                    0.0 if side > 0 else math.pi,
                    (0.5, 2.6, rng.uniform(6, 9)),
                    self.colours(),
                    kerb,
                    (0.3, 0.3),
                )
            elif clear and r < 0.9:
                self.add(
                    meshes.prop("sign"),
                    s,
                    t,
                    math.pi + 0.1 * rng.standard_normal(),
                    (0.08, 0.65, rng.uniform(2.3, 3.0)),
                    self.colours(),
                    kerb,
                    (0.3, 0.3),
                )
            elif clear:
                self.add(meshes.prop("pole"), s, t, 0.0, (0.22, 0.22, rng.uniform(3, 9)), self.colours(), kerb)
            s += rng.uniform(6, 14)

    def _tree(self, s: float, t: float, lift: float) -> None:
        wide, tall = self.rng.uniform(3.0, 6.5), self.rng.uniform(5.5, 11)
        template = meshes.tree(int(self.rng.integers(4 if self.style == "country" else 3)))
        self.add(template, s, t, self.rng.uniform(0, 6.28), (wide, wide, tall), self.colours(GREENS), lift, (0.5, 0.5))

    def _scatter(self) -> None:
        """Trees and bushes away from the road."""
        rng, road = self.rng, self.road
        edge = road[shading.HALF] + road[shading.WALK]
        for _ in range(int(rng.integers(15, 40))):
            side = 1 if rng.random() < 0.5 else -1
            s, t = rng.uniform(4, self.length + 120), side * (edge + 1.5 + 30 * rng.random() ** 2)
            if abs(s - road[shading.CROSS]) < road[shading.CROSS_HALF] + 1:
                continue
            if rng.random() < 0.7:
                self._tree(s, t, 0.0)
            else:
                wide = rng.uniform(1.5, 6)
                self.add(
                    meshes.prop("hedge"),
                    s,
                    t,
                    0.0,
                    (wide, rng.uniform(0.8, 2), rng.uniform(0.8, 2.2)),
                    self.colours(GREENS),
                    -0.1,
                )


def invent(
    rng: np.random.Generator, shapes: Shapes, height: float, pitch: float, roll: float, length: float = 0.0
) -> Scene:
    """A street from nothing.

    Args:
        rng: the frame's generator.
        shapes: body shapes to draw from.
        height: of the camera, metres; pitch, roll: radians, of the ground as the camera sees it.
        length: how far the ego will drive, metres (sequences).
    """
    street = _Street(rng, shapes, length)
    road = street.road()
    street.populate()
    furniture = _Furniture(rng, road, street.plan, length, street.style)
    slope = 0.012 * rng.standard_normal()
    curve = 0.0 if length else 1.2e-4 * rng.standard_normal()
    heading = (
        math.radians(1.5) * rng.standard_normal() if rng.random() < 0.85 else math.radians(12) * rng.standard_normal()
    )
    ego = (street.ego[0], street.ego[1], 0.0 if length else heading)
    ground = np.array([height, roll, pitch + slope, curve, shading.SINK])
    return Scene(street.things + furniture.build(), road, ground, _light(rng), ego, street.speed)


def around(
    rows: list[tuple[str, Array, Array, float]], rng: np.random.Generator, shapes: Shapes, height: float
) -> Scene:
    """A street around the objects of a real label file.

    Args:
        rows: (type, (h, w, l), bottom centre (x, y, z), rotation_y) in the camera frame.
        rng: the frame's generator.
        shapes: body shapes to draw from.
        height: of the camera, metres, where no object tells.

    The ground is the smooth surface nearest to the objects' bottoms (least squares with a prior), objects stay exactly
    where the labels have them.
    """
    wardrobe = Wardrobe(rng, shapes)
    street = _Street(rng, shapes, 0.0)
    street.plan = _Plan()
    street.plan.take(-0.5, street.ego[1], 0.0, 4.0, 1.8)
    street.cross, street.kerb = 1e6, 0.0
    road = street.road()
    things, ego_t = [], street.ego[1]
    for label, hwl, location, yaw in rows:
        template, size, palette = wardrobe.road_user(label, hwl[::-1].copy())
        s, t, heading = float(location[2]), float(location[0]) + ego_t, yaw + math.pi / 2
        things.append(
            Thing(label, template, size, s, t, heading, palette, int(rng.integers(1 << 30)), y=float(location[1]))
        )
        street.plan.take(s, t, heading, size[0], size[1])
    furniture = _Furniture(rng, road, street.plan, 0.0, street.style)
    furniture.sights = [(0.0, ego_t, thing.s, thing.t) for thing in things]
    bottoms = np.array([row[2] for row in rows]).reshape(-1, 3)
    near = bottoms[bottoms[:, 2] > 0.5]
    sds = np.array([0.05, 0.02, 0.02, 2e-4])  # the prior's: height, roll, slope, curve
    A = np.column_stack([np.ones(len(near)), near[:, 0], near[:, 2], near[:, 2] ** 2]) * sds / 0.08
    rhs = (near[:, 1] - height) / 0.08
    g = sds * np.linalg.solve(A.T @ A + np.eye(4), A.T @ rhs) + np.array([height, 0, 0, 0])
    return Scene(things + furniture.build(), road, np.array([*g, 1.0]), _light(rng), (0.0, ego_t, 0.0), 0.0)
