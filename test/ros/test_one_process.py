"""Several cameras in one process, and what ends a process."""

from __future__ import annotations

import subprocess
import sys

import pytest
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState
from rcl_interfaces.srv import GetParameters
from ros_harness import CONFIGURE, TIMEOUT, Rig

pytestmark = pytest.mark.usefixtures("ros")

CAMERAS = """
cameras:
  - name: front
    image_topic: /front/image
    camera_info_topic: /front/camera_info
    parameters: {model: slow, autostart: false, class_thresholds: {car: 0.75}}
  - name: rear
    image_topic: /rear/image
    camera_info_topic: /rear/camera_info
    parameters: {model: fast, autostart: false}
"""
SLOW_TO_LOAD = """
import os, sys, time
from pathlib import Path
from skd_wm3d_ros import detector_node
folder = Path(sys.argv[1])
def load(path, device, precision):
    from skd_wm3d_ros.tools.overhead import NullDetector
    while path == "slow" and not (folder / "go").exists():
        time.sleep(0.05)
    return NullDetector()
arguments = ["--cameras", str(folder / "cameras.yaml"), "--ros-args", "-r", "__ns:=/vehicle"]
os._exit(detector_node.run(arguments, load))
"""


@pytest.fixture
def process(tmp_path):
    """Two cameras; the weights of one take until there is a file "go" to load."""
    (tmp_path / "cameras.yaml").write_text(CAMERAS)
    process = subprocess.Popen([sys.executable, "-c", SLOW_TO_LOAD, str(tmp_path)])
    yield process
    process.kill()
    process.wait()


@pytest.fixture
def rig():
    rig = Rig()
    yield rig
    rig.close()


def configure(rig, camera):
    """A future."""
    client = rig.node.create_client(ChangeState, f"/vehicle/{camera}/detector/change_state")
    rig.spin_until(client.service_is_ready, f"the node of {camera}")
    return client.call_async(ChangeState.Request(transition=Transition(id=CONFIGURE)))


def test_a_transition_of_one_camera_does_not_hold_up_the_others(rig, process, tmp_path):
    front = configure(rig, "front")
    rear = configure(rig, "rear")
    rig.spin_until(rear.done, "the rear camera, while the front one loads")
    assert rear.result().success
    assert not front.done()
    (tmp_path / "go").touch()
    rig.spin_until(front.done, "the front camera")
    assert front.result().success
    request = GetParameters.Request(names=["class_thresholds.car", "model"])
    values = rig.call(GetParameters, "/vehicle/front/detector/get_parameters", request).values
    assert (values[0].double_value, values[1].string_value) == (0.75, "slow")
    process.terminate()
    assert process.wait(TIMEOUT) == 0


def test_a_signal_does_not_wait_for_a_transition(rig, process):
    configure(rig, "front")
    rear = configure(rig, "rear")
    rig.spin_until(rear.done, "the rear camera, while the front one loads")
    process.terminate()
    process.terminate()
    assert process.wait(TIMEOUT) == 0


RAISES = """
import sys
from skd_wm3d_ros import detector_node
from skd_wm3d_ros.node import DetectorNode
def publish(self):
    raise ValueError("of a timer")
DetectorNode._publish_diagnostics = publish
sys.argv += ["--ros-args", "-p", "autostart:=false"]
detector_node.main()
"""


def test_a_callback_that_raises_ends_the_process():
    done = subprocess.run([sys.executable, "-c", RAISES], capture_output=True, text=True, timeout=TIMEOUT)
    assert done.returncode == 1
    assert done.stderr.rstrip().endswith("ValueError: of a timer")
