"""The messages that 2D detectors publish."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from vision_msgs.msg import Detection2DArray

from skd_core.data.ros_detections_2d import Row, vision_rows, yolo_rows
from skd_core.errors import UserError

ToRows = Callable[[Any], list[Row]]


def message_type(package: str) -> tuple[type, ToRows]:
    """The message that a package's detectors publish, and what reads it.

    Args:
        package: "vision_msgs" or "yolo_msgs".

    Raises:
        UserError: yolo_msgs is not installed here.
    """
    if package == "vision_msgs":
        return Detection2DArray, vision_rows
    try:
        from yolo_msgs.msg import DetectionArray
    except ImportError:
        raise UserError(
            "detections_2d_type 'yolo_msgs' needs the package yolo_msgs (of yolo_ros) in the sourced workspace; "
            "without it, convert to vision_msgs/Detection2DArray (docs/deployment.md)"
        ) from None
    return DetectionArray, yolo_rows
