"""L_depth: the teacher's depth map against the estimated one (method: Losses, Depth map) [paper idea, peer form]."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class DepthMapLoss(nn.Module):
    """``mean w (sqrt2 e^{-s} |log D_p - log D*| + s)``, w = 1 + 4 heat, over pixels with 1 < D* < 80 m.

    The mean is taken image by image [ours], so that it does not depend on how images are spread over processes.
    """

    def forward(self, log_depth: Tensor, log_sigma: Tensor, target: Tensor, heat: Tensor) -> Tensor:
        """Scalar; images without any target count as 0.

        Args:
            log_depth: shape (B, H, W), log D_p; log_sigma: shape (B, H, W), s.
            target: shape (B, H, W), metres, anything that is not finite or outside 1 to 80 m: none.
            heat: shape (B, H, W), largest target heat over the classes.
        """
        known = target.isfinite() & (target > 1) & (target < 80)
        error = (log_depth - torch.where(known, target, 1.0).log()).abs()
        weight = (1 + 4 * heat) * known
        loss = weight * (math.sqrt(2) * torch.exp(-log_sigma) * error + log_sigma)
        return (loss.sum((1, 2)) / weight.sum((1, 2)).clamp(min=1)).mean()
