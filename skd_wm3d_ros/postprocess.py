"""Selection of the boxes to publish."""

from __future__ import annotations

import math
from collections.abc import Mapping

from skd_core.boxes import Boxes3D
from skd_core.iou import bev_iou


def finite(boxes: Boxes3D) -> Boxes3D:
    """Without boxes that hold NaN or infinity: one NaN in a pose is enough to stop a subscriber such as RViz."""
    # in plain Python: for the few boxes of a frame, tensors take ten times as long
    rows = zip(boxes.center.tolist(), boxes.size.tolist(), boxes.yaw.tolist(), boxes.scores.tolist(), strict=True)
    good = [all(map(math.isfinite, (*center, *size, yaw, p))) and min(size) > 0 for center, size, yaw, p in rows]
    return boxes if all(good) else boxes[good]


def select(boxes: Boxes3D, thresholds: Mapping[str, float], max_range: float = 0.0, nms_iou: float = 1.0) -> Boxes3D:
    """The boxes worth publishing.

    Args:
        boxes: finite boxes in the camera frame, best first.
        thresholds: minimum score of each class.
        max_range: greatest distance from the camera along the ground, metres; 0 = any.
        nms_iou: of two boxes of one class whose footprints overlap by more (IoU seen from above), the better is kept;
            1 = all are.
    """
    rows = zip(boxes.labels, boxes.scores.tolist(), boxes.center.tolist(), strict=True)
    keep = [
        score >= thresholds.get(label, 0.0) and (max_range <= 0 or math.hypot(x, z) <= max_range)
        for label, score, (x, _, z) in rows
    ]
    boxes = boxes if all(keep) else boxes[keep]
    return boxes if nms_iou >= 1 or len(boxes) < 2 else boxes[_suppress(boxes, nms_iou)]


def _suppress(boxes: Boxes3D, limit: float) -> list[int]:
    overlap = bev_iou(boxes.bev.double(), boxes.bev.double())
    kept: list[int] = []
    for i in range(len(boxes)):
        same_class = [j for j in kept if boxes.labels[j] == boxes.labels[i]]
        if not any(overlap[i, j] > limit for j in same_class):
            kept.append(i)
    return kept
