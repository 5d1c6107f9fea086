"""Qualities of service of the node's topics, and what to say where two do not fit."""

from __future__ import annotations

from typing import Any, Literal

from rclpy.qos import (
    DurabilityPolicy,
    HistoryPolicy,
    QoSPolicyKind,
    QoSProfile,
    ReliabilityPolicy,
    qos_policy_name_from_kind,
)
from rclpy.qos_overriding_options import QoSOverridingOptions

SENSOR_QOS = QoSProfile(history=HistoryPolicy.KEEP_LAST, depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)
OUTPUT_QOS = QoSProfile(depth=5, reliability=ReliabilityPolicy.RELIABLE)
HEAVY_QOS = QoSProfile(depth=1, reliability=ReliabilityPolicy.RELIABLE)
LATCHED_QOS = QoSProfile(depth=1, reliability=ReliabilityPolicy.RELIABLE, durability=DurabilityPolicy.TRANSIENT_LOCAL)

_OVERRIDABLE = (QoSPolicyKind.HISTORY, QoSPolicyKind.DEPTH, QoSPolicyKind.RELIABILITY, QoSPolicyKind.DURABILITY)


def overridable() -> QoSOverridingOptions:
    """Parameters ``qos_overrides.<topic>.<publisher|subscription>.<policy>`` for what decides whether two fit."""
    return QoSOverridingOptions(_OVERRIDABLE)


def incompatible(topic: str, entity: Literal["publisher", "subscription"], event: Any) -> str:
    """One line for an incompatible-QoS event of one of the node's entities: whose fault, and the cure.

    Args:
        topic: its resolved name.
        entity: which of the node's it is.
        event: as rclpy hands it to the callback.
    """
    policy = qos_policy_name_from_kind(event.last_policy_kind)
    parameter = f"qos_overrides.{topic}.{entity}.{policy.lower()}"
    known = policy in {kind.name for kind in _OVERRIDABLE}
    if entity == "subscription":
        cure = f"set the parameter {parameter} to what it offers" if known else "change the publisher"
        return f"a publisher of {topic} offers an incompatible QoS ({policy}), nothing is received from it: {cure}"
    cure = f"set the parameter {parameter} or change the subscriber" if known else "change the subscriber"
    return f"a subscriber of {topic} asks for an incompatible QoS ({policy}) and receives nothing: {cure}"
