"""The topic of 2D boxes: subscribe, pair with the camera's frames by stamp, count."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import message_filters
from rclpy.clock import Clock, ClockType
from rclpy.node import Node
from sensor_msgs.msg import CameraInfo
from std_msgs.msg import Header

from skd_core.data.ros_messages import stamp_nanoseconds
from skd_wm3d_ros import qos
from skd_wm3d_ros.inputs import CAMERA_TIMEOUT, ImageMessage, subscribe

MAX_WAITING = 30  # frames that wait for their boxes, and messages of boxes that wait for their frame
TICK = 0.05  # seconds between two looks at what has waited too long
MEMORY = 10.0  # seconds that a frame is remembered which went without boxes

FRAMES, BOXES = 0, 1  # the synchronizer's inputs


@dataclass(frozen=True)
class Frame:
    """What belongs together.

    Attributes:
        image, info: of the camera.
        boxes: a message of 2D boxes; None where they come from elsewhere.
    """

    image: ImageMessage
    info: CameraInfo
    boxes: Any = None

    @property
    def header(self) -> Header:
        """The image's: what synchronizers go by."""
        return self.image.header


@dataclass
class BoxCounts:
    """What has arrived since activation."""

    messages: int = 0
    paired: int = 0
    missing: int = 0  # frames without boxes
    late: int = 0  # messages of boxes whose frame was given up
    negative_stamps: int = 0  # messages ignored for that
    last_message: float = 0.0  # monotonic seconds
    last_negative_stamp: float = 0.0


class BoxInput:
    """Subscription to 2D boxes; everything runs in the executor's thread.

    A frame whose boxes do not come within ``timeout`` is given up: it goes to ``on_missing``, never to ``on_frame``.

    Args:
        node: the node that subscribes.
        kind: the messages' type.
        timeout: most seconds that a frame waits for its boxes.
        on_frame: called with each frame that has found its boxes; must be quick and must not raise.
        on_missing: called with one line for each frame that has not.
    """

    def __init__(
        self,
        node: Node,
        kind: type,
        timeout: float,
        on_frame: Callable[[Frame], None],
        on_missing: Callable[[str], None],
    ) -> None:
        self._node, self._timeout, self._on_frame, self._on_missing = node, timeout, on_frame, on_missing
        self.counts, self.qos_problem = BoxCounts(), ""
        self.topic = node.resolve_topic_name("detections_2d")
        self._since: tuple[dict[int, float], dict[int, float]] = ({}, {})  # stamp -> when it came, the first first
        self._given_up: dict[int, float] = {}  # frames: stamp -> when they came
        self._late_by = (-MEMORY, 0.0)  # when boxes last came too late, and how long after their frame
        self._source = subscribe(node, kind, self.topic, qos.boxes_qos())
        self._source.registerCallback(self._boxes_arrived)
        self._inputs = (message_filters.SimpleFilter(), message_filters.SimpleFilter())
        self._sync = message_filters.TimeSynchronizer(list(self._inputs), MAX_WAITING)
        self._sync.registerCallback(self._paired)
        self._timer = node.create_timer(TICK, self._drop_expired, clock=Clock(clock_type=ClockType.STEADY_TIME))
        self._timer.cancel()

    def destroy(self) -> None:
        """Unsubscribe; frames that wait are forgotten."""
        self._node.destroy_subscription(self._source.sub)
        self._node.destroy_timer(self._timer)

    def look(self) -> None:
        """Look at who publishes; to be called now and then."""
        problem = qos.subscription_mismatch(self._node, self._source.sub)
        if problem and problem != self.qos_problem:
            self._node.get_logger().error(problem)
        self.qos_problem = problem

    def waiting(self) -> int:
        """Frames that wait for their boxes."""
        return len(self._since[FRAMES])

    def values(self) -> dict[str, str]:
        """For a DiagnosticStatus."""
        counts = self.counts
        values = {
            "2D box messages received": str(counts.messages),
            "2D box messages too late": str(counts.late),
            "frames paired with 2D boxes": str(counts.paired),
            "frames without 2D boxes": str(counts.missing),
            "frames waiting for 2D boxes": str(self.waiting()),
        }
        if counts.negative_stamps:
            values["2D box messages with a negative stamp"] = str(counts.negative_stamps)
        return values

    def problem(self) -> str | None:
        """What is wrong with the topic, in one line with the cure; None where nothing is."""
        now = time.monotonic()
        if self.counts.negative_stamps and now - self.counts.last_negative_stamp <= CAMERA_TIMEOUT:
            return f"a message on {self.topic} has a negative stamp and is ignored: check what publishes it"
        if self.qos_problem:
            return self.qos_problem
        if not self.counts.messages:
            return (
                f"no 2D boxes on {self.topic} yet: start the 2D detector, remap detections_2d, "
                "or set boxes_from to own or onnx"
            )
        if (age := now - self.counts.last_message) > CAMERA_TIMEOUT:
            return f"no 2D boxes on {self.topic} for {age:.0f} s: is the 2D detector alive?"
        return None

    # -- pairing ------------------------------------------------------------------------------------------------------
    def frame(self, image: ImageMessage, info: CameraInfo) -> None:
        """Take a frame of the camera, which waits for its boxes."""
        stamp = stamp_nanoseconds(image.header)
        self._make_room(FRAMES, stamp)
        self._given_up.pop(stamp, None)
        if self._timer.is_canceled():
            self._timer.reset()
        self._inputs[FRAMES].signalMessage(Frame(image, info))

    def _boxes_arrived(self, message: Any) -> None:
        now, stamp = time.monotonic(), stamp_nanoseconds(message.header)
        if message.header.stamp.sec < 0:  # rclpy's Time raises on it
            self.counts.negative_stamps += 1
            self.counts.last_negative_stamp = now
            return
        self.counts.messages += 1
        self.counts.last_message = now
        self._drop_expired()
        came = self._given_up.pop(stamp, -MEMORY)
        if now - came < MEMORY:
            self.counts.late += 1
            self._late_by = (now, now - came)
        else:
            self._make_room(BOXES, stamp)
            self._inputs[BOXES].signalMessage(message)

    def _paired(self, frame: Frame, boxes: Any) -> None:
        stamp = stamp_nanoseconds(frame.header)
        for since in self._since:
            since.pop(stamp, None)
        self.counts.paired += 1
        self._on_frame(replace(frame, boxes=boxes))

    def _make_room(self, which: int, stamp: int) -> None:
        """Make room for a message that comes. The synchronizer would drop the oldest stamp, and where time went back
        that is the newest message; here, the one goes that came first."""
        since = self._since[which]
        if stamp in since:
            self._drop(which, stamp)  # sent again
        elif len(since) >= MAX_WAITING:
            self._drop(which, next(iter(since)))
        since[stamp] = time.monotonic()

    def _drop_expired(self) -> None:
        """Drop what has waited too long. Boxes may wait longer: they are small, their frame may be on its way."""
        now = time.monotonic()
        for which, limit in ((FRAMES, self._timeout), (BOXES, max(self._timeout, CAMERA_TIMEOUT))):
            for stamp, came in list(self._since[which].items()):
                if now - came <= limit:
                    break
                self._drop(which, stamp)
        for stamp, came in list(self._given_up.items()):
            if now - came <= MEMORY:
                break
            del self._given_up[stamp]
        if not self._since[FRAMES]:
            self._timer.cancel()

    def _drop(self, which: int, stamp: int) -> None:
        came = self._since[which].pop(stamp)
        with self._sync.lock:
            self._sync.queues[which].pop(stamp, None)
        if which == FRAMES:
            self.counts.missing += 1
            self._given_up[stamp] = came
            self._on_missing(self._why(stamp))

    def _why(self, stamp: int) -> str:
        """Why the frame of a stamp has no boxes."""
        now = time.monotonic()
        if not self.counts.messages or now - self.counts.last_message > max(CAMERA_TIMEOUT, self._timeout):
            return f"frame skipped: {self.problem() or self.topic}"
        if now - self._late_by[0] <= MEMORY:
            return (
                f"frame skipped: 2D boxes on {self.topic} came {self._late_by[1]:.2f} s after their image, "
                f"detections_2d_timeout is {self._timeout:g} s"
            )
        return (
            f"frame skipped: no 2D boxes on {self.topic} with the image's stamp {stamp / 1e9:.9f} s within "
            f"{self._timeout:g} s: the 2D detector must take every image and keep its stamp"
        )
