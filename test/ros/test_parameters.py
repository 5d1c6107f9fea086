"""Parameters as they are given at the start, and the files of cameras that give them."""

from __future__ import annotations

import pytest
import rclpy

from skd_core.errors import UserError
from skd_wm3d_ros import parameters
from skd_wm3d_ros.cameras import CameraFileError, read_cameras

pytestmark = pytest.mark.usefixtures("ros")

CLASSES = ("Car", "Pedestrian", "Cyclist")
CAMERA = "cameras: [{name: a, image_topic: /i, camera_info_topic: /c, %s}]"


@pytest.fixture
def declared():
    """(arguments) -> a node with the detector's parameters."""
    nodes = []

    def make(*arguments):
        given = [part for argument in arguments for part in ("-p", argument)]
        nodes.append(rclpy.create_node("detector", cli_args=["--ros-args", *given]))
        for spec in parameters.PARAMETERS:
            parameters.declare(nodes[-1], spec)
        return nodes[-1]

    yield make
    for node in nodes:
        node.destroy_node()


def test_numbers_without_a_decimal_point(declared):
    node = declared("max_range:=40", "class_thresholds.car:=1")
    parameters.declare_class_thresholds(node, CLASSES)
    assert node.get_parameter("max_range").value == 40.0
    assert isinstance(node.get_parameter("max_range").value, float)
    assert parameters.thresholds(node, CLASSES, 0.3) == {"Car": 1.0, "Pedestrian": 0.3, "Cyclist": 0.3}


@pytest.mark.parametrize("written", ["class_map: []", "class_map: ['']"])
def test_an_empty_list_is_the_default(tmp_path, written):
    (tmp_path / "p.yaml").write_text(f"/**:\n  ros__parameters:\n    {written}\n    detections_2d_size: [640, 640]\n")
    node = rclpy.create_node("detector", cli_args=["--ros-args", "--params-file", str(tmp_path / "p.yaml")])
    for spec in parameters.PARAMETERS:
        parameters.declare(node, spec)
    assert list(node.get_parameter("class_map").value) == [""]
    assert list(node.get_parameter("detections_2d_size").value) == [640, 640]
    node.destroy_node()


@pytest.mark.parametrize("value", ["2", "high"])
def test_class_threshold_that_cannot_be(declared, value):
    with pytest.raises(UserError, match=r"class_thresholds\.car"):
        parameters.declare_class_thresholds(declared(f"class_thresholds.car:={value}"), CLASSES)


def test_unknown_parameters_are_named_with_the_nearest(declared):
    node = declared(
        "score_treshold:=0.9",
        "class_thresholds.Car:=0.95",
        "class_thresholds.bicycle:=0.5",
        "class_thresholds.pedestrian:=0.5",
        "zzzzzzzz:=1",
        "use_sim_time:=true",
        "qos_overrides./image.subscription.depth:=3",
    )
    parameters.declare_class_thresholds(node, CLASSES)
    assert parameters.unknown(node) == (
        "unknown parameters, without effect: class_thresholds.Car (nearest known: class_thresholds.car), "
        "class_thresholds.bicycle (nearest known: class_thresholds.cyclist), "
        "score_treshold (nearest known: score_threshold), zzzzzzzz"
    )


def test_no_unknown_parameters(declared):
    assert parameters.unknown(declared("score_threshold:=0.9")) == ""


def test_nested_parameters_of_a_camera(declared, tmp_path):
    path = tmp_path / "cameras.yaml"
    path.write_text(CAMERA % "parameters: {device: cpu, class_thresholds: {car: 0.77, cyclist: 1}, max_range: 40}")
    camera = read_cameras(path)[0]
    assert camera.parameters["class_thresholds.car"] == 0.77
    node = rclpy.create_node("detector", cli_args=camera.ros_arguments())
    parameters.declare_class_thresholds(node, CLASSES)
    assert node.get_parameter("class_thresholds.car").value == 0.77
    assert node.get_parameter("class_thresholds.cyclist").value == 1.0
    node.destroy_node()


@pytest.mark.parametrize("given", ["parameters: ", "parameters: {}", "params_file: "])
def test_camera_without_parameters(tmp_path, given):
    (tmp_path / "cameras.yaml").write_text(CAMERA % given)
    camera = read_cameras(tmp_path / "cameras.yaml")[0]
    assert (camera.parameters, camera.params_file) == ({}, "")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("params_file: /nowhere/x.yaml", "camera 1: params_file '/nowhere/x.yaml': no such file"),
        ("params_file: 3", "camera 1: params_file '3': no such file"),
        ("parameters: {class_map: [[a]]}", r"camera 1: parameter class_map must be .*, got \[\['a'\]\]"),
        ("parameters: {class_map: []}", r"camera 1: parameter class_map must be .*, got \[\]"),
        ("detections_2d_topic: 3", "camera 1: detections_2d_topic must be text"),
        ("parameters: {class_thresholds: {car: }}", r"camera 1: parameter class_thresholds\.car must be .*, got None"),
        ("parameters: {max_range: [1, a]}", r"camera 1: parameter max_range must be .*, got \[1, 'a'\]"),
    ],
)
def test_cameras_that_cannot_be(tmp_path, given, said):
    (tmp_path / "cameras.yaml").write_text(CAMERA % given)
    with pytest.raises(CameraFileError, match=said):
        read_cameras(tmp_path / "cameras.yaml")
