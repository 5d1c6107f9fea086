"""Hashes and smooth noise for the shader: integer arithmetic and + - * / only, so the same bits on every machine."""

from __future__ import annotations

import math

import numpy as np
from numba import njit


@njit(cache=True)
def hash32(x: int, y: int, seed: int) -> int:
    """32 well mixed bits from three integers."""
    h = np.uint32(
        (np.uint32(x & 0xFFFFFFFF) * np.uint32(0x9E3779B1))
        ^ (np.uint32(y & 0xFFFFFFFF) * np.uint32(0x85EBCA77))
        ^ (np.uint32(seed & 0xFFFFFFFF) * np.uint32(0xC2B2AE3D))
    )
    h = np.uint32((h ^ (h >> np.uint32(15))) * np.uint32(0x2C1B3C6D))
    h = np.uint32((h ^ (h >> np.uint32(12))) * np.uint32(0x297A2D39))
    return int(np.uint32(h ^ (h >> np.uint32(15))))


@njit(cache=True)
def hash01(x: int, y: int, seed: int) -> float:
    """A uniform number in [0, 1) from three integers."""
    return hash32(x, y, seed) / 4294967296.0


@njit(cache=True)
def value_noise(x: float, y: float, seed: int) -> float:
    """Smooth noise in [0, 1) with one random value per point of the unit lattice; sd .2145."""
    i, j = math.floor(x), math.floor(y)
    fx, fy = x - i, y - j
    fx, fy = fx * fx * (3 - 2 * fx), fy * fy * (3 - 2 * fy)
    a = hash01(i, j, seed) * (1 - fx) + hash01(i + 1, j, seed) * fx
    b = hash01(i, j + 1, seed) * (1 - fx) + hash01(i + 1, j + 1, seed) * fx
    return a * (1 - fy) + b * fy


@njit(cache=True)
def clamp01(x: float) -> float:
    return min(1.0, max(0.0, x))


@njit(cache=True)
def stripe(x: float, centre: float, width: float, footprint: float) -> float:
    """How much of a pixel ``footprint`` wide at x a stripe covers, 0..1: lines without aliasing."""
    covered = min(x + 0.5 * footprint, centre + 0.5 * width) - max(x - 0.5 * footprint, centre - 0.5 * width)
    return clamp01(covered / footprint)
