"""L_UAD: what the student learns from the teacher, box by box (METHOD 6 [paper idea; formula ours])."""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from skd_core.models.decode import Prediction3D

MARGIN = {"depth": 0.02, "u": 0.02, "v": 0.02, "size": 0.03, "yaw": 0.05}
WEIGHT = {"depth": 1.0, "u": 0.5, "v": 0.5, "size": 0.5, "yaw": 1.0}
TAU = 0.01


def soft_margin(distance: Tensor, margin: float) -> Tensor:
    """``tau softplus((d - m) / tau)``: nothing below the margin, linear above, smooth between."""
    return TAU * F.softplus((distance - margin) / TAU)


def certainty(log_scale: Tensor, overlap: Tensor) -> Tensor:
    """c_i: how far each of the teacher's boxes is to be believed, mean 1, in [.2, 3].

    ``c_i = exp(-b_i / median b)`` with ``b_i = b_z + .5 (1 - IoU(projection, 2D box))``, both of the teacher. The
    median makes it scale-free: exp(-b_i) alone is nearly constant.

    Args:
        log_scale: shape (N,), log b_z; overlap: shape (N,), IoU of the projection with the 2D box.
    """
    if len(log_scale) == 0:
        return log_scale
    b = torch.exp(log_scale) + 0.5 * (1 - overlap)
    c = torch.exp(-b / b.median().clamp(min=1e-6))
    return (c / c.mean()).clamp(0.2, 3.0)


class DistillationLoss(nn.Module):
    """L_UAD, and with the roles swapped L_rev.

    ``(1/N) sum_i c_i sum_q lambda_q phi(|q_student - stopgrad(q_teacher)|)``, a value for each box, matched by RoI;
    q = log z, u/w, v/h, log size, raw yaw vector t. With kind "l1", phi is the identity and c_i is 1.
    """

    def __init__(self, kind: Literal["l1", "uad"]) -> None:
        super().__init__()
        self.kind = kind

    def forward(self, student: Prediction3D, teacher: Prediction3D, overlap: Tensor, yaw: bool = True) -> Tensor:
        """shape (N,).

        Args:
            student: who learns; teacher: who is believed, takes no gradient.
            overlap: shape (N,), IoU of the teacher's projection with the 2D box.
            yaw: whether the yaw vector takes part (it does not in L_rev).
        """
        distance = {
            "depth": (student.log_z - teacher.log_z.detach()).abs()[:, None],
            "u": (student.center_uv - teacher.center_uv.detach()).abs()[:, :1],
            "v": (student.center_uv - teacher.center_uv.detach()).abs()[:, 1:],
            "size": (student.size / teacher.size.detach()).log().abs(),
            "yaw": (student.yaw_vector - teacher.yaw_vector.detach()).abs(),
        }
        if not yaw:
            del distance["yaw"]
        total = student.log_z.new_zeros(len(student.log_z))
        for name, d in distance.items():
            cost = d if self.kind == "l1" else soft_margin(d, MARGIN[name])
            total = total + WEIGHT[name] * cost.mean(-1)
        if self.kind == "uad":
            total = total * certainty(teacher.log_scale.detach(), overlap.detach())
        return total

    @staticmethod
    def own_uncertainty(student: Prediction3D, teacher: Prediction3D) -> Tensor:
        """shape (N,): teaches the student's log b_z how far it is from the teacher; no gradient into log z."""
        error = (student.log_z - teacher.log_z).abs().detach()
        return math.sqrt(2) * torch.exp(-student.log_scale) * error + student.log_scale
