"""Road users and street furniture: which shape, which size, which colours.

Sizes of Car, Pedestrian and Cyclist follow the priors and spreads (method: Class sizes); so do the means of
Van and Truck. Body shapes come in two disjoint families, so that a test set can hold shapes never trained on:

- ``train``: sedan, hatchback, estate, suv; panel van; box truck
- ``heldout``: coupe, mpv, city, liftback; minibus; flatbed

Each family mixes its shapes so that sizes still have the class's mean and spread (an SUV is tall, a city car short).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from skd_core.synthetic import meshes
from skd_core.synthetic.mesh import Array, Template

Shapes = Literal["train", "heldout", "all"]

SIZE_PRIORS = {
    "Car": ((3.88, 1.63, 1.53), (0.41, 0.11, 0.13)),
    "Pedestrian": ((0.84, 0.66, 1.76), (0.19, 0.14, 0.10)),
    "Cyclist": ((1.76, 0.60, 1.74), (0.12, 0.11, 0.09)),
    "Van": ((5.0, 1.9, 2.2), (0.45, 0.10, 0.25)),
    "Truck": ((9.3, 2.6, 3.4), (1.5, 0.12, 0.30)),
}
"""Means and standard deviations of (l, w, h), metres."""

# Shape -> (share, mean offset of (l, w, h) in units of the class's sd). Weighted, offsets are about 0.
CAR_SHAPES: dict[str, dict[str, tuple[float, tuple[float, float, float]]]] = {
    "train": {
        "sedan": (0.28, (0.7, 0.1, -0.5)),
        "hatchback": (0.36, (-1.0, -0.5, -0.1)),
        "estate": (0.16, (0.7, 0.1, -0.2)),
        "suv": (0.20, (0.2, 0.6, 1.0)),
    },
    "heldout": {
        "coupe": (0.30, (0.4, 0.2, -0.9)),
        "mpv": (0.25, (0.6, 0.4, 0.8)),
        "city": (0.30, (-1.3, -0.6, 0.3)),
        "liftback": (0.15, (0.8, 0.2, -0.1)),
    },
}
# What is left of the spread inside a shape, so that the mixture has the class's sd.
WITHIN_SHAPE = {"train": (0.65, 0.91, 0.87), "heldout": (0.51, 0.91, 0.75)}

CAR_COLOURS = np.array(
    [
        [0.62, 0.62, 0.62],
        [0.38, 0.39, 0.40],
        [0.17, 0.18, 0.19],
        [0.05, 0.05, 0.055],
        [0.02, 0.02, 0.022],
        [0.025, 0.05, 0.16],
        [0.05, 0.13, 0.32],
        [0.30, 0.02, 0.02],
        [0.16, 0.015, 0.03],
        [0.03, 0.10, 0.06],
        [0.40, 0.35, 0.24],
        [0.12, 0.09, 0.06],
        [0.50, 0.30, 0.03],
        [0.18, 0.26, 0.30],
    ]
)
CAR_COLOUR_SHARES = np.array([0.19, 0.17, 0.14, 0.09, 0.12, 0.06, 0.05, 0.06, 0.03, 0.02, 0.03, 0.02, 0.01, 0.01])
CLOTHES = np.array(
    [
        [0.03, 0.03, 0.035],
        [0.05, 0.07, 0.15],
        [0.10, 0.12, 0.16],
        [0.45, 0.45, 0.44],
        [0.35, 0.05, 0.05],
        [0.08, 0.20, 0.10],
        [0.40, 0.33, 0.22],
        [0.20, 0.20, 0.21],
        [0.06, 0.20, 0.38],
        [0.55, 0.35, 0.06],
        [0.30, 0.10, 0.25],
    ]
)
SKIN_TONES = np.array([[0.55, 0.36, 0.27], [0.45, 0.27, 0.18], [0.28, 0.16, 0.10], [0.12, 0.07, 0.045]])
HAIR_TONES = np.array(
    [[0.02, 0.015, 0.012], [0.08, 0.05, 0.03], [0.25, 0.17, 0.08], [0.35, 0.34, 0.33], [0.03, 0.03, 0.03]]
)


@dataclass
class Thing:
    """One rendered object at its place in the street.

    Attributes:
        label: KITTI type, "" for furniture that carries no label.
        template: its shape.
        size: shape (3,), (l, w, h), metres.
        s, t: centre along the street and to its right, metres.
        heading: radians from the street's direction, positive turns right.
        palette: shape (8, 3), linear colours.
        seed: for the shader's hashes.
        lift: height of its bottom above the road, metres.
        speed: metres per second along the heading; turn: radians per second; reach: it stops at this |t|, metres.
        y: bottom in the camera frame where a layout fixes it, else None: it stands on the ground.
    """

    label: str
    template: Template
    size: Array
    s: float
    t: float
    heading: float
    palette: Array
    seed: int
    lift: float = 0.0
    speed: float = 0.0
    turn: float = 0.0
    reach: float = math.inf
    y: float | None = None

    def at(self, time: float) -> tuple[float, float, float]:
        """(s, t, heading) after ``time`` seconds of constant speed and turn rate."""
        if self.speed == 0.0 or time == 0.0:
            return self.s, self.t, self.heading
        heading = self.heading + self.turn * time
        middle = self.heading + 0.5 * self.turn * time  # the chord of the arc, exact but for its length (< 0.1 %)
        run = self.speed * time
        t = self.t + run * math.sin(middle)
        limit = max(self.reach, abs(self.t))
        return self.s + run * math.cos(middle), min(max(t, -limit), limit), heading


@dataclass
class Wardrobe:
    """Draws shapes, sizes and colours."""

    rng: np.random.Generator
    shapes: Shapes = "all"
    _families: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        self._families = ("train", "heldout") if self.shapes == "all" else (self.shapes,)

    def index(self, shares: Array) -> int:
        """A row number, drawn by the rows' shares."""
        edges = np.cumsum(shares)
        return int(np.searchsorted(edges, self.rng.random() * edges[-1], side="right"))

    def pick(self, options: Array, shares: Array | None = None) -> Array:
        """One row of a table, by the rows' shares if there are any."""
        row: Array = options[self.index(shares) if shares is not None else int(self.rng.integers(len(options)))]
        return row

    def normal(self) -> Array:
        """Three standard normal numbers, cut at 2.5."""
        return np.clip(self.rng.standard_normal(3), -2.5, 2.5)

    def road_user(self, label: str, size: Array | None = None) -> tuple[Template, Array, Array]:
        """Template, size (l, w, h) and palette of a KITTI type; ``size`` fixes the size and guides the shape."""
        rng = self.rng
        family = self._families[int(rng.integers(len(self._families)))]
        palette = np.full((8, 3), 0.3)
        palette[0] = np.clip(self.pick(CAR_COLOURS, CAR_COLOUR_SHARES) * rng.uniform(0.85, 1.15, 3), 0, 0.8)
        palette[1] = self.pick(
            np.array(
                [
                    [0.6, 0.6, 0.6],
                    [0.5, 0.5, 0.48],
                    [0.25, 0.05, 0.04],
                    [0.05, 0.1, 0.3],
                    [0.1, 0.25, 0.1],
                    [0.5, 0.4, 0.1],
                ]
            )
        )
        palette[2] = self.pick(CAR_COLOURS)
        draw = self.normal()
        if label == "Car":
            table = CAR_SHAPES[family]
            names, shares, offsets = (
                list(table),
                np.array([v[0] for v in table.values()]),
                np.array([v[1] for v in table.values()]),
            )
            mean, sd = np.array(SIZE_PRIORS["Car"][0]), np.array(SIZE_PRIORS["Car"][1])
            within = np.array(WITHIN_SHAPE[family])
            if size is not None:  # the likelier shapes for this size
                shares = shares * np.exp(-0.5 * np.square(((size - mean) / sd - offsets) / within).clip(0, 9).sum(-1))
            k = self.index(shares)
            return meshes.car(names[k]), mean + sd * (offsets[k] + within * draw) if size is None else size, palette
        if label == "Van":
            template = meshes.car("panel van" if family == "train" else "minibus")
        elif label == "Truck":
            template = meshes.truck("box truck" if family == "train" else "flatbed")
        elif label in ("Tram", "Misc"):
            template = meshes.truck("tram" if label == "Tram" else "trailer")
        else:
            palette[0], palette[1] = (np.clip(self.pick(CLOTHES) * rng.uniform(0.7, 1.3), 0, 0.8) for _ in range(2))
            palette[2], palette[3], palette[4] = (
                self.pick(SKIN_TONES),
                self.pick(HAIR_TONES),
                self.pick(CLOTHES)[0] * 0.4,
            )
            palette[5] = self.pick(CAR_COLOURS)
            phase, skirt = int(rng.integers(4)), bool(rng.random() < 0.15)
            template = (
                meshes.cyclist(phase)
                if label == "Cyclist"
                else meshes.pedestrian(0 if label == "Person_sitting" else phase, skirt)
            )
        if size is None:
            mean, sd = (np.array(v) for v in SIZE_PRIORS[label])
            size = mean + sd * draw
        return template, size, palette
