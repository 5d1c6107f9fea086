"""GTM: gradient-targeted transfer modulation, which keeps student and teacher in step.

METHOD 6 [paper idea; formula ours, after OGM-GE]. Who lags is measured on yardsticks that both can be held to without
3D labels; a teacher that is ahead stops pulling the shared features its way, a student that has caught up feeds back.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

YARDSTICKS = ("depth", "projection", "yaw")
"""E1 = |log z - log z_f|, E2 = 1 - IoU(projection, 2D box), E3 = q_yaw (1 - cos 2(a - a*))."""


class _ScaleGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0] * ctx.factor, None


def scale_gradient(x: Tensor, factor: float) -> Tensor:
    """x itself; its gradient is multiplied by the factor."""
    if factor == 1.0:
        return x
    scaled: Tensor = _ScaleGradient.apply(x, factor)
    return scaled


class Modulation:
    """Running measure of who lags, and the two factors that follow from it.

    Args:
        alpha: how sharply k_D falls as the student lags.
        beta: weight of the student's feedback when it is level with the teacher.
        momentum: of the running means of the yardsticks, which start at their first value.
    """

    def __init__(self, alpha: float, beta: float, momentum: float = 0.99) -> None:
        self.alpha, self.beta, self.momentum = alpha, beta, momentum
        self.errors: dict[str, float] = {}

    def update(self, student: dict[str, float], teacher: dict[str, float]) -> None:
        """Take in one batch's means of the yardsticks; those that are missing or not finite are left out."""
        for who, errors in (("student", student), ("teacher", teacher)):
            for name, error in errors.items():
                key = f"{who}_{name}"
                if math.isfinite(error):
                    old = self.errors.get(key, error)
                    self.errors[key] = self.momentum * old + (1 - self.momentum) * error

    @property
    def rho(self) -> float:
        """Geometric mean of the ratios student/teacher, in [.1, 10]; above 1 the student lags."""
        ratios = [
            max(self.errors[f"student_{name}"], 1e-4) / max(self.errors[f"teacher_{name}"], 1e-4)
            for name in YARDSTICKS
            if f"student_{name}" in self.errors and f"teacher_{name}" in self.errors
        ]
        if not ratios:
            return 1.0
        mean = math.exp(sum(math.log(r) for r in ratios) / len(ratios))
        return min(max(mean, 0.1), 10.0)

    @property
    def k_teacher(self) -> float:
        """k_D: factor on the teacher's gradient into the shared features, in [.2, 1]."""
        return max(0.2, 1 - math.tanh(self.alpha * max(0.0, self.rho - 1)))

    @property
    def k_feedback(self) -> float:
        """k_fb: weight of the student's feedback to the teacher, in [0, beta]."""
        return self.beta * min(1.0, 1 / self.rho) ** 2

    def state_dict(self) -> dict[str, float]:
        """What a checkpoint keeps."""
        return dict(self.errors)

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Inverse of :meth:`state_dict`."""
        self.errors = dict(state)
