"""Counts of the used and discarded 2D boxes of a topic."""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Mapping
from typing import NamedTuple

from skd_core.data.ros_detections_2d import REJECTED
from skd_wm3d_ros.diagnostics import RECENT

MAX_NAMES = 5  # classes in one line


class _Message(NamedTuple):
    arrived: float  # monotonic seconds
    boxes: int
    rejected: Counter[str]
    strange: frozenset[str]  # classes that the class map does not know
    known: int  # boxes whose class it knows


class BoxStatistics:
    """Counts since activation; written by the worker, read by the diagnostics timer.

    Args:
        topic: of the boxes.
    """

    def __init__(self, topic: str) -> None:
        self._topic = topic
        self._boxes = self._known = self._unknown = 0
        self._rejected: Counter[str] = Counter()
        self._recent: deque[_Message] = deque(maxlen=2000)
        self._lock = threading.Lock()

    def add(self, boxes: int, rejected: Mapping[str, int], strange: frozenset[str], known: int) -> None:
        """One message.

        Args:
            boxes: how many it holds.
            rejected: how many cannot be taken, by the reason.
            strange: classes of the others that the class map does not know.
            known: how many of the others have a class that it knows.
        """
        counts = Counter({why: n for why, n in rejected.items() if n})
        with self._lock:
            self._boxes += boxes
            self._known += known
            self._unknown += boxes - counts.total() - known
            self._rejected += counts
            self._recent.append(_Message(time.monotonic(), boxes, counts, strange, known))

    def ever_known(self) -> bool:
        """Whether the class map knew the class of any box up to now."""
        return self._known > 0

    def values(self) -> dict[str, str]:
        """For a DiagnosticStatus."""
        with self._lock:
            values = {"2D boxes received": str(self._boxes), "2D boxes of unknown classes": str(self._unknown)}
            return values | {f"2D boxes rejected: {why}": str(count) for why, count in self._rejected.items()}

    def problem(self) -> str | None:
        """What was wrong with the boxes of the last RECENT seconds, in one line with the cure; None where nothing."""
        with self._lock:
            since = time.monotonic() - RECENT
            while self._recent and self._recent[0].arrived < since:
                self._recent.popleft()
            recent = list(self._recent)
        strange = frozenset().union(*(message.strange for message in recent))
        if strange and not any(message.known for message in recent):
            return self.unknown_classes(strange)
        rejected = sum((message.rejected for message in recent), Counter[str]())
        if not rejected:
            return None
        why = rejected.most_common(1)[0][0]
        total = sum(message.boxes for message in recent)
        return f"{rejected[why]} of {total} 2D boxes on {self._topic} are {why}: {REJECTED[why]}"

    def unknown_classes(self, names: frozenset[str]) -> str:
        """One line that names classes which the class map does not know."""
        some = ", ".join(f"'{name}'" for name in sorted(names)[:MAX_NAMES])
        return f"class_map knows no class of the 2D boxes on {self._topic}: {some}; name them there, such as 2:car"
