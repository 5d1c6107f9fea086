"""L_yaw: the observation angle modulo pi against the pseudo-target (METHOD 6)."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class YawLoss(nn.Module):
    """``q_yaw (1 - cos 2(a - a*))``, a value for each box: blind to front and back, aware of the mirror image."""

    def forward(self, alpha: Tensor, target: Tensor, confidence: Tensor) -> Tensor:
        """shape (N,), 0 where there is no target; alpha, target in radians, confidence in [0, 1], all of shape (N,)."""
        known = target.isfinite() & (confidence > 0)
        loss = confidence * (1 - torch.cos(2 * (alpha - torch.where(known, target, 0.0))))
        return torch.where(known, loss, 0.0)
