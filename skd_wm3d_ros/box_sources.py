"""Where the 2D boxes come from: the weights' own heads, a topic, or a 2D network in this process."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from rclpy.node import Node
from sensor_msgs.msg import CameraInfo

from skd_core.boxes import Boxes2D
from skd_core.data.ros_detections_2d import Fit, to_boxes2d
from skd_core.errors import UserError
from skd_core.inference.detector import Detector
from skd_core.supervision.box_classes import BoxClasses
from skd_core.supervision.detector_2d import load_detector_2d
from skd_wm3d_ros.box_input import BoxInput, Frame
from skd_wm3d_ros.box_statistics import BoxStatistics
from skd_wm3d_ros.detections_2d import message_type
from skd_wm3d_ros.inputs import ImageMessage
from skd_wm3d_ros.rejection import Rejection

KIND = "2D boxes"
"""What frames without boxes are counted under."""

TakeFrame = Callable[[Frame], None]
Reject = Callable[[str, str], None]


class BoxSource(Protocol):
    """Stands between the camera and the worker."""

    def activate(self, node: Node, on_frame: TakeFrame, reject: Reject) -> None:
        """Subscribe, where there is something to subscribe to.

        Args:
            node: for parameters and subscriptions.
            on_frame: called with each frame that can be worked on.
            reject: called with kind and reason for each frame that cannot.

        Raises:
            UserError: parameters that do not go together.
        """

    def deactivate(self) -> None:
        """Unsubscribe."""

    def feed(self, image: ImageMessage, info: CameraInfo) -> None:
        """Take a frame of an active node's camera."""

    def find(self, frame: Frame, picture: NDArray[np.uint8]) -> Boxes2D | None:
        """The 2D boxes of a frame, under the weights' class names; None = the weights' own heads find them. Runs in the
        worker's thread.

        Args:
            frame: the messages.
            picture: the image in them, shape (H, W, 3), RGB, undistorted.

        Raises:
            Rejection: the frame must not be answered.
        """

    def look(self) -> None:
        """Look at who publishes; to be called now and then."""

    def values(self) -> dict[str, str]:
        """For a DiagnosticStatus."""

    def problem(self) -> str | None:
        """What is wrong, in one line with the cure; None where nothing is."""


def make_source(node: Node, detector: Detector) -> BoxSource:
    """The source that the parameters name.

    Raises:
        UserError: parameters that do not go together, or no usable 2D network.
    """
    kind = _value(node, "boxes_from")
    if kind == "topic":
        return TopicBoxes(_class_map(node), detector.classes)
    return NetworkBoxes(node, detector) if kind == "onnx" else OwnBoxes()


class OwnBoxes:
    """The weights' own heads find the boxes: frames are passed on as they come."""

    def activate(self, node: Node, on_frame: TakeFrame, reject: Reject) -> None:
        """As in :class:`BoxSource`."""
        self._on_frame = on_frame

    def deactivate(self) -> None:
        """Nothing to do."""

    def feed(self, image: ImageMessage, info: CameraInfo) -> None:
        """Hand the frame on."""
        self._on_frame(Frame(image, info))

    def find(self, frame: Frame, picture: NDArray[np.uint8]) -> Boxes2D | None:
        """None."""
        return None

    def look(self) -> None:
        """Nothing to do."""

    def values(self) -> dict[str, str]:
        """Nothing to say."""
        return {}

    def problem(self) -> str | None:
        """None."""
        return None


class NetworkBoxes(OwnBoxes):
    """A 2D network in this process.

    Args:
        node: for parameters.
        detector: whose classes count and on whose device the network runs, where onnxruntime can.

    Raises:
        UserError: no path, a file that is no 2D network, a class map that does not fit.
    """

    def __init__(self, node: Node, detector: Detector) -> None:
        self._path, entries = str(_value(node, "detector_2d")), _class_map(node)
        if not self._path:
            raise UserError("boxes_from 'onnx' needs detector_2d, the path of a 2D network")
        self._classes = BoxClasses(entries, detector.classes)
        self._network = load_detector_2d(
            self._path,
            class_map=entries or None,
            tiles=_value(node, "detector_2d_tiles"),
            threads=torch.get_num_threads(),
            device=detector.device.type,
        )

    def find(self, frame: Frame, picture: NDArray[np.uint8]) -> Boxes2D | None:
        """What the network sees."""
        return self._classes.of_the_weights(self._network.detect(picture))

    def values(self) -> dict[str, str]:
        """Which network it is."""
        return {"2D network": self._path}


class TopicBoxes:
    """Another node's boxes.

    Args:
        class_map: entries, see :class:`BoxClasses`.
        classes: of the weights.

    Raises:
        UserError: a class map that does not fit.
    """

    def __init__(self, class_map: Sequence[str], classes: Sequence[str]) -> None:
        self._classes = BoxClasses(class_map, classes)
        self._input: BoxInput | None = None

    def activate(self, node: Node, on_frame: TakeFrame, reject: Reject) -> None:
        """Subscribe to the boxes."""
        if not _value(node, "image_is_rectified"):
            raise UserError(
                "boxes_from 'topic' needs rectified images: the boxes would be those of the image before it is "
                "undistorted; subscribe both nodes to the rectified image, or set boxes_from to onnx"
            )
        kind, self._rows = message_type(_value(node, "detections_2d_type"))
        width, height = _value(node, "detections_2d_size")
        self._fit = Fit(width, height, _value(node, "detections_2d_fit") == "letterbox")
        timeout = _value(node, "detections_2d_timeout")
        self._input = BoxInput(node, kind, timeout, on_frame, lambda reason: reject(KIND, reason))
        self._statistics = BoxStatistics(self._input.topic)
        node.get_logger().info(f"taking 2D boxes from {self._input.topic}")

    def deactivate(self) -> None:
        """Unsubscribe; frames that wait are forgotten."""
        if self._input is not None:
            self._input.destroy()
            self._input = None

    def feed(self, image: ImageMessage, info: CameraInfo) -> None:
        """Let the frame wait for its boxes."""
        if (boxes := self._input) is not None:
            boxes.frame(image, info)

    def find(self, frame: Frame, picture: NDArray[np.uint8]) -> Boxes2D | None:
        """The message's boxes. Not answered is a message of which every box is rejected, or whose classes the class map
        does not know before it has known any: an empty array would say that the road is free."""
        rows = self._rows(frame.boxes)
        height, width = picture.shape[:2]
        boxes, rejected = to_boxes2d(rows, self._fit, width, height, self._classes.knows)
        known = [self._classes.knows(label) for label in boxes.labels]
        strange = frozenset(label for label, is_known in zip(boxes.labels, known, strict=True) if not is_known)
        self._statistics.add(len(rows), rejected, strange, sum(known))
        if rows and sum(rejected.values()) == len(rows):
            raise Rejection(KIND, f"frame skipped: {self._statistics.problem()}")
        if strange and not self._statistics.ever_known():
            raise Rejection(KIND, f"frame skipped: {self._statistics.unknown_classes(strange)}")
        return self._classes.map(boxes)

    def look(self) -> None:
        """Look at who publishes the boxes."""
        if self._input is not None:
            self._input.look()

    def values(self) -> dict[str, str]:
        """What has come and what became of it."""
        return {} if self._input is None else self._input.values() | self._statistics.values()

    def problem(self) -> str | None:
        """What is wrong with the topic or with its boxes."""
        return None if self._input is None else self._input.problem() or self._statistics.problem()


def _value(node: Node, name: str) -> Any:
    return node.get_parameter(name).value


def _class_map(node: Node) -> list[str]:
    return [entry for entry in _value(node, "class_map") if entry]
