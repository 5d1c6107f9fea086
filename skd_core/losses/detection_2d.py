"""L_2D: focal loss on the heatmap, L1 on offset and size (METHOD 6 [peer])."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from skd_core.models.backbone import STRIDE
from skd_core.models.heads import Maps2D


def render_heatmap(boxes: Tensor, classes: Tensor, batch_index: Tensor, shape: tuple[int, int, int, int]) -> Tensor:
    """Target heatmap: Gaussians of sd .54/6 of the box's width and height [peer: TTFNet], 1 at the centre cell.

    Args:
        boxes: shape (N, 4), pixels of the network's input; classes, batch_index: shape (N,).
        shape: (B, C, H, W) of the map at stride 4.

    Returns:
        shape (B, C, H, W), in [0, 1].
    """
    B, C, H, W = shape
    center, size = 0.5 * (boxes[:, :2] + boxes[:, 2:]) / STRIDE, (boxes[:, 2:] - boxes[:, :2]) / STRIDE
    cell = center.floor()
    sd = (0.54 / 6 * size).clamp(min=0.3)
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
    """L_2D."""

    def forward(
        self, maps: Maps2D, boxes: Tensor, classes: Tensor, batch_index: Tensor, ignore: Tensor, ignore_index: Tensor
    ) -> dict[str, Tensor]:
        """Heatmap, offset and size terms, each a sum over all objects, to be divided by their number.

        Args:
            maps: output of the 2D heads on B images.
            boxes: shape (N, 4), 2D boxes, pixels of the network's input; classes, batch_index: shape (N,).
            ignore: shape (M, 4), regions where no negative is learnt; ignore_index: shape (M,).
        """
        shape: tuple[int, int, int, int] = tuple(maps.heatmap.shape)  # type: ignore[assignment]
        target = render_heatmap(boxes, classes, batch_index, shape)
        logits = maps.heatmap.float()
        log_p, log_q, p = F.logsigmoid(logits), F.logsigmoid(-logits), torch.sigmoid(logits)
        positive = target == 1
        weight = (1 - target) ** 4 * ignore_mask(ignore, ignore_index, shape)
        focal = torch.where(positive, (1 - p) ** 2 * log_p, weight * p**2 * log_q)

        center, size = 0.5 * (boxes[:, :2] + boxes[:, 2:]) / STRIDE, (boxes[:, 2:] - boxes[:, :2]) / STRIDE
        column = center[:, 0].long().clamp(0, shape[3] - 1)
        row = center[:, 1].long().clamp(0, shape[2] - 1)
        offset = maps.offset.float()[batch_index, :, row, column]  # (N, 2)
        log_size = maps.size.float()[batch_index, :, row, column]
        cell = torch.stack([column, row], -1)
        return {
            "heatmap": -focal.sum(),
            "offset_2d": (offset - (center - cell)).abs().sum(),
            "size_2d": (log_size - size.clamp(min=0.1).log()).abs().sum(),
        }
