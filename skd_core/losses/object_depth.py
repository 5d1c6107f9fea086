"""L_z: Laplace likelihood of the centre's depth in log space (method: Losses, Object depth) [peer form]."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class ObjectDepthLoss(nn.Module):
    """``sqrt2 e^{-d2} |log z - log z_f| + d2``, a value for each box; d2 = log sigma_z is floored by the 3D head.

    The negative log likelihood of a Laplace distribution of log z with standard deviation sigma_z.
    """

    def forward(self, log_z: Tensor, log_sigma: Tensor, target: Tensor, margin: Tensor | None = None) -> Tensor:
        """shape (N,), 0 where there is no target.

        Args:
            log_z: shape (N,).
            log_sigma: shape (N,), log of the relative standard deviation.
            target: shape (N,), metres; NaN: none.
            margin: shape (N,), error of log z below which the loss is constant [ours]: tolerance of a target that is
                itself inaccurate. Where it is not 0, sigma_z takes no gradient. None: 0.
        """
        known = target.isfinite() & (target > 0)
        error = (log_z - torch.where(known, target, 1.0).log()).abs()
        if margin is not None:
            error = (error - margin).clamp(min=0)
            log_sigma = torch.where(margin > 0, log_sigma.detach(), log_sigma)
        loss = math.sqrt(2) * torch.exp(-log_sigma) * error + log_sigma
        return torch.where(known, loss, 0.0)
