"""Class names of the truth in a bag: by name, by a class map, or ids that a LabelInfo of the bag names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from skd_core.data.bag import LABEL_INFO, open_bag, read_messages
from skd_core.supervision.class_map import parse_class_map

KITTI_NAMES = ("Car", "Van", "Truck", "Pedestrian", "Person_sitting", "Cyclist", "Tram", "Misc", "DontCare")
"""How KITTI spells its classes."""
KITTI_CLASSES = frozenset(name.lower() for name in KITTI_NAMES)


class TruthClasses:
    """From what a message calls a class to its name.

    Attributes:
        spelling: names as the detector, or else KITTI, spells them.

    Args:
        classes: of the detector.
        entries: "SOURCE:TARGET", see :func:`skd_core.supervision.class_map.parse_class_map`; before all else.
        labels: id -> name, of a LabelInfo; where an id is a number that is no class's name.
        source: the LabelInfo's topic.

    Raises:
        UserError: an entry of another form.
    """

    def __init__(
        self,
        classes: Sequence[str],
        entries: Sequence[str] = (),
        labels: Mapping[str, str] | None = None,
        source: str = "",
    ) -> None:
        names = {name.lower(): name for name in (*KITTI_NAMES, *classes)}
        self.spelling = tuple(names.values())
        self._names, self._labels, self._source = names, labels or {}, source
        self._map = parse_class_map(entries) if entries else {}
        self._used: set[str] = set()

    def name(self, class_id: str) -> str:
        """The name of a class."""
        mapped = self._map.get(class_id.lower())
        if mapped is None and class_id.lower() not in self._names and class_id in self._labels:
            mapped = self._labels[class_id]
            self._used.add(class_id)
        return class_id if mapped is None else self._names.get(mapped.lower(), mapped)

    def tell(self, topic: str, notes: list[str]) -> None:
        """Say which ids a LabelInfo has named."""
        if self._used:
            pairs = ", ".join(f"{number} is {self._labels[number]}" for number in sorted(self._used))
            notes.append(f"{topic}: class ids as {self._source} names them: {pairs}")


def read_label_info(bag: Path, topic: str) -> tuple[dict[str, str], str]:
    """The class names of a topic of detections: id -> name, and the LabelInfo's topic.

    It is the LabelInfo beside the topic, or else the only one of the bag; ({}, "") without.
    """
    with open_bag(bag) as reader:
        topics = sorted(c.topic for c in reader.connections if c.msgtype == LABEL_INFO)
        beside = [name for name in topics if name.rsplit("/", 1)[0] == topic.rsplit("/", 1)[0]]
        chosen = beside if len(beside) == 1 else topics
        if len(chosen) != 1:
            return {}, ""
        names: dict[str, str] = {}
        for _, _, message in read_messages(reader, chosen[0], []):
            names |= {str(entry.class_id): entry.class_name for entry in message.class_map}
    return names, chosen[0]
