"""Metrics by distance: nuScenes-style AP by centre distance, recall and depth error by range.

Distances are on the ground: (x, z) of the camera frame. The AP follows the definition of the nuScenes detection task
[peer: nuScenes] for one camera; nuScenes itself is scored by its devkit (:mod:`skd_core.evaluation.nuscenes`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from skd_core.evaluation.errors import PairErrors, has_3d, match
from skd_core.evaluation.overlaps import Floats, Table, pairs_within_frames

DISTANCES = (0.5, 1.0, 2.0, 4.0)
"""Metres within which a detection's centre counts as found."""
RANGES = ((0.0, 10.0), (10.0, 20.0), (20.0, 30.0), (30.0, 50.0), (50.0, math.inf))
"""Metres of depth."""
MIN_RECALL, MIN_PRECISION, RECALL_STEPS = 0.1, 0.1, 101


@dataclass(eq=False)
class Curve:
    """Precision over recall.

    Attributes:
        recall: shape (101,), 0 to 1.
        precision: shape (101,), 0 where recall is not reached.
        ap: mean of what of the precision is above .1, over recalls above .1; as a share of the most possible.
    """

    recall: Floats
    precision: Floats
    ap: float


def distance_curve(labels: Table, results: Table, kind: str, distance: float) -> Curve | None:
    """Curve of one class: in order of score, each detection takes the nearest free label nearer than ``distance``.

    Args:
        labels, results: objects of the same frames; kind: class name, without case.

    Returns:
        the curve; None where the class has no labels.
    """
    used_label = np.flatnonzero(labels.is_any_of([kind]) & has_3d(labels.objects))
    used_result = np.flatnonzero(results.is_any_of([kind]) & has_3d(results.objects))
    if not len(used_label):
        return None
    i, j = pairs_within_frames(labels.frame[used_label], results.frame[used_result])
    offset = labels.objects.location[used_label[i]] - results.objects.location[used_result[j]]
    apart = np.hypot(offset[:, 0], offset[:, 2])
    near = apart < distance
    i, j, apart = i[near], j[near], apart[near]
    candidates: dict[int, list[int]] = {}
    for k in np.argsort(apart, kind="stable").tolist():
        candidates.setdefault(int(j[k]), []).append(int(i[k]))

    score = results.objects.score[used_result]
    order = np.argsort(-score, kind="stable")
    taken: set[int] = set()
    hit = np.zeros(len(order))
    for rank, detection in enumerate(order.tolist()):
        label = next((one for one in candidates.get(detection, ()) if one not in taken), None)
        if label is not None:
            taken.add(label)
            hit[rank] = 1
    grid = np.linspace(0, 1, RECALL_STEPS)
    if not hit.any():
        return Curve(grid, np.zeros(RECALL_STEPS), 0.0)
    found = np.cumsum(hit)
    precision = np.interp(grid, found / len(used_label), found / np.arange(1, len(hit) + 1), right=0)
    above = np.clip(precision[round(MIN_RECALL * (RECALL_STEPS - 1)) + 1 :] - MIN_PRECISION, 0, None)
    return Curve(grid, precision, float(above.mean()) / (1 - MIN_PRECISION))


def distance_ap(labels: Table, results: Table, classes: Sequence[str]) -> dict[str, dict[str, float | None]]:
    """AP in [0, 1] by class and distance ("0.5" ... "4.0") and their "mean"; None for classes without labels."""
    out: dict[str, dict[str, float | None]] = {}
    for name in classes:
        curves = {f"{distance:.1f}": distance_curve(labels, results, name, distance) for distance in DISTANCES}
        aps = {key: None if curve is None else curve.ap for key, curve in curves.items()}
        known = [ap for ap in aps.values() if ap is not None]
        out[name] = aps | {"mean": sum(known) / len(known) if known else None}
    return out


def recall_by_range(
    labels: Table, results: Table, classes: Sequence[str]
) -> dict[str, dict[str, dict[str, float | None]]]:
    """Share of labels that are matched (as :mod:`skd_core.evaluation.errors` matches), by class and depth.

    Returns:
        class -> range ("0-10", ..., "50+", "all") -> labels, found, recall (None without labels).
    """
    matched = np.zeros(len(labels.kind), dtype=bool)
    matched[match(labels, results, classes)[0]] = True
    depth, out = labels.objects.location[:, 2], {}
    for name in classes:
        of_class = labels.is_any_of([name]) & has_3d(labels.objects)
        rows = {range_name(r): of_class & (depth >= r[0]) & (depth < r[1]) for r in RANGES} | {"all": of_class}
        out[name] = {
            key: {
                "labels": float(chosen.sum()),
                "found": float((chosen & matched).sum()),
                "recall": float(matched[chosen].mean()) if chosen.any() else None,
            }
            for key, chosen in rows.items()
        }
    return out


def depth_error_by_range(errors: PairErrors, kind: str | None = None) -> dict[str, dict[str, float | None]]:
    """Relative and absolute depth errors of matched pairs, by the label's depth.

    Returns:
        range -> count; relative_median, relative_p90 (absolute values), bias (median with its sign), metres_median.
        None where there is no pair.
    """
    chosen = np.array([kind in (None, name) for name in errors.kind], dtype=bool)
    out: dict[str, dict[str, float | None]] = {}
    for low, high in RANGES:
        relative = errors.depth[chosen & (errors.z >= low) & (errors.z < high)]
        metres = (errors.depth * errors.z)[chosen & (errors.z >= low) & (errors.z < high)]
        row: dict[str, float | None] = dict.fromkeys(("relative_median", "relative_p90", "bias", "metres_median"))
        if len(relative):
            row = {
                "relative_median": float(np.median(np.abs(relative))),
                "relative_p90": float(np.percentile(np.abs(relative), 90)),
                "bias": float(np.median(relative)),
                "metres_median": float(np.median(np.abs(metres))),
            }
        row["count"] = float(len(relative))
        out[range_name((low, high))] = row
    return out


def range_name(limits: tuple[float, float]) -> str:
    """ "10-20", "50+"."""
    return f"{limits[0]:.0f}+" if math.isinf(limits[1]) else f"{limits[0]:.0f}-{limits[1]:.0f}"
