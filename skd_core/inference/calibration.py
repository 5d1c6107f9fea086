"""Applies the measured errors of weights to their boxes, as standard deviations [ours]."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from skd_core.boxes import Boxes3D

UNMEASURED_FLIP = 0.1
"""Probability of a flip by weights that were taught front and rear, where none was measured."""


@dataclass(frozen=True)
class Calibration:
    """Of all classes of a detector.

    Attributes:
        classes: names, as the network numbers them.
        table: shape (classes, 5), for each class the factor on depth_std, sideways and upwards errors as fractions of
            the distance, the yaw's standard deviation modulo pi in radians, the probability of a flip; NaN where none
            was measured: :mod:`skd_core.covariance` then has constants.
        heading_known: whether the network tells front from rear.
    """

    classes: tuple[str, ...]
    table: Tensor
    heading_known: bool

    @staticmethod
    def of(classes: Sequence[str], measured: Mapping[str, Mapping[str, Any]], heading_known: bool) -> Calibration:
        """From the metadata's "calibration", see :class:`skd_core.inference.metadata.ClassCalibration`.

        Weights that do not tell front from rear flip with .5, whatever was measured.
        """
        rows = []
        for name in classes:
            row = measured.get(name, {})
            values = [row.get(key, math.nan) for key in ("lateral_std", "vertical_std", "yaw_std")]
            flip = row.get("flip", UNMEASURED_FLIP) if heading_known else 0.5
            rows.append([row.get("depth_scale", 1.0), *(math.nan if v is None else v for v in values), flip])
        return Calibration(tuple(classes), torch.tensor(rows), heading_known)

    def __call__(self, boxes: Boxes3D, classes: Tensor) -> Boxes3D:
        """Boxes with the spreads of their classes.

        Args:
            boxes: with the network's own depth_std, on the CPU.
            classes: shape (N,), long, of the boxes.
        """
        scale, lateral, vertical, yaw_std, flip = self.table.to(boxes.center)[classes.cpu()].unbind(-1)
        distance = boxes.center.norm(dim=1)
        across = torch.stack([lateral * distance, vertical * distance], -1)
        depth_std = boxes.depth_std * scale
        return replace(boxes, depth_std=depth_std, across_std=across, yaw_std=yaw_std, flip_odds=flip)

    def values(self) -> dict[str, str]:
        """For people and for a DiagnosticStatus: whether yaw is a heading, and its spread modulo pi by class."""
        degrees = torch.rad2deg(self.table[:, 3]).tolist()
        spreads = [
            f"{name.lower()} {'not measured' if math.isnan(value) else f'{value:.0f} deg'}"
            for name, value in zip(self.classes, degrees, strict=True)
        ]
        return {
            "heading known": "yes" if self.heading_known else "no, yaw is known modulo pi",
            "yaw spread modulo pi": ", ".join(spreads),
        }
