"""What is in a bag: the message types, a camera's frames and topics."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from rosbags.typesys import Stores, get_types_from_msg, get_typestore
from rosbags.typesys.store import Typestore

from skd_core.camera import Camera

IMAGE = "sensor_msgs/msg/Image"
COMPRESSED_IMAGE = "sensor_msgs/msg/CompressedImage"
CAMERA_INFO = "sensor_msgs/msg/CameraInfo"
DETECTIONS = "vision_msgs/msg/Detection3DArray"
DETECTIONS_2D = "vision_msgs/msg/Detection2DArray"
STRING = "std_msgs/msg/String"
LABEL_INFO = "vision_msgs/msg/LabelInfo"
TRANSFORMS = "tf2_msgs/msg/TFMessage"

VISION_MSGS = {
    "vision_msgs/msg/ObjectHypothesis": "string class_id\nfloat64 score\n",
    "vision_msgs/msg/ObjectHypothesisWithPose": (
        "vision_msgs/ObjectHypothesis hypothesis\ngeometry_msgs/PoseWithCovariance pose\n"
    ),
    "vision_msgs/msg/BoundingBox3D": "geometry_msgs/Pose center\ngeometry_msgs/Vector3 size\n",
    "vision_msgs/msg/Detection3D": (
        "std_msgs/Header header\nvision_msgs/ObjectHypothesisWithPose[] results\n"
        "vision_msgs/BoundingBox3D bbox\nstring id\n"
    ),
    DETECTIONS: "std_msgs/Header header\nvision_msgs/Detection3D[] detections\n",
    "vision_msgs/msg/Point2D": "float64 x\nfloat64 y\n",
    "vision_msgs/msg/Pose2D": "vision_msgs/Point2D position\nfloat64 theta\n",
    "vision_msgs/msg/BoundingBox2D": "vision_msgs/Pose2D center\nfloat64 size_x\nfloat64 size_y\n",
    "vision_msgs/msg/Detection2D": (
        "std_msgs/Header header\nvision_msgs/ObjectHypothesisWithPose[] results\n"
        "vision_msgs/BoundingBox2D bbox\nstring id\n"
    ),
    DETECTIONS_2D: "std_msgs/Header header\nvision_msgs/Detection2D[] detections\n",
    "vision_msgs/msg/VisionClass": "uint16 class_id\nstring class_name\n",
    LABEL_INFO: "std_msgs/Header header\nvision_msgs/VisionClass[] class_map\nfloat32 threshold\n",
}
"""vision_msgs is not among rosbags' built-in types; its fields as in the ROS 2 package (a test holds the type hash)."""


@functools.cache
def typestore() -> Typestore:
    """The message types of ROS 2 Jazzy and vision_msgs."""
    store = get_typestore(Stores.ROS2_JAZZY)
    for name, text in VISION_MSGS.items():
        store.register(get_types_from_msg(text, name))
    return store


@dataclass(frozen=True)
class Frame:
    """One camera frame.

    Attributes:
        image: shape (H, W, 3), uint8, RGB.
        camera: the camera that took it.
        stamp: time of exposure, nanoseconds.
        frame_id: name of the camera's optical frame.
        number: which message of the image topic it is, from 0, those that cannot be used counted too.
    """

    image: NDArray[np.uint8]
    camera: Camera
    stamp: int
    frame_id: str = "camera"
    number: int = 0


@dataclass(frozen=True)
class CameraTopics:
    """The two topics of one camera in a bag."""

    image: str
    camera_info: str
    compressed: bool = False
