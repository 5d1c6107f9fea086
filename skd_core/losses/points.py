"""L_points: the depth map's points lie on the box's visible sides (method: Losses, Points) [peer: WeakM3D]."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class PointsLoss(nn.Module):
    """Mean over points, seen from above: distance to the nearest edge of the footprint, + what sticks out of it.

    ``mean [ d(edge) + relu(|dx| - l/2) + relu(|dz| - w/2) ] / density``, with dx, dz in the box's own axes and each
    point weighed by the inverse of how many others lie near it, so that a dense side does not drown the other.
    """

    def forward(
        self, center: Tensor, size: Tensor, yaw: Tensor, points: Tensor, density: Tensor | None = None
    ) -> Tensor:
        """shape (N,), metres; 0 where there are no points.

        Args:
            center: shape (N, 3); size: shape (N, 3), (l, w, h); yaw: shape (N,), camera frame.
            points: shape (N, K, 2), (x, z) in the camera frame, metres, NaN where there are fewer than K.
            density: what :meth:`density` says of these points, if the caller has it already.
        """
        known = points.isfinite().all(-1)  # (N, K)
        points = torch.where(known[..., None], points, 0.0)
        weight = known / (self.density(points) if density is None else density)
        delta = points - center[:, None, [0, 2]]
        c, s = torch.cos(yaw)[:, None], torch.sin(yaw)[:, None]
        forward, left = (delta[..., 0] * c - delta[..., 1] * s).abs(), (delta[..., 0] * s + delta[..., 1] * c).abs()
        over_l, over_w = forward - 0.5 * size[:, :1], left - 0.5 * size[:, 1:2]  # signed: negative inside
        outside_l, outside_w = over_l.clamp(min=0), over_w.clamp(min=0)
        beyond = (outside_l**2 + outside_w**2 + 1e-8).sqrt()
        edge = torch.where((over_l <= 0) & (over_w <= 0), -torch.maximum(over_l, over_w), beyond)
        loss = (weight * (edge + outside_l + outside_w)).sum(-1)
        return loss / weight.sum(-1).clamp(min=1e-6)

    @staticmethod
    def density(points: Tensor, radius: float = 0.4) -> Tensor:
        """shape (N, K), how many known points lie within the radius (metres) of each, itself included, at least 1."""
        known = points.isfinite().all(-1)
        points = torch.where(known[..., None], points, 0.0)
        distance = torch.cdist(points, points, compute_mode="donot_use_mm_for_euclid_dist")
        near = (distance < radius) & known[:, None, :]
        return near.sum(-1).clamp(min=1)
