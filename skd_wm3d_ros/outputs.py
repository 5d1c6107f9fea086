"""What the node publishes about frames; heavy messages are built only where someone listens."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rclpy.event_handler import PublisherEventCallbacks
from rclpy.lifecycle import LifecycleNode
from rclpy.qos import QoSProfile
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import Float64
from vision_msgs.msg import Detection3DArray, LabelInfo
from visualization_msgs.msg import MarkerArray

from skd_wm3d_ros.diagnostics import STAGES
from skd_wm3d_ros.qos import HEAVY_QOS, LATCHED_QOS, OUTPUT_QOS, incompatible, overridable

TOPICS: dict[str, tuple[type, QoSProfile]] = {
    "detections": (Detection3DArray, OUTPUT_QOS),
    "label_info": (LabelInfo, LATCHED_QOS),
    "markers": (MarkerArray, HEAVY_QOS),
    "debug_image": (Image, HEAVY_QOS),
    "debug_image/compressed": (CompressedImage, HEAVY_QOS),
    "bev_image": (Image, HEAVY_QOS),
    **{f"latency/{stage}_ms": (Float64, HEAVY_QOS) for stage in STAGES},
}
"""Under the node's private namespace (``~/``)."""


class Outputs:
    """The publishers of a configured node; they send only while it is active."""

    def __init__(self, node: LifecycleNode) -> None:
        self._node = node
        self.qos_problem = ""
        self._publishers = {name: self._create(name, *what) for name, what in TOPICS.items()}

    def publish(self, name: str, message: Any) -> None:
        """Publish, whoever listens."""
        self._publishers[name].publish(message)

    def offer(self, name: str, make: Callable[[], Any]) -> None:
        """Make the message and publish it, if anyone listens."""
        if self._publishers[name].get_subscription_count():
            self._publishers[name].publish(make())

    def destroy(self) -> None:
        """Unpublish."""
        for publisher in self._publishers.values():
            self._node.destroy_lifecycle_publisher(publisher)
        self._publishers = {}

    def _create(self, name: str, kind: type, qos: QoSProfile) -> Any:
        topic = self._node.resolve_topic_name(f"~/{name}")

        def tell(event: Any) -> None:
            self.qos_problem = incompatible(topic, "publisher", event)
            self._node.get_logger().error(self.qos_problem)

        # The executor looks at every event handler whenever it wakes, so there are no more than are of use
        watched = None if kind is Float64 else tell
        return self._node.create_lifecycle_publisher(
            kind,
            topic,
            qos,
            event_callbacks=PublisherEventCallbacks(incompatible_qos=watched, use_default_callbacks=False),
            qos_overriding_options=overridable(),
        )
