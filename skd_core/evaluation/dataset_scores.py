"""Scores of a whole data set's detections, in memory: AP and the errors of what was found."""

from __future__ import annotations

from typing import Any

from skd_core.boxes import Boxes3D
from skd_core.data.kitti import KittiDataset, KittiObjects, read_objects
from skd_core.data.nuscenes import NuScenesDataset
from skd_core.evaluation import nuscenes
from skd_core.evaluation.errors import pair_errors
from skd_core.evaluation.kitti import CLASSES, evaluate, objects_from_boxes


def score_dataset(dataset: KittiDataset | NuScenesDataset, boxes: list[Boxes3D]) -> dict[str, Any]:
    """Score the detections of a whole data set, image by image in its order.

    Returns:
        As :func:`score`; for nuScenes both are empty and "nuscenes" holds :func:`skd_core.evaluation.nuscenes.score`.
    """
    if isinstance(dataset, NuScenesDataset):
        return {"ap": {}, "errors": {}, "nuscenes": nuscenes.score(dataset, boxes)}
    folder = dataset.root / "training" / "label_2"
    return score([read_objects(folder / f"{name}.txt") for name in dataset.names], boxes)


def score(labels: list[KittiObjects], boxes: list[Boxes3D]) -> dict[str, Any]:
    """AP and the errors of matched pairs, frame by frame in the same order.

    Returns:
        {"ap": as :func:`skd_core.evaluation.kitti.evaluate`, "errors": {class: as ``PairErrors.statistics``}}.
    """
    results = [objects_from_boxes(b) for b in boxes]
    pairs = pair_errors(labels, results)
    return {"ap": evaluate(labels, results), "errors": {name: pairs.statistics(name) for name in CLASSES}}
