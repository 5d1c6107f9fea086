"""The state of a recording's evaluation, and its scores.

Packed numbers, 170 bytes a detection and 122 a label (10 minutes at 10 Hz with 10 of each in a frame: 18 MB), and the
pictures of the few worst frames.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from skd_core.data.kitti import KittiObjects
from skd_core.evaluation.errors import pair_errors
from skd_core.evaluation.kitti import CLASSES, evaluate
from skd_core.evaluation.object_log import ObjectLog
from skd_core.evaluation.overlaps import Table
from skd_core.evaluation.range_metrics import depth_error_by_range, distance_ap, recall_by_range
from skd_core.evaluation.temporal import Linker, jitter
from skd_core.files import finite
from skd_core.inference.detector import DEFAULT_THRESHOLD
from skd_core.visualize import RGB


@dataclass(eq=False)
class Evaluation:
    """What is kept of a recording.

    Attributes:
        stamps, results: of frames with an answer: nanoseconds, and KITTI lines, in the order of recording.
        labelled: index into these of every frame with labels; labels: theirs.
        seconds: latency of each frame, NaN where unknown.
        dropped: number of frames without an answer.
        problems: what could not be read.
        worst: (badness, frame number, picture) of the worst frames, a heap.
        sure: score from which a detection is drawn, and makes a frame a bad one where it has no label.
    """

    stamps: array[int] = field(default_factory=lambda: array("q"))
    results: ObjectLog = field(default_factory=ObjectLog)
    labelled: array[int] = field(default_factory=lambda: array("q"))
    labels: ObjectLog = field(default_factory=ObjectLog)
    seconds: array[float] = field(default_factory=lambda: array("d"))
    dropped: int = 0
    problems: list[str] = field(default_factory=list)
    worst: list[tuple[float, int, RGB]] = field(default_factory=list)
    linker: Linker = field(default_factory=Linker)
    sure: float = DEFAULT_THRESHOLD

    def scores(self, classes: Sequence[str]) -> dict[str, Any]:
        """All numbers, ready for JSON; without labels only latency and jitter."""
        out: dict[str, Any] = {
            "frames": len(self.stamps),
            "dropped": self.dropped,
            "labelled": len(self.labelled),
            "problems": self.problems,
            "detections": self.results.count(),
            "latency_ms": _latency(self.seconds),
            "jitter": jitter(self.linker.tracks),
        }
        if self.labelled:
            labels, results = self.labelled_frames()
            label_table, result_table = Table.of(labels), Table.of(results)
            errors = pair_errors(labels, results, classes)
            out |= {
                "kitti": evaluate(labels, results, [name for name in CLASSES if name in classes]),
                "distance_ap": distance_ap(label_table, result_table, classes),
                "recall": recall_by_range(label_table, result_table, classes),
                "depth_error": {name: depth_error_by_range(errors, name) for name in classes},
                "errors": {name: finite(errors.statistics(name)) for name in classes},
            }
        return out

    def labelled_frames(self) -> tuple[list[KittiObjects], list[KittiObjects]]:
        """Labels and detections of the frames that have labels."""
        return list(self.labels), [self.results[i] for i in self.labelled]


def _latency(seconds: Sequence[float]) -> dict[str, float] | None:
    """Percentiles in milliseconds over the frames whose latency is known (not NaN); None if it is of none."""
    known = [s for s in seconds if math.isfinite(s)]
    if not known:
        return None
    median, p90, p99 = np.percentile(1000 * np.asarray(known), [50, 90, 99]).tolist()
    return {"median": median, "p90": p90, "p99": p99, "max": 1000 * max(known)}
