"""Keeps track of the markers that RViz shows, to delete those that are no longer published.

A DELETEALL would empty the whole display, other cameras' boxes included.
"""

from __future__ import annotations

import time

from std_msgs.msg import Header
from visualization_msgs.msg import Marker, MarkerArray


class MarkerMemory:
    """Remembers the markers of one node by namespace and id, each for as long as RViz may show it.

    Within that time a deletion is repeated in every array, since the one before may have been lost on the way.
    """

    def __init__(self) -> None:
        self._until: dict[tuple[str, int], float] = {}  # (namespace, id) -> monotonic seconds

    def __len__(self) -> int:
        """How many markers may be seen."""
        return len(self._until)

    def update(self, markers: MarkerArray, header: Header, lifetime: float) -> MarkerArray:
        """The array to publish: what is new, and before it the deletion of what is not in it any more.

        Args:
            markers: of the newest frame, each to be added.
            header: of the deletions.
            lifetime: of the new markers, seconds.
        """
        now = time.monotonic()
        new = {(marker.ns, marker.id): now + lifetime for marker in markers.markers}
        gone = {key: until for key, until in self._until.items() if until > now and key not in new}
        self._until = gone | new
        deletions = [Marker(header=header, ns=ns, id=number, action=Marker.DELETE) for ns, number in gone]
        return MarkerArray(markers=[*deletions, *markers.markers])
