"""Hashes and smooth noise for the shader: integer arithmetic and + - * / only, so the same bits on every machine."""

from __future__ import annotations

import math

import numpy as np
from numba import njit

_LATTICE = np.random.Generator(np.random.PCG64(2)).random((64, 64), dtype=np.float32).astype(np.float64)
"""32 kB: stays in the fastest cache, where hashing four lattice points per look-up would cost a third of the frame."""


@njit(cache=True, error_model="numpy")
def hash32(x: int, y: int, seed: int) -> int:
    """32 well mixed bits from three integers; products wrap at 64 bits."""
    h = x * 0x1E3779B97F4A7C15 + y * 0x3F58476D1CE4E5B9 + seed * 0x14D049BB133111EB
    h = (h ^ (h >> 29)) * 0x2545F4914F6CDD1D
    return ((h ^ (h >> 32)) * 0x369DEA0F31A53F85 >> 31) & 0xFFFFFFFF


@njit(cache=True, error_model="numpy")
def hash01(x: int, y: int, seed: int) -> float:
    """A uniform number in [0, 1) from three integers."""
    return hash32(x, y, seed) / 4294967296.0


@njit(cache=True, error_model="numpy")
def value_noise(x: float, y: float, seed: int) -> float:
    """Smooth noise in [0, 1) with a random value at each point of the unit lattice; sd .21; repeats after 64 steps."""
    i, j = math.floor(x), math.floor(y)
    fx, fy = x - i, y - j
    fx, fy = fx * fx * (3 - 2 * fx), fy * fy * (3 - 2 * fy)
    i0, j0 = (i + 23 * seed) & 63, (j + (seed >> 6) + 41 * seed) & 63
    i1, j1 = (i0 + 1) & 63, (j0 + 1) & 63
    a = _LATTICE[j0, i0] * (1 - fx) + _LATTICE[j0, i1] * fx
    b = _LATTICE[j1, i0] * (1 - fx) + _LATTICE[j1, i1] * fx
    noise: float = a * (1 - fy) + b * fy
    return noise


@njit(cache=True, error_model="numpy")
def clamp01(x: float) -> float:
    return min(1.0, max(0.0, x))


@njit(cache=True, error_model="numpy")
def stripe(x: float, centre: float, width: float, footprint: float) -> float:
    """How much of a pixel ``footprint`` wide at x a stripe covers, 0..1: lines without aliasing."""
    covered = min(x + 0.5 * footprint, centre + 0.5 * width) - max(x - 0.5 * footprint, centre - 0.5 * width)
    return clamp01(covered / footprint)
