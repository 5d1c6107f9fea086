"""The node's status on /diagnostics.

Without ``diagnostic_updater``: it would save one timer and :func:`to_diagnostics`, and add a package that is not on
PyPI, where the tests get ROS from; what takes the lines here, the statistics, it does not do.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from dataclasses import dataclass, field
from statistics import median

from builtin_interfaces.msg import Time
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from std_msgs.msg import Header

STAGES = ("decode", "infer", "publish", "total")
"""The last from the image's stamp to the published detections."""

RECENT = 10.0
"""Seconds: what happened to the frames of this time decides whether all is well."""

OK, WARN, ERROR = DiagnosticStatus.OK, DiagnosticStatus.WARN, DiagnosticStatus.ERROR


@dataclass
class Statistics:
    """Counts since activation; written by the worker, read by the diagnostics timer."""

    answered: int = 0
    unasked: int = 0  # frames without subscribers, with lazy
    rejected: Counter[str] = field(default_factory=Counter)  # by kind
    encodings: Counter[str] = field(default_factory=Counter)  # of the images answered
    last_error: str = ""
    last_answer: float = 0.0
    recent: deque[tuple[float, bool]] = field(default_factory=lambda: deque(maxlen=2000))  # when, and if answered
    latencies: deque[tuple[float, ...]] = field(default_factory=lambda: deque(maxlen=50))
    lock: threading.Lock = field(default_factory=threading.Lock)

    def answer(self, encoding: str, seconds: tuple[float, ...]) -> None:
        """One frame published; its encoding and the seconds spent in each of STAGES."""
        with self.lock:
            self.answered += 1
            self.encodings[encoding] += 1
            self.last_answer = time.monotonic()
            self.recent.append((self.last_answer, True))
            self.latencies.append(seconds)

    def reject(self, kind: str, reason: str) -> None:
        """One frame skipped."""
        with self.lock:
            self.rejected[kind] += 1
            self.recent.append((time.monotonic(), False))
            self.last_error = reason

    def leave_out(self) -> None:
        """One frame without subscribers."""
        with self.lock:
            self.unasked += 1

    def values(self) -> dict[str, str]:
        """For a DiagnosticStatus."""
        with self.lock:
            values = {"frames answered": str(self.answered), "frames rejected": str(self.rejected.total())}
            if self.unasked:
                values["frames without subscribers"] = str(self.unasked)
            values |= {f"frames rejected: {kind}": str(count) for kind, count in self.rejected.items()}
            values |= {f"frames answered: {encoding}": str(count) for encoding, count in self.encodings.items()}
            if self.last_error:
                values["last rejection"] = self.last_error
            if self.answered:
                values["age of the last answer (s)"] = f"{time.monotonic() - self.last_answer:.2f}"
            for name, seconds in zip(STAGES, zip(*self.latencies, strict=True), strict=False):
                values[f"{name} latency (ms)"] = f"{1000 * median(seconds):.2f}"
            return values

    def problem(self) -> tuple[bytes, str] | None:
        """What is wrong with the frames of the last RECENT seconds, or with the last one where that is longer ago: an
        error where none was answered, a warning where some were not."""
        with self.lock:
            since = time.monotonic() - RECENT
            while len(self.recent) > 1 and self.recent[0][0] < since:
                self.recent.popleft()
            rejected = sum(not answered for _, answered in self.recent)
            if not rejected:
                return None
            if rejected == len(self.recent):
                return ERROR, self.last_error
            return WARN, f"{rejected} of {len(self.recent)} frames rejected, the last: {self.last_error}"


def to_diagnostics(
    name: str, hardware_id: str, level: bytes, message: str, values: dict[str, str], stamp: Time
) -> DiagnosticArray:
    """One status as a message."""
    status = DiagnosticStatus(
        level=level,
        name=name,
        message=message,
        hardware_id=hardware_id,
        values=[KeyValue(key=key, value=value) for key, value in values.items()],
    )
    return DiagnosticArray(header=Header(stamp=stamp), status=[status])
