"""Detections as Autoware's and Foxglove's messages: against their fields here, with the real ones where installed."""

from __future__ import annotations

import importlib.util
import math
import subprocess
import sys
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from geometry_msgs.msg import Pose, PoseWithCovariance, Vector3
from ros_harness import CONFIGURE, RELIABLE, TIMEOUT, Nodes, Rig, camera_info, image_message, picture
from std_msgs.msg import Header

from skd_core.boxes import Boxes3D
from skd_wm3d_ros import messages
from skd_wm3d_ros.optional_outputs import OPTIONAL, About
from skd_wm3d_ros.tools.overhead import NullDetector

pytestmark = pytest.mark.usefixtures("ros")


def kind(name, **defaults):
    """A message class with these fields only, as rclpy's: an unknown one is an error."""

    @dataclass
    class Message:
        values: dict = field(default_factory=dict)

        def __init__(self, **given):
            made = {key: value() if callable(value) else value for key, value in defaults.items()}
            assert set(given) <= set(made), set(given) - set(made)
            object.__setattr__(self, "values", made | given)

        def __getattr__(self, key) -> Any:
            return self.values[key]

        def __setattr__(self, key, value):
            assert key in self.values, key
            self.values[key] = value

    Message.__name__ = name
    return Message


def autoware():
    """The fields of autoware_perception_msgs that matter."""
    module = SimpleNamespace()
    module.ObjectClassification = kind("ObjectClassification", label=0, probability=0.0)
    names = ("UNKNOWN", "CAR", "TRUCK", "BUS", "TRAILER", "MOTORCYCLE", "BICYCLE", "PEDESTRIAN")
    for number, name in enumerate(names):
        setattr(module.ObjectClassification, name, number)
    module.DetectedObjectKinematics = kind(
        "DetectedObjectKinematics", pose_with_covariance=PoseWithCovariance, has_position_covariance=False,
        orientation_availability=0, twist_with_covariance=None, has_twist=False, has_twist_covariance=False,
    )  # fmt: skip
    for number, name in enumerate(("UNAVAILABLE", "SIGN_UNKNOWN", "AVAILABLE")):
        setattr(module.DetectedObjectKinematics, name, number)
    module.Shape = kind("Shape", type=9, footprint=None, dimensions=Vector3)
    module.Shape.BOUNDING_BOX = 0
    module.DetectedObject = kind(
        "DetectedObject", existence_probability=0.0, classification=list, kinematics=module.DetectedObjectKinematics,
        shape=module.Shape,
    )  # fmt: skip
    module.DetectedObjects = kind("DetectedObjects", header=Header, objects=list)
    return module


def foxglove():
    """The fields of foxglove_msgs that matter."""
    module = SimpleNamespace()
    module.Color = kind("Color", r=0.0, g=0.0, b=0.0, a=0.0)
    module.CubePrimitive = kind("CubePrimitive", pose=Pose, size=Vector3, color=module.Color)
    module.TextPrimitive = kind(
        "TextPrimitive", pose=Pose, billboard=False, font_size=0.0, scale_invariant=False, color=module.Color, text=""
    )
    module.SceneEntity = kind(
        "SceneEntity", timestamp=None, frame_id="", id="", lifetime=None, frame_locked=False, metadata=list,
        arrows=list, cubes=list, spheres=list, cylinders=list, lines=list, triangles=list, texts=list, models=list,
    )  # fmt: skip
    module.SceneUpdate = kind("SceneUpdate", deletions=list, entities=list)
    return module


DUCKS = {"autoware_objects": autoware, "foxglove_scene": foxglove}


def modules(name):
    """The real messages, where they are installed."""
    try:
        return OPTIONAL[name].messages()
    except ImportError:
        pytest.skip(f"{OPTIONAL[name].package} is not installed: its messages' fields are tested only by name")


def detections():
    boxes = Boxes3D(
        torch.tensor([[2.0, 1, 10], [-3, 1, 20], [0, 1, 30]]), torch.tensor([[4.0, 1.6, 1.5]]).expand(3, 3),
        torch.tensor([0.3, -2.0, math.pi / 2]), ("Car", "Cyclist", "Tram"), torch.tensor([0.9, 0.5, 0.4]),
    )  # fmt: skip
    header = Header(frame_id="base_link")
    header.stamp.sec = 7
    return messages.to_detections(boxes, header, ids=["12", "", ""])


@pytest.fixture(params=["fields", "real"])
def source(request):
    return (lambda name: DUCKS[name]()) if request.param == "fields" else modules


@pytest.mark.parametrize("heading_known", [False, True])
def test_detected_objects(source, heading_known):
    module, found = source("autoware_objects"), detections()
    out = OPTIONAL["autoware_objects"].convert(found, module, About("front", 0.5, heading_known))
    assert out.header == found.header
    assert [o.classification[0].label for o in out.objects] == [1, 6, 0]  # car, bicycle, unknown
    assert [o.existence_probability for o in out.objects] == pytest.approx([0.9, 0.5, 0.4])
    for detection, box in zip(found.detections, out.objects, strict=True):
        assert box.kinematics.pose_with_covariance == detection.results[0].pose
        assert box.kinematics.has_position_covariance
        assert box.kinematics.orientation_availability == (2 if heading_known else 1)
        assert not box.kinematics.has_twist
        assert (box.shape.type, box.shape.dimensions) == (0, detection.bbox.size)


def test_scene_update(source):
    module, found = source("foxglove_scene"), detections()
    (entity,) = OPTIONAL["foxglove_scene"].convert(found, module, About("front", 1.5, False)).entities
    assert (entity.id, entity.frame_id, entity.timestamp) == ("front", "base_link", found.header.stamp)
    assert (entity.lifetime.sec, entity.lifetime.nanosec) == (1, 500_000_000)
    assert [(c.pose, c.size) for c in entity.cubes] == [(d.bbox.center, d.bbox.size) for d in found.detections]
    assert [t.text for t in entity.texts] == ["car #12 0.90", "cyclist 0.50", "tram 0.40"]
    empty = messages.to_detections(Boxes3D.empty(), found.header)
    (entity,) = OPTIONAL["foxglove_scene"].convert(empty, module, About("front", 1.5, False)).entities
    assert (entity.id, list(entity.cubes)) == ("front", [])  # takes the place of the one before


@pytest.fixture
def rig(ros):
    rig = Rig(RELIABLE)
    yield rig
    rig.close()


@pytest.mark.parametrize("name", OPTIONAL)
def test_a_missing_package_is_named(rig, name):
    if importlib.util.find_spec(OPTIONAL[name].package) is not None:
        pytest.skip(f"{OPTIONAL[name].package} is installed")
    nodes = Nodes(rig)
    nodes.start(lambda path, device, precision: NullDetector(), activate=False, **{name: True})
    assert not rig.transition(CONFIGURE)
    assert f"{name} needs the package {OPTIONAL[name].package}" in rig.wait_for_diagnostic("cannot configure").message
    assert rig.set(**{name: False}).successful
    assert rig.transition(CONFIGURE)
    nodes.close()


@pytest.mark.parametrize("name", OPTIONAL)
def test_the_node_publishes_what_is_switched_on(rig, name):
    module, received = modules(name), []
    kind = getattr(module, OPTIONAL[name].message)
    nodes = Nodes(rig)
    nodes.start(lambda path, device, precision: NullDetector(), **{name: True})
    rig.node.create_subscription(kind, f"/detector/{name}", received.append, RELIABLE)
    rig.spin_until(lambda: (rig.send(image_message(picture(1)), camera_info()), received)[1], "a message")
    nodes.close()


HUMBLE = """
import sys
import rclpy.node
sys.modules["rclpy.event_handler"] = None
del rclpy.node.Node.add_post_set_parameters_callback
from skd_wm3d_ros import detector_node
sys.argv = ["detector_node"]
detector_node.main()
"""


def test_humble_is_refused_in_one_line():
    done = subprocess.run([sys.executable, "-c", HUMBLE], capture_output=True, text=True, timeout=TIMEOUT, check=False)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("detector: error: the node needs ROS 2 Jazzy or newer")
