"""Colours of the materials of mesh.py, with details painted from the position in the object's box (numba kernels).

Positions are metres in the box's axes, with z counted from the ground. Each function writes a linear albedo into
``out`` and returns the surface's gloss: 0 matt, 1 car paint, 2 glass.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit
from numpy.typing import NDArray

from skd_core.synthetic.mesh import (
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
    TRAM,
    TYRE,
    WALL,
)
from skd_core.synthetic.noise import clamp01, hash01, stripe, value_noise

FloatArray = NDArray[np.float64]


PAINT_AT, COLOURS_AT, ITEM = 3, 11, 35
"""An object (``it``) is a row of 35 numbers: size (l, w, h), then Template.paint (8), then its palette (8 x 3).

One array, because numba copies every array of a tuple at each call, which took half of the shader's time.
"""


@njit(cache=True, error_model="numpy")
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


@njit(cache=True, error_model="numpy")
def car_paint(p: FloatArray, it: FloatArray, seed: int, fp: float, out: FloatArray) -> float:
    """Albedo of a body panel, with painted wheels, lamps, plates, grille and door gaps; returns its gloss."""
    x, z = p[0], p[2]
    lx, ly, lz = x / it[0], p[1] / it[1], z / it[2]
    out[0], out[1], out[2] = it[COLOURS_AT + 0], it[COLOURS_AT + 1], it[COLOURS_AT + 2]
    radius = it[PAINT_AT + 2]
    if radius > 0.0:
        for k in range(2):
            dx, dz = x - it[PAINT_AT + k] * it[0], z - radius
            r2 = dx * dx + dz * dz
            if abs(ly) > 0.38 and r2 < (1.18 * radius) ** 2:
                wheel_colour(dx, dz, r2, radius, out)
                return 0.0
    if lz < 0.20:
        out[0] = out[1] = out[2] = 0.025
        return 0.0
    if lx > 0.45:
        lamp = it[PAINT_AT + 6]
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
        lamp = it[PAINT_AT + 7]
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
            gap = stripe(x, it[PAINT_AT + k] * it[0], 0.02, fp)
            for c in range(3):
                out[c] *= 1 - 0.75 * gap
            handle = it[PAINT_AT + k] + 0.045
            if abs(lx - handle) < 0.018 and abs(lz - 0.54) < 0.014:
                for c in range(3):
                    out[c] *= 0.45
    return 1.0


@njit(cache=True, error_model="numpy")
def wall_colour(a: float, h: float, height: float, it: FloatArray, seed: int, fp: float, out: FloatArray) -> float:
    """A house front at ``a`` metres along and ``h`` metres above the pavement; returns its gloss."""
    cell = 2.2 + 1.6 * hash01(seed, 11, 0)
    floor_height = 2.8 + 0.6 * hash01(seed, 12, 0)
    i, j = math.floor(a / cell), math.floor(h / floor_height)
    fa, fh = a / cell - i, h / floor_height - j
    shade = 0.85 + 0.3 * value_noise(a * 0.35, h * 0.35, seed)
    for k in range(3):
        out[k] = it[COLOURS_AT + k] * shade
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
            out[0], out[1], out[2] = (
                0.10 + 0.2 * it[COLOURS_AT + 3 + 0],
                0.06 + 0.2 * it[COLOURS_AT + 3 + 1],
                0.04 + 0.2 * it[COLOURS_AT + 3 + 2],
            )
            return 0.0
    if 0.0 < h < height - 0.6 and abs(fa - 0.5) < half + 0.05 and low - 0.03 < fh < high + 0.03:
        if abs(fa - 0.5) > half or not low < fh < high or abs(fa - 0.5) < 0.018:
            for k in range(3):
                out[k] = it[COLOURS_AT + 3 + k]
            return 0.0
        glass = 0.03 + (0.25 * pane if pane > 0.7 else 0.05 * pane)
        out[0], out[1], out[2] = glass, glass, glass * 1.1
        return 0.5
    return 0.0


@njit(cache=True, error_model="numpy")
def object_colour(
    material: int, p: FloatArray, n: FloatArray, it: FloatArray, seed: int, fp: float, out: FloatArray
) -> float:
    """Albedo at ``p`` (metres, box's axes, z from the ground) with normal ``n`` (box's axes); returns the gloss."""
    lx, ly, lz = p[0] / it[0], p[1] / it[1], p[2] / it[2]
    if material >= PALETTE:
        for k in range(3):
            out[k] = it[COLOURS_AT + 3 * (material - PALETTE) + k]
        folds = value_noise(p[0] * 9 + p[2] * 4, p[1] * 9 + p[2] * 7, seed)
        for k in range(3):
            out[k] *= 0.8 + 0.4 * folds
        return 0.0
    if material == PAINT:
        return car_paint(p, it, seed, fp, out)
    if material == GLASS:
        out[0] = out[1] = out[2] = 0.012
        if abs(ly) > 0.33:
            for k in range(3, 6):
                if abs(lx - it[PAINT_AT + k]) < 0.012:
                    out[0] = out[1] = out[2] = 0.02
                    return 0.1
        return 2.0
    if material == TYRE:
        out[0] = out[1] = out[2] = 0.028
        for k in range(2):
            dx, dz = p[0] - it[PAINT_AT + k] * it[0], p[2] - it[PAINT_AT + 2]
            r2 = dx * dx + dz * dz
            if r2 < it[PAINT_AT + 2] * it[PAINT_AT + 2]:
                wheel_colour(dx, dz, r2, it[PAINT_AT + 2], out)
        return 0.0
    if material == DARK:
        out[0] = out[1] = out[2] = 0.02
        return 0.0
    if material == CARGO:
        for k in range(3):
            out[k] = it[COLOURS_AT + 3 + k]
        if lx < -0.495:
            gap = max(stripe(ly, 0.0, 0.02, 0.01), stripe(abs(ly), 0.47, 0.03, 0.01))
            if abs(ly) > 0.38 and lz < 0.32:
                out[0], out[1], out[2] = 0.45, 0.02, 0.02
            elif gap > 0:
                out[0] = out[1] = out[2] = 0.08
        elif abs(ly) > 0.45 and hash01(seed, 5, 5) > 0.4 and 0.45 < lz < 0.75 and abs(lx + 0.12) < 0.2:
            for k in range(3):
                out[k] = it[COLOURS_AT + 6 + k]
        return 0.2
    if material == TRAM:
        for k in range(3):
            out[k] = it[COLOURS_AT + 3 + k]
        if 0.45 < lz < 0.80 and p[0] / 1.6 - math.floor(p[0] / 1.6) > 0.08:  # windows
            out[0] = out[1] = out[2] = 0.02
            return 1.5
        return 0.2
    if material == WALL:
        along = p[1] if abs(n[0]) > abs(n[1]) else p[0]
        return wall_colour(along + 200.0, p[2] - 2.0, it[2] - 2.0, it, seed, fp, out)
    if material == ROOF:
        ridge = p[2] * 4 - math.floor(p[2] * 4)
        for k in range(3):
            out[k] = (
                it[COLOURS_AT + 6 + k]
                * (0.8 + 0.2 * value_noise(p[0] * 3, p[1] * 3, seed))
                * (0.85 if ridge < 0.25 and fp < 0.12 else 1.0)
            )
        return 0.0
    if material in (FOLIAGE, HEDGE):
        q = 0.5 * (value_noise(p[0] * 2.2, p[2] * 2.2, seed) + value_noise(p[1] * 2.2, p[2] * 2.2 + 9.0, seed))
        r = 0.5
        if fp < 0.12:  # leaves, where they are larger than a pixel
            r = (
                value_noise(p[0] * 8 + p[1] * 3, p[2] * 8, seed + 1)
                + value_noise(p[1] * 8 - p[0] * 3, p[2] * 8, seed + 2)
                - 0.5
            )
        a = 0.25 + 0.8 * q + 0.9 * (r - 0.5)
        a = max(0.15, a) * (0.55 + 0.6 * clamp01(lz))
        for k in range(3):
            out[k] = it[COLOURS_AT + k] * a
        return 0.0
    if material == SIGN:
        side, up = p[1] / (0.5 * it[1]), (lz - 0.85) / 0.15
        r2 = side * side + up * up
        which = hash01(seed, 21, 0)
        if n[0] < 0:  # the back
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
