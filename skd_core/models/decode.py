"""From raw outputs to boxes: 2D peaks, and the 3D box (method: Decoding) [ours unless noted]."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from skd_core.boxes import project_boxes, wrap_angle
from skd_core.camera import from_center, unproject
from skd_core.geometry import geometric_depth, half_extent
from skd_core.models.backbone import STRIDE
from skd_core.models.heads import Maps2D, Raw3D


@dataclass
class Prediction3D:
    """Decoded 3D boxes, one a RoI, camera frame.

    Attributes:
        center: shape (N, 3), volume centre, metres.
        size: shape (N, 3), (l, w, h), metres.
        yaw: shape (N,), radians, modulo pi unless the direction is trained.
        log_z: shape (N,), log of the centre's depth as seen from the optical centre: its depth in P's frame + P[2, 3].
        log_sigma: shape (N,), log sigma_z, the relative standard deviation of the depth (Laplace: scale sigma/sqrt2).
        center_uv: shape (N, 2), projected centre as a share of the RoI, in (0, 1) unless ``model.center_range`` is
            larger; see :meth:`relative_to`.
        yaw_vector: shape (N, 2), t before normalisation.
        alpha: shape (N,), observation angle at the optical centre in (-pi/2, pi/2], with gradient even where yaw has
            none.
        direction: shape (N, 2), logits.
    """

    center: Tensor
    size: Tensor
    yaw: Tensor
    log_z: Tensor
    log_sigma: Tensor
    center_uv: Tensor
    yaw_vector: Tensor
    alpha: Tensor
    direction: Tensor

    def project(self, P: Tensor) -> Tensor:
        """shape (N, 4), 2D boxes around the projected corners, not clipped; P: shape (N, 3, 4)."""
        return project_boxes(P, self.center, self.size, self.yaw, min_depth=0.5)

    def relative_to(self, boxes: Tensor, rois: Tensor) -> Prediction3D:
        """The same predictions, ``center_uv`` as a share of other 2D boxes than of the RoIs that they were made from.

        Args:
            boxes: shape (N, 4), what center_uv shall refer to; rois: shape (N, 4), what it refers to; pixels.
        """
        uv = rois[:, :2] + self.center_uv * (rois[:, 2:] - rois[:, :2])
        return replace(self, center_uv=(uv - boxes[:, :2]) / (boxes[:, 2:] - boxes[:, :2]).clamp(min=1.0))


def decode_3d(
    raw: Raw3D,
    boxes: Tensor,
    P: Tensor,
    prior: Tensor,
    cut: Tensor,
    *,
    detach_yaw: bool = False,
    use_direction: bool = False,
    center_offset: bool = True,
    center_range: float = 1.0,
    focal: float | None = None,
) -> Prediction3D:
    """Raw 3D outputs -> boxes (method: Decoding).

    Args:
        raw: the 3D head's output.
        boxes: shape (N, 4), the 2D boxes that made the RoIs, pixels of the network's input.
        P: shape (N, 3, 4), cameras of the network's input.
        prior: shape (N, 3), class sizes (l, w, h).
        cut: shape (N,), bool: the image border cuts the box at top or bottom, so that its height means nothing.
        detach_yaw: let no gradient through yaw into corners, e and depth (method: Losses, Projection).
        use_direction: let the direction logits choose between a and a + pi.
        center_offset: False drops the centre offset e (a row of the ablation).
        center_range: the projected centre lies in the 2D box grown by this factor about its centre [ours]: that of an
            object which the border cuts may lie outside the box.
        focal: f_y that the free depth of a cut box is meant for; at another it scales with f_y / focal [ours], as the
            depth of whatever looks the same does. None: the free depth is taken as it is.
    """
    size = prior * torch.exp(0.25 * torch.tanh(raw.size))  # (N, 3)
    alpha = 0.5 * torch.atan2(raw.yaw[:, 1], raw.yaw[:, 0] + 1e-9)  # (N,), in (-pi/2, pi/2]
    turned = alpha.detach() if detach_yaw else alpha
    if use_direction:
        turned = turned + math.pi * (raw.direction[:, 1] > raw.direction[:, 0])

    wh = boxes[:, 2:] - boxes[:, :2]  # (N, 2)
    share = torch.sigmoid(raw.center / center_range)  # [peer: WeakM3D]
    share = center_range * (share - 0.5) + 0.5 if center_range != 1 else share
    uv = boxes[:, :2] + share * wh

    ray = torch.atan2(uv[:, 0].detach() - P[:, 0, 2], P[:, 0, 0])
    offset = half_extent(size, turned + ray) if center_offset else torch.zeros_like(ray)
    geometric = geometric_depth(P[:, 1, 1], size[:, 2], wh[:, 1].clamp(min=1.0), offset)
    free = -raw.depth[:, 2] if focal is None else torch.log(P[:, 1, 1] / focal) - raw.depth[:, 2]
    log_z = torch.where(cut, free, torch.log(geometric) + 0.3 * torch.tanh(raw.depth[:, 0]))
    log_z = log_z.clamp(math.log(0.5), math.log(200.0))

    # depth and heading are as seen from the optical centre, which is not P's origin where P holds a baseline
    z = torch.exp(log_z) - P[:, 2, 3]
    center = unproject(P, uv[:, None], z[:, None])[:, 0]  # (N, 3)
    seen = from_center(P, center)
    yaw = wrap_angle(turned + torch.atan2(seen[:, 0], seen[:, 2]).detach())
    return Prediction3D(center, size, yaw, log_z, raw.depth[:, 1], share, raw.yaw, alpha, raw.direction)


def decode_2d(maps: Maps2D, limit: int) -> tuple[Tensor, Tensor, Tensor]:
    """Peaks of the heatmap after a 3x3 max-pool NMS [peer: CenterNet].

    Args:
        maps: of B images.
        limit: peaks kept per image (50).

    Returns:
        boxes (B, K, 4) in pixels of the network's input, scores (B, K), classes (B, K); K <= limit, best first.
    """
    heat = torch.sigmoid(maps.heatmap.float())
    heat = heat * (F.max_pool2d(heat, 3, 1, 1) == heat)
    B, C, H, W = heat.shape
    scores, index = heat.flatten(1).topk(min(limit, C * H * W))  # (B, K)
    image = torch.arange(B, device=heat.device)[:, None].expand_as(index)
    return boxes_at(maps, image, index % (H * W)), scores, index // (H * W)


def boxes_at(maps: Maps2D, image: Tensor, cell: Tensor) -> Tensor:
    """The 2D boxes that cells of the maps stand for.

    Args:
        maps: of B images.
        image: shape (...), long, which image; cell: shape (...), long, row x W + column.

    Returns:
        shape (..., 4), pixels of the network's input, not clipped.
    """
    W = maps.offset.shape[-1]
    row, column = cell // W, cell % W
    offset = maps.offset.float()[image, :, row, column].clamp(-1, 2)  # (..., 2)
    size = maps.size.float()[image, :, row, column].clamp(-2, 7)
    center = (torch.stack([column, row], -1) + offset) * STRIDE
    half = 0.5 * torch.exp(size) * STRIDE
    return torch.cat([center - half, center + half], -1)
