"""Messages of 2D detectors to 2D boxes in the pixels of the camera's image."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from skd_core.boxes import Boxes2D

REJECTED = {
    "without a class": "the 2D detector must fill results",
    "of no size or not finite": "look at what the 2D detector publishes",
    "with a score outside 0 to 1": "look at what the 2D detector publishes",
    "rotated": "only boxes along the image's axes can be placed",
    "outside the image": "set detections_2d_size and detections_2d_fit to what the 2D detector's pixels are",
}
"""Why a box is not taken -> the cure."""


class Row(NamedTuple):
    """One box of a message.

    Attributes:
        names: of its class, the best first: the first that a class map knows counts; none = it has no class.
        score: of that class.
        x, y, width, height: centre and size in the message's pixels.
        theta: rotation, radians.
    """

    names: tuple[str, ...]
    score: float
    x: float
    y: float
    width: float
    height: float
    theta: float


def vision_rows(message: Any) -> list[Row]:
    """The boxes of a vision_msgs/Detection2DArray; of several results, the best counts, or one of score NaN."""
    rows = []
    for detection in message.detections:
        names: tuple[str, ...] = ()
        center, score = detection.bbox.center, 1.0
        if detection.results:
            best = max((r.hypothesis for r in detection.results), key=lambda h: (math.isnan(h.score), h.score))
            names, score = (best.class_id,), best.score
        size = detection.bbox.size_x, detection.bbox.size_y
        rows.append(Row(names, score, center.position.x, center.position.y, *size, center.theta))
    return rows


def yolo_rows(message: Any) -> list[Row]:
    """The boxes of a yolo_msgs/DetectionArray (yolo_ros); its classes have a name and a number."""
    rows = []
    for detection in message.detections:
        center, size = detection.bbox.center, detection.bbox.size
        names = tuple(filter(None, (detection.class_name, str(detection.class_id))))
        rows.append(Row(names, detection.score, center.position.x, center.position.y, size.x, size.y, center.theta))
    return rows


@dataclass(frozen=True)
class Fit:
    """What a message's pixels are: those of a picture of width x height that the camera's image was fitted into.

    Attributes:
        width, height: of that picture, pixels; 0 = the image's own.
        letterbox: the image was scaled as a whole until it just fits, and stands in the middle; else it was stretched
            to fill the picture.
    """

    width: int = 0
    height: int = 0
    letterbox: bool = False

    def to_image(self, xyxy: Tensor, width: int, height: int) -> Tensor:
        """Boxes in the pixels of the image.

        Args:
            xyxy: shape (N, 4), message's pixels.
            width, height: of the image.

        Returns:
            shape (N, 4), x1, y1, x2, y2, not clipped.
        """
        w, h = self.width or width, self.height or height
        sx, sy = w / width, h / height
        left = top = 0.0
        if self.letterbox:
            sx = sy = min(sx, sy)
            left, top = 0.5 * (w - sx * width), 0.5 * (h - sy * height)
        return (xyxy - xyxy.new_tensor([left, top, left, top])) / xyxy.new_tensor([sx, sy, sx, sy])


def to_boxes2d(
    rows: Sequence[Row], fit: Fit, width: int, height: int, known: Callable[[str], bool] = lambda name: True
) -> tuple[Boxes2D, dict[str, int]]:
    """The boxes of a message in the pixels of the image.

    Args:
        rows: of the message.
        fit: what their pixels are.
        width, height: of the image.
        known: whether a class map knows a name.

    Returns:
        those that can be taken, clipped to the image, float64, in the message's order, under the first name that is
        known, or else the best; and how many were not taken, by the reason (:data:`REJECTED`).
    """
    rejected = dict.fromkeys(REJECTED, 0)
    good = []
    for row in rows:
        if reason := _fault(row):
            rejected[reason] += 1
        else:
            good.append(row)
    edges = [(r.x - r.width / 2, r.y - r.height / 2, r.x + r.width / 2, r.y + r.height / 2) for r in good]
    xyxy = fit.to_image(torch.tensor(edges, dtype=torch.float64).reshape(-1, 4), width, height)
    labels = tuple(next(filter(known, row.names), row.names[0]) for row in good)
    scores = torch.tensor([row.score for row in good], dtype=torch.float64)
    boxes = Boxes2D(xyxy, labels, scores).clip(width, height)
    inside = (boxes.xyxy[:, 2:] > boxes.xyxy[:, :2]).all(-1)
    rejected["outside the image"] = int((~inside).sum())
    return boxes[inside], rejected


def _fault(row: Row) -> str:
    """Why a box cannot be taken, whatever the image; "" = it can."""
    if not row.names:
        return "without a class"
    if not all(map(math.isfinite, (row.x, row.y, row.theta))) or not (
        0 < row.width < math.inf and 0 < row.height < math.inf
    ):
        return "of no size or not finite"
    if not 0 <= row.score <= 1:
        return "with a score outside 0 to 1"
    return "rotated" if abs(row.theta) > 1e-6 else ""
