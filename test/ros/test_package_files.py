"""The files that are shipped with the node agree with it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
import yaml

from skd_wm3d_ros import detector_node, parameters
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
