"""L_proj: the projection of the 3D box against the 2D box (METHOD 6 [paper idea, our form])."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import generalized_box_iou_loss

from skd_core.models.decode import BORDER


class ProjectionLoss(nn.Module):
    """``sum_e m_e w_e SmoothL1((b'_e - b_e) / size_e, beta .05) / sum m + (1 - GIoU)``, a value for each box.

    m masks edges within 3 px of the image border, where the 2D box is cut and says nothing; the projection is clipped
    to the image like the label. w_e lowers the left and right edges of classes whose limbs leave the box.
    """

    def forward(self, projected: Tensor, boxes: Tensor, width: Tensor, height: Tensor, side_weight: Tensor) -> Tensor:
        """shape (N,).

        Args:
            projected: shape (N, 4), around the projected corners, not clipped, pixels of the network's input.
            boxes: shape (N, 4), the true 2D boxes, not jittered.
            width, height: shape (N,), of each one's image; side_weight: shape (N,), w of the left and right edges.
        """
        bound = torch.stack([width, height, width, height], -1).to(projected)
        clipped = torch.minimum(projected.clamp(min=0), bound)
        size = (boxes[:, 2:] - boxes[:, :2]).clamp(min=1.0).repeat(1, 2)  # (N, 4): w, h, w, h
        x1, y1, x2, y2 = boxes.unbind(-1)
        inside = torch.stack([x1 > BORDER, y1 > BORDER, x2 < width - BORDER, y2 < height - BORDER], -1).to(projected)
        weight = torch.stack([side_weight, torch.ones_like(side_weight)], -1).repeat(1, 2)
        edges = F.smooth_l1_loss(clipped / size, boxes / size, reduction="none", beta=0.05)
        edge_term = (inside * weight * edges).sum(-1) / inside.sum(-1).clamp(min=1)
        giou_term: Tensor = generalized_box_iou_loss(clipped, boxes, eps=1e-6)
        return edge_term + giou_term
