"""Declaring ROS parameters with a description, a range and whether they may change at run time."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor, SetParametersResult
from rclpy.exceptions import ParameterException
from rclpy.node import Node
from rclpy.parameter import Parameter

from skd_core.errors import UserError
from skd_core.supervision.class_map import parse_class_map
from skd_wm3d_ros.inputs import CAMERA_INFO_WAIT

CLASS_THRESHOLDS = "class_thresholds"


@dataclass(frozen=True)
class Spec:
    """One parameter.

    Attributes:
        name: of the parameter.
        default: its value and its type.
        description: what it does, with the unit.
        limits: minimum and maximum, inclusive.
        choices: the values allowed.
        pattern: regular expression of the values allowed, and how to say it.
        demand: value -> what is allowed instead; "" = the value is.
        when: "start" (read-only), "configure" (taken at the next configure transition), "activate" (at the next
            activation) or "dynamic" (at once).
    """

    name: str
    default: Any
    description: str
    limits: tuple[float, float] | None = None
    choices: tuple[str, ...] = ()
    pattern: tuple[str, str] | None = None
    demand: Callable[[Any], str] | None = None
    when: str = "configure"


def _check_size_pair(value: Sequence[int]) -> str:
    good = len(value) == 2 and (min(value) > 0 or list(value) == [0, 0])
    return "" if good else "a width and a height in pixels, or 0 and 0 for the image's"


def _check_class_map(value: Sequence[str]) -> str:
    try:
        parse_class_map([entry for entry in value if entry])
    except UserError as error:
        return f"a list of SOURCE:TARGET ({error})"
    return ""


PARAMETERS = (
    Spec("autostart", True, "Configure and activate without a lifecycle manager.", when="start"),
    Spec(
        "diagnostics_period",
        1.0,
        "Period of /diagnostics in seconds, by a steady clock.",
        limits=(0.05, 60.0),
        when="start",
    ),
    Spec(
        "model",
        "default",
        "Weights file (.safetensors), a file of `skd_core export` (.onnx), or bundled: default, street, street-dsn.",
    ),
    Spec(
        "device",
        "auto",
        "Device of the network: auto, cpu, cuda or cuda:N.",
        pattern=(r"auto|cpu|cuda(:\d+)?", "auto, cpu, cuda or cuda:N"),
    ),
    Spec(
        "precision",
        "auto",
        "Numeric precision of the network: auto (fp16 on a GPU, fp32 on a CPU), fp32, fp16 or bf16.",
        choices=("auto", "fp32", "fp16", "bf16"),
    ),
    Spec("cpu_fallback", False, "Fall back to the CPU when the GPU runs out of memory or is lost."),
    Spec(
        "boxes_from",
        "own",
        "Where the 2D boxes come from: own (the weights' own 2D heads), topic (another node, on 'detections_2d') or "
        "onnx (the 2D network detector_2d, in this process).",
        choices=("own", "topic", "onnx"),
    ),
    Spec("detector_2d", "", "With boxes_from onnx: the 2D network, an ONNX file in YOLOX's format."),
    Spec(
        "detector_2d_tiles",
        0,
        "With boxes_from onnx: crops that the 2D network processes besides the whole image, for small objects.",
        limits=(0, 16),
    ),
    Spec(
        "class_map",
        [""],
        "With boxes_from topic or onnx: SOURCE:TARGET for each class (name or id) of the 2D boxes, such as 2:car, "
        "person:pedestrian, bicycle:cycle (with a person a cyclist), bus:dontcare; [''] = their own names and COCO's.",
        demand=_check_class_map,
    ),
    Spec(
        "detections_2d_type",
        "vision_msgs",
        "Messages on 'detections_2d': vision_msgs (Detection2DArray) or yolo_msgs (DetectionArray, of yolo_ros).",
        choices=("vision_msgs", "yolo_msgs"),
        when="activate",
    ),
    Spec(
        "detections_2d_size",
        [0, 0],
        "Width and height of the picture in whose pixels the boxes on 'detections_2d' are; [0, 0] = the image's.",
        demand=_check_size_pair,
        when="activate",
    ),
    Spec(
        "detections_2d_fit",
        "stretch",
        "How that picture holds the image: stretch (each side scaled to fill it) or letterbox (scaled uniformly to "
        "fit, centred, with borders).",
        choices=("stretch", "letterbox"),
        when="activate",
    ),
    Spec(
        "detections_2d_timeout",
        0.5,
        "Maximum time in seconds that an image waits for its boxes on 'detections_2d'; then it is skipped.",
        limits=(0.01, 10.0),
        when="activate",
    ),
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
        "calibration",
        "",
        "Calibration file used instead of camera_info, for a camera that publishes none; empty = camera_info is used.",
        when="activate",
    ),
    Spec(
        "use_latest_camera_info",
        True,
        "Pair an image that has no camera_info of its own stamp with the latest one of its frame_id (latched drivers).",
        when="activate",
    ),
    Spec(
        "camera_info_wait",
        CAMERA_INFO_WAIT,
        "Seconds that an image waits for the camera_info of its own stamp before use_latest_camera_info takes another; "
        "0 = not at all, for drivers that latch it.",
        limits=(0.0, 1.0),
        when="activate",
    ),
    Spec(
        "sync_slop",
        0.0,
        "Maximum difference in seconds between the stamps of an image and its camera_info; 0 = equal stamps.",
        limits=(0.0, 1.0),
        when="activate",
    ),
    Spec(
        "target_frame",
        "",
        "Frame of the detections, by TF at the image's stamp; empty = the image's own optical frame.",
        pattern=(r"[^/].*|", "a frame name without a leading slash"),
        when="activate",
    ),
    Spec(
        "tracking",
        False,
        "Fill the detections' id with a track's number, which stays with the object.",
        when="activate",
    ),
    Spec(
        "score_threshold",
        -1.0,
        "Minimum score of a detection that is published, 0 to 1; -1 = the one that the weights store.",
        limits=(-1.0, 1.0),
        when="dynamic",
    ),
    Spec(
        "max_range",
        0.0,
        "Maximum distance in metres, along the ground, of a published detection; 0 = no limit.",
        limits=(0.0, 1000.0),
        when="dynamic",
    ),
    Spec(
        "nms_iou",
        1.0,
        "Maximum bird's-eye-view IoU of two boxes of one class; above it the lower score is dropped; 1 = off.",
        limits=(0.0, 1.0),
        when="dynamic",
    ),
    Spec(
        "max_rate_hz",
        0.0,
        "Maximum number of frames processed per second, the newest ones; 0 = no limit.",
        limits=(0.0, 1000.0),
        when="dynamic",
    ),
    Spec(
        "max_age_ms",
        0.0,
        "Maximum age of a frame in milliseconds, by the image's stamp; older ones are dropped; 0 = no limit.",
        limits=(0.0, 60000.0),
        when="dynamic",
    ),
    Spec(
        "transform_timeout",
        0.1,
        "Maximum time in seconds to wait for the transform to target_frame.",
        limits=(0.0, 5.0),
        when="dynamic",
    ),
    Spec(
        "stuck_after",
        5.0,
        "Seconds that one frame may take before the diagnostics call the inference stuck.",
        limits=(0.1, 600.0),
        when="dynamic",
    ),
    Spec(
        "lazy",
        False,
        "Run inference only while an output has subscribers: detections, markers, pictures.",
        when="dynamic",
    ),
    Spec("autoware_objects", False, "Publish ~/autoware_objects (autoware_perception_msgs/DetectedObjects) too."),
    Spec("foxglove_scene", False, "Publish ~/foxglove_scene (foxglove_msgs/SceneUpdate) too."),
    Spec(
        "marker_lifetime",
        0.5,
        "Seconds after which RViz removes markers that are not renewed.",
        limits=(0.01, 60.0),
        when="dynamic",
    ),
)

_SPECS = {spec.name: spec for spec in PARAMETERS}


def declare(node: Node, spec: Spec) -> None:
    """Declare one parameter on a node; its range and read-only flag are then enforced by rclpy.

    A number without a decimal point, as in ``max_range: 40``, is taken where the parameter is a float; an empty list,
    as in ``class_map: []``, is the default.
    """
    constraint = f"one of {', '.join(spec.choices)}" if spec.choices else spec.pattern[1] if spec.pattern else ""
    descriptor = ParameterDescriptor(
        description=spec.description, read_only=spec.when == "start", additional_constraints=constraint
    )
    if spec.limits and isinstance(spec.default, float):
        low, high = spec.limits
        descriptor.floating_point_range = [FloatingPointRange(from_value=low, to_value=high)]
    elif spec.limits:
        low, high = spec.limits
        descriptor.integer_range = [IntegerRange(from_value=int(low), to_value=int(high))]
    given = node._parameter_overrides.get(spec.name)
    if given is not None and given.type_ == Parameter.Type.NOT_SET:
        node.declare_parameter(spec.name, spec.default, descriptor, ignore_override=True)
    elif isinstance(spec.default, float) and given is not None and given.type_ == Parameter.Type.INTEGER:
        node.declare_parameter(spec.name, float(given.value), descriptor, ignore_override=True)
    else:
        node.declare_parameter(spec.name, spec.default, descriptor)


def declare_class_thresholds(node: Node, classes: Sequence[str]) -> None:
    """Declare ``class_thresholds.<class>`` for every class of the weights, and undeclare what other weights left.

    Raises:
        UserError: a value that was given at the start and cannot be.
    """
    wanted = {f"{CLASS_THRESHOLDS}.{name.lower()}" for name in classes}
    declared = {f"{CLASS_THRESHOLDS}.{name}" for name in node.get_parameters_by_prefix(CLASS_THRESHOLDS)}
    for name in declared - wanted:
        node.undeclare_parameter(name)
    for name in sorted(wanted - declared):
        description = "Minimum score of this class, 0 to 1; -1 = score_threshold."
        try:
            declare(node, Spec(name, -1.0, description, limits=(-1.0, 1.0), when="dynamic"))
        except ParameterException as error:
            raise UserError(str(error)) from None


def unknown(node: Node) -> str:
    """Line that names the parameters given at the start that the node does not have; "" = it has them all.

    Those of class thresholds are only known once :func:`declare_class_thresholds` has run.
    """
    known, found = sorted(node.get_parameters_by_prefix("")), []
    for name in sorted(node._parameter_overrides):
        if name not in known and not name.startswith("qos_overrides."):  # declared where there is such a topic
            nearest = difflib.get_close_matches(name.lower(), known, n=1)
            found.append(f"{name} (nearest known: {nearest[0]})" if nearest else name)
    return f"unknown parameters, without effect: {', '.join(found)}" if found else ""


def score_threshold(node: Node, stored: float) -> float:
    """The general minimum score, as the parameter has it now; stored: that of the weights, for a negative value."""
    value = float(node.get_parameter("score_threshold").value)
    return stored if value < 0 else value


def thresholds(node: Node, classes: Sequence[str], stored: float) -> dict[str, float]:
    """Minimum score of every class, as the parameters have it now; stored: see :func:`score_threshold`."""
    general = score_threshold(node, stored)
    own = {name: float(node.get_parameter(f"{CLASS_THRESHOLDS}.{name.lower()}").value) for name in classes}
    return {name: general if value < 0 else value for name, value in own.items()}


def numbers_for_floats(node: Node, parameters: list[Parameter]) -> list[Parameter]:
    """Take ``40`` where a parameter is a float, as ``ros2 param set`` sends it; for
    ``add_pre_set_parameters_callback``."""

    def taken(parameter: Parameter) -> Parameter:
        whole = parameter.type_ == Parameter.Type.INTEGER and node.has_parameter(parameter.name)
        if whole and node.get_parameter(parameter.name).type_ == Parameter.Type.DOUBLE:
            return Parameter(parameter.name, value=float(parameter.value))
        return parameter

    return [taken(parameter) for parameter in parameters]


def check(parameters: list[Parameter]) -> SetParametersResult:
    """Reject what a descriptor cannot express, with the reason; for ``add_on_set_parameters_callback``."""
    for parameter in parameters:
        spec, value = _SPECS.get(parameter.name), parameter.value
        allowed = ""
        if spec and spec.choices and value not in spec.choices:
            allowed = f"one of {', '.join(spec.choices)}"
        elif spec and spec.pattern and not re.fullmatch(spec.pattern[0], str(value)):
            allowed = spec.pattern[1]
        elif isinstance(value, float) and math.isnan(value):  # passes every range
            allowed = "a number"
        elif spec and spec.demand and parameter.type_ == Parameter.Type.from_parameter_value(spec.default):
            value = list(value)  # an array's text would name its type
            allowed = spec.demand(value)
        if allowed:
            return SetParametersResult(successful=False, reason=f"{parameter.name} must be {allowed}, got '{value}'")
    return SetParametersResult(successful=True)
