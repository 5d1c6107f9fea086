"""From the class names and ids of a 2D detector to the classes of the weights."""

from __future__ import annotations

from collections.abc import Sequence

from skd_core.boxes import Boxes2D
from skd_core.errors import UserError
from skd_core.supervision.class_map import COCO_MAP, CYCLE, DONT_CARE, join_riders, map_classes, parse_class_map

RIDER = "Cyclist"


class BoxClasses:
    """A class map that leads to the classes of the weights.

    Args:
        entries: "SOURCE:TARGET", as :func:`skd_core.supervision.class_map.parse_class_map` takes them. None at all:
            the weights' own names, and COCO's names as :data:`skd_core.supervision.class_map.COCO_MAP` has them; no
            ids, since what an id means is the 2D detector's own affair.
        classes: of the weights.

    Raises:
        UserError: an entry of another form, or whose target the weights do not know.
    """

    def __init__(self, entries: Sequence[str], classes: Sequence[str]) -> None:
        self._spelling = {name.lower(): name for name in (*classes, DONT_CARE, CYCLE)}
        if entries:
            mapping = parse_class_map(entries)
            unknown = [target for target in mapping.values() if target.lower() not in self._spelling]
            if unknown:
                raise UserError(
                    f"class_map: unknown class '{unknown[0]}'; the weights know {', '.join(classes)}, and there are "
                    f"{DONT_CARE.lower()} and {CYCLE.lower()}"
                )
        else:
            mapping = parse_class_map(COCO_MAP) | {name.lower(): name for name in classes}
        self._mapping = {
            source: self._spelling[target.lower()] for source, target in mapping.items() if self._is_known(target)
        }
        self._classes = frozenset(classes)

    def knows(self, name: str) -> bool:
        """Whether the map has a name or id, be it only as something not to be placed."""
        return name.lower() in self._mapping

    def map(self, boxes: Boxes2D) -> Boxes2D:
        """Boxes of a 2D detector under the weights' names, persons on cycles as cyclists; the others are left out."""
        person, rider = self._spelling.get("pedestrian", ""), self._spelling.get(RIDER.lower(), RIDER)
        return self.of_the_weights(join_riders(map_classes(boxes, self._mapping), person, rider))

    def of_the_weights(self, boxes: Boxes2D) -> Boxes2D:
        """The boxes whose class the weights know."""
        return boxes[[label in self._classes for label in boxes.labels]]

    def _is_known(self, target: str) -> bool:
        return target.lower() in self._spelling
