"""What lies behind the objects: the ground, found by solving for it in each pixel, and the sky (numba kernels)."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from skd_core.synthetic.noise import clamp01, hash01, stripe, value_noise
from skd_core.synthetic.world import Ground, Light, Road

FloatArray = NDArray[np.float64]

SKY, ROAD, KERB, PAVEMENT, VERGE, BACKDROP = range(6)
"""Kinds of background pixel."""
GROUND_END, BACKDROP_DEPTH = 140.0, 150.0
"""The ground is drawn up to this depth; the line of far trees and roofs stands at the other (metres)."""


@njit(cache=True, error_model="numpy")
def ground_hit(ox: float, oy: float, dx: float, dy: float, g: Ground, lift: float) -> float:
    """Depth where the ray (ox + dx z, oy + dy z, z) meets the ground raised by ``lift``; GROUND_END * 10 if nowhere."""
    A, B, C = g.curve, g.roll * dx + g.slope - dy, g.height - lift + g.roll * ox - oy
    disc = B * B - 4 * A * C
    if disc < 0.0:
        return GROUND_END * 10
    below = math.sqrt(disc) - B
    if below <= 1e-9:
        return GROUND_END * 10
    z: float = 2 * C / below
    return z


@njit(cache=True, error_model="numpy")
def on_road(s: float, t: float, road: Road) -> bool:
    return bool(abs(t) < road.half or abs(s - road.cross) < road.cross_half)


@njit(cache=True, error_model="numpy")
def trace_ground(P: FloatArray, g: Ground, road: Road, zbuffer: FloatArray, depth: FloatArray, kind: Any) -> None:
    """Fill ``depth`` (0 = sky) and ``kind`` (H, W) of the empty street, and ``zbuffer`` for the rasteriser.

    The pavement is the ground raised by the kerb's height; between its edge and the road lies the kerb's face.
    """
    height, width = depth.shape
    for v in range(height):
        oy, dy = ((v + 0.5) * P[2, 3] - P[1, 3]) / P[1, 1], (v + 0.5 - P[1, 2]) / P[1, 1]
        for u in range(width):
            ox, dx = ((u + 0.5) * P[2, 3] - P[0, 3]) / P[0, 0], (u + 0.5 - P[0, 2]) / P[0, 0]
            high = ground_hit(ox, oy, dx, dy, g, road.kerb)
            x = ox + dx * high
            s = road.s - road.sin * x + road.cos * high
            t = road.t + road.cos * x + road.sin * high
            z, what = high, PAVEMENT
            if on_road(s, t, road):
                low = ground_hit(ox, oy, dx, dy, g, 0.0)
                x = ox + dx * low
                s1 = road.s - road.sin * x + road.cos * low
                t1 = road.t + road.cos * x + road.sin * low
                z, what = low, ROAD
                if not on_road(s1, t1, road):
                    z, what = 0.5 * (low + high), KERB
            elif abs(t) > road.half + road.walk and abs(s - road.cross) > road.cross_half + road.walk:
                what = VERGE
            if z < GROUND_END:
                depth[v, u], kind[v, u] = z, what
                sunk = ground_hit(ox, oy, dx, dy, g, (road.kerb if what >= PAVEMENT else 0.0) - g.sink)
                zbuffer[v, u] = sunk
                continue
            zbuffer[v, u] = 1e6
            up = g.slope + g.roll * dx - dy
            skyline = 0.012 + 0.035 * value_noise(dx * 9, 0.5, road.seed) + 0.02 * value_noise(dx * 40, 7.5, road.seed)
            depth[v, u] = BACKDROP_DEPTH if up < skyline else 0.0
            kind[v, u] = BACKDROP if up < skyline else SKY


@njit(cache=True, error_model="numpy")
def sky_colour(dx: float, up: float, light: Light, seed: int, out: FloatArray) -> None:
    f = clamp01(up * 1.6)
    f = f * (2 - f)
    for k in range(3):
        out[k] = light.horizon[k] * (1 - f) + light.zenith[k] * f
    if light.clouds > 0.0 and up > 0.0:
        far = 1.0 / (up + 0.08)
        n = 0.0
        for o in range(3):
            n += value_noise(dx * far * 0.9 * (1 << o), far * 0.9 * (1 << o), seed + o) / (2 << o)
        c = clamp01((n - 0.75 + 0.62 * light.clouds) * 4.0)
        for k in range(3):
            out[k] += c * (0.95 - out[k]) * 0.85


@njit(cache=True, error_model="numpy")
def street_colour(s: float, t: float, z: float, kind: int, road: Road, fp: float, out: FloatArray) -> None:
    """Albedo of the ground at street coordinates (s, t), seen at depth z; ``fp``: metres per pixel."""
    seed = road.seed
    along = fp * z / 1.6  # a pixel covers more ground along the line of sight
    fine = clamp01(1.5 - along / 0.25)
    if kind == ROAD:
        a = 0.085 + 0.05 * hash01(seed, 1, 3)
        a *= (
            0.80
            + 0.4 * value_noise(s * 0.25, t * 0.7, seed)
            + fine * 0.25 * (value_noise(s * 14, t * 14, seed + 1) - 0.5)
        )
        cross = abs(s - road.cross) < road.cross_half
        if not cross:
            wheel = abs(abs(t) - 0.5 * road.lane)
            a *= 1 - 0.10 * clamp01(1 - abs(wheel - 0.75) * 3)  # worn tracks
        if hash01(math.floor(s / 9.0), math.floor((t + 40) / 1.9), seed) > 0.93:
            a *= 0.72  # repaired patches
        out[0], out[1], out[2] = a, a, a * 1.04
        zebra_at = road.cross - road.cross_half - 3.0
        if abs(s - road.cross) < road.cross_half + 1.0:
            return
        paint = 0.0
        if road.zebra and abs(s - zebra_at) < 1.6:
            paint = stripe(t - math.floor(t), 0.5, 0.5, min(1.0, fp))
        elif road.lane > 0:
            dash = s - 9.0 * math.floor(s / 9.0)
            lanes = int((road.half - road.parking) / road.lane + 0.01)
            for k in range(lanes):
                on = 1.0 if dash < 3.0 or (k == 0 and lanes > 1) else 0.0
                paint = max(paint, on * stripe(abs(t), k * road.lane, 0.14, fp))
            if road.parking > 1.0:
                paint = max(paint, stripe(abs(t), road.half - road.parking, 0.12, fp))
        paint *= 0.75 + 0.25 * value_noise(s * 3, t * 3, seed + 5)
        for k in range(3):
            out[k] += paint * (0.62 - out[k])
    elif kind == KERB or (kind == PAVEMENT and abs(t) < road.half + 0.16 and abs(s - road.cross) > road.cross_half):
        a = 0.34 * (0.8 + 0.2 * value_noise(s * 1.0, 0.0, seed)) * (0.7 if kind == KERB else 1.0)
        a *= 1 - 0.4 * stripe(s - math.floor(s), 0.5, 0.03, max(0.03, along))
        out[0], out[1], out[2] = a, a, 0.97 * a
    elif kind == PAVEMENT or (kind == VERGE and not road.grass):
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
