"""The 6x6 covariance of a box's pose, in ROS's order, with defaults for what was not measured [ours].

A yaw that is known modulo pi is a line, not a heading: with s its standard deviation modulo pi and p the probability
that front and rear are taken for each other, its variance is ``s^2 + p pi^2`` (the mean square of an error that is
normal with s, and with probability p off by pi). p is .5 where heading is not known, which alone is 127 degrees.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from skd_core.boxes import Boxes3D

LATERAL_FRACTION = 0.01
"""Standard deviation of the centre across the viewing ray, as a fraction of the distance, where none was measured: 7 px
at f = 720 px."""
DEPTH_FRACTION = 0.10
"""Standard deviation of the depth where the network gives none, as a fraction of the depth."""
YAW_STD = math.pi / math.sqrt(12)
"""Standard deviation of a yaw of which nothing is known modulo pi, radians: 52 degrees; where none was measured."""
TILT_STD = 0.05
"""Standard deviation of roll and pitch, radians: boxes are upright by assumption, roads and mounts are not."""

FLIPPED = 0.5 * math.pi**2
"""Variance of a heading of which nothing is known but the line that it lies on, radians^2."""


def pose_covariance(boxes: Boxes3D) -> Tensor:
    """Covariance of (x, y, z, rotX, rotY, rotZ) in the camera frame [ours].

    A wrong depth moves the centre c along the viewing ray n = c/|c|, a wrong pixel moves it across, sideways (h, level)
    or upwards (v): ``(s_z |c| / z)^2 n n^T + s_h^2 h h^T + s_v^2 v v^T``. Yaw turns about the camera's y axis; its
    variance includes the flip, see the module. What a box does not know takes this module's constants.

    Returns:
        shape (N, 6, 6), float64, metres and radians, symmetric and positive definite.
    """
    # in numpy, and few steps: for the few boxes of a frame, calls cost more than numbers
    given = [boxes.center, boxes.depth_std[:, None], boxes.across_std, boxes.yaw_std[:, None], boxes.flip_odds[:, None]]
    values = torch.cat([value.detach().double().cpu() for value in given], 1).numpy()
    center, depth_std, across, yaw_std, odds = np.split(values, (3, 4, 6, 7), 1)
    x, z = center[:, 0], np.maximum(np.abs(center[:, 2:]), 0.1)
    squared_distance = np.maximum((center * center).sum(1, keepdims=True), 0.01)
    distance = np.sqrt(squared_distance)
    depth_std = np.maximum(np.where(np.isfinite(depth_std), depth_std, DEPTH_FRACTION * z), 1e-3)
    across = np.maximum(np.where(np.isfinite(across), across, LATERAL_FRACTION * distance), 1e-4)
    yaw_std = np.where(np.isfinite(yaw_std), yaw_std, YAW_STD)
    along, (sideways, upwards) = (depth_std / z) ** 2 * squared_distance, np.square(across).T[..., None]
    level = np.stack([center[:, 2], np.zeros_like(x), -x], 1)
    level /= np.maximum(np.sqrt((level * level).sum(1, keepdims=True)), 1e-9)
    # of v v^T = I - n n^T - h h^T
    covariance = np.zeros((len(boxes), 6, 6))
    covariance[:, :3, :3] = ((along - upwards) / squared_distance * center)[:, :, None] * center[:, None, :]
    covariance[:, :3, :3] += ((sideways - upwards) * level)[:, :, None] * level[:, None, :]
    diagonal = covariance.reshape(-1, 36)[:, ::7]
    diagonal[:, :3] += upwards
    diagonal[:, 3:] = TILT_STD**2
    diagonal[:, 4:5] = np.maximum(np.square(yaw_std), TILT_STD**2) + odds * math.pi**2
    return torch.from_numpy(covariance)


def with_covariance(boxes: Boxes3D, covariance: Tensor) -> Boxes3D:
    """Boxes that know what :func:`pose_covariance` made of them, the other way round.

    A flip of another probability than 0 and .5 cannot be told from a larger yaw_std and becomes it; the variance is the
    same.

    Args:
        boxes: N boxes in the camera frame, float64.
        covariance: shape (N, 6, 6), float64; all zero where it is not known, as is the custom in ROS.
    """
    distance = boxes.center.norm(dim=1, keepdim=True).clamp(min=1e-9)
    ray = boxes.center / distance  # n
    level = torch.stack([ray[:, 2], torch.zeros_like(ray[:, 0]), -ray[:, 0]], 1)
    level = level / level.norm(dim=1, keepdim=True).clamp(min=1e-9)
    axes = torch.stack([ray, level, torch.linalg.cross(ray, level)], 1)  # (N, 3, 3), its rows n, h, v
    variances = (axes @ covariance[:, :3, :3] * axes).sum(-1)  # n^T C n = (s_z |c| / z)^2, ...
    unknown = torch.where((covariance != 0).any(-1).any(-1), 0.0, math.nan).double()
    spread = variances.clamp(min=0).sqrt() + unknown[:, None]
    yaw = covariance[:, 4, 4]
    flipped = yaw >= FLIPPED * (1 - 1e-12)
    return replace(
        boxes,
        depth_std=spread[:, 0] * ray[:, 2],
        across_std=spread[:, 1:],
        yaw_std=torch.where(flipped, yaw - FLIPPED, yaw).clamp(min=0).sqrt() + unknown,
        flip_odds=0.5 * flipped.double(),
    )
