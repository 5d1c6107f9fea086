"""The files that are shipped with the node agree with it."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
import threading
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
import yaml

from skd_wm3d_ros import detector_node, launching, parameters
from skd_wm3d_ros.cameras import read_cameras
from skd_wm3d_ros.resources import share_file
from skd_wm3d_ros.worker import LatestWorker

ROOT = Path(__file__).resolve().parents[2]
MARKS = {"start": "[START]", "configure": "[CONFIGURE]", "activate": "[ACTIVATE]", "dynamic": "[DYNAMIC]"}


def test_parameter_file_is_the_declarations():
    text = (ROOT / "config" / "detector.yaml").read_text()
    values = yaml.safe_load(text)["/**"]["ros__parameters"]
    assert values == {spec.name: spec.default for spec in parameters.PARAMETERS}
    before = ""
    marks = {}
    for line in text.splitlines():
        name = line.strip().partition(":")[0]
        if name in values:
            marks[name] = max(MARKS.values(), key=before.rfind)  # the nearest above
            before = ""
        before += line if line.strip().startswith("#") else ""
    assert marks == {spec.name: MARKS[spec.when] for spec in parameters.PARAMETERS}


def test_every_parameter_is_described():
    for spec in parameters.PARAMETERS:
        assert spec.description.endswith("."), spec.name


def test_rviz_shows_the_node_s_topics():
    displays = yaml.safe_load((ROOT / "rviz" / "detector.rviz").read_text())["Visualization Manager"]["Displays"]
    topics = {d["Topic"]["Value"]: d["Topic"]["Reliability Policy"] for d in displays if "Topic" in d}
    assert topics == {
        "image": "Best Effort",
        "detector/debug_image": "Reliable",
        "detector/bev_image": "Reliable",
        "detector/markers": "Reliable",
        "detector/detections": "Reliable",
    }
    assert {"rviz_default_plugins/TF", "rviz_default_plugins/Grid"} <= {d["Class"] for d in displays}


def test_dds_profile_holds_an_image():
    root = ElementTree.parse(share_file("config/fastdds_images.xml")).getroot()
    name = "{http://www.eprosima.com}"
    sizes = [int(element.text or 0) for element in root.iter(f"{name}segment_size")]
    assert sizes == [32 * 2**20]
    defined = {element.text for element in root.iter(f"{name}transport_id")}
    assert defined == {"shared_memory_for_images", "udp"}


def launch_file(name):
    specification = importlib.util.spec_from_file_location(name, ROOT / "launch" / f"{name}.launch.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@pytest.fixture
def no_profile(monkeypatch):
    for variable in launching.PROFILE_VARIABLES:
        monkeypatch.delenv(variable, raising=False)


needs_launch = pytest.mark.skipif(
    importlib.util.find_spec("launch_ros") is None, reason="launch and launch_ros are not installed"
)


@needs_launch
def test_launch_file(monkeypatch, no_profile):
    from launch.actions import DeclareLaunchArgument, SetEnvironmentVariable

    module = launch_file("detector")
    entities = module.generate_launch_description().entities
    arguments = {e.name: e for e in entities if isinstance(e, DeclareLaunchArgument)}
    declared = {spec.name: spec for spec in parameters.PARAMETERS}
    own = {*module.TEXTS, *module.FLAGS, *module.OTHERS}
    assert own - set(declared) == {"use_sim_time"}  # every node's
    others = {"namespace", "params_file", "log_level", "image_topic", "camera_info_topic", "detections_2d_topic"}
    others |= {"respawn", "rviz"}
    assert set(arguments) == own | others
    assert all(argument.description for argument in arguments.values())
    for name in own & set(declared):
        assert isinstance(declared[name].default, bool) == (name in module.FLAGS), name
        assert isinstance(declared[name].default, str) == (name in module.TEXTS), name
        if declared[name].choices:
            assert tuple(arguments[name].choices)[1:] == declared[name].choices
    assert sum(isinstance(e, SetEnvironmentVariable) for e in entities) == 2
    monkeypatch.setenv("FASTRTPS_DEFAULT_PROFILES_FILE", "/mine.xml")
    entities = module.generate_launch_description().entities
    assert not any(isinstance(e, SetEnvironmentVariable) for e in entities)


@needs_launch
def test_launch_arguments_of_2d_boxes(monkeypatch, no_profile):
    module, made = launch_file("detector"), []
    monkeypatch.setattr(module, "Node", lambda **options: made.append(options))
    given = {"boxes_from": "topic", "class_map": "2:car,traffic light:dontcare", "detections_2d_size": "640,384"}
    context = launch_context(module, **given, detector_2d_tiles="4", detections_2d_topic="/yolo/boxes")
    module.start_nodes(context, str(ROOT))
    assert made[0]["parameters"][1] == {
        "boxes_from": "topic",
        "class_map": ["2:car", "traffic light:dontcare"],
        "detections_2d_size": [640, 384],
        "detector_2d_tiles": 4,
    }
    topic = dict(made[0]["remappings"])["detections_2d"]
    assert topic.perform(context) == "/yolo/boxes"


@pytest.mark.parametrize("text", ["2:car,0:person", "[2:car, 0:person]", "['2:car', \"0:person\"]"])
def test_launch_arguments_that_are_lists(text):
    assert launching.listed(text) == ["2:car", "0:person"]


def launch_context(module, **given):
    """With the arguments of a launch file, at their defaults where they are not given."""
    from launch import LaunchContext
    from launch.actions import DeclareLaunchArgument

    context = LaunchContext()
    context.launch_configurations.update(given)
    for argument in module.generate_launch_description().entities:
        if isinstance(argument, DeclareLaunchArgument):
            assert argument.description
            argument.execute(context)
    return context


@needs_launch
@pytest.mark.parametrize(("process", "count"), [("several", 2), ("one", 1)])
def test_multi_camera_launch_file(no_profile, process, count):
    module = launch_file("multi_camera")
    cameras = str(ROOT / "config" / "cameras.yaml")
    assert len(module.start_nodes(launch_context(module, cameras=cameras, process=process))) == count


@needs_launch
def test_parameter_file_that_is_not_there(no_profile):
    module = launch_file("detector")
    assert len(module.start_nodes(launch_context(module), str(ROOT))) == 2
    with pytest.raises(FileNotFoundError, match=r"params_file '/nowhere/x\.yaml': no such file"):
        module.start_nodes(launch_context(module, params_file="/nowhere/x.yaml"), str(ROOT))
    module = launch_file("multi_camera")
    cameras = str(ROOT / "config" / "cameras.yaml")
    with pytest.raises(FileNotFoundError, match=r"params_file '/nowhere/x\.yaml': no such file"):
        module.start_nodes(launch_context(module, cameras=cameras, params_file="/nowhere/x.yaml"))


@needs_launch
@pytest.mark.parametrize(
    ("respawn", "statuses", "starts"),
    [("true", (1, -9, 2), 3), ("true", (1, 0), 2), ("true", (2,), 1), ("false", (1,), 1)],
)
def test_a_node_that_died_is_started_again(tmp_path, respawn, statuses, starts):
    """In the real launch service, with a process that ends with one status after the other (-9: SIGKILL)."""
    from launch import LaunchContext, LaunchDescription, LaunchService
    from launch.actions import ExecuteProcess

    context = LaunchContext()
    context.launch_configurations["respawn"] = respawn
    log = tmp_path / "starts"
    command = [sys.executable, "-c", ENDS, str(log), *map(str, statuses)]
    service = LaunchService(noninteractive=True)
    service.include_launch_description(
        LaunchDescription([ExecuteProcess(cmd=command, **launching.respawning(context))])
    )
    assert service.run() == 0
    assert len(log.read_text()) == starts


ENDS = """
import os, sys
with open(sys.argv[1], "a+") as log:
    log.write("x")
    log.seek(0)
    number = len(log.read())
status = int(sys.argv[1 + number])
os.kill(os.getpid(), -status) if status < 0 else sys.exit(status)
"""


@needs_launch
@pytest.mark.parametrize("respawn", ["true", "false"])
def test_nodes_of_the_launch_files_respawn(monkeypatch, no_profile, respawn):
    made = []
    for name, given in (("detector", {}), ("multi_camera", {"cameras": str(ROOT / "config" / "cameras.yaml")})):
        module = launch_file(name)
        monkeypatch.setattr(module, "Node", lambda **options: made.append(options))
        module.start_nodes(launch_context(module, respawn=respawn, **given), *([str(ROOT)] * (name == "detector")))
    detectors = [options for options in made if options["executable"] == "detector_node"]
    assert len(detectors) == 3
    assert {options.get("respawn", False) for options in detectors} == {respawn == "true"}


def test_launch_files_import_no_torch():
    """`ros2 launch` may run in a Python that has none."""
    code = "import sys, skd_wm3d_ros.launching, skd_wm3d_ros.cameras; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=120).returncode == 0


def test_camera_file_of_the_package():
    cameras = {camera.name: camera for camera in read_cameras(share_file("config/cameras.yaml"))}
    assert list(cameras) == ["front", "rear"]
    declared = {spec.name: spec for spec in parameters.PARAMETERS}
    for name, value in cameras["rear"].parameters.items():
        assert type(value) is type(declared[name].default)
    assert "score_threshold:=0.3" in cameras["rear"].ros_arguments()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["-p", "score_threshold:=2.0"], "score_threshold"),
        (["-p", "score_threshold:=high"], "score_threshold"),
        (["-p", "class_thresholds:={car: 0.7}"], "class_thresholds:={car: 0.7}"),
        (["--params-file", "/nowhere/x.yaml"], "/nowhere/x.yaml"),
        (["--bogus"], "--bogus"),
    ],
)
def test_argument_that_cannot_be_ends_the_node_with_one_line(capfd, arguments, said):
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        assert detector_node.run(["--ros-args", *arguments]) == 2
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    error = capfd.readouterr().err
    assert error.startswith("detector: error: ")
    assert said in error
    assert len(error.strip().splitlines()) == 1


def test_ctrl_c_while_importing_ends_without_a_word():
    """Whenever it comes: torch alone takes seconds to import."""
    command = [sys.executable, "-c", INTERRUPTED]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")


INTERRUPTED = """
import os, signal, sys
class Interrupt:  # in the place of torch
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Interrupt())
from skd_wm3d_ros.detector_node import main
assert "torch" not in sys.modules and "rclpy" not in sys.modules
main()
"""


def test_entry_points_exist():
    assert callable(detector_node.main)
    assert os.path.isfile(share_file("launch/detector.launch.py"))


def test_worker_takes_the_newest_and_counts_the_rest():
    working, go_on, done = threading.Event(), threading.Event(), []

    def work(item):
        working.set()
        assert go_on.wait(30)
        done.append(item)

    worker = LatestWorker(work)
    worker.put(1)
    assert working.wait(30)
    for item in (2, 3, 4):  # while 1 is in work
        worker.put(item)
    assert worker.dropped == 2
    assert not worker.stop(timeout=0.01)  # 1 is still in work: said, not waited for
    go_on.set()
    assert worker.stop(timeout=30)
    assert done == [1]  # what waited is forgotten


def test_worker_works_on_what_waits():
    first, seen = threading.Event(), []
    worker = LatestWorker(lambda item: (first.wait(30), seen.append(item), finished.set() if item == 3 else None))
    finished = threading.Event()
    for item in (1, 2, 3):
        worker.put(item)
    first.set()
    assert finished.wait(30)
    assert worker.stop(timeout=30)
    assert seen in ([1, 3], [3])
    assert len(seen) + worker.dropped == 3
