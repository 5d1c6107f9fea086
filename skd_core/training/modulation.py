"""GTM: gradient-targeted transfer modulation, which balances the training of student and teacher.

(method: Gradient-targeted modulation) [paper idea; formulas ours, after OGM-GE]. How far the student lags is measured
without 3D labels, see ``method.gtm_measure``. What follows from it, see ``method.gtm_form``: the teacher's gradient is
damped, the student's is raised, or distillation is weighted per object. A student that has caught up feeds back.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from skd_core.config import MethodConfig

ERROR_NAMES = ("depth", "projection", "yaw")
"""E1 = |log z - log z_f|, E2 = 1 - IoU(projection, 2D box), E3 = q_yaw (1 - cos 2(a - a*))."""
LOSS_STATISTICS = ("loss", "recent_loss", "loss_spread")
"""Of a network's weakly supervised loss per object: running mean, running mean with a time constant five times shorter,
mean absolute deviation."""
MEASURES = tuple(f"{who}_{name}" for who in ("student", "teacher") for name in (*ERROR_NAMES, *LOSS_STATISTICS))
"""Keys of the running means in a checkpoint."""
ERROR_FLOOR = 0.02
"""Added to both errors where they are compared per object: differences far below it do not count."""


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
    """Running means of both networks' errors, and the factors that follow from them.

    Args:
        method: ``gtm_alpha`` says how sharply k_D falls and k_S rises as the student lags, ``gtm_beta`` the weight of
            the student's feedback when its errors equal the teacher's, ``gtm_lift`` the maximum of k_S;
            ``gtm_form`` and ``gtm_measure`` as in the config.
        momentum: of the running means, which start at the first value.
    """

    def __init__(self, method: MethodConfig, momentum: float = 0.99) -> None:
        self.method, self.momentum = method, momentum
        self.errors: dict[str, float] = {}

    def update(self, student: dict[str, float], teacher: dict[str, float]) -> None:
        """Add one batch's mean errors by :data:`ERROR_NAMES`; those that are missing or not finite are ignored."""
        for who, errors in (("student", student), ("teacher", teacher)):
            for name, error in errors.items():
                if math.isfinite(error):
                    self._update_mean(f"{who}_{name}", error, self.momentum)

    def update_losses(self, student: float, teacher: float) -> None:
        """Add one batch's weakly supervised loss per object of both networks; ignored if one of them is not finite."""
        if not (math.isfinite(student) and math.isfinite(teacher)):
            return
        for who, loss in (("student", student), ("teacher", teacher)):
            if f"{who}_loss" in self.errors:
                self._update_mean(f"{who}_loss_spread", abs(loss - self.errors[f"{who}_loss"]), self.momentum)
            self._update_mean(f"{who}_loss", loss, self.momentum)
            self._update_mean(f"{who}_recent_loss", loss, max(0.0, 1 - 5 * (1 - self.momentum)))

    def _update_mean(self, key: str, value: float, momentum: float) -> None:
        self.errors[key] = momentum * self.errors.get(key, value) + (1 - momentum) * value

    def loss_slope(self, who: str) -> float:
        """How fast a network's loss falls, in units of its spread over batches; negative if it rises.

        The difference of two running means with different time constants is proportional to the slope. Losses may be
        negative, so their ratios have no meaning; the spread makes two losses of different scale comparable.
        """
        loss, recent, spread = (self.errors.get(f"{who}_{name}", 0.0) for name in LOSS_STATISTICS)
        return (loss - recent) / max(spread, 1e-6)

    @property
    def rho(self) -> float:
        """In [.1, 10]; above 1 the student lags.

        Geometric mean of the error ratios student/teacher, or exp(the teacher's loss slope - the student's).
        """
        if self.method.gtm_measure == "loss_slope":
            difference = self.loss_slope("teacher") - self.loss_slope("student")
            return math.exp(min(max(difference, -math.log(10)), math.log(10)))
        ratios = [
            max(self.errors[f"student_{name}"], 1e-4) / max(self.errors[f"teacher_{name}"], 1e-4)
            for name in ERROR_NAMES
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
        """k_fb: weight of the student's feedback to the teacher, in [0, beta]; with ``per_object`` its maximum."""
        share = 1.0 if self.method.gtm_form == "per_object" else min(1.0, 1 / self.rho) ** 2
        return self.method.gtm_beta * share

    def state_dict(self) -> dict[str, float]:
        """The running means, for a checkpoint."""
        return dict(self.errors)

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Inverse of :meth:`state_dict`."""
        self.errors = dict(state)


def lag_weight(student: Tensor, teacher: Tensor) -> Tensor:
    """shape (N,), in (0, 2): the student's share of the sum of both networks' errors, times 2, per object [ours].

    Mean of ``2 (E_S + d) / (E_S + E_T + 2 d)``, d = :data:`ERROR_FLOOR`, over the errors that are known: 1 where they
    are equal or none is known, up to 2 where the student's is larger, down to 0 where it is smaller.

    Args:
        student, teacher: shape (K, N), the same K errors of both; NaN where there is no target.
    """
    share = 2 * (student + ERROR_FLOOR) / (student + teacher + 2 * ERROR_FLOOR)
    known = share.isfinite()
    mean = torch.where(known, share, 0.0).sum(0) / known.sum(0).clamp(min=1)
    return torch.where(known.any(0), mean, 1.0)


def feedback_weight(student: Tensor, teacher: Tensor, more_certain: Tensor) -> Tensor:
    """shape (N,), in [0, 1): ``max(0, 1 - lag_weight)`` where the student is also more certain, else 0 [ours].

    Args:
        student, teacher: as for :func:`lag_weight`; more_certain: shape (N,), bool, the student's sigma_z is smaller
            than the teacher's.
    """
    ahead = (1 - lag_weight(student, teacher)).clamp(min=0)
    return torch.where(more_certain, ahead, 0.0)
