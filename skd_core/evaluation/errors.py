"""Where average precision is lost: errors of matched detections by axis, and AP with one of them corrected. [ours]

Matching takes no notice of the 3D overlap, so that a box that is far off in depth is compared with the right object:

1. in order of score, each detection takes the free label of its class and frame with the greatest 2D IoU, from 0.5 on;
2. of what is left, in order of distance, detections and labels of a class whose centres are less than 2 m apart as
   seen from above (for detections whose 2D box is poor or missing).

Each label and each detection is matched at most once; detections found twice and false ones stay as they are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from skd_core.data.kitti import KittiObjects
from skd_core.errors import UserError
from skd_core.evaluation.kitti import CLASSES, Scores, evaluate_tables
from skd_core.evaluation.overlaps import Flags, Floats, Indices, Table, image_overlaps, pairs_within_frames

MIN_IOU_2D = 0.5
MAX_DISTANCE = 2.0
SUBSTITUTES = ("depth", "ray", "size", "yaw", "box2d", "all")
"""What :func:`error_budget` corrects."""


@dataclass(eq=False)
class PairErrors:
    """Errors (detection - label) of K matched pairs.

    Attributes:
        kind: K class names of :data:`CLASSES`.
        z: shape (K,), the label's depth, metres.
        score: shape (K,), of the detection.
        depth: shape (K,), relative error of z.
        lateral: shape (K,), error of x, metres (right is positive).
        vertical: shape (K,), error of the volume centre's y, metres (down is positive).
        size: shape (K, 3), relative errors of (l, w, h).
        yaw: shape (K,), absolute error, radians in [0, pi].
        yaw_mod_pi: shape (K,), the same with front and back taken as one, [0, pi/2].
        yaw_folded: shape (K,), the same with alpha and -alpha taken as one too, [0, pi/2]: what projections alone can
            tell (method: Limits).
    """

    kind: list[str]
    z: Floats
    score: Floats
    depth: Floats
    lateral: Floats
    vertical: Floats
    size: Floats
    yaw: Floats
    yaw_mod_pi: Floats
    yaw_folded: Floats

    def __len__(self) -> int:
        return len(self.kind)

    def statistics(self, kind: str | None = None) -> dict[str, float]:
        """Per axis the median and the 90th percentile of the absolute error, and the bias: the median of the error.

        Keys: ``count``; ``depth_median``, ``depth_p90``, ``depth_bias`` (relative), ``lateral_*``, ``vertical_*``
        (metres), ``length_*``, ``width_*``, ``height_*`` (relative); without bias ``yaw_*``, ``yaw_mod_pi_*``,
        ``yaw_folded_*`` (degrees). NaN where there is no pair.

        Args:
            kind: one class; all without.
        """
        chosen = np.array([kind is None or name == kind for name in self.kind], dtype=bool)
        signed = {"depth": self.depth, "lateral": self.lateral, "vertical": self.vertical}
        signed |= dict(zip(("length", "width", "height"), self.size.T, strict=True))
        angles = {"yaw": self.yaw, "yaw_mod_pi": self.yaw_mod_pi, "yaw_folded": self.yaw_folded}
        out = {"count": float(chosen.sum())}
        for name, values in (signed | {name: np.degrees(values) for name, values in angles.items()}).items():
            picked = values[chosen] if chosen.any() else np.array([math.nan])
            if name in signed:
                out[f"{name}_bias"] = float(np.median(picked))
            out[f"{name}_median"] = float(np.median(np.abs(picked)))
            out[f"{name}_p90"] = float(np.percentile(np.abs(picked), 90))
        return out


def pair_errors(
    labels: Sequence[KittiObjects], results: Sequence[KittiObjects], classes: Sequence[str] = CLASSES
) -> PairErrors:
    """Errors of matched pairs that have 3D values, in order of label.

    Args:
        labels: one entry per frame; results: the detections of the same frames, in the same order.

    Raises:
        UserError: another number of frames in the two.
    """
    label_table, result_table = _tables(labels, results)
    label, detection = match(label_table, result_table, classes)
    known = has_3d(label_table.objects)[label] & has_3d(result_table.objects)[detection]
    label, detection = label[known], detection[known]
    a, b = result_table.objects[detection], label_table.objects[label]
    offset = _center(a) - _center(b)
    yaw = a.rotation_y - b.rotation_y
    alpha_a, alpha_b = _alpha(a), _alpha(b)
    spelling = {name.lower(): name for name in classes}
    return PairErrors(
        [spelling[name] for name in label_table.kind[label].tolist()],
        z=b.location[:, 2],
        score=a.score,
        depth=offset[:, 2] / b.location[:, 2],
        lateral=offset[:, 0],
        vertical=offset[:, 1],
        size=(a.dimensions / b.dimensions - 1)[:, ::-1],
        yaw=_fold(yaw, 2 * math.pi),
        yaw_mod_pi=_fold(yaw, math.pi),
        yaw_folded=np.minimum(_fold(alpha_a - alpha_b, math.pi), _fold(-alpha_a - alpha_b, math.pi)),
    )


def error_budget(
    labels: Sequence[KittiObjects], results: Sequence[KittiObjects], classes: Sequence[str] = CLASSES
) -> dict[str, Scores]:
    """AP as it is ("baseline") and with one thing at a time replaced by the truth in every matched detection.

    - ``depth``: the volume centre moves along its viewing ray to the label's z; yaw stays.
    - ``ray``: the volume centre moves at its own z onto the label's ray; yaw stays.
    - ``size``: the label's dimensions about the detection's volume centre.
    - ``yaw``: the label's rotation_y and alpha.
    - ``box2d``: the label's 2D box.
    - ``all``: all of these; what is still missing is lost to missed objects, false detections and scores.

    Rays start at the origin of the label's coordinates; KITTI's left colour camera is 6 cm beside it, which moves a box
    by 6 cm times its relative depth error.

    Arguments and errors as :func:`pair_errors`; scores as :func:`skd_core.evaluation.kitti.evaluate`.
    """
    label_table, result_table = _tables(labels, results)
    pairs = match(label_table, result_table, classes)
    out = {"baseline": evaluate_tables(label_table, result_table, classes)}
    for what in SUBSTITUTES:
        corrected = _substitute(label_table.objects, result_table.objects, pairs, what)
        out[what] = evaluate_tables(label_table, replace(result_table, objects=corrected), classes)
    return out


def match(labels: Table, results: Table, classes: Sequence[str] = CLASSES) -> tuple[Indices, Indices]:
    """Match detections to labels as the module describes: indices, two of shape (K,), in order of label."""
    used_label, used_result = (np.flatnonzero(table.is_any_of(classes)) for table in (labels, results))
    i, j = pairs_within_frames(labels.frame[used_label], results.frame[used_result])
    label, detection = used_label[i], used_result[j]
    same = labels.kind[label] == results.kind[detection]
    label, detection = label[same], detection[same]

    no_dont_care = np.zeros(len(labels.kind), dtype=bool)
    close = image_overlaps(labels.objects, results.objects, (label, detection), no_dont_care)
    close = close[close.overlap >= MIN_IOU_2D]
    by_score = np.lexsort((-close.overlap, close.detection, -results.objects.score[close.detection]))

    place = (results.objects.location[detection] - labels.objects.location[label])[:, [0, 2]]
    distance = np.hypot(place[:, 0], place[:, 1])
    near = np.flatnonzero((distance < MAX_DISTANCE) & has_3d(results.objects)[detection])
    near = near[np.argsort(distance[near], kind="stable")]

    taken: dict[int, int] = {}
    used: set[int] = set()
    labels_by_rank = np.concatenate([close.label[by_score], label[near]])
    detections_by_rank = np.concatenate([close.detection[by_score], detection[near]])
    for one, other in zip(labels_by_rank.tolist(), detections_by_rank.tolist(), strict=True):
        if one not in taken and other not in used:
            taken[one] = other
            used.add(other)
    ordered = sorted(taken)
    return np.array(ordered, dtype=np.intp), np.array([taken[one] for one in ordered], dtype=np.intp)


def _tables(labels: Sequence[KittiObjects], results: Sequence[KittiObjects]) -> tuple[Table, Table]:
    if len(labels) != len(results) or not len(labels):
        raise UserError(f"errors: {len(labels)} frames of labels, {len(results)} of results; give the same frames")
    return Table.of(labels), Table.of(results)


def _substitute(labels: KittiObjects, results: KittiObjects, pairs: tuple[Indices, Indices], what: str) -> KittiObjects:
    """The detections with one thing of the matched ones replaced; those without 3D values keep having none."""
    if what in ("box2d", "all"):
        xyxy = results.xyxy.copy()
        xyxy[pairs[1]] = labels.xyxy[pairs[0]]
        results = replace(results, xyxy=xyxy)
    if what == "box2d":
        return results
    known = has_3d(results)[pairs[1]] & has_3d(labels)[pairs[0]]
    label, detection = pairs[0][known], pairs[1][known]
    dimensions, center = results.dimensions.copy(), _center(results)
    rotation_y, alpha = results.rotation_y.copy(), results.alpha.copy()
    true_center = _center(labels)[label]
    if what in ("size", "all"):
        dimensions[detection] = labels.dimensions[label]
    if what in ("yaw", "all"):
        rotation_y[detection], alpha[detection] = labels.rotation_y[label], labels.alpha[label]
    if what == "all":
        center[detection] = true_center
    elif what in ("depth", "ray"):
        ratio = true_center[:, 2:] / center[detection, 2:]
        center[detection] = center[detection] * ratio if what == "depth" else true_center / ratio
    location = center + dimensions[:, :1] * [0, 0.5, 0]
    return replace(results, dimensions=dimensions, location=location, rotation_y=rotation_y, alpha=alpha)


def has_3d(objects: KittiObjects) -> Flags:
    """shape (N,), whether an object has a box in front of the camera."""
    known: Flags = is_placed(objects) & (objects.location[:, 2] > 0)
    return known


def is_placed(objects: KittiObjects) -> Flags:
    """shape (N,), whether an object has a 3D box at all; KITTI writes sides of -1 and a place of -1000 where not."""
    placed: Flags = (objects.dimensions > 0).all(1) & (objects.location != -1000).all(1)
    return placed


def _center(objects: KittiObjects) -> Floats:
    """shape (N, 3), volume centres."""
    center: Floats = objects.location - objects.dimensions[:, :1] * [0, 0.5, 0]
    return center


def _alpha(objects: KittiObjects) -> Floats:
    """shape (N,), from yaw and place: the alpha column of LiDAR detectors is often empty."""
    alpha: Floats = objects.rotation_y - np.arctan2(objects.location[:, 0], objects.location[:, 2])
    return alpha


def _fold(angle: Floats, period: float) -> Floats:
    """Distance to the nearest multiple of the period."""
    distance: Floats = np.abs(np.remainder(angle + 0.5 * period, period) - 0.5 * period)
    return distance
