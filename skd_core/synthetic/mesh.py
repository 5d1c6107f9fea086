"""Triangle meshes that can be fitted to any box.

Axes are the box's own (x forward, y left, z up, origin at the volume centre). Vertices are stored in two parts:
``base`` scales with the box, ``offset`` (metres) does not, so wheels stay round on a longer car.
"""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

# Face materials; the shader (materials.py) paints details such as lamps and door gaps from the position in the box.
PAINT, GLASS, TYRE, DARK, CARGO, WALL, ROOF, FOLIAGE, METAL, HEDGE, SIGN, BARK, TRAM = range(13)
PALETTE = 32
"""Material ``PALETTE + k`` is the object's plain colour k: 0 paint or shirt, 1 trousers, 2 skin, 3 hair, 4 shoes."""
SHIRT, TROUSERS, SKIN, HAIR, SHOES = (PALETTE + k for k in range(5))


@dataclass(frozen=True, eq=False)
class Template:
    """A shape that can be fitted to any box.

    Attributes:
        base: shape (V, 3), in units of the box's (l, w, h).
        offset: shape (V, 3), metres.
        faces: shape (F, 3), vertex indices.
        material: shape (F,).
        normals: shape (F, 3, 3), one per corner, for a box of the nominal size.
        nominal: shape (3,), (l, w, h), metres.
        paint: shape (8,), what the shader needs to know of the body: x of the front and rear axle (share of l),
            wheel radius (m), x of the pillars (share of l, three), heights of the head and tail lamps (share of h).
    """

    base: Array
    offset: Array
    faces: NDArray[np.int64]
    material: NDArray[np.int64]
    normals: Array
    nominal: Array
    paint: Array

    def fit(self, size: Array) -> Array:
        """Vertices shape (V, 3), metres, in the axes of a box of size (l, w, h), touching its six faces."""
        vertices = self.base * size + self.offset
        low, high = vertices.min(0), vertices.max(0)
        fitted: Array = (vertices - 0.5 * (low + high)) * (size / (high - low))
        return fitted

    def fit_normals(self, size: Array) -> Array:
        """Corner normals shape (F, 3, 3) for that box, not normalised."""
        fitted: Array = self.normals * (self.nominal / size)
        return fitted


def corner_normals(vertices: Array, faces: NDArray[np.int64], material: NDArray[np.int64]) -> Array:
    """Smooth shading: at each corner the mean over faces of the same material that meet there at less than 50 degrees.

    Returns:
        shape (F, 3, 3). Signs are those of the corner's own face; winding need not be consistent.
    """
    corners = vertices[faces]  # (F, 3, 3)
    flat = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])  # length = twice the area
    unit = flat / np.maximum(np.linalg.norm(flat, axis=-1, keepdims=True), 1e-12)
    meeting: dict[tuple[float, ...], list[int]] = defaultdict(list)
    keys = [[tuple(np.round(corner, 6).tolist()) for corner in face] for face in corners]
    for f, face in enumerate(keys):
        for key in face:
            meeting[key].append(f)
    normals = np.empty((len(faces), 3, 3))
    for f, face in enumerate(keys):
        for c, key in enumerate(face):
            others = np.array(meeting[key])
            cosine = unit[others] @ unit[f]
            near = (np.abs(cosine) > math.cos(math.radians(50))) & (material[others] == material[f])
            blend = (np.sign(cosine)[:, None] * flat[others])[near].sum(0)
            normals[f, c] = blend if np.linalg.norm(blend) > 1e-12 else (0.0, 0.0, 1.0)
    return normals


NO_PAINT = (9.0, 9.0, 0.0, 9.0, 9.0, 9.0, 0.0, 0.0)
"""Of a body without wheels, pillars and lamps (9 lies outside every box)."""


class Builder:
    """Collects vertices and faces; everything here is cached by the callers, so plain loops are fine."""

    def __init__(self) -> None:
        self.base: list[Array] = []
        self.offset: list[Array] = []
        self.faces: list[tuple[int, int, int]] = []
        self.material: list[int] = []
        self.count = 0

    def vertices(self, base: Array, offset: Array | None = None) -> int:
        """Append vertices, return the index of the first."""
        start = self.count
        self.base.append(base)
        self.offset.append(np.zeros_like(base) if offset is None else offset)
        self.count += len(base)
        return start

    def quad(self, a: int, b: int, c: int, d: int, material: int) -> None:
        self.faces += [(a, b, c), (a, c, d)]
        self.material += [material, material]

    def fan(self, ring: list[int], material: int) -> None:
        for i in range(1, len(ring) - 1):
            self.faces.append((ring[0], ring[i], ring[i + 1]))
            self.material.append(material)

    def box(
        self, low: tuple[float, float, float], high: tuple[float, float, float], material: int, top: int = -1
    ) -> None:
        corners = np.array(
            [
                [x, y, z]
                for z in (low[2], high[2])
                for x, y in ((high[0], high[1]), (high[0], low[1]), (low[0], low[1]), (low[0], high[1]))
            ]
        )
        s = self.vertices(corners)
        for i in range(4):
            j = (i + 1) % 4
            self.quad(s + i, s + j, s + 4 + j, s + 4 + i, material)
        self.quad(s, s + 1, s + 2, s + 3, material)
        self.quad(s + 4, s + 5, s + 6, s + 7, material if top < 0 else top)

    def tube(self, p: Array, q: Array, rp: float, rq: float, material: int, sides: int = 6, flat: float = 1.0) -> None:
        """A tapered tube from p to q with end caps; ``flat`` widens it along y."""
        axis: Array = (q - p) / np.linalg.norm(q - p)
        helper = np.array([0.0, 1.0, 0.0]) if abs(axis[1]) < 0.9 else np.array([1.0, 0.0, 0.0])
        v: Array = helper - axis * float(helper @ axis)
        v = v / np.linalg.norm(v)
        u = np.cross(v, axis)
        angles = [2 * math.pi * k / sides for k in range(sides)]
        ring = np.array([math.cos(t) * u + flat * math.sin(t) * v for t in angles])
        a, b = self.vertices(p + rp * ring), self.vertices(q + rq * ring)
        for i in range(sides):
            j = (i + 1) % sides
            self.quad(a + i, a + j, b + j, b + i, material)
        self.fan(list(range(a, a + sides)), material)
        self.fan(list(range(b, b + sides)), material)

    def ellipsoid(
        self,
        centre: Array,
        radii: Array,
        material: int,
        rings: int = 5,
        sides: int = 8,
        bumps: float = 0.0,
        rng: np.random.Generator | None = None,
    ) -> None:
        points = []
        for i in range(rings + 1):
            t = math.pi * i / rings
            for k in range(sides):
                p = 2 * math.pi * k / sides
                points.append([math.sin(t) * math.cos(p), math.sin(t) * math.sin(p), math.cos(t)])
        sphere = np.array(points)
        if rng is not None:
            scale = 1 + bumps * rng.uniform(-1, 1, (rings + 1, sides, 1))
            scale[[0, -1]] = scale[[0, -1], :1]  # the poles are one point each
            sphere = (sphere.reshape(rings + 1, sides, 3) * scale).reshape(-1, 3)
        s = self.vertices(centre + radii * sphere)
        for i in range(rings):
            for k in range(sides):
                n = (k + 1) % sides
                self.quad(
                    s + i * sides + k, s + i * sides + n, s + (i + 1) * sides + n, s + (i + 1) * sides + k, material
                )

    def wheel(self, x: float, side: float, radius: float, width: float, sides: int = 14) -> None:
        """A wheel standing on the ground, ``x`` and ``side`` (outer face) in shares of the box."""
        angles = [2 * math.pi * k / sides for k in range(sides)]
        ring = np.array([[radius * math.cos(t), 0.0, radius + radius * math.sin(t)] for t in angles])
        anchor = np.tile(np.array([[x, side, 0.0]]), (sides, 1))
        inward = np.array([0.0, -math.copysign(width, side), 0.0])
        a, b = self.vertices(anchor, ring), self.vertices(anchor, ring + inward)
        for i in range(sides):
            j = (i + 1) % sides
            self.quad(a + i, a + j, b + j, b + i, DARK)
        self.fan(list(range(a, a + sides)), TYRE)
        self.fan(list(range(b, b + sides)), DARK)

    def build(
        self, paint: tuple[float, ...] = NO_PAINT, nominal: Array | None = None, metres: bool = False
    ) -> Template:
        """The finished shape; with ``metres`` everything was given in metres of a box of size ``nominal``."""
        base, offset = np.concatenate(self.base), np.concatenate(self.offset)
        faces, material = np.array(self.faces), np.array(self.material)
        nominal = np.ones(3) if nominal is None else nominal
        if metres:
            base = base / nominal
        normals = corner_normals(base * nominal + offset, faces, material)
        return Template(base, offset, faces, material, normals, nominal, np.array(paint, dtype=float))
