"""L_UAD: distillation from teacher to student (method: Losses, Distillation) [paper idea; formula ours]."""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from skd_core.models.decode import Prediction3D

MARGIN = {"u": 0.02, "v": 0.02, "size": 0.03, "yaw": 0.05}
WEIGHT = {"u": 0.5, "v": 0.5, "size": 0.5, "yaw": 1.0}
TAU = 0.01
LOG_SQRT2 = 0.5 * math.log(2)


def soft_margin(distance: Tensor, margin: float) -> Tensor:
    """``tau softplus((d - m) / tau)``: nothing below the margin, linear above, smooth between."""
    return TAU * F.softplus((distance - margin) / TAU)


def laplace_divergence(student: Prediction3D, teacher: Prediction3D) -> Tensor:
    """shape (N,): Kullback-Leibler divergence of the student's Laplace distribution of log z from the teacher's [ours].

    ``log(b_s / b_t) + (d + b_t exp(-d / b_t)) / b_s - 1`` with ``d = |log z_s - log z_t|`` and scales ``b = sigma /
    sqrt2``; 0 where they are equal. Margin and weight in one: within b_t, the teacher's own uncertainty, the
    gradient is small; beyond, it is 1 / b_s. The student's b_s goes to b_t plus the student's error. No gradient into
    the teacher.
    """
    d = (student.log_z - teacher.log_z.detach()).abs()
    log_b = teacher.log_sigma.detach() - LOG_SQRT2
    b = torch.exp(log_b)
    expected = d + b * torch.exp(-d / b)
    student_log_b = student.log_sigma - LOG_SQRT2
    return student_log_b - log_b + expected * torch.exp(-student_log_b) - 1


def certainty(log_sigma: Tensor, overlap: Tensor) -> Tensor:
    """c_i: weight of each of the teacher's boxes by its certainty, mean 1, in [.2, 3].

    ``c_i = exp(-r_i / median r)`` with ``r_i = sigma_z + .5 (1 - IoU(projection, 2D box))``, both of the teacher. The
    median makes it scale-free: exp(-r_i) alone is nearly constant.

    Args:
        log_sigma: shape (N,), log sigma_z; overlap: shape (N,), IoU of the projection with the 2D box.
    """
    if len(log_sigma) == 0:
        return log_sigma
    r = torch.exp(log_sigma) + 0.5 * (1 - overlap)
    c = torch.exp(-r / r.median().clamp(min=1e-6))
    return (c / c.mean()).clamp(0.2, 3.0)


class DistillationLoss(nn.Module):
    """L_UAD, and with the roles swapped L_rev.

    The RoIs of the two networks may differ; ``center_uv`` of both must refer to the same 2D box.

    ``(1/N) sum_i c_i [D_z + sum_q lambda_q phi(|q_student - stopgrad(q_teacher)|)]``, a value for each
    object; D_z is :func:`laplace_divergence`, q = u/w, v/h, log size, raw yaw vector t. With kind "l1", phi is the
    identity, D_z = |log z_s - log z_t| and c_i = 1.
    """

    def __init__(self, kind: Literal["l1", "uad"]) -> None:
        super().__init__()
        self.kind = kind

    def forward(self, student: Prediction3D, teacher: Prediction3D, overlap: Tensor, yaw: bool = True) -> Tensor:
        """shape (N,).

        Args:
            student: gets the gradient; teacher: the target, without gradient.
            overlap: shape (N,), IoU of the teacher's projection with the 2D box.
            yaw: whether the yaw vector takes part (it does not in L_rev).
        """
        distance = {
            "u": (student.center_uv - teacher.center_uv.detach()).abs()[:, :1],
            "v": (student.center_uv - teacher.center_uv.detach()).abs()[:, 1:],
            "size": (student.size / teacher.size.detach()).log().abs(),
            "yaw": (student.yaw_vector - teacher.yaw_vector.detach()).abs(),
        }
        if not yaw:
            del distance["yaw"]
        if self.kind == "l1":
            total = (student.log_z - teacher.log_z.detach()).abs()
        else:
            total = laplace_divergence(student, teacher)
        for name, d in distance.items():
            cost = d if self.kind == "l1" else soft_margin(d, MARGIN[name])
            total = total + WEIGHT[name] * cost.mean(-1)
        if self.kind == "uad":
            total = total * certainty(teacher.log_sigma.detach(), overlap.detach())
        return total
