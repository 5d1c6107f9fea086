"""Jitter of boxes from frame to frame, without labels. [ours]

The links are not the node's tracks (:mod:`skd_wm3d_ros.tracking`), on purpose: those follow the detector's own estimate
of its depth error, and a measure must not depend on what it measures.

Detections of consecutive frames are linked where their class is the same and their 2D boxes overlap most (IoU >= .3).
Along a track the second difference ``c[t-1] - 2 c[t] + c[t+1]`` is free of place and of constant velocity, the camera's
included; independent noise of standard deviation s makes it sqrt(6) s. Jitter is s, estimated from the median of its
absolute values (robust: the few true accelerations count little).

**Static or moving** is told without odometry: at every frame the median velocity of all tracks stands for the camera's
own motion, and a track that differs from it by more than :data:`MOVING` on average is moving. This needs three tracks
at a time, most of them static, and a camera that turns little; tracks too short or alone are "unknown".
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from skd_core.data.kitti import KittiObjects
from skd_core.evaluation.overlaps import Floats

MIN_IOU = 0.3
MAX_GAP = 0.5
"""Seconds between frames beyond which nothing is linked."""
MOVING = 2.0
"""Metres per second."""
MIN_DURATION = 0.8
"""Seconds over which velocities are taken: over less, depth noise looks like speed."""
MIN_LENGTH = 3
"""Detections in a track that is kept: a second difference takes three."""
GROUPS = ("static", "moving", "unknown")


@dataclass(eq=False, slots=True)
class Track:
    """Linked detections.

    Attributes:
        steps: frame number of each detection.
        values: seconds, x, z, length and yaw of each, one after the other.
    """

    steps: array[int] = field(default_factory=lambda: array("q"))
    values: array[float] = field(default_factory=lambda: array("d"))

    def __len__(self) -> int:
        return len(self.steps)

    def rows(self) -> Floats:
        """shape (n, 5)"""
        return np.array(self.values).reshape(-1, 5)


class Linker:
    """Frame by frame to tracks.

    Attributes:
        tracks: those of :data:`MIN_LENGTH` detections and more; others are forgotten when they end.
    """

    def __init__(self) -> None:
        self.tracks: list[Track] = []
        self._last: tuple[int, KittiObjects, list[Track]] | None = None
        self._step = 0

    def add(self, stamp: int, objects: KittiObjects) -> None:
        """Link the detections of the next frame, at ``stamp`` nanoseconds."""
        owners: list[Track | None] = [None] * len(objects)
        if self._last is not None and 0 < stamp - self._last[0] <= MAX_GAP * 1e9:
            for i, j in _links(self._last[1], objects):
                owners[j] = self._last[2][i]
        tracks = []
        for j, owner in enumerate(owners):
            track = Track() if owner is None else owner
            x, _, z = objects.location[j]
            track.steps.append(self._step)
            track.values.extend((stamp / 1e9, x, z, objects.dimensions[j, 2], objects.rotation_y[j]))
            tracks.append(track)
            if len(track) == MIN_LENGTH:
                self.tracks.append(track)
        self._last = stamp, objects, tracks
        self._step += 1


def jitter(tracks: Sequence[Track]) -> dict[str, dict[str, float | None]]:
    """Jitter of the tracks of a :class:`Linker`.

    Returns:
        "static", "moving", "unknown" and "all" -> tracks; depth (relative to the distance), lateral (metres), length
        (relative), yaw (degrees, front and back taken as one). None where there is no track.
    """
    groups = _classify(tracks)
    out: dict[str, dict[str, float | None]] = {}
    for group in (*GROUPS, "all"):
        chosen = [track for track, own in zip(tracks, groups, strict=True) if group in ("all", own)]
        parts = [_second_differences(track) for track in chosen]
        row: dict[str, float | None] = {"tracks": float(len(chosen))}
        for i, name in enumerate(("depth", "lateral", "length", "yaw")):
            values = np.concatenate([part[:, i] for part in parts]) if parts else np.zeros(0)
            row[name] = float(1.4826 * np.median(np.abs(values)) / math.sqrt(6)) if len(values) else None
        out[group] = row
    return out


def _second_differences(track: Track) -> Floats:
    """shape (n - 2, 4): depth / z, lateral, length / length, yaw in degrees; for equally spaced frames."""
    _, x, z, length, yaw = track.rows().T

    def second(values: Floats) -> Floats:
        return np.asarray(values[:-2] - 2 * values[1:-1] + values[2:])

    yaw = np.unwrap(yaw, period=math.pi)
    return np.column_stack([second(z) / z[1:-1], second(x), second(length) / length[1:-1], np.degrees(second(yaw))])


def _classify(tracks: Sequence[Track]) -> list[str]:
    velocities = [_velocities(track) for track in tracks]
    by_step: dict[int, list[Floats]] = {}
    for own in velocities:
        for step, value in own.items():
            by_step.setdefault(step, []).append(value)
    common = {step: np.median(values, axis=0) for step, values in by_step.items() if len(values) >= 3}
    groups = []
    for own in velocities:
        relative = [value - common[step] for step, value in own.items() if step in common]
        if not relative or len(relative) < 0.8 * len(own):
            groups.append("unknown")
        else:
            groups.append("moving" if float(np.hypot(*np.mean(relative, axis=0))) > MOVING else "static")
    return groups


def _velocities(track: Track) -> dict[int, Floats]:
    """Frame number -> (x, z) velocity from there over at least :data:`MIN_DURATION`, metres per second."""
    rows = track.rows()
    ends = np.searchsorted(rows[:, 0], rows[:, 0] + MIN_DURATION - 1e-6)
    return {
        track.steps[i]: (rows[j, 1:3] - rows[i, 1:3]) / (rows[j, 0] - rows[i, 0])
        for i, j in enumerate(ends.tolist())
        if j < len(rows)
    }


def _links(before: KittiObjects, after: KittiObjects) -> list[tuple[int, int]]:
    """Pairs of detections of two frames, best overlap first, each detection once."""
    a, b = before.xyxy[:, None], after.xyxy[None]
    extent = np.clip(np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2]), 0, None)
    inter = extent.prod(-1)
    areas = (a[..., 2:] - a[..., :2]).prod(-1) + (b[..., 2:] - b[..., :2]).prod(-1)
    iou = inter / np.maximum(areas - inter, 1e-9)
    same = np.array([[p == q for q in after.type] for p in before.type], dtype=bool).reshape(iou.shape)
    iou = np.where(same, iou, 0)
    pairs: list[tuple[int, int]] = []
    for flat in np.argsort(-iou, axis=None, kind="stable").tolist():
        i, j = divmod(flat, iou.shape[1])
        if iou[i, j] < MIN_IOU:
            break
        if all(i != p and j != q for p, q in pairs):
            pairs.append((i, j))
    return pairs
