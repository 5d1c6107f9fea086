"""Open RViz in the frame of a camera: wait for the camera, then run a command with ``-f FRAME``.

``python -m skd_wm3d_ros.tools.rviz_frame IMAGE CAMERA_INFO DETECTIONS rviz2 ...``: a launch file cannot know the
frame_id of images. Without a message for TIMEOUT seconds the command is run as it is. Needs rclpy, but no torch.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence

import rclpy
from rclpy.event_handler import SubscriptionEventCallbacks
from rclpy.executors import ExternalShutdownException
from rclpy.node import Node
from sensor_msgs.msg import CameraInfo, CompressedImage, Image
from vision_msgs.msg import Detection3DArray

from skd_wm3d_ros import qos
from skd_wm3d_ros.cameras import COMPRESSED

TIMEOUT = 10.0  # seconds


def find_frame(node: Node, image: str, camera_info: str, detections: str, timeout: float = TIMEOUT) -> str:
    """The frame_id of the first image, camera_info (streamed or latched) or detections; "" where none comes in time.

    Args:
        node: listens; is spun here.
        image, camera_info, detections: topics; that of compressed images ends with /compressed.
        timeout: seconds.
    """
    frames: list[str] = []
    quiet = SubscriptionEventCallbacks(use_default_callbacks=False)  # a driver fits one of the two of camera_info
    for kind, topic, profile in (
        (CompressedImage if image.endswith(COMPRESSED) else Image, image, qos.sensor_qos()),
        (CameraInfo, camera_info, qos.sensor_qos()),
        (CameraInfo, camera_info, qos.latched_qos()),
        (Detection3DArray, detections, qos.output_qos()),
    ):
        node.create_subscription(
            kind, topic, lambda message: frames.append(message.header.frame_id), profile, event_callbacks=quiet
        )
    until = time.monotonic() + timeout
    while not any(frames) and (left := until - time.monotonic()) > 0:
        rclpy.spin_once(node, timeout_sec=min(left, 0.2))
    return next(filter(None, frames), "")


def main(args: Sequence[str] | None = None) -> int:
    """Entry point; becomes the command."""
    image, camera_info, detections, *command = sys.argv[1:] if args is None else args
    try:
        rclpy.init(args=[])
        frame = find_frame(rclpy.create_node("rviz_frame"), image, camera_info, detections)
        rclpy.shutdown()
    except (KeyboardInterrupt, ExternalShutdownException):
        return 0
    if frame:
        command[1:1] = ["-f", frame]
    else:
        said = f"nothing on {image} and {camera_info} for {TIMEOUT:.0f} s, RViz opens in its file's Fixed Frame"
        print(f"rviz: {said}: set Fixed Frame to the camera's frame_id, or give fixed_frame:=", file=sys.stderr)
    sys.stderr.flush()
    os.execvp(command[0], command)


if __name__ == "__main__":
    sys.exit(main())
