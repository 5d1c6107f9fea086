"""Overlaps in all frames at once: their objects in one table, the overlaps as sparse lists of pairs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt
import torch

from skd_core.data.kitti import KittiObjects
from skd_core.iou import bev_intersection

Floats = npt.NDArray[np.float64]
Indices = npt.NDArray[np.intp]
Flags = npt.NDArray[np.bool_]


@dataclass(eq=False)
class Table:
    """The objects of all frames, one after the other.

    Attributes:
        objects: N objects.
        frame: shape (N,), frame numbers, ascending.
        kind: shape (N,), class names in lower case: KITTI compares names without case.
    """

    objects: KittiObjects
    frame: Indices
    kind: npt.NDArray[np.str_]

    @staticmethod
    def of(frames: Sequence[KittiObjects]) -> Table:
        """From one entry per frame; at least one."""
        columns = [np.concatenate([getattr(frame, f.name) for frame in frames]) for f in fields(KittiObjects)[1:]]
        kinds = [name for frame in frames for name in frame.type]
        number = np.repeat(np.arange(len(frames)), [len(frame) for frame in frames])
        return Table(KittiObjects(kinds, *columns), number, np.array([name.lower() for name in kinds], dtype=np.str_))

    def is_any_of(self, names: Sequence[str]) -> Flags:
        """shape (N,), whose class is one of these, without case."""
        return np.isin(self.kind, [name.lower() for name in names])


@dataclass(eq=False)
class Pairs:
    """Pairs (label, detection) of the same frame and their overlap; sorted by label, then by detection.

    Attributes:
        label: shape (K,), indices into the labels of all frames.
        detection: shape (K,), indices into the detections of all frames.
        overlap: shape (K,), in (0, 1].
    """

    label: Indices
    detection: Indices
    overlap: Floats

    def __getitem__(self, index: Flags | Indices) -> Pairs:
        return Pairs(self.label[index], self.detection[index], self.overlap[index])


def pairs_within_frames(label_frame: Indices, detection_frame: Indices) -> tuple[Indices, Indices]:
    """All pairs of a label and a detection of the same frame.

    Args:
        label_frame: shape (N,), frame numbers, ascending.
        detection_frame: shape (M,), frame numbers, ascending.

    Returns:
        Two of shape (K,), indices of labels and of detections, sorted by label, then by detection.
    """
    first = np.searchsorted(detection_frame, label_frame, "left")
    count = np.searchsorted(detection_frame, label_frame, "right") - first
    label = np.repeat(np.arange(len(label_frame)), count)
    within = np.arange(len(label)) - np.repeat(np.cumsum(count) - count, count)
    return label, np.repeat(first, count) + within


def image_overlaps(
    labels: KittiObjects, results: KittiObjects, pairs: tuple[Indices, Indices], dont_care: Flags
) -> Pairs:
    """IoU of 2D boxes; for DontCare labels the share of the detection's area that lies inside.

    Pairs without overlap are left out.

    Args:
        labels: N labels of all frames.
        results: M detections of all frames.
        pairs: indices of labels and detections, shape (K,) each.
        dont_care: shape (N,), the "DontCare" labels.
    """
    label, detection = pairs
    a, b = results.xyxy[detection], labels.xyxy[label]
    extent = np.minimum(a[:, 2:], b[:, 2:]) - np.maximum(a[:, :2], b[:, :2])
    hit = (extent > 0).all(1)
    label, detection, a, b, extent = label[hit], detection[hit], a[hit], b[hit], extent[hit]
    inter = extent[:, 0] * extent[:, 1]
    area_a, area_b = ((box[:, 2] - box[:, 0]) * (box[:, 3] - box[:, 1]) for box in (a, b))
    return Pairs(label, detection, inter / np.where(dont_care[label], area_a, area_a + area_b - inter))


def ground_and_volume_overlaps(
    labels: KittiObjects, results: KittiObjects, pairs: tuple[Indices, Indices], dont_care: Flags
) -> tuple[Pairs, Pairs]:
    """As :func:`image_overlaps` for footprints and for volumes (footprint x vertical extent).

    KITTI marks unknown 3D values: dimensions -1, location -1000. Like the official evaluator this reads them as a box
    of 1 m x 1 m of height -1, a kilometre away: it meets no real box, and no volume at all.
    """
    label, detection = pairs
    a, b = _footprints(results), _footprints(labels)
    reach_a, reach_b = (0.5 * np.hypot(box[:, 2], box[:, 3]) for box in (a, b))
    distance = np.hypot(a[detection, 0] - b[label, 0], a[detection, 1] - b[label, 1])
    near = distance < reach_a[detection] + reach_b[label]
    near &= (a[detection, 2:4] > 0).all(1) & (b[label, 2:4] > 0).all(1)
    label, detection = label[near], detection[near]
    inter = bev_intersection(
        torch.from_numpy(a[detection]), torch.from_numpy(b[label]), aligned=True, validate=False
    ).numpy()
    hit = inter > 0
    label, detection, inter = label[hit], detection[hit], inter[hit]
    area_a, area_b = a[detection, 2] * a[detection, 3], b[label, 2] * b[label, 3]
    ground = Pairs(label, detection, inter / np.where(dont_care[label], area_a, area_a + area_b - inter))

    bottom_a, bottom_b = results.location[detection, 1], labels.location[label, 1]
    top_a, top_b = bottom_a - results.dimensions[detection, 0], bottom_b - labels.dimensions[label, 0]
    height = np.minimum(bottom_a, bottom_b) - np.maximum(top_a, top_b)
    common = inter * np.maximum(height, 0)
    hit = common > 0
    label, detection, common = label[hit], detection[hit], common[hit]
    volume_a, volume_b = results.dimensions[detection].prod(1), labels.dimensions[label].prod(1)
    return ground, Pairs(label, detection, common / np.where(dont_care[label], volume_a, volume_a + volume_b - common))


def _footprints(objects: KittiObjects) -> Floats:
    """shape (N, 5), (x, z, l, w, yaw)"""
    return np.column_stack([objects.location[:, [0, 2]], np.abs(objects.dimensions[:, [2, 1]]), objects.rotation_y])
