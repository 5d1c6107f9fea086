"""KITTI's average precision: 2D, bird's-eye view, 3D and orientation (AOS).

The rules are those of the official evaluator, the odd ones too; the numbers agree with it to rounding.

Labels. For a class and a difficulty a label is *valid* (counts), *ignored* (may absorb a detection, is never missed) or
of no interest. Ignored are: labels of the class that are too small, occluded or truncated for the difficulty, and all
of the neighbouring class (Van for Car, Person_sitting for Pedestrian).

=========== ============= ============= ===============
difficulty  2D height >   occlusion <=  truncation <=
=========== ============= ============= ===============
easy        40 px         0             .15
moderate    25 px         1             .30
hard        25 px         2             .50
=========== ============= ============= ===============

Detections. One that is lower than the minimum height (2D box, < 40 or 25 px) is *ignored*: never wrong, yet it may be
assigned to a label, *whatever its class*. Other detections of the class are valid; all others are of no interest.

Assignment, frame by frame, labels in the order of the file, each takes one of the detections that are still free and
overlap it by more (not equally much) than the minimum. 1. To find the score thresholds: the one with the highest score.
2. To count at a threshold, among detections that reach it: the valid one with the greatest overlap, or else the first
ignored one. Ties go to the earlier line. A valid label with a valid detection is a true positive. Valid detections left
over are false positives, except those inside a DontCare area by more than the minimum overlap (which for real boxes
can happen in the 2D metric only: DontCare has no 3D box).

Curve. The sorted scores of the true positives of 1. give up to 41 thresholds at recalls as near as possible to
0, 1/40, ..., 1 (at most one each: with N < 41 valid labels a perfect detector reaches N points, and no AP of 100).
Precision at each, made monotone (the best at this or any higher recall), 0 where recall is not reached.
R40 = mean(p[1..40]), R11 = mean(p[0, 4, ..., 40]). AOS is the same with each true positive counted as
(1 + cos(alpha error)) / 2, on 2D assignments.

Where the official evaluator prints no number there is None here (null in JSON): AOS if any detection of any class has
alpha -10 (unknown); a metric whose values no detection of the class has (2D boxes of no width, dimensions -1 or
location -1000). Differences by choice: a class without any detection has AP 0, and a frame without a result file
counts as a frame without detections, where the offline versions leave out such frames.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from skd_core.boxes import Boxes3D
from skd_core.data.kitti import KittiObjects, read_objects
from skd_core.errors import UserError
from skd_core.evaluation.overlaps import (
    Flags,
    Floats,
    Pairs,
    Table,
    ground_and_volume_overlaps,
    image_overlaps,
    pairs_within_frames,
)

Scores = dict[str, dict[str, dict[str, dict[str, list[float | None]]]]]
"""class -> metric ("2d", "bev", "3d", "aos") -> "R40" or "R11" -> minimum IoU ("0.70") -> [easy, moderate, hard], in
percent."""

CLASSES = ("Car", "Pedestrian", "Cyclist")
DIFFICULTIES = ("easy", "moderate", "hard")
METRICS = ("2d", "bev", "3d", "aos")
MIN_OVERLAPS = {"Car": (0.7, 0.5), "Pedestrian": (0.5, 0.25), "Cyclist": (0.5, 0.25)}
"""Strict and loose."""
NEIGHBOURS = {"Car": "Van", "Pedestrian": "Person_sitting"}
MIN_HEIGHT = (40, 25, 25)
MAX_OCCLUSION = (0, 1, 2)
MAX_TRUNCATION = (0.15, 0.3, 0.5)
RECALL_POINTS = 41


def evaluate(
    labels: Sequence[KittiObjects], results: Sequence[KittiObjects], classes: Sequence[str] = CLASSES
) -> Scores:
    """Average precision of detections, in percent.

    Args:
        labels: one entry per frame; results: the detections of the same frames, in the same order.
        classes: which of :data:`CLASSES`.

    Returns:
        See :data:`Scores`; None where a metric cannot be computed (module docstring).

    Raises:
        UserError: another number of frames in the two, or an unknown class.
    """
    if len(labels) != len(results) or not len(labels):
        raise UserError(f"evaluate: {len(labels)} frames of labels, {len(results)} of results; give the same frames")
    return evaluate_tables(Table.of(labels), Table.of(results), classes)


def evaluate_tables(labels: Table, results: Table, classes: Sequence[str] = CLASSES) -> Scores:
    """As :func:`evaluate`, on tables of all frames."""
    unknown = [name for name in classes if name not in CLASSES]
    if unknown:
        raise UserError(f"evaluate: unknown class {unknown[0]!r}; KITTI evaluates {', '.join(CLASSES)}")
    scene = _Scene.of(labels, results)
    return {name: _evaluate_class(scene, name) for name in classes}


def precision_recall(
    labels: Sequence[KittiObjects], results: Sequence[KittiObjects], name: str, metric: str, min_overlap: float
) -> list[Floats]:
    """The curves behind AP: precision at recalls 0, 1/40, ..., 1, shape (41,), for easy, moderate and hard.

    Args:
        name: of :data:`CLASSES`; metric: "2d", "bev" or "3d". Others and errors as :func:`evaluate`.
    """
    if len(labels) != len(results) or not len(labels):
        raise UserError(f"evaluate: {len(labels)} frames of labels, {len(results)} of results; give the same frames")
    scene = _Scene.of(Table.of(labels), Table.of(results))
    tasks = (_Task.of(scene, name, level) for level in range(len(DIFFICULTIES)))
    return [_curves(scene, task, scene.overlaps[metric], min_overlap)[0] for task in tasks]


def label_counts(labels: Sequence[KittiObjects]) -> dict[str, list[int]]:
    """How many labels count for AP, by class: easy, moderate and hard."""
    table = Table.of(labels)
    return {name: [int(_counts(table, name, level).sum()) for level in range(len(DIFFICULTIES))] for name in CLASSES}


@dataclass(eq=False)
class _Scene:
    """Labels and detections of all frames, and who overlaps whom."""

    labels: Table
    results: Table
    result_height: Floats
    overlaps: dict[str, Pairs]  # by metric; labels of all classes
    has_alpha: bool

    @staticmethod
    def of(labels: Table, results: Table) -> _Scene:
        height = np.abs(results.objects.xyxy[:, 3] - results.objects.xyxy[:, 1])
        used_label = np.flatnonzero(labels.is_any_of([*CLASSES, *NEIGHBOURS.values(), "DontCare"]))
        used_result = np.flatnonzero(results.is_any_of(CLASSES) | (height < max(MIN_HEIGHT)))
        i, j = pairs_within_frames(labels.frame[used_label], results.frame[used_result])
        pairs, dont_care = (used_label[i], used_result[j]), labels.is_any_of(["DontCare"])
        ground, volume = ground_and_volume_overlaps(labels.objects, results.objects, pairs, dont_care)
        overlaps = {
            "2d": image_overlaps(labels.objects, results.objects, pairs, dont_care),
            "bev": ground,
            "3d": volume,
        }
        min_overlap = min(min(MIN_OVERLAPS.values()))
        overlaps = {metric: found[found.overlap > min_overlap] for metric, found in overlaps.items()}
        return _Scene(labels, results, height, overlaps, not bool((results.objects.alpha == -10).any()))

    def has_values(self, metric: str, of_class: Flags) -> bool:
        """Whether any detection of the class has what the metric needs."""
        objects = self.results.objects
        if metric == "2d":
            return bool((of_class & (objects.xyxy[:, 2] > objects.xyxy[:, 0])).any())
        place, size = ([0, 2], [1, 2]) if metric == "bev" else ([0, 1, 2], [0, 1, 2])
        known = (objects.location[:, place] != -1000).all(1) & (objects.dimensions[:, size] > 0).all(1)
        return bool((of_class & known).any())


def _evaluate_class(scene: _Scene, name: str) -> dict[str, dict[str, dict[str, list[float | None]]]]:
    is_result = scene.results.is_any_of([name])
    out: dict[str, dict[str, dict[str, list[float | None]]]] = {
        metric: {kind: {f"{iou:.2f}": [] for iou in MIN_OVERLAPS[name]} for kind in ("R40", "R11")}
        for metric in METRICS
    }
    for level in range(len(DIFFICULTIES)):
        task = _Task.of(scene, name, level)
        for metric in ("2d", "bev", "3d"):
            evaluated = scene.has_values(metric, is_result) or not is_result.any()
            for iou in MIN_OVERLAPS[name]:
                precision, orientation = _curves(scene, task, scene.overlaps[metric], iou)
                for kind, points in (("R40", slice(1, None)), ("R11", slice(None, None, 4))):
                    out[metric][kind][f"{iou:.2f}"].append(100 * float(precision[points].mean()) if evaluated else None)
                    if metric == "2d":
                        out["aos"][kind][f"{iou:.2f}"].append(
                            100 * float(orientation[points].mean()) if evaluated and scene.has_alpha else None
                        )
    return out


@dataclass(eq=False)
class _Task:
    """What one class at one difficulty makes of labels (N,) and detections (M,); used but not valid means ignored."""

    valid_label: Flags
    used_label: Flags
    valid_result: Flags
    used_result: Flags

    @staticmethod
    def of(scene: _Scene, name: str, level: int) -> _Task:
        is_label, is_result = scene.labels.is_any_of([name]), scene.results.is_any_of([name])
        is_neighbour = scene.labels.is_any_of([NEIGHBOURS[name]] if name in NEIGHBOURS else [])
        low = scene.result_height < MIN_HEIGHT[level]
        return _Task(
            valid_label=_counts(scene.labels, name, level),
            used_label=is_label | is_neighbour,
            valid_result=is_result & ~low,
            used_result=is_result | low,
        )


def _counts(labels: Table, name: str, level: int) -> Flags:
    """Which labels a class at one difficulty counts, shape (N,)."""
    objects = labels.objects
    excluded = objects.occluded > MAX_OCCLUSION[level]
    excluded |= objects.truncated > MAX_TRUNCATION[level]
    excluded |= objects.xyxy[:, 3] - objects.xyxy[:, 1] <= MIN_HEIGHT[level]
    return labels.is_any_of([name]) & ~excluded


def _curves(scene: _Scene, task: _Task, overlaps: Pairs, min_overlap: float) -> tuple[Floats, Floats]:
    """Precision and orientation similarity at the 41 recall points, both shape (41,)."""
    score = scene.results.objects.score
    overlaps = overlaps[(overlaps.overlap > min_overlap) & task.used_result[overlaps.detection]]
    pairs = overlaps[task.used_label[overlaps.label]]
    thresholds = _thresholds(task, pairs, score)
    if not len(thresholds):
        return np.zeros(RECALL_POINTS), np.zeros(RECALL_POINTS)

    # A set of thresholds is a bit mask: bit t of a detection's mask says that it is free at threshold t.
    everywhere = (1 << len(thresholds)) - 1
    pairs = pairs[score[pairs.detection] >= thresholds[-1]]
    valid = task.valid_result[pairs.detection]
    pairs = pairs[np.lexsort((pairs.detection, np.where(valid, -pairs.overlap, 0), ~valid, pairs.label))]
    in_dont_care = overlaps.detection[scene.labels.kind[overlaps.label] == "dontcare"]
    in_dont_care = np.unique(in_dont_care[task.valid_result[in_dont_care] & (score[in_dont_care] >= thresholds[-1])])
    involved = np.union1d(pairs.detection, in_dont_care)
    unreached = np.searchsorted(-thresholds, -score[involved], "left")  # thresholds above the score
    free = {d: everywhere >> k << k for d, k in zip(involved.tolist(), unreached.tolist(), strict=True)}
    taken = _assign(pairs, free, everywhere)

    valid = task.valid_result[pairs.detection]
    hit = valid & task.valid_label[pairs.label]
    angle = scene.labels.objects.alpha[pairs.label[hit]] - scene.results.objects.alpha[pairs.detection[hit]]
    true_positives = _bits(taken[hit], len(thresholds))
    tp = true_positives.sum(0)
    similarity = (0.5 * (1 + np.cos(angle))) @ true_positives

    valid_scores = np.sort(score[task.valid_result])
    reached = len(valid_scores) - np.searchsorted(valid_scores, thresholds, "left")
    forgiven = np.array([free[d] for d in in_dont_care.tolist()], dtype=np.uint64)
    fp = reached - _bits(taken[valid], len(thresholds)).sum(0) - _bits(forgiven, len(thresholds)).sum(0)
    return _monotone(tp, tp + fp), _monotone(similarity, tp + fp)


def _thresholds(task: _Task, pairs: Pairs, score: Floats) -> Floats:
    """The scores, descending, at which recall comes nearest to 0, 1/40, ..., 1: shape (at most 41,)."""
    pairs = pairs[np.lexsort((pairs.detection, -score[pairs.detection], pairs.label))]
    taken = _assign(pairs, dict.fromkeys(pairs.detection.tolist(), 1), 1) > 0
    hit = taken & task.valid_label[pairs.label] & task.valid_result[pairs.detection]
    scores = np.sort(score[pairs.detection[hit]])[::-1]
    count, last = int(task.valid_label.sum()), len(scores) - 1
    chosen: list[int] = []
    wanted = 0.0
    for i in range(len(scores)):
        recall, next_recall = (i + 1) / count, (i + 2) / count
        if i < last and next_recall - wanted < wanted - recall:
            continue  # the next score comes nearer to the wanted recall
        chosen.append(i)
        wanted += 1 / (RECALL_POINTS - 1)
    return scores[chosen]


def _assign(pairs: Pairs, free: dict[int, int], everywhere: int) -> npt.NDArray[np.uint64]:
    """Give each label, in order, its first detection that is free, independently for each bit.

    Args:
        pairs: K pairs, the order in which labels choose, and each label's preference.
        free: detection -> bits in which it is free; changed in place.
        everywhere: the bits in which all labels are free.

    Returns:
        shape (K,), the bits in which a pair was made.
    """
    waiting = dict.fromkeys(pairs.label.tolist(), everywhere)
    taken = []
    for label, detection in zip(pairs.label.tolist(), pairs.detection.tolist(), strict=True):
        bits = waiting[label] & free[detection]
        if bits:
            waiting[label] ^= bits
            free[detection] ^= bits
        taken.append(bits)
    return np.array(taken, dtype=np.uint64)


def _bits(masks: npt.NDArray[np.uint64], count: int) -> npt.NDArray[np.int64]:
    """shape (K,) -> (K, count), 0 or 1."""
    return (masks[:, None] >> np.arange(count, dtype=np.uint64) & np.uint64(1)).astype(np.int64)


def _monotone(part: npt.NDArray[np.int64] | Floats, whole: npt.NDArray[np.int64]) -> Floats:
    """part / whole, 0 where there is nothing, made monotone from the right and filled up to shape (41,)."""
    curve = np.zeros(RECALL_POINTS)
    np.divide(part, whole, out=curve[: len(whole)], where=whole > 0)
    return np.maximum.accumulate(curve[::-1])[::-1]


@dataclass(eq=False)
class Folders:
    """Labels and results read from two folders.

    Attributes:
        names: of the frames, one per label file.
        labels, results: one entry per frame.
        missing: names of frames without a result file; they count as frames without detections.
        unknown: names of result files without a label file; left out.
    """

    names: list[str]
    labels: list[KittiObjects]
    results: list[KittiObjects]
    missing: list[str]
    unknown: list[str]


def read_folders(labels: str | Path, results: str | Path) -> Folders:
    """Read ``NAME.txt`` files of a label folder and of a result folder (or of its subfolder ``data``, as the official
    evaluator has it).

    Raises:
        UserError: a folder is missing or holds no such files, no name occurs in both, or a file is malformed.
    """
    label_files = _text_files(Path(labels), "labels")
    results = Path(results)
    if (results / "data").is_dir() and not any(results.glob("*.txt")):
        results = results / "data"
    result_files = _text_files(results, "results")
    names = sorted(label_files)
    if not label_files.keys() & result_files.keys():
        raise UserError(f"{results}: no result file is named like a label file in {labels} (such as {names[0]}.txt)")
    missing = [name for name in names if name not in result_files]
    return Folders(
        names,
        [read_objects(label_files[name]) for name in names],
        [read_objects(result_files[name], results=True) if name in result_files else no_objects() for name in names],
        missing,
        sorted(result_files.keys() - label_files.keys()),
    )


def _text_files(folder: Path, what: str) -> dict[str, Path]:
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder of {what}")
    files = {path.stem: path for path in folder.glob("*.txt")}
    if not files:
        raise UserError(f"{folder}: no {what} here; expected files such as 000000.txt")
    return files


def no_objects() -> KittiObjects:
    """A frame without objects."""
    one, two, three = np.zeros(0), np.zeros((0, 4)), np.zeros((0, 3))
    return KittiObjects([], one, one, one, two, three, three, one, one)


def objects_from_boxes(boxes: Boxes3D) -> KittiObjects:
    """Detections in memory in the form that :func:`evaluate` takes, the same as a result file would hold.

    Raises:
        UserError: a detection has no 2D box (NaN): KITTI's minimum height needs one; project the boxes first.
    """
    exact = boxes.to("cpu", torch.float64)
    if bool(exact.xyxy.isnan().any()):
        raise UserError("objects_from_boxes: detections without a 2D box; set Boxes3D.xyxy (see Boxes3D.project)")
    unknown = np.full(len(boxes), -1.0)
    columns = (exact.alpha, exact.xyxy, exact.dimensions_hwl, exact.bottom, exact.yaw, exact.scores)
    return KittiObjects(list(boxes.labels), unknown, unknown, *(column.detach().numpy() for column in columns))
