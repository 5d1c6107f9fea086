"""The camera's two topics: subscribe, pair, decode. What is malformed becomes a `UserError`, never more."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import cv2
import message_filters
import numpy as np
from cv_bridge import CvBridge, CvBridgeError
from numpy.typing import NDArray
from rclpy.event_handler import SubscriptionEventCallbacks
from rclpy.node import Node
from rclpy.qos import HistoryPolicy, QoSProfile, ReliabilityPolicy, qos_policy_name_from_kind
from rclpy.qos_overriding_options import QoSOverridingOptions
from sensor_msgs.msg import CameraInfo, CompressedImage, Image

from skd_core.camera import Camera
from skd_core.data.ros_messages import camera_from_info, decode_compressed, stamp_nanoseconds
from skd_core.errors import UserError

SENSOR_QOS = QoSProfile(history=HistoryPolicy.KEEP_LAST, depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)
SYNC_QUEUE = 10  # messages of each topic that wait for their partner
SILENCE = 3.0  # seconds without a frame after which a camera counts as dead


@dataclass
class InputCounts:
    """What has arrived since activation."""

    images: int = 0
    infos: int = 0
    pairs: int = 0
    last_pair: float = 0.0  # monotonic seconds


class CameraInput:
    """Subscriptions to one camera; calls ``on_pair(image message, camera_info message)`` in the executor's thread.

    Args:
        node: the node that subscribes.
        transport: "raw" or "compressed".
        slop: greatest difference of the two stamps in seconds; 0 = equal stamps.
        on_pair: called with messages that belong together; must be quick and must not raise.
    """

    def __init__(
        self, node: Node, transport: str, slop: float, on_pair: Callable[[Image | CompressedImage, CameraInfo], None]
    ) -> None:
        self._node = node
        self._on_pair = on_pair
        self._latest: dict[str, int] = {}
        self.counts = InputCounts()
        image_topic = node.resolve_topic_name("image")
        # a remapping of `image` does not reach `image/compressed`, so the suffix is put on the remapped name
        self.image_topic = f"{image_topic}/compressed" if transport == "compressed" else image_topic
        self.camera_info_topic = node.resolve_topic_name("camera_info")
        image_type = CompressedImage if transport == "compressed" else Image
        self._subscribers = [
            self._subscribe(image_type, self.image_topic),
            self._subscribe(CameraInfo, self.camera_info_topic),
        ]
        for subscriber in self._subscribers:  # before the synchronizer's, so that it sees a mended queue
            subscriber.registerCallback(self._arrived, subscriber.getTopic())
        if slop > 0:
            self._sync = message_filters.ApproximateTimeSynchronizer(self._subscribers, SYNC_QUEUE, slop)
        else:
            self._sync = message_filters.TimeSynchronizer(self._subscribers, SYNC_QUEUE)
        self._sync.registerCallback(self._paired)

    def destroy(self) -> None:
        """Unsubscribe."""
        for subscriber in self._subscribers:
            self._node.destroy_subscription(subscriber.sub)
        self._subscribers = []

    def problem(self) -> str | None:
        """Why no pairs come, in one line with the cure; None where they do."""
        images, infos = self.counts.images, self.counts.infos
        if self.counts.pairs:
            age = time.monotonic() - self.counts.last_pair
            return f"no frame on {self.image_topic} for {age:.0f} s" if age > SILENCE else None
        if not images and not infos:
            return f"no image on {self.image_topic} and no camera_info on {self.camera_info_topic} yet"
        if not infos:
            return (
                f"images arrive on {self.image_topic} but no camera_info on {self.camera_info_topic}: "
                "publish the calibration there or remap camera_info"
            )
        if not images:
            return (
                f"camera_info arrives on {self.camera_info_topic} but no image on {self.image_topic}: "
                "remap image, or check image_transport"
            )
        return (
            f"stamps on {self.image_topic} and {self.camera_info_topic} never agree: "
            "set sync_slop to the greatest difference in seconds"
        )

    def _subscribe(self, kind: type, topic: str) -> message_filters.Subscriber:
        def incompatible(event: object) -> None:
            policy = qos_policy_name_from_kind(event.last_policy_kind)  # type: ignore[attr-defined]
            self._node.get_logger().error(
                f"a publisher of {topic} offers an incompatible QoS ({policy}), nothing is received from it: "
                f"set the parameter qos_overrides.{topic}.subscription.{policy.lower()} to what it offers"
            )

        return message_filters.Subscriber(
            self._node,
            kind,
            topic,
            qos_profile=SENSOR_QOS,
            qos_overriding_options=QoSOverridingOptions.with_default_policies(),
            event_callbacks=SubscriptionEventCallbacks(incompatible_qos=incompatible),
        )

    def _arrived(self, message: Image | CompressedImage | CameraInfo, topic: str) -> None:
        if topic == self.camera_info_topic:
            self.counts.infos += 1
        else:
            self.counts.images += 1
        stamp = stamp_nanoseconds(message.header)
        if stamp < self._latest.get(topic, stamp):
            # Time went back (a bag starts again). The synchronizer drops the oldest when its queue is full, so what
            # waits from before the jump would push out every new message.
            with self._sync.lock:
                for queue in self._sync.queues:
                    for late in [key for key in queue if key > stamp]:
                        del queue[late]
        self._latest[topic] = stamp

    def _paired(self, image: Image | CompressedImage, info: CameraInfo) -> None:
        self.counts.pairs += 1
        self.counts.last_pair = time.monotonic()
        self._on_pair(image, info)


class Decoder:
    """Messages of one camera to an RGB picture and its camera."""

    def __init__(self, image_topic: str, camera_info_topic: str) -> None:
        self._image_topic, self._camera_info_topic = image_topic, camera_info_topic
        self._bridge = CvBridge()
        self._camera: tuple[CameraInfo, Camera] | None = None

    def __call__(self, image: Image | CompressedImage, info: CameraInfo) -> tuple[NDArray[np.uint8], Camera]:
        """Decode a pair.

        Returns:
            the picture, shape (H, W, 3), RGB, and its camera.

        Raises:
            UserError: malformed or of an unknown encoding, uncalibrated, or the sizes disagree; one line that names
                the topics.
        """
        camera = self._camera_of(info)
        picture = self._picture_of(image)
        if picture.shape[:2] != (camera.height, camera.width):
            raise UserError(
                f"{self._image_topic} is {picture.shape[1]}x{picture.shape[0]}, but {self._camera_info_topic} is for "
                f"{camera.width}x{camera.height} (after ROI and binning)"
            )
        return picture, camera

    def _camera_of(self, info: CameraInfo) -> Camera:
        if self._camera is None or not _same_camera(self._camera[0], info):
            name = f"{self._camera_info_topic} (for {self._image_topic})"
            self._camera = (info, camera_from_info(info, name))
        return self._camera[1]

    def _picture_of(self, image: Image | CompressedImage) -> NDArray[np.uint8]:
        if isinstance(image, CompressedImage):
            return decode_compressed(image, self._image_topic)
        if image.width == 0 or image.height == 0 or len(image.data) < image.step * image.height:
            raise UserError(
                f"{self._image_topic}: {len(image.data)} bytes are no {image.width}x{image.height} image "
                f"with a step of {image.step}"
            )
        try:
            return np.asarray(self._bridge.imgmsg_to_cv2(image, desired_encoding="rgb8"))
        except (CvBridgeError, TypeError, ValueError, cv2.error) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise UserError(f"{self._image_topic}: encoding '{image.encoding}' cannot be decoded ({reason})") from None


def _same_camera(a: CameraInfo, b: CameraInfo) -> bool:
    """Whether two messages describe the same camera; their headers may differ."""
    names = ("height", "width", "binning_x", "binning_y", "distortion_model", "d", "roi")
    return bool(
        np.array_equal(a.k, b.k) and np.array_equal(a.p, b.p) and all(getattr(a, n) == getattr(b, n) for n in names)
    )
