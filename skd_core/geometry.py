"""Depth from the height of a 2D box: the formula shared by decoding, targets and lifting."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor

Number = TypeVar("Number", float, Tensor)


def geometric_depth(focal_y: Number, height: Number, height_2d: Number, extent: Number) -> Number:
    """``f_y H / h2d + e``, metres: depth of the volume centre of an upright box [ours] (method: Notation).

    The 2D box is as high as the nearest face, which is ``e`` in front of the centre. Numbers, or shapes that broadcast.

    Args:
        focal_y: pixels; height: H, metres; height_2d: of the 2D box, pixels, above 0; extent: e, metres, see
            :func:`half_extent`.
    """
    return focal_y * height / height_2d + extent


def half_extent(size: Tensor, yaw: Tensor) -> Tensor:
    """e (method: Notation): from the centre to the nearest face along the optical axis, ``(l |sin| + w |cos|) / 2``.

    Args:
        size: shape (..., 3), (l, w, h); yaw: shape (...), radians.
    """
    return 0.5 * (size[..., 0] * torch.sin(yaw).abs() + size[..., 1] * torch.cos(yaw).abs())


def mean_half_extent(size: Sequence[float]) -> float:
    """The average of :func:`half_extent` over all yaws, ``(l + w) / pi``, metres; size: (l, w, h)."""
    return (size[0] + size[1]) / math.pi
