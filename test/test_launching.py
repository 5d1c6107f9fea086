"""What the launch files decide, without `launch`: reading arguments, DDS profile, what RViz shows, missing packages."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from skd_wm3d_ros import environment, launching
from skd_wm3d_ros.cameras import transport_topic
from skd_wm3d_ros.launch_arguments import BAG, DETECTOR, EVALUATION, MULTI_CAMERA, evaluation_command
from skd_wm3d_ros.launching import ArgumentError, absolute, node_parameters, values
from skd_wm3d_ros.rviz_view import configuration, view
from skd_wm3d_ros.tools import programs

ROOT = Path(__file__).resolve().parents[1]
ALL = (*DETECTOR, *MULTI_CAMERA, BAG, *EVALUATION)
BOOLEANS = [argument for argument in ALL if argument.read is launching.boolean]


# -- arguments --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("text", ["true", "True", "TRUE", "1", "yes", "On", " true "])
def test_true_in_every_spelling(text):
    assert {argument.value({argument.name: text}) for argument in BOOLEANS} == {True}


@pytest.mark.parametrize("text", ["false", "False", "FALSE", "0", "no", "Off"])
def test_false_in_every_spelling(text):
    assert {argument.value({argument.name: text}) for argument in BOOLEANS} == {False}


@given(st.text(min_size=1).filter(lambda t: t.strip() and t.strip().lower() not in launching.BOOLEANS))
def test_what_is_neither_is_named(text):
    for argument in BOOLEANS:
        with pytest.raises(ArgumentError) as caught:
            argument.value({argument.name: text})
        assert str(caught.value) == f"{argument.name} must be true or false, got '{text}'"


def test_which_arguments_are_true_or_false():
    names = {argument.name for argument in BOOLEANS}
    assert names == {
        *("use_sim_time", "autostart", "image_is_rectified", "tracking", "lazy", "respawn", "rviz"),
        *("lossless", "raw_images", "check"),
    }


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"detector_2d_tiles": "four"}, "detector_2d_tiles must be a whole number, got 'four'"),
        ({"detector_2d_tiles": "2.5"}, "detector_2d_tiles must be a whole number, got '2.5'"),
        ({"detections_2d_size": "640x640"}, "detections_2d_size must be whole numbers with commas between"),
        ({"tracking": "2"}, "tracking must be true or false, got '2'"),
    ],
)
def test_argument_that_cannot_be_read(given, said):
    with pytest.raises(ArgumentError, match=said):
        node_parameters(DETECTOR, given)


def test_only_what_is_given_goes_before_the_parameter_file():
    assert node_parameters(DETECTOR, {}) == {}
    given = {"boxes_from": "topic", "class_map": "2:car,traffic light:dontcare", "detections_2d_size": "640, 384"}
    assert node_parameters(DETECTOR, {**given, "use_sim_time": "1", "detector_2d_tiles": "4", "device": ""}) == {
        "boxes_from": "topic",
        "class_map": ["2:car", "traffic light:dontcare"],
        "detections_2d_size": [640, 384],
        "detector_2d_tiles": 4,
        "use_sim_time": True,
    }


@pytest.mark.parametrize("text", ["2:car,0:person", "[2:car, 0:person]", "['2:car', \"0:person\"]"])
def test_arguments_that_are_lists(text):
    assert launching.listed(text) == ["2:car", "0:person"]


def test_every_argument_is_described():
    for argument in ALL:
        assert argument.description.endswith("."), argument.name
        assert not argument.choices or argument.default in argument.choices, argument.name


def test_defaults_of_all_launch_files_can_be_read():
    assert values(DETECTOR, {})["respawn"] is True
    assert values(DETECTOR, {})["rviz"] is False
    assert values(MULTI_CAMERA, {"cameras": "x.yaml"})["process"] == "several"


def test_command_line_of_the_evaluation():
    given = {"bag": "/bags/one", "lossless": "True", "check": "1", "raw_images": "off", "labels": "/l", "model": "w"}
    command = evaluation_command(given)
    assert command[:6] == ["/usr/bin/env", "python3", "-m", "skd_wm3d_ros.tools", "bag_evaluation", "/bags/one"]
    assert "--raw-images" not in command
    assert {"--lossless", "--check"} <= set(command)
    for option, value in (("--labels", "/l"), ("--weights", "w"), ("--rate", "1.0")):
        assert command[command.index(option) + 1] == value
    assert "--truth" not in command


# -- processes --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("respawn", "status", "again"),
    [(True, 1, True), (True, -11, True), (True, 0, False), (True, 2, False), (False, 1, False)],
)
def test_which_nodes_are_started_again(respawn, status, again):
    assert launching.is_respawned(respawn, status) == again


@pytest.mark.parametrize(
    ("environment", "sets"),
    [
        ({}, True),
        ({"RMW_IMPLEMENTATION": ""}, True),
        ({"RMW_IMPLEMENTATION": "rmw_fastrtps_cpp"}, True),
        ({"RMW_IMPLEMENTATION": "rmw_fastrtps_dynamic_cpp"}, True),
        ({"RMW_IMPLEMENTATION": "rmw_cyclonedds_cpp"}, False),
        ({"RMW_IMPLEMENTATION": "rmw_zenoh_cpp"}, False),
        ({"FASTRTPS_DEFAULT_PROFILES_FILE": "/mine.xml"}, False),
        ({"FASTDDS_DEFAULT_PROFILES_FILE": "/mine.xml", "RMW_IMPLEMENTATION": "rmw_fastrtps_cpp"}, False),
    ],
)
def test_the_dds_profile_is_only_set_for_fast_dds(environment, sets):
    assert launching.sets_dds_profile(environment) == sets


def test_parameter_file_that_is_not_there(tmp_path):
    with pytest.raises(ArgumentError, match=r"params_file '/nowhere/x\.yaml': no such file"):
        launching.existing("params_file", "/nowhere/x.yaml")
    with pytest.raises(ArgumentError, match="no such file"):
        launching.existing("params_file", str(tmp_path))


# -- what RViz shows --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("topic", "transport", "subscribed"),
    [
        ("/cam/image", "raw", "/cam/image"),
        ("/cam/image", "compressed", "/cam/image/compressed"),
        ("/cam/image/compressed", "compressed", "/cam/image/compressed"),
        ("/cam/image_compressed", "compressed", "/cam/image_compressed/compressed"),
    ],
)
def test_suffix_of_a_transport_is_there_once(topic, transport, subscribed):
    assert transport_topic(topic, transport) == subscribed


@pytest.mark.parametrize(
    ("names", "full"),
    [
        (("", "", "detector"), "/detector"),
        (("", "front", "detector"), "/front/detector"),
        (("/robot", "front", "image"), "/robot/front/image"),
        (("/robot", "/front", "image"), "/front/image"),
        (("robot", "front", "/cam/image"), "/cam/image"),
        (("", ""), "/"),
    ],
)
def test_full_names(names, full):
    assert absolute(*names) == full


@pytest.mark.parametrize(
    ("keys", "matches"),
    [
        ("/**", True),
        ("/*", False),
        ("/*/detector", True),
        ("/**/detector", True),
        ("detector", False),
        ("/front/detector", True),
        ("front/detector", True),
        ("/front/*", True),
        ("/rear/detector", False),
        ("front:detector", True),  # nested
    ],
)
def test_parameter_file_of_a_node(tmp_path, keys, matches):
    content = {"ros__parameters": {"target_frame": "odom"}}
    for key in reversed(keys.split(":")):
        content = {key: content}
    (tmp_path / "p.yaml").write_text(yaml.safe_dump(content))
    found = launching.file_parameters(str(tmp_path / "p.yaml"), "/front/detector")
    assert found == ({"target_frame": "odom"} if matches else {})


def test_the_node_s_own_name_goes_before_wildcards(tmp_path):
    own, all_nodes = {"ros__parameters": {"target_frame": "odom"}}, {"ros__parameters": {"target_frame": "map", "a": 1}}
    (tmp_path / "p.yaml").write_text(yaml.safe_dump({"/detector": own, "/**": all_nodes}, sort_keys=False))
    assert launching.file_parameters(str(tmp_path / "p.yaml"), "/detector") == {"target_frame": "odom", "a": 1}


@pytest.mark.parametrize("text", ["", "[1, 2]", "a: [", "/**: 3", "/**: {ros__parameters: 3}", "\x00"])
def test_parameter_file_that_is_none_says_nothing(tmp_path, text):
    (tmp_path / "p.yaml").write_text(text)
    assert launching.file_parameters(str(tmp_path / "p.yaml"), "/detector") == {}
    assert launching.file_parameters(str(tmp_path / "none.yaml"), "/detector") == {}


def topics_of(displays):
    return {d["Name"]: d["Topic"]["Value"] for d in displays if "Topic" in d}


def test_rviz_of_one_camera():
    one = view("/front", {"image": "/cam/image"}, {"image_transport": "compressed", "target_frame": "odom"})
    assert (one.frame, one.camera_info, one.detections) == (
        "odom",
        "/front/camera_info",
        "/front/detector/detections",
    )
    shown = yaml.safe_load(configuration(ROOT / "rviz" / "detector.rviz", [one]))["Visualization Manager"]
    assert topics_of(shown["Displays"]) == {
        "Image": "/cam/image/compressed",
        "Image with boxes": "/front/detector/debug_image",
        "From above": "/front/detector/bev_image",
        "Boxes": "/front/detector/markers",
        "Detections": "/front/detector/detections",
    }
    assert {"Road", "TF"} <= {display["Name"] for display in shown["Displays"]}


def test_rviz_of_several_cameras_shows_each():
    views = [view("/front", {}, {}), view("/rear", {"image": "/rear/image/compressed"}, {"image_transport": "raw"})]
    shown = yaml.safe_load(configuration(ROOT / "rviz" / "detector.rviz", views))["Visualization Manager"]
    groups = {d["Name"]: topics_of(d["Displays"]) for d in shown["Displays"] if d["Class"] == "rviz_common/Group"}
    assert groups["front"]["Image"] == "/front/image"
    assert groups["rear"]["Image"] == "/rear/image/compressed"
    assert groups["rear"]["Boxes"] == "/rear/detector/markers"
    assert topics_of(shown["Displays"]) == {}
    assert [d["Name"] for d in shown["Displays"]].count("TF") == 1


# -- packages that are missing ----------------------------------------------------------------------------------------
def missing(name, text=""):
    return ModuleNotFoundError(text or f"No module named '{name}'", name=name)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (missing("torch"), "source .venv/bin/activate"),
        (missing("pydantic.v2"), "source .venv/bin/activate"),
        (ImportError("numpy.core.multiarray failed to import\nsecond line"), "source .venv/bin/activate"),
        (missing("rclpy"), "source ROS 2"),
        (missing("vision_msgs"), "source ROS 2"),
        (missing("cv_bridge.boost"), "source ROS 2"),
        (missing("rclpy.event_handler"), "Jazzy or newer"),
        (missing("rclpy._rclpy_pybind11", "No module\nnamed"), "another Python"),
    ],
)
def test_one_line_with_the_cure(error, said):
    line = environment.import_advice(error)
    assert said in line
    assert sys.executable in line
    assert len(line.splitlines()) == 1


def test_a_fault_of_ours_is_not_the_environment_s():
    with pytest.raises(ImportError, match="cannot import name"):
        environment.import_advice(ImportError("cannot import name 'x' from 'skd_core.boxes'", name="skd_core.boxes"))


HIDDEN = """
import runpy, sys
class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "torch":
            raise ModuleNotFoundError(f"No module named '{name}'", name=name)
sys.meta_path.insert(0, Hidden())
sys.argv = sys.argv[1:]
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
"""


def without_torch(*arguments):
    command = [sys.executable, "-c", HIDDEN, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=ROOT)


@pytest.mark.parametrize(
    "arguments",
    [["skd_wm3d_ros.detector_node"], ["skd_wm3d_ros.tools", "bag_evaluation", "x"], ["skd_wm3d_ros.tools", "soak"]],
)
def test_without_torch_one_line_and_status_2(arguments):
    pytest.importorskip("rclpy")
    done = without_torch(*arguments)
    assert done.returncode == 2, done.stderr
    assert "No module named 'torch'" in done.stderr
    assert "source .venv/bin/activate" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_launch_files_import_no_torch():
    """`ros2 launch` may run in a Python that has none."""
    names = "launching, launch_arguments, rviz_view, cameras, environment"
    code = f"import sys; from skd_wm3d_ros import {names}; sys.exit('torch' in sys.modules or 'rclpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=120, cwd=ROOT).returncode == 0


def test_programs_of_the_tools():
    command = [sys.executable, "-m", "skd_wm3d_ros.tools"]
    done = subprocess.run([*command, "nothing"], capture_output=True, text=True, timeout=120, cwd=ROOT)
    assert (done.returncode, done.stderr.partition(";")[0]) == (2, "no program 'nothing' in skd_wm3d_ros.tools")
    files = {file.stem for file in (ROOT / "skd_wm3d_ros" / "tools").glob("*.py") if "def main(" in file.read_text()}
    assert files == {*programs.PROGRAMS}
    for name in ("bag_player", "soak"):
        assert f'run_tool("{name}")' in (ROOT / "resource" / "ros2_run" / name).read_text()


@pytest.mark.parametrize("name", ["detector", "multi_camera", "evaluate_bag"])
def test_launch_files_take_their_arguments_from_the_table(name):
    """Each argument that a launch file reads is declared, which launch itself would only find when it is used."""
    arguments = {"detector": DETECTOR, "multi_camera": MULTI_CAMERA, "evaluate_bag": (BAG, *EVALUATION)}[name]
    tree = ast.parse((ROOT / "launch" / f"{name}.launch.py").read_text())
    read = {
        node.slice.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Subscript)
        and ast.unparse(node.value) == "given"
        and isinstance(node.slice, ast.Constant)
    }
    assert read <= {argument.name for argument in arguments}
