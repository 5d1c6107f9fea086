"""Frames and 2D boxes find each other by stamp, or are counted: fed by hand, with a clock that the test sets."""

from __future__ import annotations

import time

import pytest
import rclpy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ros_harness import boxes_2d
from sensor_msgs.msg import CameraInfo, Image
from std_msgs.msg import Header
from vision_msgs.msg import Detection2DArray

from skd_wm3d_ros.box_input import MAX_WAITING, MEMORY, BoxInput
from skd_wm3d_ros.inputs import CAMERA_TIMEOUT

pytestmark = pytest.mark.usefixtures("ros")
TIMEOUT = 0.5


@pytest.fixture(scope="module")
def node(ros):
    node = rclpy.create_node("boxes")
    yield node
    node.destroy_node()


@pytest.fixture
def clock(monkeypatch):
    """Monotonic seconds, as a list of one number."""
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def header(second):
    message = Header(frame_id="camera")
    message.stamp.sec = second
    return message


class Pairing:
    """A BoxInput that is fed by hand, as the camera's input and its own subscription would."""

    def __init__(self, node):
        self.pairs, self.missing = [], []
        self.input = BoxInput(node, Detection2DArray, TIMEOUT, self._paired, self.missing.append)

    def image(self, second):
        self.input.frame(Image(header=header(second)), CameraInfo(header=header(second)))

    def boxes(self, second):
        self.input._source.signalMessage(Detection2DArray(header=header(second)))

    def tick(self):
        self.input._drop_expired()

    def _paired(self, frame):
        assert frame.header.stamp == frame.boxes.header.stamp == frame.info.header.stamp
        self.pairs.append(frame.header.stamp.sec)


@pytest.fixture
def pairing(node, clock):
    pairing = Pairing(node)
    yield pairing
    pairing.input.destroy()


@pytest.mark.parametrize("first", ["image", "boxes"])
def test_equal_stamps_pair_in_either_order(pairing, first):
    second = "boxes" if first == "image" else "image"
    for stamp in (5, 6, 4):
        getattr(pairing, first)(stamp)
    assert pairing.pairs == []
    for stamp in (6, 4, 5):
        getattr(pairing, second)(stamp)
    assert pairing.pairs == [6, 4, 5]
    assert pairing.missing == []
    assert pairing.input.waiting() == 0


def test_boxes_that_come_late_find_nobody(pairing, clock):
    pairing.image(5)
    clock[0] += TIMEOUT + 0.01
    pairing.boxes(5)  # before any look at the time
    assert pairing.pairs == []
    assert len(pairing.missing) == 1
    assert "2D boxes on /detections_2d" in pairing.missing[0]
    assert "5.000000000" in pairing.missing[0]
    pairing.image(6)
    clock[0] += TIMEOUT + 0.01
    pairing.tick()
    assert "came 0.51 s after their image, detections_2d_timeout is 0.5 s" in pairing.missing[1]
    counts = pairing.input.counts
    assert (counts.paired, counts.missing, counts.late, counts.messages) == (0, 2, 1, 1)
    pairing.image(7)
    clock[0] += TIMEOUT - 0.01
    pairing.boxes(7)
    assert pairing.pairs == [7]


def test_without_boxes_it_is_said_that_there_are_none(pairing, clock):
    pairing.image(5)
    clock[0] += 1
    pairing.tick()
    assert "no 2D boxes on /detections_2d yet: start the 2D detector" in pairing.missing[0]
    assert "no 2D boxes on /detections_2d yet" in pairing.input.problem()
    pairing.boxes(6)
    assert pairing.input.problem() is None
    clock[0] += CAMERA_TIMEOUT + 1
    assert pairing.input.problem() == "no 2D boxes on /detections_2d for 4 s: is the 2D detector alive?"
    pairing.image(9)
    clock[0] += 1
    pairing.tick()
    assert "for 5 s: is the 2D detector alive?" in pairing.missing[1]


def test_a_frame_sent_again_gets_its_boxes(pairing, clock):
    """A bag that begins again, slower: what was too late in the first round may come before the image in the second."""
    pairing.image(5)
    clock[0] += TIMEOUT + 0.1
    pairing.tick()
    pairing.image(5)
    pairing.boxes(5)
    assert pairing.pairs == [5]
    pairing.image(6)
    clock[0] += MEMORY + 1
    pairing.tick()
    pairing.boxes(6)
    pairing.image(6)
    assert pairing.pairs == [5, 6]
    pairing.image(7)
    pairing.image(7)
    pairing.boxes(7)
    assert pairing.pairs == [5, 6, 7]
    assert pairing.input.counts.missing == len(pairing.missing) == 3  # 7 was there twice


def test_time_that_goes_back(pairing):
    """Stamps from before the jump are greater: they must not push out what comes after it."""
    for stamp in range(1000, 1000 + 2 * MAX_WAITING):
        pairing.boxes(stamp)  # whose images are lost
    for stamp in range(2 * MAX_WAITING):
        pairing.boxes(stamp)
        pairing.image(stamp)
    assert pairing.pairs == list(range(2 * MAX_WAITING))


def test_what_waits_is_bounded(pairing):
    for stamp in range(MAX_WAITING + 3):
        pairing.image(stamp)
    assert pairing.input.waiting() == MAX_WAITING
    assert len(pairing.missing) == 3
    for stamp in range(MAX_WAITING + 3):
        pairing.boxes(stamp)
    assert pairing.pairs == list(range(3, MAX_WAITING + 3))


def test_negative_stamps_are_survived_and_counted(pairing, clock):
    pairing.boxes(-1)
    assert "negative stamp" in pairing.input.problem()
    assert pairing.input.values()["2D box messages with a negative stamp"] == "1"
    pairing.image(5)
    pairing.boxes(5)
    assert pairing.pairs == [5]
    clock[0] += 1
    assert pairing.input.counts.messages == 1


events = st.lists(
    st.tuples(st.sampled_from(["image", "boxes", "wait"]), st.integers(0, 12), st.sampled_from([0.01, 0.2, 0.6, 11.0])),
    max_size=60,
)


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(events)
def test_every_frame_is_paired_given_up_or_waits(node, clock, happens):
    pairing, images, fed = Pairing(node), 0, {}
    for what, stamp, seconds in happens:
        if what == "wait":
            clock[0] += seconds
            pairing.tick()
        elif what == "image":
            images += 1
            fed[stamp] = clock[0]
            pairing.image(stamp)
        else:
            before = len(pairing.pairs)
            pairing.boxes(stamp)
            if len(pairing.pairs) > before:
                assert pairing.pairs[before:] == [stamp]
                assert clock[0] - fed[stamp] <= TIMEOUT
        assert len(pairing.pairs) + len(pairing.missing) + pairing.input.waiting() == images
        counts = pairing.input.counts
        assert (counts.paired, counts.missing) == (len(pairing.pairs), len(pairing.missing))
        assert [set(queue) for queue in pairing.input._sync.queues] == [
            {stamp * 10**9 for stamp in (s // 10**9 for s in since)} for since in pairing.input._since
        ]
    pairing.input.destroy()


def test_messages_arrive_over_dds_while_frames_wait(node):
    pairing = Pairing(node)
    publisher = node.create_publisher(Detection2DArray, "detections_2d", 10)
    deadline = time.monotonic() + 120
    while not publisher.get_subscription_count():
        assert time.monotonic() < deadline
        rclpy.spin_once(node, timeout_sec=0.05)
    stamp = 0
    while not pairing.pairs:  # best effort may lose one
        stamp += 1
        pairing.image(stamp)
        message = boxes_2d(("car", 0.5, 0, 0, 9, 9))
        message.header = header(stamp)
        publisher.publish(message)
        while pairing.input.waiting():
            assert time.monotonic() < deadline
            rclpy.spin_once(node, timeout_sec=0.05)  # the timer gives up, if it must
    assert len(pairing.pairs) + len(pairing.missing) == stamp
    node.destroy_publisher(publisher)
    pairing.input.destroy()
