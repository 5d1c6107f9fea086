"""Quality of 2D labels compared with true ones: recall, precision, and objects labelled as background [ours].

Counted as true objects are those of a class at least 25 px high, occluded at most partly and less than half truncated;
where a file does not say (-1), as 2D labels do not, every object of that height. Found boxes take the free object of
their class that they overlap most, by an IoU above .5, best score first. One that takes none is false, unless it lies
by half in DontCare or overlaps any object by .5; only found boxes of at least 25 px count.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torchvision.ops import box_iou

from skd_core.boxes import Boxes2D
from skd_core.data.kitti import KittiObjects
from skd_core.iou import covered, take_best
from skd_core.supervision.class_map import DONT_CARE

MIN_HEIGHT = 25.0


@dataclass
class Agreement:
    """Counts of one class over all frames.

    Attributes:
        objects: true objects that count.
        found, found_well: of these, found at an IoU above .5 and .7.
        unlearnt: of these, not found, but half covered by DontCare: not learnt against either.
        right, wrong: found boxes that are and are not a true object of the class, small or hidden ones included.
    """

    objects: int = 0
    found: int = 0
    found_well: int = 0
    unlearnt: int = 0
    right: int = 0
    wrong: int = 0

    def row(self) -> dict[str, float]:
        """The numbers as shares; NaN where there is nothing to share."""
        return {
            "objects": self.objects,
            "recall_50": _share(self.found, self.objects),
            "recall_70": _share(self.found_well, self.objects),
            "dont_care": _share(self.unlearnt, self.objects),
            "found": self.right + self.wrong,
            "precision": _share(self.right, self.right + self.wrong),
        }


def compare(frames: Iterable[tuple[Boxes2D, KittiObjects]], classes: Iterable[str]) -> dict[str, Agreement]:
    """Agreement of found boxes with true labels, class by class.

    Args:
        frames: for each, labels found (scores order them; DontCare among them) and the true ones.
        classes: to count.
    """
    counts = {name: Agreement() for name in classes}
    for found, truth in frames:
        for name, count in counts.items():
            _count(count, name, found, truth)
    return counts


def _count(count: Agreement, name: str, found: Boxes2D, truth: KittiObjects) -> None:
    xyxy = torch.from_numpy(truth.xyxy).reshape(-1, 4)
    boxes = found.xyxy.double()
    iou = box_iou(boxes, xyxy)
    objects = np.flatnonzero(truth.is_class([name])).tolist()
    real = np.flatnonzero(~truth.is_class([DONT_CARE])).tolist()
    dont_care = covered(boxes, xyxy[np.flatnonzero(truth.is_class([DONT_CARE]))])
    own = [d for d in found.scores.argsort(descending=True, stable=True).tolist() if found.labels[d] == name]
    taken = {label: own[d] for label, d in take_best(iou[own], objects, 0.5).items()}
    right = set(taken.values())
    for d in own:
        if float(boxes[d, 3] - boxes[d, 1]) < MIN_HEIGHT:
            continue
        explained = bool((iou[d, real] > 0.5).any()) or bool((dont_care[d] > 0.5).any())
        count.right += d in right
        count.wrong += d not in right and not explained
    doubtful = boxes[[label == DONT_CARE for label in found.labels]]
    hidden = covered(xyxy, doubtful)
    for i in objects:
        tall = truth.xyxy[i, 3] - truth.xyxy[i, 1] >= MIN_HEIGHT
        if not tall or truth.occluded[i] > 1 or truth.truncated[i] >= 0.5:
            continue
        count.objects += 1
        if i in taken:
            count.found += 1
            count.found_well += float(iou[taken[i], i]) > 0.7
        else:
            count.unlearnt += bool((hidden[i] > 0.5).any())


def _share(part: int, whole: int) -> float:
    return part / whole if whole else float("nan")
