"""L_proj: the projection of the 3D box against the 2D box (method: Losses, Projection) [paper idea, our form]."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import generalized_box_iou_loss


class ProjectionLoss(nn.Module):
    """``sum_e m_e w_e SmoothL1((b'_e - b_e) / size_e, beta .05) / sum m + (1 - GIoU)``, a value for each box.

    m masks the edges that are not the object's own: the image border or, in a tight box, a nearer object cuts it
    there. Beyond such an edge the projection is clipped (:func:`clip_to_visible`): the object may continue, but not end
    before it. w_e lowers the left and right edges of classes whose limbs leave the box.
    """

    def forward(self, projected: Tensor, boxes: Tensor, hidden: Tensor, side_weight: Tensor) -> Tensor:
        """shape (N,).

        Args:
            projected: shape (N, 4), around the projected corners, not clipped, pixels of the network's input.
            boxes: shape (N, 4), the true 2D boxes, not jittered, whole where a crop cuts them.
            hidden: shape (N, 4), bool, edges that are not the object's own.
            side_weight: shape (N,), w of the left and right edges.
        """
        clipped = clip_to_visible(projected, boxes, hidden)
        size = (boxes[:, 2:] - boxes[:, :2]).clamp(min=1.0).repeat(1, 2)  # (N, 4): w, h, w, h
        inside = (~hidden).to(projected)
        weight = torch.stack([side_weight, torch.ones_like(side_weight)], -1).repeat(1, 2)
        edges = F.smooth_l1_loss(clipped / size, boxes / size, reduction="none", beta=0.05)
        edge_term = (inside * weight * edges).sum(-1) / inside.sum(-1).clamp(min=1)
        giou_term: Tensor = generalized_box_iou_loss(clipped, boxes, eps=1e-6)
        return edge_term + giou_term


def clip_to_visible(projected: Tensor, boxes: Tensor, hidden: Tensor) -> Tensor:
    """shape (N, 4): projections clipped at the hidden edges of their 2D boxes; arguments as in the loss."""
    low, high = projected[:, :2], projected[:, 2:]
    inner_low = torch.minimum(torch.maximum(low, boxes[:, :2]), high)  # a box is never turned inside out
    inner_high = torch.maximum(torch.minimum(high, boxes[:, 2:]), low)
    return torch.where(hidden, torch.cat([inner_low, inner_high], -1), projected)
