"""Detections in optional message types: Autoware's DetectedObjects and Foxglove's SceneUpdate.

Their packages are no dependencies: each is imported where its parameter is set.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from builtin_interfaces.msg import Duration
from rclpy.node import Node
from vision_msgs.msg import Detection3DArray

from skd_core.errors import UserError
from skd_core.visualize import color_of

AUTOWARE_CLASSES = {
    "car": "CAR",
    "van": "CAR",
    "truck": "TRUCK",
    "bus": "BUS",
    "trailer": "TRAILER",
    "motorcycle": "MOTORCYCLE",
    "bicycle": "BICYCLE",
    "cyclist": "BICYCLE",
    "pedestrian": "PEDESTRIAN",
    "person": "PEDESTRIAN",
}
"""Of our class_id to the constant of ObjectClassification; others are UNKNOWN."""
TEXT_HEIGHT = 0.5  # metres


@dataclass(frozen=True)
class About:
    """What a conversion needs to know beside the detections.

    Attributes:
        camera: name of what is published, which keeps cameras apart in one display.
        lifetime: seconds for which a display shows them.
        heading_known: whether the yaw is a heading, and not known modulo pi only.
    """

    camera: str
    lifetime: float
    heading_known: bool


def to_detected_objects(detections: Detection3DArray, messages: ModuleType, about: About) -> Any:
    """As autoware_perception_msgs/DetectedObjects, in the same frame; Autoware wants base_link: set target_frame.

    A yaw that is known modulo pi only is SIGN_UNKNOWN, whatever the quaternion says. There is no speed.
    """
    out = messages.DetectedObjects(header=detections.header)
    for detection in detections.detections:
        result, box = detection.results[0], messages.DetectedObject()
        box.existence_probability = result.hypothesis.score
        classes = messages.ObjectClassification
        name = AUTOWARE_CLASSES.get(result.hypothesis.class_id, "UNKNOWN")
        box.classification = [classes(label=getattr(classes, name), probability=1.0)]
        kinematics = box.kinematics
        kinematics.pose_with_covariance, kinematics.has_position_covariance = result.pose, True
        kinds = messages.DetectedObjectKinematics
        kinematics.orientation_availability = kinds.AVAILABLE if about.heading_known else kinds.SIGN_UNKNOWN
        box.shape.type, box.shape.dimensions = messages.Shape.BOUNDING_BOX, detection.bbox.size
        out.objects.append(box)
    return out


def to_scene(detections: Detection3DArray, messages: ModuleType, about: About) -> Any:
    """As foxglove_msgs/SceneUpdate: one entity for each camera, with a cube and a text for each box.

    The entity of the next frame has the same id and takes this one's place, so nothing needs to be deleted.
    """
    entity = messages.SceneEntity(
        timestamp=detections.header.stamp,
        frame_id=detections.header.frame_id,
        id=about.camera,
        lifetime=Duration(sec=int(about.lifetime), nanosec=int(about.lifetime % 1 * 1e9)),
    )
    for detection in detections.detections:
        hypothesis, pose = detection.results[0].hypothesis, detection.bbox.center
        r, g, b = (channel / 255 for channel in color_of(hypothesis.class_id.capitalize()))
        number = f" #{detection.id}" if detection.id else ""
        entity.cubes.append(
            messages.CubePrimitive(pose=pose, size=detection.bbox.size, color=messages.Color(r=r, g=g, b=b, a=0.5))
        )
        entity.texts.append(
            messages.TextPrimitive(
                pose=pose,
                billboard=True,
                font_size=TEXT_HEIGHT,
                color=messages.Color(r=1.0, g=1.0, b=1.0, a=1.0),
                text=f"{hypothesis.class_id}{number} {hypothesis.score:.2f}",
            )
        )
    return messages.SceneUpdate(entities=[entity])


@dataclass(frozen=True)
class OptionalOutput:
    """One that a parameter switches on.

    Attributes:
        package: of its messages.
        message: its type's name.
        convert: detections, the package's ``msg`` module, :class:`About` -> the message.
    """

    package: str
    message: str
    convert: Callable[[Detection3DArray, ModuleType, About], Any]

    def messages(self) -> ModuleType:
        """The package's ``msg`` module; ImportError without it."""
        module: ModuleType = pkgutil.resolve_name(f"{self.package}.msg")
        return module


OPTIONAL = {
    "autoware_objects": OptionalOutput("autoware_perception_msgs", "DetectedObjects", to_detected_objects),
    "foxglove_scene": OptionalOutput("foxglove_msgs", "SceneUpdate", to_scene),
}
"""By the parameter's name, which is the topic's under ``~/`` too."""


def wanted(node: Node) -> dict[str, ModuleType]:
    """The messages of those that the parameters switch on.

    Raises:
        UserError: their package is not installed.
    """
    found = {}
    for name, output in OPTIONAL.items():
        if not node.get_parameter(name).value:
            continue
        try:
            found[name] = output.messages()
        except ImportError as error:
            package = output.package.replace("_", "-")
            raise UserError(
                f"{name} needs the package {output.package} ({error}): sudo apt install ros-$ROS_DISTRO-{package}, "
                f"or source the workspace that has it, or set {name} to false"
            ) from None
    return found
