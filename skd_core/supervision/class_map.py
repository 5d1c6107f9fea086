"""From the names of any 2D detector to the project's classes: the class map and the rider rule [ours].

Both are pure functions of :class:`skd_core.boxes.Boxes2D`: the ONNX runner, label files and ROS messages pass through
the same ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from skd_core.boxes import Boxes2D
from skd_core.errors import UserError

DONT_CARE = "DontCare"
"""KITTI's word for a region where nothing is learnt and nothing is learnt against."""
CYCLE = "Cycle"
"""Of a class map only: a bicycle or motorcycle, which is a cyclist together with its rider and DontCare without."""

COCO_NAMES = (
    "person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat", "traffic light",
    "fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog", "horse", "sheep", "cow", "elephant",
    "bear", "zebra", "giraffe", "backpack", "umbrella", "handbag", "tie", "suitcase", "frisbee", "skis", "snowboard",
    "sports ball", "kite", "baseball bat", "baseball glove", "skateboard", "surfboard", "tennis racket", "bottle",
    "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple", "sandwich", "orange", "broccoli",
    "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch", "potted plant", "bed", "dining table", "toilet",
    "tv", "laptop", "mouse", "remote", "keyboard", "cell phone", "microwave", "oven", "toaster", "sink",
    "refrigerator", "book", "clock", "vase", "scissors", "teddy bear", "hair drier", "toothbrush",
)  # fmt: skip
"""The 80 classes of COCO detectors, in the order of their ids (0 = person)."""

COCO_MAP = (
    "person:pedestrian", "car:car", "bicycle:cycle", "motorcycle:cycle", "truck:dontcare", "bus:dontcare",
    "train:dontcare",
)  # fmt: skip
"""Default class map. COCO has no vans: detectors call them car or truck, KITTI neither, so trucks are DontCare."""

_SPELLING = {name.lower(): name for name in ("Car", "Van", "Truck", "Pedestrian", "Cyclist", DONT_CARE, CYCLE)}


def parse_class_map(entries: Sequence[str], names: Sequence[str] = ()) -> dict[str, str]:
    """A class map from its entries.

    Args:
        entries: "SOURCE:TARGET", SOURCE a detector's class name or id, TARGET a class of the project, "dontcare" or
            "cycle"; capital letters do not matter in either. Sources that no entry names are background.
        names: of the detector's classes in the order of their ids, for entries with ids ("2:car"). Where it knows the
            names, an entry that names none of them is an error.

    Returns:
        detector's class (lower case; both its name and its id, where both are known) to the project's class.

    Raises:
        UserError: an entry of another form, a source named twice, or one that the detector does not have.
    """
    known = {name.lower(): number for number, name in enumerate(names)}
    mapping: dict[str, str] = {}
    for entry in entries:
        source, _, target = (word.strip() for word in entry.rpartition(":"))
        if not source or not target or len(target.split()) != 1:
            raise UserError(f"class map: {entry!r}: write SOURCE:TARGET, such as person:pedestrian or 2:car")
        spellings = {source.lower()}
        if names:
            number = int(source) if source.isdecimal() else known.get(source.lower(), len(names))
            if number >= len(names):
                raise UserError(f"class map: {entry!r}: the detector has no class {source!r}; it has {_some(names)}")
            spellings = {str(number), names[number].lower()}
        for spelling in spellings:
            if spelling in mapping:
                raise UserError(f"class map: {entry!r}: {source!r} is named twice")
            mapping[spelling] = _SPELLING.get(target.lower(), target)
    return mapping


def map_classes(boxes: Boxes2D, mapping: Mapping[str, str]) -> Boxes2D:
    """The boxes whose label the map knows, under the project's names; the others are left out.

    Args:
        boxes: labels are a detector's names or ids; capital letters do not matter.
        mapping: see :func:`parse_class_map`.
    """
    targets = [mapping.get(label.lower()) for label in boxes.labels]
    known = [i for i, target in enumerate(targets) if target is not None]
    picked = boxes[known]
    return Boxes2D(picked.xyxy, tuple(str(targets[i]) for i in known), picked.scores)


def join_riders(boxes: Boxes2D, person: str = "Pedestrian", rider: str = "Cyclist") -> Boxes2D:
    """The rider rule: persons on cycles become cyclists.

    A person whose lower half overlaps a cycle, and horizontally by more than half of the narrower of the two, is a
    cyclist; its box is the union of both, its score the person's. Each cycle carries one person and each person rides
    one cycle, pairs that overlap most first. Cycles without a rider are DontCare.

    Args:
        boxes: labels as :func:`map_classes` gives them; persons are ``person``, cycles :data:`CYCLE`.
        person: label of those who may ride; rider: label of those who do.

    Returns:
        The boxes in their order, without the cycles that were joined to a rider; none is called CYCLE.
    """
    persons = [i for i, label in enumerate(boxes.labels) if label == person]
    cycles = [i for i, label in enumerate(boxes.labels) if label == CYCLE]
    xyxy = boxes.xyxy.tolist()
    pairs = []
    for p in persons:
        for c in cycles:
            share = _ridden(xyxy[p], xyxy[c])
            if share > 0.5:
                pairs.append((-share, p, c))
    cycle_of: dict[int, int] = {}
    for _, p, c in sorted(pairs):
        if p not in cycle_of and c not in cycle_of.values():
            cycle_of[p] = c
    joined = boxes.xyxy.clone()
    labels = [DONT_CARE if label == CYCLE else label for label in boxes.labels]
    for p, c in cycle_of.items():
        joined[p, :2] = torch.minimum(joined[p, :2], boxes.xyxy[c, :2])
        joined[p, 2:] = torch.maximum(joined[p, 2:], boxes.xyxy[c, 2:])
        labels[p] = rider
    ridden = set(cycle_of.values())
    return Boxes2D(joined, tuple(labels), boxes.scores)[[i for i in range(len(boxes)) if i not in ridden]]


def _ridden(person: Sequence[float], cycle: Sequence[float]) -> float:
    """How much of the narrower one's width both share, where the person's lower half meets the cycle; else 0."""
    middle = 0.5 * (person[1] + person[3])
    if min(person[3], cycle[3]) <= max(middle, cycle[1]):
        return 0.0
    narrower = min(person[2] - person[0], cycle[2] - cycle[0])
    shared = min(person[2], cycle[2]) - max(person[0], cycle[0])
    return shared / narrower if narrower > 0 else 0.0


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")
