"""Gradients of each group of losses with respect to the shared features F_G: their norms and their cosine [ours]."""

from __future__ import annotations

import math

import torch
from torch import Tensor

GRADIENTS_EVERY = 100
"""Steps between two measurements; each takes four backward passes through the heads alone."""
GROUPS = ("2d", "student", "teacher", "depth_map")
"""Groups of loss terms: 2D losses, the student's, the teacher's 3D losses (with feedback), its depth map's."""


def group_of(term: str) -> str:
    """Which of :data:`GROUPS` a term belongs to, by its name."""
    if term == "teacher/depth_map":
        return "depth_map"
    return term.partition("/")[0] if "/" in term else "2d"


def feature_gradients(terms: dict[str, Tensor], features: Tensor) -> Tensor:
    """Sums of one process's batch, to be added over all processes and given to :func:`describe`.

    The gradients are taken as they arrive in F_G, with GTM's factors. The graph stays for the step's own backward pass,
    and no parameter's gradient is touched. To be called within the forward pass: what leaves that, Fabric wraps.

    Args:
        terms: scalars, as :meth:`skd_core.training.module.TeacherStudent.forward` returns them.
        features: F_G that they were made from, shape (B, C_g, H, W).

    Returns:
        shape (5,), float64: the squared norm of each group's gradient, 0 without such terms, and the product of the
        student's and the teacher's.
    """
    found: dict[str, Tensor] = {}
    for group in GROUPS:
        values = [value for name, value in terms.items() if group_of(name) == group and value.requires_grad]
        if values:
            total = torch.stack(values).sum()
            with torch.autocast(features.device.type, enabled=False):
                (gradient,) = torch.autograd.grad(total, features, retain_graph=True, allow_unused=True)
            if gradient is not None:
                found[group] = gradient.flatten().double()
    none = features.new_zeros(features.numel(), dtype=torch.double)
    student, teacher = found.get("student", none), found.get("teacher", none)
    squares = [found[group].square().sum() if group in found else none.new_zeros(()) for group in GROUPS]
    return torch.stack([*squares, student @ teacher])


def describe(sums: Tensor, processes: int) -> dict[str, float]:
    """The logged values of :func:`feature_gradients`: "gtm/gradient_2d" and so on, and "gtm/cosine".

    Values that are zero or not finite are left out. The loss is the mean over processes; each holds the F_G of its own
    images, so that the whole gradient is the concatenation of theirs, divided by their number.

    Args:
        sums: shape (5,), over all processes.
    """
    *squares, product = sums.tolist()
    norms = {group: math.sqrt(square) / processes for group, square in zip(GROUPS, squares, strict=True) if square >= 0}
    result = {f"gtm/gradient_{group}": norm for group, norm in norms.items() if 0 < norm < math.inf}
    scale = math.sqrt(squares[1]) * math.sqrt(squares[2]) if min(squares[1:3]) >= 0 else math.nan
    if 0 < scale < math.inf and math.isfinite(product):
        result["gtm/cosine"] = product / scale
    return result
