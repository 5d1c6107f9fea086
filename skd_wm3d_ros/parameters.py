"""Declaring ROS parameters with a description, a range and whether they may change at run time."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor, SetParametersResult
from rclpy.node import Node
from rclpy.parameter import Parameter

from skd_core.inference.detector import DEFAULT_THRESHOLD


@dataclass(frozen=True)
class Spec:
    """One parameter.

    Attributes:
        name: of the parameter.
        default: its value and its type.
        description: what it does, with the unit.
        limits: least and greatest value, both allowed.
        choices: the values allowed.
        when: "start" (read-only), "configure" (taken at the next configure transition), "activate" (at the next
            activation) or "dynamic" (at once).
    """

    name: str
    default: Any
    description: str
    limits: tuple[float, float] | None = None
    choices: tuple[str, ...] = ()
    when: str = "configure"


PARAMETERS = (
    Spec("autostart", True, "Configure and activate without a lifecycle manager.", when="start"),
    Spec("model", "default", "Weights file (.safetensors), or 'default' for the bundled weights."),
    Spec("device", "auto", "Where the network runs: auto, cpu, cuda or cuda:N."),
    Spec(
        "image_transport",
        "raw",
        "raw: sensor_msgs/Image on 'image'; compressed: sensor_msgs/CompressedImage on 'image/compressed'.",
        choices=("raw", "compressed"),
        when="activate",
    ),
    Spec(
        "image_is_rectified",
        True,
        "true: the image is rectified, P of camera_info is its camera; false: it is raw, and undistorted with K and D.",
        when="activate",
    ),
    Spec(
        "use_latest_camera_info",
        True,
        "Pair an image that has no camera_info of its own stamp with the latest one of its frame_id (latched drivers).",
        when="activate",
    ),
    Spec(
        "sync_slop",
        0.0,
        "Greatest difference in seconds between the stamps of an image and its camera_info; 0 = equal stamps.",
        limits=(0.0, 1.0),
        when="activate",
    ),
    Spec(
        "score_threshold",
        DEFAULT_THRESHOLD,
        "Least score of a detection that is published, 0 to 1.",
        limits=(0.0, 1.0),
        when="dynamic",
    ),
    Spec(
        "marker_lifetime",
        0.5,
        "Seconds after which RViz removes markers that are not renewed.",
        limits=(0.01, 60.0),
        when="dynamic",
    ),
)


def declare(node: Node, spec: Spec) -> None:
    """Declare one parameter on a node; its range and read-only flag are then enforced by rclpy."""
    descriptor = ParameterDescriptor(
        description=spec.description,
        read_only=spec.when == "start",
        additional_constraints=f"one of {', '.join(spec.choices)}" if spec.choices else "",
    )
    if spec.limits and isinstance(spec.default, float):
        low, high = spec.limits
        descriptor.floating_point_range = [FloatingPointRange(from_value=low, to_value=high)]
    elif spec.limits:
        low, high = spec.limits
        descriptor.integer_range = [IntegerRange(from_value=int(low), to_value=int(high))]
    node.declare_parameter(spec.name, spec.default, descriptor)


def check(parameters: list[Parameter]) -> SetParametersResult:
    """Reject what a descriptor cannot express, with the reason; for ``add_on_set_parameters_callback``."""
    specs = {spec.name: spec for spec in PARAMETERS}
    for parameter in parameters:
        spec = specs.get(parameter.name)
        if spec and spec.choices and parameter.value not in spec.choices:
            reason = f"{parameter.name} must be one of {', '.join(spec.choices)}, got '{parameter.value}'"
            return SetParametersResult(successful=False, reason=reason)
        if isinstance(parameter.value, float) and math.isnan(parameter.value):  # passes every range
            return SetParametersResult(successful=False, reason=f"{parameter.name} must be a number, got nan")
    return SetParametersResult(successful=True)
