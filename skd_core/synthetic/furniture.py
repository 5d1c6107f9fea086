"""Buildings, trees, poles, signs, fences and hedges along a street. They carry no labels."""

from __future__ import annotations

import math

import numpy as np

from skd_core.synthetic import meshes
from skd_core.synthetic.mesh import Array, Template
from skd_core.synthetic.objects import Thing
from skd_core.synthetic.street import Plan
from skd_core.synthetic.world import Road

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


class Furniture:
    """Buildings, trees, poles, signs and hedges along both sides."""

    def __init__(self, rng: np.random.Generator, road: Road, plan: Plan, length: float, style: str) -> None:
        self.rng, self.road, self.plan, self.length, self.style = rng, road, plan, length, style
        self.things: list[Thing] = []
        self.sights: list[tuple[float, float, float, float]] = []
        """Lines of sight (from s, t to s, t) that buildings must not cut."""

    def add(
        self,
        template: Template,
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
        edge, kerb = road.half + road.walk, road.kerb
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
            blocked = abs(middle - road.cross) < road.cross_half + road.walk + 0.5 * width
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
        half, kerb = road.half, road.kerb
        trees = rng.random() < 0.55
        s = rng.uniform(2, 12)
        while s < self.length + 110:
            clear = abs(s - road.cross) > road.cross_half + 1
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
        edge = road.half + road.walk
        for _ in range(int(rng.integers(15, 40))):
            side = 1 if rng.random() < 0.5 else -1
            s, t = rng.uniform(4, self.length + 120), side * (edge + 1.5 + 30 * rng.random() ** 2)
            if abs(s - road.cross) < road.cross_half + 1:
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
