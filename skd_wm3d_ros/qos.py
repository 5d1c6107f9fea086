"""QoS profiles of the node's topics, and the detection of incompatible publishers and subscribers.

Misfits are looked for once in a while rather than told by event handlers: the executor looks at every handler whenever
it wakes, a quarter of its time, and an event does not say whose fault it is, nor when it is fixed.
"""

from __future__ import annotations

import copy
import math
from typing import Any

from rclpy.duration import Duration, Infinite
from rclpy.node import Node
from rclpy.qos import (
    DurabilityPolicy,
    HistoryPolicy,
    QoSPolicyKind,
    QoSProfile,
    ReliabilityPolicy,
)
from rclpy.qos_overriding_options import QoSOverridingOptions
from rclpy.utilities import get_rmw_implementation_identifier

_SENSOR = QoSProfile(history=HistoryPolicy.KEEP_LAST, depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)
_BOXES = QoSProfile(history=HistoryPolicy.KEEP_LAST, depth=10, reliability=ReliabilityPolicy.BEST_EFFORT)
_OUTPUT = QoSProfile(depth=5, reliability=ReliabilityPolicy.RELIABLE)
_HEAVY = QoSProfile(depth=1, reliability=ReliabilityPolicy.RELIABLE)
_LATCHED = QoSProfile(depth=1, reliability=ReliabilityPolicy.RELIABLE, durability=DurabilityPolicy.TRANSIENT_LOCAL)
_OVERRIDABLE = (QoSPolicyKind.HISTORY, QoSPolicyKind.DEPTH, QoSPolicyKind.RELIABILITY, QoSPolicyKind.DURABILITY)


def sensor_qos() -> QoSProfile:
    """Of the camera. All profiles here are new ones, since rclpy writes overrides into the profile it is given."""
    return copy.copy(_SENSOR)


def boxes_qos() -> QoSProfile:
    """Of 2D boxes: small, and of use only together with one image, so that none is dropped for a newer one."""
    return copy.copy(_BOXES)


def output_qos() -> QoSProfile:
    """Of the detections."""
    return copy.copy(_OUTPUT)


def heavy_qos() -> QoSProfile:
    """Of pictures, markers and latencies: only the newest counts."""
    return copy.copy(_HEAVY)


def latched_qos() -> QoSProfile:
    """Of what is said once, for those who come later."""
    return copy.copy(_LATCHED)


def overridable() -> QoSOverridingOptions:
    """Parameters ``qos_overrides.<topic>.<publisher|subscription>.<policy>`` for what decides whether two fit."""
    return QoSOverridingOptions(_OVERRIDABLE)


def subscription_mismatch(node: Node, subscription: Any) -> str:
    """One line that names a publisher from which a subscription of the node gets nothing; "" where there is none."""
    topic = subscription.topic_name
    if node.count_publishers(topic) <= subscription.get_publisher_count():  # all are matched
        return ""
    own = _type_name(subscription.msg_type)
    for other in node.get_publishers_info_by_topic(topic):
        if other.topic_type != own:
            return f"{_name(other)} publishes {other.topic_type} on {topic}, not {own}: remap one of them"
        if policy := _conflict(other.qos_profile, subscription.qos_profile):
            cure = _qos_advice(topic, "subscription", policy) or "change the publisher"
            return f"{_name(other)} publishes {topic} with an incompatible QoS ({policy}), nothing is received: {cure}"
    return ""


def publisher_mismatch(node: Node, publisher: Any) -> str:
    """One line that names a subscriber who receives nothing from a publisher of the node; "" where there is none."""
    topic = publisher.topic_name
    if node.count_subscribers(topic) <= publisher.get_subscription_count():
        return ""
    own = _type_name(publisher.msg_type)
    for other in node.get_subscriptions_info_by_topic(topic):
        if other.topic_type != own:
            return f"{_name(other)} expects {other.topic_type} on {topic}, not {own}: remap one of them"
        if policy := _conflict(publisher.qos_profile, other.qos_profile):
            cure = _qos_advice(topic, "publisher", policy) or "change the subscriber"
            return f"{_name(other)} subscribes to {topic} with an incompatible QoS ({policy}), gets nothing: {cure}"
    return ""


def loss_advice(middleware: str = "") -> str:
    """What to do where images are lost between two processes.

    Args:
        middleware: such as rmw_fastrtps_cpp; "" = this process's.
    """
    middleware = middleware or get_rmw_implementation_identifier()
    if middleware.startswith("rmw_fastrtps"):
        return "set FASTRTPS_DEFAULT_PROFILES_FILE to config/fastdds_images.xml for the camera's driver and this node"
    if middleware.startswith("rmw_cyclonedds"):
        return "raise the largest socket buffer (sudo sysctl -w net.core.rmem_max=33554432)"
    return f"make the camera's driver publish reliably, or raise the buffers of {middleware}"


def _conflict(publisher: QoSProfile, subscription: QoSProfile) -> str:
    """The policies in which less is offered than is asked for; "" where none.

    Not by rclpy's qos_check_compatible: to it, a deadline left at its default is none, one told by DDS is infinite, and
    the two do not fit.
    """
    policies = []
    if (publisher.reliability, subscription.reliability) == (ReliabilityPolicy.BEST_EFFORT, ReliabilityPolicy.RELIABLE):
        policies.append("RELIABILITY")
    if (publisher.durability, subscription.durability) == (DurabilityPolicy.VOLATILE, DurabilityPolicy.TRANSIENT_LOCAL):
        policies.append("DURABILITY")
    for name in ("deadline", "liveliness_lease_duration"):
        if _nanoseconds(getattr(publisher, name)) > _nanoseconds(getattr(subscription, name)):
            policies.append(name.upper())
    return ", ".join(policies)


def _nanoseconds(duration: Duration) -> float:
    """Infinite where it is not set."""
    return duration.nanoseconds if 0 < duration.nanoseconds < Infinite.nanoseconds else math.inf


def _qos_advice(topic: str, entity: str, policies: str) -> str:
    known = [p for p in policies.split(", ") if p in {kind.name for kind in _OVERRIDABLE}]
    names = " and ".join(f"qos_overrides.{topic}.{entity}.{policy.lower()}" for policy in known)
    return f"set the parameter {names}, or change the other side" if names else ""


def _name(endpoint: Any) -> str:
    return f"{endpoint.node_namespace.rstrip('/')}/{endpoint.node_name}"


def _type_name(message: type) -> str:
    return f"{message.__module__.partition('.')[0]}/msg/{message.__name__}"
