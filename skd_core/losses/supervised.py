"""The fully supervised baseline: the same loss forms on true 3D boxes (method: Training, Ablation)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from skd_core.boxes import Boxes3D, yaw_to_alpha
from skd_core.camera import from_center, project
from skd_core.losses.object_depth import ObjectDepthLoss
from skd_core.losses.yaw import YawLoss
from skd_core.models.decode import Prediction3D


class SupervisedLoss(nn.Module):
    """Laplace depth, L1 on centre, log size and yaw vector, cross-entropy on front and rear; a value for each box."""

    def __init__(self, center_range: float = 1.0) -> None:
        super().__init__()
        self.center_range = center_range
        self.depth, self.yaw = ObjectDepthLoss(), YawLoss()

    def forward(self, prediction: Prediction3D, truth: Boxes3D, rois: Tensor, P: Tensor) -> dict[str, Tensor]:
        """Terms of shape (N,).

        Args:
            prediction: of N RoIs; truth: their true boxes, in the same order.
            rois: shape (N, 4), pixels; P: shape (N, 3, 4).
        """
        uv = project(P, truth.center[:, None])[:, 0]
        share = (uv - rois[:, :2]) / (rois[:, 2:] - rois[:, :2]).clamp(min=1.0)
        seen = from_center(P, truth.center)  # as the network's depth and observation angle are
        alpha = yaw_to_alpha(truth.yaw, seen)
        turned = (alpha.abs() > torch.pi / 2).long()
        return {
            "depth": self.depth(prediction.log_z, prediction.log_sigma, seen[:, 2]),
            "center": (prediction.center_uv - self._within(share)).abs().sum(-1),
            "size": (prediction.size / truth.size).log().abs().sum(-1),
            "yaw": self.yaw(prediction.yaw_vector, alpha, torch.ones_like(alpha)),
            "direction": 0.2 * F.cross_entropy(prediction.direction, turned, reduction="none"),
        }

    def _within(self, share: Tensor) -> Tensor:
        """The nearest place that the network can name: in the RoI grown by ``center_range``."""
        half = 0.5 * self.center_range
        return share.clamp(0.5 - half, 0.5 + half)
