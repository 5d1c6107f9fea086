"""What the node publishes per frame; large messages are built only if their topic has subscribers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

from rclpy.event_handler import PublisherEventCallbacks
from rclpy.lifecycle import LifecycleNode
from rclpy.qos import QoSProfile
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import Float64
from vision_msgs.msg import Detection3DArray, LabelInfo
from visualization_msgs.msg import MarkerArray

from skd_wm3d_ros.diagnostics import STAGES
from skd_wm3d_ros.optional_outputs import OPTIONAL
from skd_wm3d_ros.qos import heavy_qos, latched_qos, output_qos, overridable, publisher_mismatch

TOPICS: dict[str, tuple[type, Callable[[], QoSProfile]]] = {
    "detections": (Detection3DArray, output_qos),
    "label_info": (LabelInfo, latched_qos),
    "markers": (MarkerArray, heavy_qos),
    "debug_image": (Image, heavy_qos),
    "debug_image/compressed": (CompressedImage, heavy_qos),
    "bev_image": (Image, heavy_qos),
    **{f"latency/{stage}_ms": (Float64, heavy_qos) for stage in STAGES},
}
"""Under the node's private namespace (``~/``)."""


class Outputs:
    """The publishers of a configured node; they send only while it is active.

    Args:
        node: whose they are.
        optional: messages of those that are switched on, see :func:`skd_wm3d_ros.optional_outputs.wanted`.
    """

    def __init__(self, node: LifecycleNode, optional: Mapping[str, ModuleType] | None = None) -> None:
        self._node, self.optional = node, dict(optional or {})
        self.qos_problem = ""
        extra = {name: (getattr(module, OPTIONAL[name].message), output_qos) for name, module in self.optional.items()}
        self._publishers = {name: self._create(name, *what) for name, what in (TOPICS | extra).items()}

    def publish(self, name: str, message: Any) -> None:
        """Publish, with or without subscribers."""
        self._publishers[name].publish(message)

    def offer(self, name: str, make: Callable[[], Any]) -> None:
        """Make the message and publish it, if the topic has subscribers."""
        if self._publishers[name].get_subscription_count():
            self._publishers[name].publish(make())

    def subscriber_count(self) -> int:
        """Number of subscriptions to the outputs per frame; label_info, which never changes, does not count."""
        return sum(p.get_subscription_count() for name, p in self._publishers.items() if name != "label_info")

    def destroy(self) -> None:
        """Unpublish."""
        for publisher in self._publishers.values():
            self._node.destroy_lifecycle_publisher(publisher)
        self._publishers = {}

    def look(self) -> None:
        """Look at who subscribes; to be called now and then."""
        problem = next(filter(None, (publisher_mismatch(self._node, p) for p in self._publishers.values())), "")
        if problem and problem != self.qos_problem:
            self._node.get_logger().error(problem)
        self.qos_problem = problem

    def _create(self, name: str, kind: type, qos: Callable[[], QoSProfile]) -> Any:
        return self._node.create_lifecycle_publisher(
            kind,
            self._node.resolve_topic_name(f"~/{name}"),
            qos(),
            event_callbacks=PublisherEventCallbacks(use_default_callbacks=False),
            qos_overriding_options=None if kind is Float64 else overridable(),
        )
