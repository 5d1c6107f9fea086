"""Occlusion between 2D boxes, with their depth order from the lower edges [ours]."""

from __future__ import annotations

import torch
from torch import Tensor

from skd_core.iou import covered


def covered_edges(xyxy: Tensor, share: float = 0.4) -> Tensor:
    """Which edges of tight 2D boxes are the outline of something nearer and not their own [ours].

    Of two boxes in one image the nearer one reaches lower. An edge counts as covered where a nearer box, grown by 5 %
    of its size, hides at least ``share`` of its length.

    Args:
        xyxy: shape (N, 4), all objects of one image, pixels.

    Returns:
        shape (N, 4), bool: left, top, right, bottom.
    """
    grown = xyxy + 0.05 * (xyxy[:, 2:] - xyxy[:, :2]).repeat(1, 2) * xyxy.new_tensor([-1, -1, 1, 1])
    x1, y1, x2, y2 = (part[:, None] for part in xyxy.unbind(-1))  # (N, 1)
    a, b, c, d = grown.unbind(-1)  # (N,)
    nearer = xyxy[:, 3] > y2 + 1  # (N, N): column j is nearer than row i
    in_x = ((torch.minimum(x2, c) - torch.maximum(x1, a)) / (x2 - x1).clamp(min=1)) >= share
    in_y = ((torch.minimum(y2, d) - torch.maximum(y1, b)) / (y2 - y1).clamp(min=1)) >= share
    vertical = [nearer & in_y & (x > a) & (x < c) for x in (x1, x2)]
    horizontal = [nearer & in_x & (y > b) & (y < d) for y in (y1, y2)]
    return torch.stack([vertical[0], horizontal[0], vertical[1], horizontal[1]], -1).any(1)


def covered_share(xyxy: Tensor) -> Tensor:
    """shape (N,), how much of each 2D box (N, 4) of one image the nearer box that hides most of it covers."""
    if len(xyxy) == 0:
        return xyxy.new_zeros(0)
    nearer = xyxy[None, :, 3] > xyxy[:, None, 3] + 1
    return (nearer * covered(xyxy, xyxy)).amax(-1)
