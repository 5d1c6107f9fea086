"""A test client of the node, for measurements: publishes frames, receives detections."""

from __future__ import annotations

import array
import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import rclpy
from builtin_interfaces.msg import Time
from diagnostic_msgs.msg import DiagnosticArray
from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import CameraInfo, Image
from std_msgs.msg import Header
from vision_msgs.msg import Detection3DArray

from skd_core.errors import UserError
from skd_wm3d_ros.tools.bag_player import read_stamp

RELIABLE = QoSProfile(depth=10, reliability=ReliabilityPolicy.RELIABLE)
START_TIMEOUT = 180.0  # seconds


def good_image(width: int, height: int, seed: int) -> Image:
    """A bgr8 image of smooth random colours."""
    coarse = np.random.default_rng(seed).integers(0, 256, (-(-height // 16), -(-width // 16), 3), dtype=np.uint8)
    pixels = np.ascontiguousarray(coarse.repeat(16, 0).repeat(16, 1)[:height, :width])
    data = array.array("B", pixels.tobytes())
    return Image(height=height, width=width, encoding="bgr8", step=3 * width, data=data)


def good_info(width: int, height: int) -> CameraInfo:
    """A camera of 80 degrees."""
    f = 0.58 * width
    k = [f, 0.0, width / 2, 0.0, f, height / 2, 0.0, 0.0, 1.0]
    p = [f, 0.0, width / 2, 0.0, 0.0, f, height / 2, 0.0, 0.0, 0.0, 1.0, 0.0]
    return CameraInfo(height=height, width=width, distortion_model="plumb_bob", d=[0.0] * 5, k=k, p=p)


@dataclass
class Feeder:
    """Sends frames and keeps what comes back."""

    node: Node
    answers: list[int] = field(default_factory=list)
    status: dict[str, str] = field(default_factory=dict)
    statuses: int = 0

    def __post_init__(self) -> None:
        self._images = self.node.create_publisher(Image, "image", RELIABLE)
        self._infos = self.node.create_publisher(CameraInfo, "camera_info", RELIABLE)
        self.node.create_subscription(
            Detection3DArray, "/detector/detections", lambda cdr: self.answers.append(read_stamp(cdr)), 100, raw=True
        )
        self.node.create_subscription(DiagnosticArray, "/diagnostics", self._diagnostics, RELIABLE)

    def send(self, stamp: int, image: Image, info: CameraInfo) -> None:
        """Publish a pair, the image first, as image_transport's camera publishers do; stamped in nanoseconds."""
        header = Header(stamp=Time(sec=stamp // 10**9, nanosec=stamp % 10**9), frame_id="camera")
        image.header = info.header = header
        self._images.publish(image)
        self._infos.publish(info)

    def spin_until(self, condition: Callable[[], object], timeout: float) -> bool:
        """Whether it came true in time."""
        deadline = time.monotonic() + timeout
        while not condition():
            if time.monotonic() > deadline:
                return False
            rclpy.spin_once(self.node, timeout_sec=0.02)
        return True

    def wait_for_subscribers(self, count: int = 1) -> None:
        """Wait until that many processes subscribe to the images and publish detections.

        Raises:
            UserError: they do not come.
        """

        def there() -> bool:
            return self._images.get_subscription_count() >= count and bool(
                self.node.count_publishers("/detector/detections")
            )

        if not self.spin_until(there, START_TIMEOUT):
            raise UserError(f"no subscriber to the images after {START_TIMEOUT:.0f} s; see the node's output above")

    def _diagnostics(self, message: DiagnosticArray) -> None:
        self.status = {value.key: value.value for status in message.status for value in status.values}
        self.statuses += 1


@contextlib.contextmanager
def feeder_node() -> Iterator[Feeder]:
    """A feeder, destroyed at the end of the block."""
    node = rclpy.create_node("soak")
    try:
        yield Feeder(node)
    finally:
        node.destroy_node()
