"""L_dim: sizes stay near the class prior (method: Losses, Dimension) [peer]."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class DimensionLoss(nn.Module):
    """``sum_d max(0, |log(d / mu)| / s - 1)``, a value for each box: free within the tolerance s, linear beyond."""

    def forward(self, size: Tensor, prior: Tensor, tolerance: Tensor) -> Tensor:
        """shape (N,); all arguments of shape (N, 3), (l, w, h)."""
        return (torch.log(size / prior).abs() / tolerance - 1).clamp(min=0).sum(-1)
