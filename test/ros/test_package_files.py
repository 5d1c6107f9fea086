"""The files that are shipped with the node agree with it."""

from __future__ import annotations

import importlib.util
import os
import threading
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
import yaml

from skd_wm3d_ros import detector_node, parameters
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


@pytest.mark.skipif(importlib.util.find_spec("launch_ros") is None, reason="launch and launch_ros are not installed")
def test_launch_file(monkeypatch):
    from launch.actions import DeclareLaunchArgument, SetEnvironmentVariable

    for variable in ("FASTRTPS_DEFAULT_PROFILES_FILE", "FASTDDS_DEFAULT_PROFILES_FILE"):
        monkeypatch.delenv(variable, raising=False)
    path = ROOT / "launch" / "detector.launch.py"
    specification = importlib.util.spec_from_file_location("detector_launch", path)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    entities = module.generate_launch_description().entities
    arguments = {e.name: e for e in entities if isinstance(e, DeclareLaunchArgument)}
    assert set(arguments) == {
        "namespace", "params_file", "use_sim_time", "autostart", "log_level", "model", "device", "image_topic",
        "camera_info_topic", "image_transport", "rviz",
    }  # fmt: skip
    assert all(argument.description for argument in arguments.values())
    declared = {spec.name: spec for spec in parameters.PARAMETERS}
    assert {name for name in arguments if name in declared} == {"autostart", "model", "device", "image_transport"}
    assert tuple(arguments["image_transport"].choices)[1:] == declared["image_transport"].choices
    assert sum(isinstance(e, SetEnvironmentVariable) for e in entities) == 2
    monkeypatch.setenv("FASTRTPS_DEFAULT_PROFILES_FILE", "/mine.xml")
    entities = module.generate_launch_description().entities
    assert not any(isinstance(e, SetEnvironmentVariable) for e in entities)


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
