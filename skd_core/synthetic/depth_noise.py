"""A simulated monocular depth estimator: the true depth with the kinds of error real ones make.

log(estimate / true) is the sum of three terms, with F the noise level (`--depth-noise`):

- one scale error per image, normal, sd ``image_share * F``;
- a smooth field, sd ``field_share * F * (1 + range_growth * z / 40)``: the error of a place grows with range;
- per object, a constant normal error, sd ``object_share * F * (1 + range_growth * z / 40) * (1 + hidden_growth * (1 -
  visible))``: estimators place each thing a little wrong as a whole, and half-hidden things more so.

On top of that, depth bleeds over object outlines: the map is averaged (harmonically, as networks that regress disparity
do) over a few pixels, ``bleed`` to each side. Sky stays 0. The result is clipped to MAX_DEPTH.

So the total relative error at 20 m on a well visible object is about F, and the error is heteroscedastic: larger far
away, under occlusion and at outlines. These are plausible shapes of error, chosen by us [ours], not fits to a network.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from skd_core.synthetic.noise import value_noise

MAX_DEPTH = 250.0
"""Metres; a uint16 PNG x 256 holds up to 255.99."""


@dataclass(frozen=True)
class DepthNoise:
    """The estimator's error model; see the module's text. ``level`` is F, 0 gives the true depth."""

    level: float = 0.06
    image_share: float = 0.8
    field_share: float = 0.4
    object_share: float = 0.35
    range_growth: float = 0.6
    hidden_growth: float = 1.5
    bleed: int = 1


@njit(cache=True, error_model="numpy")
def _estimate(
    depth: NDArray[np.float64],
    object_ids: Any,
    scale: float,
    field: float,
    growth: float,
    errors: NDArray[np.float64],
    bleed: int,
    seed: int,
) -> Any:
    height, width = depth.shape
    inverse = np.zeros((height, width))
    cell = width / 8.0
    for v in range(height):
        for u in range(width):
            z = depth[v, u]
            if z <= 0.0:
                continue
            # Two octaves of value noise have sd .2145 * sqrt(1 + 1/4) = .24; brought to unit sd.
            smooth = (
                value_noise(u / cell, v / cell, seed)
                - 0.5
                + 0.5 * (value_noise(2 * u / cell, 2 * v / cell, seed + 1) - 0.5)
            ) / 0.24
            e = scale + field * (1 + growth * z / 40.0) * smooth
            if object_ids[v, u] >= 0:
                e += (1 + growth * z / 40.0) * errors[object_ids[v, u]]
            inverse[v, u] = 1.0 / (z * max(0.2, 1 + e + 0.5 * e * e))  # the exponential's first terms: exact arithmetic
    # The mean over a (2 bleed + 1)^2 window that leaves out the sky: sums along rows, then along columns.
    sums, counts = np.zeros((height, width)), np.zeros((height, width))
    for v in range(height):
        for u in range(width):
            for i in range(max(0, u - bleed), min(width, u + bleed + 1)):
                sums[v, u] += inverse[v, i]
                counts[v, u] += 1.0 if inverse[v, i] > 0.0 else 0.0
    out = np.zeros((height, width))
    for v in range(height):
        for u in range(width):
            if depth[v, u] > 0.0:
                total, count = 0.0, 0.0
                for j in range(max(0, v - bleed), min(height, v + bleed + 1)):
                    total += sums[j, u]
                    count += counts[j, u]
                out[v, u] = min(MAX_DEPTH, count / total)
    return out


def estimate_depth(
    depth: NDArray[np.float64],
    object_ids: NDArray[np.int32],
    visible: NDArray[np.float64],
    noise: DepthNoise,
    rng: np.random.Generator,
) -> NDArray[np.float64]:
    """The simulated estimator's map.

    Args:
        depth: shape (H, W), true z, metres, 0 = sky.
        object_ids: shape (H, W), index of the rendered object, -1 = background.
        visible: shape (O,), visible share of each object.
        rng: drawn from in a fixed order.

    Returns:
        shape (H, W), metres, 0 = sky.
    """
    F = noise.level
    scale = F * noise.image_share * float(rng.standard_normal())
    errors = F * noise.object_share * rng.standard_normal(len(visible)) * (1 + noise.hidden_growth * (1 - visible))
    seed = int(rng.integers(1 << 30))
    if F == 0:
        return depth.copy()
    # At large outlines the spread is a few pixels of a 640-pixel-wide picture, whatever the size.
    bleed = max(1, math.ceil(noise.bleed * depth.shape[1] / 640)) if noise.bleed else 0
    estimated: NDArray[np.float64] = _estimate(
        depth, object_ids, scale, F * noise.field_share, noise.range_growth, errors, bleed, seed
    )
    return estimated
