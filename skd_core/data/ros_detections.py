"""Detections of ROS messages as the project's boxes, by attribute access only, as :mod:`skd_core.data.ros_messages`."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.linalg import block_diag
from scipy.spatial.transform import Rotation
from torch import Tensor

from skd_core.boxes import Boxes3D
from skd_core.covariance import with_covariance
from skd_core.data.ros_messages import stamp_nanoseconds
from skd_core.errors import UserError

Pose = tuple[NDArray[np.float64], NDArray[np.float64]]
"""A rotation (3, 3) and a translation (3,), metres: x in one frame is ``rotation @ x + translation`` in another."""


def boxes_from_detections(
    array: Any,
    classes: Sequence[str] = (),
    faults: list[str] | None = None,
    to_camera: Callable[[str], Pose] | None = None,
) -> Boxes3D:
    """A vision_msgs/Detection3DArray as boxes in a camera's optical frame, float64, by the best result of each.

    Args:
        array: the message.
        classes: names as the data set spells them; a class_id that equals one but for its case gets that name.
        faults: gets a line for each detection that is no box (no class, no orientation, no size, not finite), which
            is then left out; without it such a detection is an error.
        to_camera: from the name of a detection's frame (its own header's, or else the array's) to the camera's; without
            it the boxes are taken to be in the camera's frame. What of a rotation is no yaw is lost: our boxes stand
            upright in the camera's frame.

    Returns:
        The boxes; ``depth_std``, ``across_std``, ``yaw_std`` and ``flip_odds`` from the covariance (unknown where that
        is all zero), ``xyxy`` unknown.

    Raises:
        UserError: see ``faults``; and what ``to_camera`` raises.
    """
    spelling = {name.lower(): name for name in classes}
    poses: dict[str, Pose] = {}
    center, size, quaternion, scores, covariances, labels = [], [], [], [], [], []
    for number, detection in enumerate(array.detections):
        fault = _fault(detection)
        if fault is not None:
            if faults is None:
                raise UserError(f"stamp {stamp_nanoseconds(array.header)}: detection {number}: {fault}")
            faults.append(fault)
            continue
        result, pose = max(detection.results, key=lambda r: r.hypothesis.score), detection.bbox.center
        c = np.array([pose.position.x, pose.position.y, pose.position.z])
        q = np.array([pose.orientation.x, pose.orientation.y, pose.orientation.z, pose.orientation.w])
        q /= np.linalg.norm(q)
        covariance = np.asarray(result.pose.covariance, dtype=np.float64).reshape(6, 6)
        if to_camera is not None:
            frame = detection.header.frame_id or array.header.frame_id
            if frame not in poses:
                poses[frame] = to_camera(frame)
            rotation, translation = poses[frame]
            if not (np.array_equal(rotation, np.eye(3)) and not translation.any()):  # else leave every bit as it is
                both = block_diag(rotation, rotation)  # of position and of rotation about the frame's axes
                c, covariance = rotation @ c + translation, both @ covariance @ both.T
                q = (Rotation.from_matrix(rotation) * Rotation.from_quat(q)).as_quat()
        covariances.append(covariance)
        center.append(c.tolist())
        size.append([detection.bbox.size.x, detection.bbox.size.y, detection.bbox.size.z])
        quaternion.append(q.tolist())
        scores.append(float(result.hypothesis.score))
        name = result.hypothesis.class_id.strip()
        labels.append(spelling.get(name.lower(), name))

    def column(values: list[Any], width: int) -> Tensor:
        return torch.tensor(values, dtype=torch.float64).reshape(-1, width)

    yaw = Boxes3D.yaw_from_quaternion(column(quaternion, 4))
    boxes = Boxes3D(column(center, 3), column(size, 3), yaw, tuple(labels), column(scores, 1))
    return with_covariance(boxes, torch.from_numpy(np.array(covariances).reshape(-1, 6, 6)))


def _fault(detection: Any) -> str | None:
    """Why a Detection3D is no box; None if it is one."""
    if not detection.results:
        return "has no class (results is empty)"
    if any(math.isnan(result.hypothesis.score) for result in detection.results):
        return "has a score that is NaN"
    if not max(detection.results, key=lambda r: r.hypothesis.score).hypothesis.class_id.strip():
        return "has no class (class_id is empty)"
    position, q, size = detection.bbox.center.position, detection.bbox.center.orientation, detection.bbox.size
    quaternion, sides = (q.x, q.y, q.z, q.w), (size.x, size.y, size.z)
    if not np.isfinite([position.x, position.y, position.z, *quaternion, *sides]).all():
        return "holds NaN or infinity"
    if not np.linalg.norm(quaternion) > 1e-6:
        return "has no orientation (a quaternion of zeros)"
    if not min(sides) > 0:
        return "has no size (a side of 0 m or less)"
    return None
