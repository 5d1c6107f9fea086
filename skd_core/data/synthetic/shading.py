"""What each pixel looks like: ground, sky, and the materials of meshes.py, as procedural textures (numba).

Deferred shading: the rasteriser says which triangle a pixel shows and how deep; the point, its place in the object's
box and the flat normal follow from that. Only + - * / sqrt and integer hashes are used per pixel, which IEEE 754 fixes
to the bit, so pictures do not depend on the machine's maths library. Colours are linear; :func:`develop` makes them
8 bit.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from skd_core.data.synthetic.meshes import (
    BARK,
    CARGO,
    DARK,
    FOLIAGE,
    GLASS,
    HEDGE,
    METAL,
    PAINT,
    PALETTE,
    ROOF,
    SIGN,
    TYRE,
    WALL,
)

FloatArray = NDArray[np.float64]

SKY, ROAD, KERB, PAVEMENT, VERGE, BACKDROP = range(6)
"""Kinds of background pixel."""
GROUND_END, BACKDROP_DEPTH = 140.0, 150.0
"""The ground is drawn up to this depth; the line of far trees and roofs stands at the other (metres)."""
SINK = 0.10
"""Objects are hidden only by ground this much above them (metres): boxes have yaw only, real ground does not."""

# Indices into the road array.
S0, T0, COS, SIN, HALF, WALK, CROSS, CROSS_HALF, KERB_HEIGHT, LANE, PARKING, GRASS, TONE, ZEBRA = range(14)
# Indices into the light array: direction to the sun, strengths, haze, cloud cover, horizon and zenith colours.
SUN_X, SUN_Y, SUN_Z, SUN, AMBIENT, HAZE, CLOUDS, HORIZON, ZENITH = 0, 1, 2, 3, 4, 5, 6, 7, 10


@njit(cache=True)
def hash32(x: int, y: int, seed: int) -> int:
    """32 well mixed bits from three integers."""
    h = (
        (np.uint32(x & 0xFFFFFFFF) * np.uint32(0x9E3779B1))
        ^ (np.uint32(y & 0xFFFFFFFF) * np.uint32(0x85EBCA77))
        ^ (np.uint32(seed & 0xFFFFFFFF) * np.uint32(0xC2B2AE3D))
    )
    h = np.uint32(h)
    h = np.uint32((h ^ (h >> np.uint32(15))) * np.uint32(0x2C1B3C6D))
    h = np.uint32((h ^ (h >> np.uint32(12))) * np.uint32(0x297A2D39))
    h = np.uint32(h ^ (h >> np.uint32(15)))
    return int(h)


@njit(cache=True)
def hash01(x: int, y: int, seed: int) -> float:
    """A uniform number in [0, 1) from three integers."""
    return hash32(x, y, seed) / 4294967296.0


@njit(cache=True)
def value_noise(x: float, y: float, seed: int) -> float:
    """Smooth noise in [0, 1) on the unit lattice."""
    i, j = math.floor(x), math.floor(y)
    fx, fy = x - i, y - j
    fx, fy = fx * fx * (3 - 2 * fx), fy * fy * (3 - 2 * fy)
    i, j = int(i), int(j)
    a = hash01(i, j, seed) * (1 - fx) + hash01(i + 1, j, seed) * fx
    b = hash01(i, j + 1, seed) * (1 - fx) + hash01(i + 1, j + 1, seed) * fx
    return a * (1 - fy) + b * fy


@njit(cache=True)
def clamp01(x: float) -> float:
    return min(1.0, max(0.0, x))


@njit(cache=True)
def stripe(x: float, centre: float, width: float, footprint: float) -> float:
    """Coverage of a line by a pixel ``footprint`` wide: 0..1, no aliasing."""
    covered = min(x + 0.5 * footprint, centre + 0.5 * width) - max(x - 0.5 * footprint, centre - 0.5 * width)
    return clamp01(covered / footprint)


@njit(cache=True)
def ground_hit(ox: float, oy: float, dx: float, dy: float, g: FloatArray, lift: float) -> float:
    """Depth where the ray (ox + dx z, oy + dy z, z) meets the ground raised by ``lift``; GROUND_END * 10 if nowhere."""
    A, B, C = g[3], g[1] * dx + g[2] - dy, g[0] - lift + g[1] * ox - oy
    disc = B * B - 4 * A * C
    if disc < 0.0:
        return GROUND_END * 10
    below = math.sqrt(disc) - B
    if below <= 1e-9:
        return GROUND_END * 10
    z: float = 2 * C / below
    return z


@njit(cache=True)
def on_road(s: float, t: float, road: FloatArray) -> bool:
    return bool(abs(t) < road[HALF] or abs(s - road[CROSS]) < road[CROSS_HALF])


@njit(cache=True)
def trace_ground(
    P: FloatArray, g: FloatArray, road: FloatArray, zbuffer: FloatArray, depth: FloatArray, kind: Any
) -> None:
    """Fill ``depth`` (0 = sky) and ``kind`` (H, W) of the empty street, and ``zbuffer`` for the rasteriser.

    The pavement is the ground raised by the kerb's height; between its edge and the road lies the kerb's face.
    """
    height, width = depth.shape
    for v in range(height):
        oy, dy = ((v + 0.5) * P[2, 3] - P[1, 3]) / P[1, 1], (v + 0.5 - P[1, 2]) / P[1, 1]
        for u in range(width):
            ox, dx = ((u + 0.5) * P[2, 3] - P[0, 3]) / P[0, 0], (u + 0.5 - P[0, 2]) / P[0, 0]
            high = ground_hit(ox, oy, dx, dy, g, road[KERB_HEIGHT])
            x = ox + dx * high
            s = road[S0] - road[SIN] * x + road[COS] * high
            t = road[T0] + road[COS] * x + road[SIN] * high
            z, what = high, PAVEMENT
            if on_road(s, t, road):
                low = ground_hit(ox, oy, dx, dy, g, 0.0)
                x = ox + dx * low
                s1 = road[S0] - road[SIN] * x + road[COS] * low
                t1 = road[T0] + road[COS] * x + road[SIN] * low
                z, what = low, ROAD
                if not on_road(s1, t1, road):
                    z, what = 0.5 * (low + high), KERB
            elif abs(t) > road[HALF] + road[WALK] and abs(s - road[CROSS]) > road[CROSS_HALF] + road[WALK]:
                what = VERGE
            if z < GROUND_END:
                depth[v, u], kind[v, u] = z, what
                sunk = ground_hit(ox, oy, dx, dy, g, (road[KERB_HEIGHT] if what >= PAVEMENT else 0.0) - g[4])
                zbuffer[v, u] = sunk
                continue
            zbuffer[v, u] = 1e6
            up = g[2] + g[1] * dx - dy
            skyline = (
                0.012
                + 0.035 * value_noise(dx * 9, 0.5, int(road[TONE]))
                + 0.02 * value_noise(dx * 40, 7.5, int(road[TONE]))
            )
            depth[v, u] = BACKDROP_DEPTH if up < skyline else 0.0
            kind[v, u] = BACKDROP if up < skyline else SKY


@njit(cache=True)
def sky_colour(dx: float, up: float, light: FloatArray, seed: int, out: FloatArray) -> None:
    f = clamp01(up * 1.6)
    f = f * (2 - f)
    for k in range(3):
        out[k] = light[HORIZON + k] * (1 - f) + light[ZENITH + k] * f
    if light[CLOUDS] > 0.0 and up > 0.0:
        far = 1.0 / (up + 0.08)
        n = 0.0
        for o in range(3):
            n += value_noise(dx * far * 0.9 * (1 << o), far * 0.9 * (1 << o), seed + o) / (2 << o)
        c = clamp01((n - 0.75 + 0.62 * light[CLOUDS]) * 4.0)
        for k in range(3):
            out[k] += c * (0.95 - out[k]) * 0.85


@njit(cache=True)
def street_colour(s: float, t: float, z: float, kind: int, road: FloatArray, fp: float, out: FloatArray) -> None:
    """Albedo of the ground at street coordinates (s, t), seen at depth z; ``fp``: metres per pixel."""
    seed = int(road[TONE])
    along = fp * z / 1.6  # a pixel covers more ground along the line of sight
    fine = clamp01(1.5 - along / 0.25)
    if kind == ROAD:
        a = 0.085 + 0.05 * hash01(seed, 1, 3)
        a *= (
            0.80
            + 0.4 * value_noise(s * 0.25, t * 0.7, seed)
            + fine * 0.25 * (value_noise(s * 14, t * 14, seed + 1) - 0.5)
        )
        cross = abs(s - road[CROSS]) < road[CROSS_HALF]
        if not cross:
            wheel = abs(abs(t) - 0.5 * road[LANE])
            a *= 1 - 0.10 * clamp01(1 - abs(wheel - 0.75) * 3)  # worn tracks
        if hash01(math.floor(s / 9.0), math.floor((t + 40) / 1.9), seed) > 0.93:
            a *= 0.72  # mended patches
        out[0], out[1], out[2] = a, a, a * 1.04
        zebra_at = road[CROSS] - road[CROSS_HALF] - 3.0
        if abs(s - road[CROSS]) < road[CROSS_HALF] + 1.0:
            return
        paint = 0.0
        if road[ZEBRA] > 0 and abs(s - zebra_at) < 1.6:
            paint = stripe(t - math.floor(t), 0.5, 0.5, min(1.0, fp))
        elif road[LANE] > 0:
            dash = s - 9.0 * math.floor(s / 9.0)
            lanes = int((road[HALF] - road[PARKING]) / road[LANE] + 0.01)
            for k in range(lanes):
                on = 1.0 if dash < 3.0 or (k == 0 and lanes > 1) else 0.0
                paint = max(paint, on * stripe(abs(t), k * road[LANE], 0.14, fp))
            if road[PARKING] > 1.0:
                paint = max(paint, stripe(abs(t), road[HALF] - road[PARKING], 0.12, fp))
        paint *= 0.75 + 0.25 * value_noise(s * 3, t * 3, seed + 5)
        for k in range(3):
            out[k] += paint * (0.62 - out[k])
    elif kind == KERB or (kind == PAVEMENT and abs(t) < road[HALF] + 0.16 and abs(s - road[CROSS]) > road[CROSS_HALF]):
        a = 0.34 * (0.8 + 0.2 * value_noise(s * 1.0, 0.0, seed)) * (0.7 if kind == KERB else 1.0)
        a *= 1 - 0.4 * stripe(s - math.floor(s), 0.5, 0.03, max(0.03, along))
        out[0], out[1], out[2] = a, a, 0.97 * a
    elif kind == PAVEMENT or (kind == VERGE and road[GRASS] < 0.5):
        a = 0.22 + 0.1 * hash01(seed, 2, 3)
        a *= (
            0.85
            + 0.3 * value_noise(s * 0.8, t * 0.8, seed + 2)
            + fine * 0.2 * (hash01(math.floor(s * 2), math.floor(t * 2), seed) - 0.5)
        )
        joint = max(
            stripe(2 * s - math.floor(2 * s), 0.5, 0.05, max(0.05, 2 * along)),
            stripe(2 * t - math.floor(2 * t), 0.5, 0.05, max(0.05, 2 * fp)),
        )
        a *= 1 - 0.35 * joint * fine
        out[0], out[1], out[2] = a, 0.96 * a, 0.90 * a
    else:
        n = value_noise(s * 0.6, t * 0.6, seed + 3) * 0.6 + (
            value_noise(s * 6, t * 6, seed + 4) * 0.4 if along < 0.3 else 0.2
        )
        out[0], out[1], out[2] = 0.07 + 0.10 * n, 0.12 + 0.12 * n, 0.03 + 0.03 * n


@njit(cache=True)
def car_paint(
    lx: float,
    ly: float,
    lz: float,
    x: float,
    z: float,
    paint: FloatArray,
    size: FloatArray,
    colour: FloatArray,
    detail: float,
    out: FloatArray,
) -> float:
    """Albedo of a body panel, with painted wheels, lamps, plates, grille and door gaps; returns its gloss.

    ``lx, ly, lz``: position as share of the box (z from the ground); ``x, z``: the same in metres.
    """
    out[0], out[1], out[2] = colour[0], colour[1], colour[2]
    radius = paint[2]
    if radius > 0.0:
        for k in range(2):
            dx, dz = x - paint[k] * size[0], z - radius
            r2 = dx * dx + dz * dz
            if abs(ly) > 0.38 and r2 < (1.18 * radius) ** 2:
                wheel_colour(dx, dz, r2, radius, out)
                return 0.0
    if lz < 0.20:
        out[0] = out[1] = out[2] = 0.025
        return 0.0
    if lx > 0.45:
        lamp = paint[6]
        if abs(ly) > 0.26 and abs(lz - lamp) < 0.055:
            out[0], out[1], out[2] = 0.75, 0.77, 0.80
            return 1.0
        if lx > 0.47 and abs(ly) < 0.13 and abs(lz - lamp + 0.16) < 0.035:
            out[0] = out[1] = out[2] = 0.70
            return 0.0
        if lx > 0.47 and abs(ly) < 0.24 and abs(lz - lamp) < 0.05:
            out[0] = out[1] = out[2] = 0.03
            return 0.3
        if lx > 0.47 and abs(ly) < 0.36 and abs(lz - lamp + 0.20) < 0.035:
            out[0] = out[1] = out[2] = 0.03
            return 0.0
    if lx < -0.455:
        lamp = paint[7]
        if abs(ly) > 0.31 and abs(lz - lamp) < 0.075:
            out[0], out[1], out[2] = 0.45, 0.015, 0.012
            return 0.8
        if lx < -0.47 and abs(ly) < 0.14 and abs(lz - lamp + 0.10) < 0.038:
            out[0], out[1], out[2] = 0.68, 0.66, 0.60
            return 0.0
        if lz < 0.30:
            out[0] = out[1] = out[2] = 0.035
            return 0.0
    if abs(ly) > 0.42 and lz < 0.64:
        for k in range(3, 6):
            gap = stripe(x, paint[k] * size[0], 0.02, detail)
            for c in range(3):
                out[c] *= 1 - 0.75 * gap
            handle = paint[k] + 0.045
            if abs(lx - handle) < 0.018 and abs(lz - 0.54) < 0.014:
                for c in range(3):
                    out[c] *= 0.45
    return 1.0


@njit(cache=True)
def wheel_colour(dx: float, dz: float, r2: float, radius: float, out: FloatArray) -> None:
    """Tyre, rim with eight spokes, and the dark arch around."""
    q = r2 / (radius * radius)
    a = 0.012
    if q < 1.0:
        a = 0.028
    if q < 0.46:
        spoke = min(abs(dx * dz), 0.5 * abs(dx * dx - dz * dz))
        a = 0.42 if spoke < 0.06 * radius * radius * (q + 0.15) or q > 0.40 or q < 0.03 else 0.06
    out[0] = out[1] = out[2] = a


@njit(cache=True)
def wall_colour(
    a: float, h: float, height: float, seed: int, colour: FloatArray, trim: FloatArray, fp: float, out: FloatArray
) -> float:
    """A house front at ``a`` metres along and ``h`` metres above the pavement; returns its gloss."""
    cell = 2.2 + 1.6 * hash01(seed, 11, 0)
    floor_height = 2.8 + 0.6 * hash01(seed, 12, 0)
    i, j = math.floor(a / cell), math.floor(h / floor_height)
    fa, fh = a / cell - i, h / floor_height - j
    shade = 0.85 + 0.3 * value_noise(a * 0.35, h * 0.35, seed)
    for k in range(3):
        out[k] = colour[k] * shade
    if hash01(seed, 13, 0) > 0.5:  # brick courses
        course = stripe(h / 0.25 - math.floor(h / 0.25), 0.5, 0.18, max(0.18, fp / 0.25))
        for k in range(3):
            out[k] *= 1 - 0.3 * course
    if h < 0.5 or fh > 0.965:
        for k in range(3):
            out[k] *= 0.75
    half = 0.5 * (0.40 + 0.25 * hash01(seed, 14, 0))
    low, high = 0.30, 0.80
    pane = hash01(int(i) + 97, int(j) + 31, seed)
    if j == 0.0 and hash01(seed, 15, 0) > 0.5:  # shops
        low, high, half = 0.12, 0.75, 0.42
    elif j == 0.0 and pane > 0.8:  # a door
        low, high, half = 0.0, 0.72, 0.2
        if fh < high and abs(fa - 0.5) < half:
            out[0], out[1], out[2] = 0.10 + 0.2 * trim[0], 0.06 + 0.2 * trim[1], 0.04 + 0.2 * trim[2]
            return 0.0
    if 0.0 < h < height - 0.6 and abs(fa - 0.5) < half + 0.05 and low - 0.03 < fh < high + 0.03:
        if abs(fa - 0.5) > half or not low < fh < high or abs(fa - 0.5) < 0.018:
            for k in range(3):
                out[k] = trim[k]
            return 0.0
        glass = 0.03 + (0.25 * pane if pane > 0.7 else 0.05 * pane)
        out[0], out[1], out[2] = glass, glass, glass * 1.1
        return 0.5
    return 0.0


@njit(cache=True)
def object_colour(
    material: int,
    p: FloatArray,
    n: FloatArray,
    lean: float,
    size: FloatArray,
    paint: FloatArray,
    palette: FloatArray,
    seed: int,
    fp: float,
    out: FloatArray,
) -> float:
    """Albedo at ``p`` (metres, box's axes, z from the ground) with normal ``n`` (box's axes); returns the gloss."""
    lx, ly, lz = p[0] / size[0], p[1] / size[1], p[2] / size[2]
    if material >= PALETTE:
        for k in range(3):
            out[k] = palette[material - PALETTE, k]
        folds = value_noise(p[0] * 9 + p[2] * 4, p[1] * 9 + p[2] * 7, seed)
        for k in range(3):
            out[k] *= 0.8 + 0.4 * folds
        return 0.0
    if material == PAINT:
        return car_paint(lx, ly, lz, p[0], p[2], paint, size, palette[0], fp, out)
    if material == GLASS:
        out[0] = out[1] = out[2] = 0.012
        if abs(ly) > 0.33:
            for k in range(3, 6):
                if abs(lx - paint[k]) < 0.012:
                    out[0] = out[1] = out[2] = 0.02
                    return 0.1
        return 2.0
    if material == TYRE:
        k = 0 if abs(p[0] - paint[0] * size[0]) < abs(p[0] - paint[1] * size[0]) else 1
        radius = paint[2]
        out[0] = out[1] = out[2] = 0.028
        if radius > 0.0:
            dx, dz = p[0] - paint[k] * size[0], p[2] - radius
            wheel_colour(dx, dz, dx * dx + dz * dz, radius, out)
        return 0.0
    if material == DARK:
        out[0] = out[1] = out[2] = 0.02
        return 0.0
    if material == CARGO:
        for k in range(3):
            out[k] = palette[1, k]
        if lx < -0.495:
            gap = max(stripe(ly, 0.0, 0.02, 0.01), stripe(abs(ly), 0.47, 0.03, 0.01))
            if abs(ly) > 0.38 and lz < 0.32:
                out[0], out[1], out[2] = 0.45, 0.02, 0.02
            elif gap > 0:
                out[0] = out[1] = out[2] = 0.08
        elif paint[7] == 0.2 and paint[6] == 0.2 and 0.45 < lz < 0.80:  # a tram's windows
            w = p[0] / 1.6 - math.floor(p[0] / 1.6)
            if w > 0.08:
                out[0] = out[1] = out[2] = 0.02
                return 1.5
        elif abs(ly) > 0.45 and hash01(seed, 5, 5) > 0.4 and 0.45 < lz < 0.75 and abs(lx + 0.12) < 0.2:
            for k in range(3):
                out[k] = palette[2, k]
        return 0.2
    if material == WALL:
        along = p[1] if abs(n[0]) > abs(n[1]) else p[0]
        return wall_colour(along + 200.0, p[2] - 2.0, size[2] - 2.0, seed, palette[0], palette[1], fp, out)
    if material == ROOF:
        ridge = p[2] * 4 - math.floor(p[2] * 4)
        for k in range(3):
            out[k] = (
                palette[2, k]
                * (0.8 + 0.2 * value_noise(p[0] * 3, p[1] * 3, seed))
                * (0.85 if ridge < 0.25 and fp < 0.12 else 1.0)
            )
        return 0.0
    if material in (FOLIAGE, HEDGE):
        q = value_noise(p[0] * 2.2 + p[2] * 0.7, p[1] * 2.2 + p[2] * 1.9, seed)
        r = value_noise(p[0] * 8 + p[2] * 3.1, p[1] * 8 - p[2] * 7.3, seed + 1) if fp < 0.12 else 0.5
        a = 0.25 + 0.8 * q + 0.9 * (r - 0.5)
        a = max(0.15, a) * (0.55 + 0.6 * clamp01(lz))
        for k in range(3):
            out[k] = palette[0, k] * a
        return 0.0
    if material == SIGN:
        side, up = p[1] / (0.5 * size[1]), (lz - 0.85) / 0.15
        r2 = side * side + up * up
        which = hash01(seed, 21, 0)
        if lean < 0:  # the back
            out[0] = out[1] = out[2] = 0.25
        elif which < 0.4:
            out[0], out[1], out[2] = (0.5, 0.02, 0.02) if r2 > 0.55 else (0.7, 0.7, 0.7)
        elif which < 0.7:
            out[0], out[1], out[2] = (0.02, 0.1, 0.45) if r2 > 0.2 else (0.7, 0.7, 0.7)
        else:
            out[0], out[1], out[2] = (0.7, 0.45, 0.02)
        return 0.2
    if material == BARK:
        a = 0.6 + 0.8 * value_noise(p[0] * 20, p[2] * 4, seed)
        out[0], out[1], out[2] = 0.10 * a, 0.075 * a, 0.055 * a
        return 0.0
    if material == METAL:
        out[0] = out[1] = out[2] = 0.22
        return 0.3
    out[0] = out[1] = out[2] = 0.5
    return 0.0


@njit(cache=True)
def shade(
    P: FloatArray,
    road: FloatArray,
    light: FloatArray,
    depth: FloatArray,
    kind: Any,
    tri_ids: Any,
    object_ids: Any,
    normals: FloatArray,
    materials: Any,
    centres: FloatArray,
    sizes: FloatArray,
    turns: FloatArray,
    paints: FloatArray,
    palettes: FloatArray,
    seeds: Any,
    shadow: Any,
    contact: Any,
    image: FloatArray,
) -> None:
    """Linear colours of every pixel into ``image`` (H, W, 3); see render.py for the arrays."""
    height, width = depth.shape
    rgb, sky, n, p, d = np.empty(3), np.empty(3), np.empty(3), np.empty(3), np.empty(3)
    seed = int(road[TONE])
    for v in range(height):
        oy, dy = ((v + 0.5) * P[2, 3] - P[1, 3]) / P[1, 1], (v + 0.5 - P[1, 2]) / P[1, 1]
        for u in range(width):
            ox, dx = ((u + 0.5) * P[2, 3] - P[0, 3]) / P[0, 0], (u + 0.5 - P[0, 2]) / P[0, 0]
            z, o = depth[v, u], object_ids[v, u]
            fp = z / P[0, 0]
            if o < 0 and kind[v, u] == SKY:
                sky_colour(dx, -dy, light, seed, rgb)
                image[v, u, 0], image[v, u, 1], image[v, u, 2] = rgb[0], rgb[1], rgb[2]
                continue
            gloss, lit, dim = 0.0, 1.0, 1.0
            n[0], n[1], n[2] = 0.0, -1.0, 0.0
            x, y = ox + dx * z, oy + dy * z
            if o >= 0:
                t = tri_ids[v, u]
                c, s = turns[o, 0], turns[o, 1]
                qx, qz = x - centres[o, 0], z - centres[o, 2]
                p[0], p[1], p[2] = c * qx - s * qz, s * qx + c * qz, centres[o, 1] - y + 0.5 * sizes[o, 2]
                lean = normals[t, 0] * dx + normals[t, 1] * dy + normals[t, 2]
                sign = -1.0 if lean > 0 else 1.0  # faces are two-sided: turn the normal to the viewer
                for k in range(3):
                    n[k] = sign * normals[t, k]
                d[0], d[1], d[2] = c * n[0] - s * n[2], s * n[0] + c * n[2], -n[1]
                gloss = object_colour(materials[t], p, d, d[0], sizes[o], paints[o], palettes[o], seeds[o], fp, rgb)
                dim = 0.62 + 0.38 * clamp01(p[2] / 0.9)  # the ground takes light from what is near it
            elif kind[v, u] == BACKDROP:
                a = 0.5 + 0.6 * value_noise(dx * 60, dy * 60, seed + 9)
                rgb[0], rgb[1], rgb[2] = 0.07 * a, 0.09 * a, 0.05 * a
            else:
                street_colour(
                    road[S0] - road[SIN] * x + road[COS] * z,
                    road[T0] + road[COS] * x + road[SIN] * z,
                    z,
                    kind[v, u],
                    road,
                    fp,
                    rgb,
                )
                if kind[v, u] == KERB:
                    n[1], n[0] = -0.3, -0.95 if x > 0 else 0.95
                if shadow[v, u] >= 0:
                    lit = 0.0
                if contact[v, u] >= 0:
                    dim = 0.45
            sun = max(0.0, n[0] * light[SUN_X] + n[1] * light[SUN_Y] + n[2] * light[SUN_Z]) * light[SUN] * lit
            up = 0.5 - 0.5 * n[1]
            for k in range(3):
                around = light[AMBIENT] * (up * (0.4 + 0.6 * light[ZENITH + k] / light[ZENITH + 1]) + (1 - up) * 0.35)
                rgb[k] *= dim * (around + sun * (1.0 if k == 0 else 0.96 if k == 1 else 0.88))
            if gloss > 0.0:
                norm = math.sqrt(dx * dx + dy * dy + 1.0)
                facing = clamp01(-(n[0] * dx + n[1] * dy + n[2]) / norm)
                rx, ry, rz = dx / norm + 2 * facing * n[0], dy / norm + 2 * facing * n[1], 1 / norm + 2 * facing * n[2]
                graze = (1 - facing) * (1 - facing)
                mirror = min(0.6, gloss * (0.04 + 0.35 * graze * (1 - facing)))
                sky_colour(rx + 3.0, max(0.0, -ry), light, seed, sky)
                for k in range(3):
                    rgb[k] += mirror * ((sky[k] if ry < 0.03 else 0.08) - rgb[k])
                glint = max(0.0, rx * light[SUN_X] + ry * light[SUN_Y] + rz * light[SUN_Z])
                for _ in range(5):
                    glint *= glint
                for k in range(3):
                    rgb[k] += min(gloss, 1.0) * 0.7 * glint * light[SUN]
            fog = z / (z + light[HAZE])
            for k in range(3):
                image[v, u, k] = rgb[k] + fog * (light[HORIZON + k] - rgb[k])


@njit(cache=True)
def develop(image: FloatArray, exposure: FloatArray, blur: float, noise: float, seed: int, out: Any) -> None:
    """Lens and sensor: 3x3 blur of strength 0..1/3, exposure per channel, gamma 2, noise (grey levels), 8 bit."""
    height, width, _ = image.shape
    row = np.empty((3, width, 3))
    side, mid = blur, 1 - 2 * blur
    for v in range(-1, height):
        # rows v - 1, v, v + 1 blurred along u live in row[(v + 2) % 3] ...
        source = min(v + 1, height - 1)
        target = (v + 1) % 3
        for u in range(width):
            left, right = max(u - 1, 0), min(u + 1, width - 1)
            for k in range(3):
                row[target, u, k] = (
                    side * (image[source, left, k] + image[source, right, k]) + mid * image[source, u, k]
                )
        if v < 0:
            row[2] = row[0]  # above the first row
            continue
        above, here = (v - 1) % 3, v % 3
        for u in range(width):
            for k in range(3):
                a = exposure[k] * (side * (row[above, u, k] + row[target, u, k]) + mid * row[here, u, k])
                a = a / (1 + 0.18 * a)  # highlights roll off
                bits = hash32(u * 3 + k, v, seed)
                grain = (bits & 255) + (bits >> 8 & 255) + (bits >> 16 & 255) + (bits >> 24)  # nearly normal
                level = 255.0 * math.sqrt(max(0.0, a)) + noise * (grain - 510.0) / 147.8
                out[v, u, k] = int(min(255.0, max(0.0, level + 0.5)))
