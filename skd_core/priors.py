"""Class sizes (method: Class sizes) and the tolerances the losses allow around them.

KITTI's and nuScenes' numbers are statistics of their 3D labels, the one place where such labels enter; a vehicle
specification sheet gives nearly the same values and is the strictly 2D-only choice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from skd_core.errors import UserError


@dataclass(frozen=True)
class ClassPrior:
    """What is known of a class without any 3D label of the scene at hand.

    Attributes:
        size: (h, w, l), mean, metres.
        tolerance: (h, w, l), relative deviation from the mean that costs nothing (method: Losses, Dimension).
        geometric_error: relative error of the depth from the 2D height alone (method: Pseudo-targets, Fusion).
        side_edge_weight: weight of the left and right edges in L_proj (limbs and wheels leave a pedestrian's box).
    """

    size: tuple[float, float, float]
    tolerance: tuple[float, float, float] = (0.1, 0.1, 0.12)
    geometric_error: float = 0.10
    side_edge_weight: float = 1.0


PRIORS: dict[str, ClassPrior] = {
    # KITTI
    "Car": ClassPrior((1.53, 1.63, 3.88), (0.09, 0.07, 0.11), 0.076),
    "Pedestrian": ClassPrior((1.76, 0.66, 0.84), (0.06, 0.19, 0.21), 0.10, 0.25),
    "Cyclist": ClassPrior((1.74, 0.60, 1.76), (0.05, 0.15, 0.07), 0.076, 0.5),
    "Van": ClassPrior((2.2, 1.9, 5.0)),
    "Truck": ClassPrior((3.4, 2.6, 9.3)),
    # nuScenes
    "car": ClassPrior((1.73, 1.95, 4.63)),
    "truck": ClassPrior((2.90, 2.53, 7.05)),
    "bus": ClassPrior((3.53, 2.93, 11.29)),
    "trailer": ClassPrior((3.86, 2.89, 12.22)),
    "construction_vehicle": ClassPrior((3.25, 2.88, 7.06)),
    "pedestrian": ClassPrior((1.78, 0.67, 0.73), (0.06, 0.19, 0.21), 0.10, 0.25),
    "motorcycle": ClassPrior((1.51, 0.78, 2.11), side_edge_weight=0.5),
    "bicycle": ClassPrior((1.32, 0.62, 1.74), side_edge_weight=0.5),
    "traffic_cone": ClassPrior((1.09, 0.43, 0.44)),
    "barrier": ClassPrior((0.99, 2.54, 0.50)),
}


KITTI_CLASSES = tuple(name for name in PRIORS if name[0].isupper())
"""Of :data:`PRIORS`."""


def prior_of(name: str) -> ClassPrior:
    """The prior of a class.

    Raises:
        UserError: unknown class; the message lists the known ones.
    """
    try:
        return PRIORS[name]
    except KeyError:
        raise UserError(f"unknown class '{name}': no size prior; known are {', '.join(PRIORS)}") from None


def prior_sizes(classes: Sequence[str]) -> Tensor:
    """shape (C, 3), (l, w, h) in metres: the box's own order of axes, see :mod:`skd_core.boxes`."""
    return torch.tensor([prior_of(name).size[::-1] for name in classes])


def prior_tolerances(classes: Sequence[str]) -> Tensor:
    """shape (C, 3), relative, in the order (l, w, h)."""
    return torch.tensor([prior_of(name).tolerance[::-1] for name in classes])
