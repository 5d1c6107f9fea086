"""Distillation of the teacher's RoI features into the student's, before the heads [peer: the idea; ours: the forms]."""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn


class FeatureLoss(nn.Module):
    """How far the student's RoI features are from the teacher's fused ones, a value for each object.

    "cosine": 1 - cosine over channels, mean over bins, in [0, 2]. "l2": squared distance, mean over channels and
    bins. The teacher's take no gradient; both must be of the same RoIs.
    """

    def __init__(self, kind: Literal["cosine", "l2"]) -> None:
        super().__init__()
        self.kind = kind

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """shape (N,); student, teacher: shape (N, C, R, R)."""
        aim = teacher.detach()
        if self.kind == "cosine":
            return (1 - F.cosine_similarity(student, aim, dim=1)).mean((-2, -1))
        return (student - aim).square().mean((1, 2, 3))
