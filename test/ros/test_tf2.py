"""target_frame with the real tf2_ros, where it is installed: the node as a process, transforms over DDS."""

from __future__ import annotations

import importlib.util
import itertools
import time

import pytest
import rclpy
from geometry_msgs.msg import TransformStamped
from ros_harness import FRAME_ID, RELIABLE, DetectorProcess, Rig, camera_info, image_message, picture
from std_msgs.msg import Header

from skd_core.inference.detector import Detector

pytestmark = pytest.mark.usefixtures("ros")

SECOND = 1_000_000_000


def moved(header: Header, child: str, x: float) -> TransformStamped:
    message = TransformStamped(header=header, child_frame_id=child)
    message.transform.translation.x = x
    return message


def odom(stamp: Header) -> TransformStamped:
    return moved(Header(stamp=stamp.stamp, frame_id="odom"), "base_link", 100.0)


@pytest.mark.skipif(importlib.util.find_spec("tf2_ros") is None, reason="tf2_ros is not installed; PyPI lacks it")
def test_target_frame(tmp_path):
    import tf2_ros  # only where it is installed

    Detector.random().save(tmp_path / "random.safetensors")
    rig = Rig(RELIABLE)
    transforms, fixed = tf2_ros.TransformBroadcaster(rig.node), tf2_ros.StaticTransformBroadcaster(rig.node)
    process = DetectorProcess(
        tmp_path / "log",
        model=tmp_path / "random.safetensors",
        device="cpu",
        score_threshold=0.0,
        target_frame="odom",
        transform_timeout=0.5,
        diagnostics_period=0.05,
    )

    def answered(stamp, delay=0.0):
        """Whether the frame of a stamp, whose transform comes after ``delay`` seconds, is answered."""
        header = rig.header(stamp)
        if not delay:
            transforms.sendTransform(odom(header))
        rig.send(image_message(picture(1)), camera_info(), header)
        if delay:
            time.sleep(delay)
            transforms.sendTransform(odom(header))
        deadline = time.monotonic() + 2
        while stamp not in rig.answers and time.monotonic() < deadline:
            rclpy.spin_once(rig.node, timeout_sec=0.05)
        return stamp in rig.answers

    try:
        process.wait_for_output("listening to /image and /camera_info")
        fixed.sendTransform(moved(Header(frame_id="base_link"), FRAME_ID, 1.0))
        stamps = itertools.count(SECOND, SECOND // 10)
        rig.spin_until(lambda: answered(next(stamps)), "the first transform")
        late = next(stamps)
        assert answered(late, delay=0.2)
        assert rig.answers[late].header.frame_id == "odom"
        assert min(d.bbox.center.position.x for d in rig.answers[late].detections) > 0  # 101 m from odom to the camera

        # the bag begins again, further back than the ten seconds that tf2 keeps
        assert [answered(100 * SECOND), answered(101 * SECOND)] == [True, True]
        assert any(answered(10 * SECOND + i * SECOND // 10) for i in range(5))
        assert answered(11 * SECOND)
    finally:
        process.interrupt()
        rig.close()
