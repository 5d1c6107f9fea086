"""A node that has stopped is out of the ROS graph at once, seen from another process; DDS alone takes 20 seconds."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState
from ros_harness import CONFIGURE, RELIABLE, TIMEOUT, Rig, camera_info, image_message, picture

pytestmark = pytest.mark.usefixtures("ros")

NODE = """
import os, sys, time
from pathlib import Path
from skd_wm3d_ros import detector_node
from skd_wm3d_ros.tools.overhead import NullDetector
folder, hang = Path(sys.argv[1]), sys.argv[2]
class Detector(NullDetector):
    def predict(self, *arguments, **options):
        while hang == "infer":
            (folder / "inside").touch()
            time.sleep(0.05)
        return super().predict(*arguments, **options)
def load(path, device, precision):
    while hang == "load":
        (folder / "inside").touch()
        time.sleep(0.05)
    return Detector()
os._exit(detector_node.run(sys.argv[3:], load))
"""
LEASE = 20.0  # seconds after which DDS gives up a participant that said nothing


@pytest.fixture
def rig():
    rig = Rig(RELIABLE)
    yield rig
    rig.close()


@pytest.fixture
def start(rig, tmp_path):
    """A node's process, once it is in the graph."""
    processes = []

    def make(hang, *arguments, name="detector"):
        command = [sys.executable, "-c", NODE, str(tmp_path), hang, *arguments]
        processes.append(subprocess.Popen(command))
        rig.spin_until(lambda: name in rig.node.get_node_names(), "the node")
        return processes[-1]

    yield make
    for process in processes:
        process.kill()
        process.wait()


def assert_gone(rig, process, name="detector"):
    """A second is what it may take; a busy machine gets half of the lease, so that it is not what decides."""
    assert process.wait(TIMEOUT) == 0
    rig.spin_until(lambda: name not in rig.node.get_node_names(), "the node to leave", timeout=LEASE / 2)


def test_a_node_that_was_told_to_end(rig, start):
    process = start("never")
    assert rig.ask(image_message(picture(1))).detections
    process.send_signal(signal.SIGINT)
    assert_gone(rig, process)


def test_a_node_whose_inference_hangs(rig, start, tmp_path):
    process = start("infer")

    def inside():
        rig.send(image_message(picture(1)), camera_info())
        return (tmp_path / "inside").exists()

    rig.spin_until(inside, "a frame in work")
    process.send_signal(signal.SIGINT)
    assert_gone(rig, process)


def test_a_node_whose_transition_hangs(rig, start, tmp_path):
    process = start("load", "--ros-args", "-p", "autostart:=false")
    client = rig.node.create_client(ChangeState, "/detector/change_state")
    rig.spin_until(client.service_is_ready, "the service")
    client.call_async(ChangeState.Request(transition=Transition(id=CONFIGURE)))
    rig.spin_until(lambda: (tmp_path / "inside").exists(), "a transition in work")
    process.send_signal(signal.SIGINT)
    assert_gone(rig, process)


def test_several_cameras_of_one_process(rig, start, tmp_path):
    cameras = "".join(
        f"  - {{name: {name}, image_topic: /{name}/image, camera_info_topic: /{name}/camera_info}}\n"
        for name in ("front", "rear")
    )
    (tmp_path / "cameras.yaml").write_text(f"cameras:\n{cameras}")
    process = start("never", "--cameras", str(tmp_path / "cameras.yaml"))
    rig.spin_until(lambda: rig.node.get_node_names().count("detector") == 2, "both nodes")
    process.send_signal(signal.SIGTERM)
    assert_gone(rig, process)
