"""The launch files with the real `launch` and `launch_ros`; skipped where these are not installed."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from pathlib import Path

import pytest
import rclpy
import yaml
from rclpy.qos import DurabilityPolicy, QoSProfile
from sensor_msgs.msg import CameraInfo, CompressedImage, Image

from skd_wm3d_ros import launching, parameters
from skd_wm3d_ros.launch_arguments import DETECTOR
from skd_wm3d_ros.tools import rviz_frame

ROOT = Path(__file__).resolve().parents[2]
CAMERAS = str(ROOT / "config" / "cameras.yaml")

needs_launch = pytest.mark.skipif(
    importlib.util.find_spec("launch_ros") is None, reason="launch and launch_ros are not installed"
)


def launch_file(name):
    specification = importlib.util.spec_from_file_location(name, ROOT / "launch" / f"{name}.launch.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def launch_context(module, **given):
    """With the arguments of a launch file, at their defaults where they are not given."""
    from launch import LaunchContext
    from launch.actions import DeclareLaunchArgument

    context = LaunchContext()
    context.launch_configurations.update(given)
    for argument in module.generate_launch_description().entities:
        if isinstance(argument, DeclareLaunchArgument):
            argument.execute(context)
    return context


def made(name, monkeypatch, **given):
    """Keyword arguments of the nodes that a launch file makes, RViz's last."""
    from skd_wm3d_ros import launch_actions

    module, nodes = launch_file(name), []
    for where in (module, launch_actions):
        monkeypatch.setattr(where, "Node", lambda **options: nodes.append(options))
    module.start_nodes(launch_context(module, **given), str(ROOT), launch_actions.Outcome())
    return sorted(nodes, key=lambda options: options["executable"] == "rviz2")


@pytest.fixture
def rviz(tmp_path, monkeypatch):
    """An ament prefix with an rviz2 in it."""
    index, executable = tmp_path / "share/ament_index/resource_index/packages/rviz2", tmp_path / "lib/rviz2/rviz2"
    for file in (index, executable):
        file.parent.mkdir(parents=True)
        file.touch()
    executable.chmod(0o755)
    monkeypatch.setenv("AMENT_PREFIX_PATH", f"{tmp_path}{os.pathsep}{os.environ['AMENT_PREFIX_PATH']}")


# -- the node's arguments ---------------------------------------------------------------------------------------------
def test_arguments_are_the_parameters():
    declared = {spec.name: spec for spec in parameters.PARAMETERS}
    own = {argument.name: argument for argument in DETECTOR if argument.parameter}
    assert set(own) - set(declared) == {"use_sim_time"}  # every node's
    for name in set(own) & set(declared):
        default = declared[name].default
        readers = {bool: launching.boolean, str: str, int: launching.whole}
        wanted = (
            {str: launching.listed, int: launching.parse_integers}[type(default[0])]
            if isinstance(default, list)
            else None
        )
        assert own[name].read is (wanted or readers[type(default)]), name
        assert own[name].choices == (("", *declared[name].choices) if declared[name].choices else ()), name


@needs_launch
def test_what_the_launch_files_declare(monkeypatch):
    from launch.actions import DeclareLaunchArgument, SetEnvironmentVariable

    for variable in (*launching.PROFILE_VARIABLES, "RMW_IMPLEMENTATION"):
        monkeypatch.delenv(variable, raising=False)
    for name in ("detector", "multi_camera"):
        entities = launch_file(name).generate_launch_description().entities
        arguments = {e.name: e for e in entities if isinstance(e, DeclareLaunchArgument)}
        assert {"params_file", "use_sim_time", "log_level", "respawn", "rviz", "fixed_frame"} <= set(arguments)
        assert all(argument.description for argument in arguments.values())
        assert sum(isinstance(e, SetEnvironmentVariable) for e in entities) == 2
    monkeypatch.setenv("RMW_IMPLEMENTATION", "rmw_cyclonedds_cpp")
    entities = launch_file("detector").generate_launch_description().entities
    assert not any(isinstance(e, SetEnvironmentVariable) for e in entities)


@needs_launch
def test_arguments_reach_the_node(monkeypatch):
    given = {"boxes_from": "topic", "use_sim_time": "True", "tracking": "1", "autostart": "FALSE"}
    topics = {"detections_2d_topic": "/yolo/boxes", "image_topic": "/cam/image/compressed"}
    (node,) = made("detector", monkeypatch, **given, **topics)
    file, values = node["parameters"]
    assert Path(file).parts[-2:] == ("config", "detector.yaml")
    assert values == {"boxes_from": "topic", "use_sim_time": True, "tracking": True, "autostart": False}
    assert dict(node["remappings"])["detections_2d"] == "/yolo/boxes"


@needs_launch
def test_an_argument_that_cannot_be_ends_the_launch():
    module = launch_file("detector")
    for given, said in (
        ({"tracking": "maybe"}, "tracking must be true or false, got 'maybe'"),
        ({"respawn": "2"}, "respawn must be true or false, got '2'"),
        ({"rviz": "window"}, "rviz must be true or false, got 'window'"),
        ({"params_file": "/nowhere/x.yaml"}, r"params_file '/nowhere/x\.yaml': no such file"),
    ):
        outcome = run_launch([*module.generate_launch_description().entities], given)
        assert outcome == 1, said


@needs_launch
@pytest.mark.parametrize(("process", "count"), [("several", 2), ("one", 1)])
def test_multi_camera_launch_file(monkeypatch, process, count):
    nodes = made("multi_camera", monkeypatch, cameras=CAMERAS, process=process, use_sim_time="on")
    assert len(nodes) == count
    assert all({"use_sim_time": True} in node["parameters"] for node in nodes)


@needs_launch
@pytest.mark.parametrize("respawn", ["True", "0"])
def test_nodes_of_the_launch_files_respawn(monkeypatch, respawn):
    nodes = made("detector", monkeypatch, respawn=respawn)
    nodes += made("multi_camera", monkeypatch, respawn=respawn, cameras=CAMERAS)
    assert len(nodes) == 3
    assert {node.get("respawn", False) for node in nodes} == {respawn == "True"}


# -- RViz -------------------------------------------------------------------------------------------------------------
def fixed_frame(node):
    arguments = node["arguments"]
    return arguments[arguments.index("-f") + 1] if "-f" in arguments else None


def topics_shown(node):
    content = yaml.safe_load(Path(node["arguments"][node["arguments"].index("-d") + 1]).read_text())
    displays = content["Visualization Manager"]["Displays"]
    displays = [inner for display in displays for inner in display.get("Displays", [display])]
    return {display["Topic"]["Value"] for display in displays if "Topic" in display}


@needs_launch
def test_rviz_opens_in_the_frame_of_the_detections(rviz, monkeypatch, tmp_path):
    _, window = made("detector", monkeypatch, rviz="1", target_frame="odom", namespace="front")
    assert (fixed_frame(window), window["prefix"]) == ("odom", "")
    _, window = made("detector", monkeypatch, rviz="1", target_frame="odom", fixed_frame="map")
    assert fixed_frame(window) == "map"
    (tmp_path / "p.yaml").write_text("/front/detector:\n  ros__parameters: {target_frame: base_link}\n")
    file = str(tmp_path / "p.yaml")
    _, window = made("detector", monkeypatch, rviz="1", namespace="front", params_file=file)
    assert fixed_frame(window) == "base_link"
    _, window = made("detector", monkeypatch, rviz="1", namespace="front", camera_info_topic="/cam/info")
    assert fixed_frame(window) is None  # only the camera knows
    assert window["prefix"].split()[1:] == [
        *("-m", "skd_wm3d_ros.tools.rviz_frame"),
        *("/front/image", "/cam/info", "/front/detector/detections"),
    ]


@needs_launch
def test_rviz_shows_the_image_as_it_is_transported(rviz, monkeypatch):
    for topic in ("/cam/image", "/cam/image/compressed"):
        _, window = made("detector", monkeypatch, rviz="1", image_topic=topic, image_transport="compressed")
        assert "/cam/image/compressed" in topics_shown(window)
    _, window = made("detector", monkeypatch, rviz="1", image_topic="cam/image", namespace="front")
    assert {"/front/cam/image", "/front/detector/markers"} <= topics_shown(window)


@needs_launch
@pytest.mark.parametrize("process", ["one", "several"])
def test_rviz_of_several_cameras(rviz, monkeypatch, process):
    *nodes, window = made("multi_camera", monkeypatch, rviz="true", cameras=CAMERAS, process=process)
    assert window["executable"] == "rviz2"
    assert {"/front/image_rect", "/front/detector/markers", "/rear/detector/markers"} <= topics_shown(window)
    assert "/front/camera_info" in window["prefix"]


@needs_launch
def test_the_detector_runs_without_rviz(monkeypatch, tmp_path):
    monkeypatch.setenv("AMENT_PREFIX_PATH", os.environ["AMENT_PREFIX_PATH"].split(os.pathsep)[0])
    for name, given in (("detector", {}), ("multi_camera", {"cameras": CAMERAS})):
        nodes = made(name, monkeypatch, rviz="true", **given)
        assert {node["executable"] for node in nodes} == {"detector_node"}


@pytest.mark.parametrize("durability", list(DurabilityPolicy)[1:3])
def test_frame_of_a_camera(ros, durability):
    node = rclpy.create_node("camera")
    publisher = node.create_publisher(CameraInfo, "camera_info", QoSProfile(depth=1, durability=durability))
    info = CameraInfo()
    info.header.frame_id = "camera_optical"
    publisher.publish(info)  # the only one of a latched camera
    if durability != DurabilityPolicy.TRANSIENT_LOCAL:
        node.create_timer(0.05, lambda: publisher.publish(info))
    try:
        assert rviz_frame.find_frame(node, "image", "camera_info", "detections", timeout=30.0) == "camera_optical"
        assert rviz_frame.find_frame(node, "none", "nothing", "detections", timeout=0.2) == ""
    finally:
        node.destroy_node()


@pytest.mark.parametrize(("topic", "kind"), [("image", Image), ("image/compressed", CompressedImage)])
def test_frame_of_a_camera_without_camera_info(ros, topic, kind):
    node, image = rclpy.create_node("camera"), kind()
    image.header.frame_id = "camera_optical"
    publisher = node.create_publisher(kind, topic, 1)
    node.create_timer(0.05, lambda: publisher.publish(image))
    try:
        assert rviz_frame.find_frame(node, topic, "camera_info", "detections", timeout=30.0) == "camera_optical"
    finally:
        node.destroy_node()


# -- processes --------------------------------------------------------------------------------------------------------
def run_launch(entities, given=None):
    """Exit status of the launch, as `ros2 launch` has it."""
    from launch import LaunchDescription, LaunchService
    from launch.actions import SetLaunchConfiguration

    service = LaunchService(noninteractive=True)
    arguments = [SetLaunchConfiguration(name, value) for name, value in (given or {}).items()]
    service.include_launch_description(LaunchDescription([*arguments, *entities]))
    return service.run()


ENDS = """
import json, os, signal, sys, time
with open(sys.argv[1], "a+") as log:
    log.write("x")
    log.seek(0)
    number = len(log.read())
status = json.loads(sys.argv[2])[number - 1]
if status == "waits":
    signal.signal(signal.SIGINT, lambda *_: os._exit(int(sys.argv[3])))
    os.kill(os.getppid(), signal.SIGINT)  # Ctrl-C to launch
    time.sleep(60)
os.kill(os.getpid(), -status) if status < 0 else sys.exit(status)
"""


def ending(log, statuses, outcome, respawn, after_signal=0):
    """A process that ends with one status after the other; "waits": until it gets SIGINT."""
    from launch.actions import ExecuteProcess

    command = [sys.executable, "-c", ENDS, str(log), json.dumps(statuses), str(after_signal)]
    return ExecuteProcess(cmd=command, **outcome.watched(respawn))


@needs_launch
@pytest.mark.parametrize(
    ("respawn", "statuses", "starts", "ends"),
    [
        (True, [1, -9, 2], 3, 1),
        (True, [1, 0], 2, 0),
        (True, [2], 1, 1),
        (False, [0], 1, 0),
        (False, [1], 1, 1),
        (False, [2], 1, 1),
        (False, [-9], 1, 1),
        (False, ["waits"], 1, 0),
    ],
)
def test_a_node_that_died_is_started_again_and_the_last_status_counts(tmp_path, respawn, statuses, starts, ends):
    """In the real launch service (-9: SIGKILL)."""
    from skd_wm3d_ros.launch_actions import Outcome

    outcome = Outcome()
    process = ending(tmp_path / "starts", statuses, outcome, respawn)
    assert run_launch([*outcome.actions(), process]) == ends
    assert len((tmp_path / "starts").read_text()) == starts


@needs_launch
def test_a_process_that_ends_badly_after_ctrl_c(tmp_path):
    from skd_wm3d_ros.launch_actions import Outcome

    outcome = Outcome()
    process = ending(tmp_path / "starts", ["waits"], outcome, False, after_signal=130)
    assert run_launch([*outcome.actions(), process]) == 1


@needs_launch
def test_one_camera_that_cannot_leaves_the_others_alone(tmp_path):
    """The launch goes on, and ends with 1 though the other ended well."""
    from launch.actions import ExecuteProcess

    from skd_wm3d_ros.launch_actions import Outcome

    outcome = Outcome()
    bad = ending(tmp_path / "bad", [2], outcome, True)
    code = "import pathlib, sys, time\nwhile not pathlib.Path(sys.argv[1]).exists(): time.sleep(.05)\ntime.sleep(1)\n"
    code += "pathlib.Path(sys.argv[2]).touch()"
    good = [sys.executable, "-c", code, str(tmp_path / "bad"), str(tmp_path / "good")]
    assert run_launch([*outcome.actions(), bad, ExecuteProcess(cmd=good, **outcome.watched())]) == 1
    assert (tmp_path / "good").exists()


@needs_launch
def test_the_evaluation_s_status_is_the_launch_s(tmp_path):
    entities = launch_file("evaluate_bag").generate_launch_description().entities
    assert run_launch(entities, {"bag": str(tmp_path / "none")}) == 1
