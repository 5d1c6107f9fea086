"""L_yaw: the yaw vector against the pseudo-target, modulo pi (method: Losses, Yaw vector)."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class YawLoss(nn.Module):
    """``q_yaw mean |t - (cos 2a*, sin 2a*)|``, a value for each box: blind to front and back, not to the mirror image.

    On the vector, as in the supervised loss, and not on its angle [ours]: near the target the slope stays, and t keeps
    a length of about 1, without which distilling it would teach an arbitrary length.
    """

    def forward(self, vector: Tensor, target: Tensor, confidence: Tensor) -> Tensor:
        """shape (N,), 0 where there is no target.

        Args:
            vector: shape (N, 2), t before normalisation.
            target: shape (N,), a* in radians, NaN where there is none; confidence: shape (N,), q_yaw in [0, 1].
        """
        known = target.isfinite() & (confidence > 0)
        doubled = 2 * torch.where(known, target, 0.0)
        aim = torch.stack([torch.cos(doubled), torch.sin(doubled)], -1)
        return torch.where(known, confidence * (vector - aim).abs().mean(-1), 0.0)


def yaw_error(alpha: Tensor, target: Tensor, confidence: Tensor) -> Tensor:
    """shape (N,): E3, ``q_yaw (1 - cos 2(a - a*))``, 0 without a target (method: Gradient-targeted modulation)."""
    known = target.isfinite() & (confidence > 0)
    error = confidence * (1 - torch.cos(2 * (alpha - torch.where(known, target, 0.0))))
    return torch.where(known, error, 0.0)
