"""Rules by which detected 2D boxes become labels or DontCare regions [ours].

A label that is wrong teaches twice: an object that is not there, or background where there is one. So a box is a label
only where nothing speaks against it; what is doubtful becomes DontCare, where nothing is learnt against either.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torchvision.ops import box_iou

from skd_core.boxes import Boxes2D
from skd_core.iou import covered
from skd_core.supervision.class_map import DONT_CARE
from skd_core.supervision.tiles import join

DEFAULT_KEEP = {"Car": 0.4, "Pedestrian": 0.5, "Cyclist": 0.5}
"""Minimum score of a label. Nearly all of YOLOX-nano's cars above .4 that KITTI does not label are cars; of its
pedestrians between .4 and .5 half are signs and posts. [ours]"""


@dataclass(frozen=True)
class LabelRules:
    """When a box is a label.

    Attributes:
        keep: minimum score of a label by class; other classes have the largest of them.
        cross_class_iou: boxes of two classes that overlap more are one object.
        cross_class_share: of two such boxes, both are doubtful if the lower score is at least this share of the higher.
        nested: a box of which this share lies in a better one of its class is doubtful: rather a part than an object.
    """

    keep: Mapping[str, float] = field(default_factory=lambda: dict(DEFAULT_KEEP))
    cross_class_iou: float = 0.6
    cross_class_share: float = 0.9
    nested: float = 0.8

    def min_score(self, label: str) -> float:
        """Minimum score of a label of this class."""
        return self.keep.get(label, max(self.keep.values(), default=1.0))

    def apply(self, found: Boxes2D) -> Boxes2D:
        """Labels and DontCare from a detector's boxes.

        Args:
            found: under the project's class names, DontCare among them; with the doubtful ones, that is down to a
                low score.

        Returns:
            Labels best first, then DontCare best first; no DontCare that a label or another one covers all but whole.
        """
        found = found[found.scores.argsort(descending=True, stable=True)]
        iou = box_iou(found.xyxy, found.xyxy).tolist()  # lists: reading a tensor's elements takes longer than all else
        part = covered(found.xyxy, found.xyxy).tolist()
        scores = found.scores.tolist()
        labels: list[str] = []
        gone: set[int] = set()
        for i, label in enumerate(found.labels):
            doubt = label == DONT_CARE or scores[i] < self.min_score(label)
            for j in range(i):  # the better ones
                same = found.labels[j] == label
                if same and j not in gone:
                    doubt |= part[i][j] >= self.nested
                elif not same and j not in gone and iou[i][j] > self.cross_class_iou:
                    if scores[i] >= self.cross_class_share * scores[j]:
                        labels[j] = DONT_CARE
                    gone.add(i)
            labels.append(DONT_CARE if doubt else label)
        left = [i for i in range(len(found)) if i not in gone]
        named = Boxes2D(found.xyxy, tuple(labels), found.scores)[left]
        sure = named[[label != DONT_CARE for label in named.labels]]
        doubtful = named[[label == DONT_CARE for label in named.labels]]
        return join([sure, uncovered(doubtful, sure)])


def uncovered(doubtful: Boxes2D, sure: Boxes2D, share: float = 0.9) -> Boxes2D:
    """The doubtful boxes of which less than ``share`` lies in one that is sure or in a better doubtful one."""
    kept: list[int] = []
    in_sure = (covered(doubtful.xyxy, sure.xyxy) >= share).any(1).tolist()
    among = (covered(doubtful.xyxy, doubtful.xyxy) >= share).tolist()
    for i in range(len(doubtful)):
        if not in_sure[i] and not any(among[i][j] for j in kept):
            kept.append(i)
    return doubtful[kept]
