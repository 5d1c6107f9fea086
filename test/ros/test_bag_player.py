"""The bag player as a process: every byte arrives, nobody is left behind."""

from __future__ import annotations

import signal
import subprocess
import sys

import numpy as np
import pytest
import rclpy
from rclpy.serialization import deserialize_message
from ros_harness import RELIABLE, TIMEOUT, Rig, camera, picture
from sensor_msgs.msg import CameraInfo, Image
from vision_msgs.msg import Detection3DArray

from skd_core.data.bag import Frame, open_bag, write_frames
from skd_core.errors import UserError
from skd_wm3d_ros.tools.bag_player import BagPlayer, Options, read_stamp

pytestmark = pytest.mark.usefixtures("ros")

FRAMES = 6


@pytest.fixture(scope="module")
def bag(tmp_path_factory):
    path = tmp_path_factory.mktemp("bags") / "frames"
    frames = [Frame(picture(i), camera(), 5_000_000_000 + i * 20_000_000, "front") for i in range(FRAMES)]
    write_frames(path, frames)
    return path


def play(bag, *arguments):
    command = [sys.executable, "-m", "skd_wm3d_ros.tools.bag_player", str(bag), *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(player):
    out, err = player.communicate(timeout=TIMEOUT)
    return player.returncode, out, err


def recorded(bag, topic):
    """The bag's bytes, padded to a multiple of four as DDS delivers them."""
    with open_bag(bag) as reader:
        connections = [c for c in reader.connections if c.topic == topic]
        messages = [bytes(data) for _, _, data in reader.messages(connections)]
    return [data + bytes(-len(data) % 4) for data in messages]


def test_every_frame_bit_exact_to_a_late_subscriber(bag):
    player = play(bag, "--wait-subscribers", "--rate", "2")
    rig = Rig()
    received = {"/camera/image": [], "/camera/camera_info": []}
    for topic, kind in (("/camera/image", Image), ("/camera/camera_info", CameraInfo)):
        rig.node.create_subscription(
            kind, topic, lambda cdr, t=topic: received[t].append(bytes(cdr)), RELIABLE, raw=True
        )
    rig.spin_until(lambda: len(received["/camera/image"]) == FRAMES, "all images")
    rig.spin_until(lambda: len(received["/camera/camera_info"]) == FRAMES, "all camera_info")
    assert finish(player)[0] == 0
    assert received == {topic: recorded(bag, topic) for topic in received}
    first = deserialize_message(received["/camera/image"][0], Image)
    assert bytes(first.data) == picture(0).tobytes()
    rig.close()


def test_lossless_waits_for_each_answer(bag):
    player = play(bag, "--rate", "0", "--wait-subscribers", "--lossless", "/answers", "--topics", "/camera/image")
    rig = Rig()
    answers = rig.node.create_publisher(Detection3DArray, "/answers", RELIABLE)
    events = []

    def answer(message):
        events.append(message.header.stamp)
        for _ in range(5):  # were the player not waiting, the next image would be here by now
            rclpy.spin_once(rig.node, timeout_sec=0.02)
        events.append("answered")
        answers.publish(Detection3DArray(header=message.header))

    inbox = []
    rig.node.create_subscription(Image, "/camera/image", inbox.append, RELIABLE)
    done = 0
    while done < FRAMES:
        rig.spin_until(lambda: len(inbox) > done, f"image {done}")  # noqa: B023 (called in this round)
        answer(inbox[done])
        done += 1
    assert finish(player)[0] == 0
    assert events[1::2] == ["answered"] * FRAMES
    assert len(inbox) == FRAMES
    rig.close()


def test_no_answer_is_an_error(bag):
    player = play(bag, "--rate", "0", "--wait-subscribers", "--lossless", "/silence", "--timeout", "1")
    status, _, err = finish(player)
    assert status == 2
    assert "no publisher of /silence" in err
    assert "no subscriber of /camera/image" in err
    assert len(err.strip().splitlines()) == 1


def test_what_is_not_there_is_named(bag, tmp_path):
    node = rclpy.create_node("player")
    with pytest.raises(UserError, match="no such bag folder"):
        BagPlayer(node, str(tmp_path / "none"), Options()).play()
    with pytest.raises(UserError, match=r"no topic /other; the bag has /camera/camera_info, /camera/image"):
        BagPlayer(node, str(bag), Options(topics=("/other",))).play()
    node.destroy_node()


def test_loop_until_interrupted(bag):
    player = play(bag, "--loop", "--rate", "0", "--wait-subscribers", "--topics", "/camera/camera_info")
    rig = Rig()
    stamps = []
    rig.node.create_subscription(
        CameraInfo, "/camera/camera_info", lambda cdr: stamps.append(read_stamp(bytes(cdr))), RELIABLE, raw=True
    )
    rig.spin_until(lambda: (np.diff(stamps) < 0).sum() >= 2, "the third round")
    player.send_signal(signal.SIGINT)
    status, _, err = finish(player)
    assert status == 0, err
    assert "Traceback" not in err
    rig.close()
