"""GTM: gradient-targeted transfer modulation, which keeps student and teacher in step.

METHOD 6 [paper idea; formulas ours, after OGM-GE]. Who lags is measured without 3D labels, see ``method.gtm_measure``;
what follows from it, see ``method.gtm_form``: the leader is damped, the laggard is lifted, or the transfer is weighed
object by object. A student that has caught up feeds back.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from skd_core.config import MethodConfig

YARDSTICKS = ("depth", "projection", "yaw")
"""E1 = |log z - log z_f|, E2 = 1 - IoU(projection, 2D box), E3 = q_yaw (1 - cos 2(a - a*))."""
PACE = ("loss", "recent_loss", "loss_spread")
"""Of a network's own weak loss an object: running mean, running mean over a fifth of the steps, mean deviation."""
MEASURES = tuple(f"{who}_{name}" for who in ("student", "teacher") for name in (*YARDSTICKS, *PACE))
"""What a checkpoint may hold."""
LEAST_ERROR = 0.02
"""Added to both errors where objects are compared: what is less apart is level."""


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
    """Running measure of who lags, and the factors that follow from it.

    Args:
        method: ``gtm_alpha`` says how sharply k_D falls and k_S rises as the student lags, ``gtm_beta`` the weight of
            the student's feedback when it is level with the teacher, ``gtm_lift`` the most that k_S can be;
            ``gtm_form`` and ``gtm_measure`` as in the config.
        momentum: of the running means, which start at their first value.
    """

    def __init__(self, method: MethodConfig, momentum: float = 0.99) -> None:
        self.method, self.momentum = method, momentum
        self.errors: dict[str, float] = {}

    def update(self, student: dict[str, float], teacher: dict[str, float]) -> None:
        """Take in one batch's means of the yardsticks; those that are missing or not finite are left out."""
        for who, errors in (("student", student), ("teacher", teacher)):
            for name, error in errors.items():
                if math.isfinite(error):
                    self._follow(f"{who}_{name}", error, self.momentum)

    def update_pace(self, student: float, teacher: float) -> None:
        """Take in one batch's weak loss an object of both networks; nothing if one of them is not finite."""
        if not (math.isfinite(student) and math.isfinite(teacher)):
            return
        for who, loss in (("student", student), ("teacher", teacher)):
            if f"{who}_loss" in self.errors:
                self._follow(f"{who}_loss_spread", abs(loss - self.errors[f"{who}_loss"]), self.momentum)
            self._follow(f"{who}_loss", loss, self.momentum)
            self._follow(f"{who}_recent_loss", loss, max(0.0, 1 - 5 * (1 - self.momentum)))

    def _follow(self, key: str, value: float, momentum: float) -> None:
        self.errors[key] = momentum * self.errors.get(key, value) + (1 - momentum) * value

    def pace(self, who: str) -> float:
        """How far a network's own loss has fallen of late, in units of its spread over batches; negative if it rises.

        The difference of two running means of different length is proportional to the slope. Losses may be negative, so
        that ratios of them mean nothing; the spread makes two losses of different make comparable.
        """
        loss, recent, spread = (self.errors.get(f"{who}_{name}", 0.0) for name in PACE)
        return (loss - recent) / max(spread, 1e-6)

    @property
    def rho(self) -> float:
        """In [.1, 10]; above 1 the student lags.

        Geometric mean of the ratios student/teacher of the yardsticks, or exp(the teacher's pace - the student's).
        """
        if self.method.gtm_measure == "pace":
            return math.exp(min(max(self.pace("teacher") - self.pace("student"), -math.log(10)), math.log(10)))
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
    def lag(self) -> float:
        """How far the student lags, in [0, 1): tanh(alpha max(0, rho - 1))."""
        return math.tanh(self.method.gtm_alpha * max(0.0, self.rho - 1))

    @property
    def k_teacher(self) -> float:
        """k_D: factor on the teacher's gradient into the shared features, in [.2, 1]; 1 unless it is damped."""
        return max(0.2, 1 - self.lag) if self.method.gtm_form == "damp_teacher" else 1.0

    @property
    def k_student(self) -> float:
        """k_S: factor on the student's gradient into the shared features and on lambda_d, in [1, ``gtm_lift``]."""
        return 1 + (self.method.gtm_lift - 1) * self.lag if self.method.gtm_form == "lift_student" else 1.0

    @property
    def k_feedback(self) -> float:
        """k_fb: weight of the student's feedback to the teacher, in [0, beta]; per object: its most."""
        share = 1.0 if self.method.gtm_form == "per_object" else min(1.0, 1 / self.rho) ** 2
        return self.method.gtm_beta * share

    def state_dict(self) -> dict[str, float]:
        """What a checkpoint keeps."""
        return dict(self.errors)

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Inverse of :meth:`state_dict`."""
        self.errors = dict(state)


def lag_weight(student: Tensor, teacher: Tensor) -> Tensor:
    """shape (N,), in (0, 2): how much of the two networks' error of each object is the student's [ours].

    Mean over the yardsticks that know the object of ``2 (E_S + d) / (E_S + E_T + 2 d)``, d = :data:`LEAST_ERROR`: 1
    where they are level or nothing is known, up to 2 where the student is behind, down to 0 where it is ahead.

    Args:
        student, teacher: shape (K, N), their errors by the same K yardsticks; NaN where one cannot tell.
    """
    share = 2 * (student + LEAST_ERROR) / (student + teacher + 2 * LEAST_ERROR)
    known = share.isfinite()
    mean = torch.where(known, share, 0.0).sum(0) / known.sum(0).clamp(min=1)
    return torch.where(known.any(0), mean, 1.0)


def feedback_weight(student: Tensor, teacher: Tensor, surer: Tensor) -> Tensor:
    """shape (N,), in [0, 1): how far the student is ahead, where it is also the surer one; else 0 [ours].

    ``max(0, 1 - lag_weight)``.

    Args:
        student, teacher: as for :func:`lag_weight`; surer: shape (N,), bool, the student's sigma_z is the smaller.
    """
    ahead = (1 - lag_weight(student, teacher)).clamp(min=0)
    return torch.where(surer, ahead, 0.0)
