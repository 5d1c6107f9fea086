"""Fixed transforms of a recording: from the frame that boxes are in to the camera's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from scipy.spatial.transform import Rotation

from skd_core.data.bag_types import TRANSFORMS
from skd_core.data.ros_detections import Pose
from skd_core.errors import UserError

STATIC = "tf_static"
"""Last word of the topics that hold fixed transforms: /tf_static, /robot/tf_static."""


class StaticTransforms:
    """The tree of a bag's ``/tf_static``: of each frame the last one that was said, as tf2 has it.

    Args:
        messages: tf2_msgs/TFMessage, in the order of recording.
        bag: what to call the recording in an error.
    """

    def __init__(self, messages: list[Any], bag: str | Path) -> None:
        self.bag = bag
        self._up: dict[str, tuple[str, Any]] = {}  # child -> parent, transform
        for message in messages:
            for item in message.transforms:
                self._up[_plain(item.child_frame_id)] = _plain(item.header.frame_id), item.transform

    def pose(self, source: str, target: str) -> Pose:
        """The pose of frame ``source`` in frame ``target``.

        Raises:
            UserError: no chain between them, or an invalid transform in it.
        """
        source, target = _plain(source), _plain(target)
        if source == target:
            return np.eye(3), np.zeros(3)
        above, below = self._chain(source), self._chain(target)
        meeting = next((frame for frame in above if frame in below), None)
        if meeting is None:
            raise UserError(
                f"{self.bag}: boxes are in frame '{source}', the images in '{target}', and /tf_static has no chain "
                "between them (/tf, which may move, is not read); record /tf_static, or give the boxes in the images' "
                "frame"
            )
        rotation, translation = above[meeting]
        back, offset = below[meeting]
        return back.T @ rotation, back.T @ (translation - offset)

    def into(self, target: str) -> Callable[[str], Pose]:
        """From a frame's name to its pose in frame ``target``."""
        return lambda source: self.pose(source, target)

    def _chain(self, frame: str) -> dict[str, Pose]:
        """The frame and those above it, up to the root -> the frame's pose in each."""
        rotation, translation = np.eye(3), np.zeros(3)
        poses = {frame: (rotation, translation)}
        while frame in self._up:
            frame, transform = self._up[frame]
            if frame in poses:
                raise UserError(f"{self.bag}: /tf_static goes round in a circle through '{frame}'")
            q = np.array([getattr(transform.rotation, axis) for axis in "xyzw"])
            t = np.array([getattr(transform.translation, axis) for axis in "xyz"])
            if not (np.isfinite([*q, *t]).all() and np.linalg.norm(q) > 1e-6):
                raise UserError(f"{self.bag}: /tf_static to '{frame}' has no rotation, or holds NaN or infinity")
            step = Rotation.from_quat(q).as_matrix()
            rotation, translation = step @ rotation, step @ translation + t
            poses[frame] = rotation, translation
        return poses


def is_static(topic: str, msgtype: str) -> bool:
    """Whether a topic holds fixed transforms."""
    return msgtype == TRANSFORMS and topic.rsplit("/", 1)[-1] == STATIC


def _plain(frame: str) -> str:
    """A frame's name; tf1's began with a slash."""
    return frame.removeprefix("/")
