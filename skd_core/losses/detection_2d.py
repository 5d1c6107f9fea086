"""L_2D: focal loss on the heatmap, L1 on offset and size around peaks (method: Losses, 2D detection) [peer]."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from skd_core.models.backbone import STRIDE
from skd_core.models.heads import Maps2D


def heat_sd(size: Tensor) -> Tensor:
    """Sd of an object's Gaussian along each side: .54/6 of the side, in cells [peer: TTFNet]."""
    return (0.54 / 6 * size).clamp(min=0.3)


def render_heatmap(boxes: Tensor, classes: Tensor, batch_index: Tensor, shape: tuple[int, int, int, int]) -> Tensor:
    """Target heatmap: Gaussians of :func:`heat_sd`, 1 at the centre cell.

    Args:
        boxes: shape (N, 4), pixels of the network's input; classes, batch_index: shape (N,).
        shape: (B, C, H, W) of the map at stride 4.

    Returns:
        shape (B, C, H, W), in [0, 1].
    """
    B, C, H, W = shape
    center, size = 0.5 * (boxes[:, :2] + boxes[:, 2:]) / STRIDE, (boxes[:, 2:] - boxes[:, :2]) / STRIDE
    cell = center.floor()
    sd = heat_sd(size)
    dx = (torch.arange(W, device=boxes.device) - cell[:, :1]) / sd[:, :1]  # (N, W)
    dy = (torch.arange(H, device=boxes.device) - cell[:, 1:]) / sd[:, 1:]  # (N, H)
    blobs = torch.exp(-0.5 * (dy[:, :, None] ** 2 + dx[:, None, :] ** 2))  # (N, H, W)
    heat = boxes.new_zeros(B * C, H, W)
    index = (batch_index * C + classes)[:, None, None].expand_as(blobs)
    return heat.scatter_reduce(0, index, blobs, "amax").view(B, C, H, W)


def ignore_mask(regions: Tensor, batch_index: Tensor, shape: tuple[int, int, int, int]) -> Tensor:
    """shape (B, 1, H, W), 0 in cells whose centre lies in a region (M, 4) where no negative is learnt, else 1."""
    B, _, H, W = shape
    x = (torch.arange(W, device=regions.device) + 0.5) * STRIDE
    y = (torch.arange(H, device=regions.device) + 0.5) * STRIDE
    in_x = (x >= regions[:, :1]) & (x < regions[:, 2:3])  # (M, W)
    in_y = (y >= regions[:, 1:2]) & (y < regions[:, 3:])
    mask = regions.new_ones(B, H, W)
    inside = (in_y[:, :, None] & in_x[:, None, :]).to(mask)
    return mask.scatter_reduce(0, batch_index[:, None, None].expand_as(inside), 1 - inside, "amin")[:, None]


class Detection2DLoss(nn.Module):
    """L_2D. Offset and size are learnt in the 3x3 cells around the centre, weighed by the Gaussian, sum 1."""

    def forward(
        self,
        maps: Maps2D,
        boxes: Tensor,
        classes: Tensor,
        batch_index: Tensor,
        ignore: Tensor,
        ignore_index: Tensor,
        *,
        whole: Tensor | None = None,
        target: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Heatmap, offset and size terms, each a sum over all objects, to be divided by their number.

        Args:
            maps: output of the 2D heads on B images.
            boxes: shape (N, 4), 2D boxes, pixels of the network's input; classes, batch_index: shape (N,).
            ignore: shape (M, 4), regions where no negative is learnt; ignore_index: shape (M,).
            whole: shape (N,), bool, boxes to learn offset and size from; None: all.
            target: what :func:`render_heatmap` makes of these boxes, if the caller has it already.
        """
        shape: tuple[int, int, int, int] = tuple(maps.heatmap.shape)  # type: ignore[assignment]
        if target is None:
            target = render_heatmap(boxes, classes, batch_index, shape)
        logits = maps.heatmap.float()
        log_p, log_q, p = F.logsigmoid(logits), F.logsigmoid(-logits), torch.sigmoid(logits)
        positive = target == 1
        weight = (1 - target) ** 4 * ignore_mask(ignore, ignore_index, shape)
        focal = torch.where(positive, (1 - p) ** 2 * log_p, weight * p**2 * log_q)

        center, size = 0.5 * (boxes[:, :2] + boxes[:, 2:]) / STRIDE, (boxes[:, 2:] - boxes[:, :2]) / STRIDE
        dx = torch.tensor([-1, 0, 1], device=boxes.device).repeat(3)  # (9,), row by row
        dy = torch.tensor([-1, 0, 1], device=boxes.device).repeat_interleave(3)
        column = center[:, :1].floor().long() + dx  # (N, 9)
        row = center[:, 1:].floor().long() + dy
        inside = (column >= 0) & (column < shape[3]) & (row >= 0) & (row < shape[2])
        sd = heat_sd(size)
        near = torch.exp(-0.5 * ((dx / sd[:, :1]) ** 2 + (dy / sd[:, 1:]) ** 2)) * inside  # (N, 9)
        near = near / near.sum(-1, keepdim=True).clamp(min=1e-6)
        if whole is not None:
            near = near * whole[:, None]
        column, row = column.clamp(0, shape[3] - 1), row.clamp(0, shape[2] - 1)
        offset = maps.offset.float()[batch_index[:, None], :, row, column]  # (N, 9, 2)
        log_size = maps.size.float()[batch_index[:, None], :, row, column]
        wrong_place = (offset - (center[:, None] - torch.stack([column, row], -1))).abs().sum(-1)
        wrong_size = (log_size - size[:, None].clamp(min=0.1).log()).abs().sum(-1)
        return {
            "heatmap": -focal.sum(),
            "offset_2d": (near * wrong_place).sum(),
            "size_2d": (near * wrong_size).sum(),
        }
