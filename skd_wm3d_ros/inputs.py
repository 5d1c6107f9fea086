"""The camera's two topics: subscribe, pair, count."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import message_filters
from rclpy.clock import Clock, ClockType
from rclpy.event_handler import SubscriptionEventCallbacks
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile
from sensor_msgs.msg import CameraInfo, CompressedImage, Image

from skd_core.data.ros_messages import stamp_nanoseconds
from skd_wm3d_ros import qos
from skd_wm3d_ros.calibration_file import CalibrationFile, CalibrationSource
from skd_wm3d_ros.cameras import transport_topic
from skd_wm3d_ros.message_loss import LossMeter
from skd_wm3d_ros.order import LATE

SYNC_QUEUE = 10  # messages of each topic that wait for their partner
CAMERA_TIMEOUT = 3.0  # seconds without a frame after which a camera counts as dead
CAMERA_INFO_WAIT = 0.05  # seconds by default that an image waits for its own camera_info before the latest one is taken
LATCHED_AFTER = 2.0  # seconds after which a stream of camera_info has ended: what was latched since then is newer
LOSS_WARNING = 0.1  # share of lost images that is worth a warning

ImageMessage = Image | CompressedImage
Arrival = tuple[CameraInfo, float]  # and when it came, monotonic seconds


def subscribe(node: Node, kind: type, topic: str, profile: QoSProfile) -> message_filters.Subscriber:
    """A subscription whose QoS parameters can override; ``qos.subscription_mismatch`` finds incompatible publishers."""
    return message_filters.Subscriber(
        node,
        kind,
        topic,
        qos_profile=profile,
        qos_overriding_options=qos.overridable(),
        event_callbacks=SubscriptionEventCallbacks(use_default_callbacks=False),
    )


@dataclass(eq=False)
class _Waiting:
    """An image that has not been handed over yet.

    Attributes:
        image: the message.
        due: when it has waited long enough for its own camera_info, monotonic seconds.
        info: its own, once it is there; then only images before it hold it up.
    """

    image: ImageMessage
    due: float
    info: CameraInfo | None = None


@dataclass
class InputCounts:
    """What has arrived since activation."""

    images: int = 0
    infos: int = 0
    pairs: int = 0
    pairs_with_latest_info: int = 0
    negative_stamps: int = 0  # messages ignored for that
    last_image: float = 0.0  # monotonic seconds
    last_pair: float = 0.0
    last_negative_stamp: float = 0.0


class CameraInput:
    """Subscriptions to one camera; calls ``on_pair(image message, camera_info message)`` in the executor's thread.

    An image is paired with the camera_info of its stamp (or within ``slop``). Where none comes within ``wait``, as from
    drivers that publish camera_info once and latched, or where it was lost, the latest camera_info with the image's
    frame_id is taken, if ``use_latest_info`` allows it. Never before: whether a camera_info is latched or one of a slow
    stream, whose next one is on its way, cannot be told from outside. Images are handed over in the order they came.

    Args:
        node: the node that subscribes.
        on_pair: called with messages that belong together; must be quick and must not raise.
        transport: "raw" or "compressed".
        slop: greatest difference of the two stamps in seconds; 0 = equal stamps.
        use_latest_info: whether an image may be paired with a camera_info of another stamp.
        wait: seconds that an image waits for its own, beyond ``slop``.
        calibration: makes the camera_info of each image; None = it is subscribed to.
    """

    def __init__(
        self,
        node: Node,
        on_pair: Callable[[ImageMessage, CameraInfo], None],
        transport: str = "raw",
        slop: float = 0.0,
        use_latest_info: bool = True,
        wait: float = CAMERA_INFO_WAIT,
        *,
        calibration: CalibrationFile | None = None,
    ) -> None:
        self._node, self._on_pair, self._use_latest = node, on_pair, use_latest_info
        self._wait = wait + slop
        self.counts, self.loss, self.qos_problem = InputCounts(), LossMeter(), ""
        self._newest: dict[str, int] = {}  # topic -> stamp
        self._negative_stamp = ""  # what to say of the last one
        self._streamed: Arrival | None = None  # the latest on the ordinary subscription
        self._latched: Arrival | None = None  # and on that for latched ones
        self._waiting: deque[_Waiting] = deque()  # the first came first
        self._done_early: deque[int] = deque(maxlen=SYNC_QUEUE)  # stamps that may still find their own camera_info
        # a remapping of `image` does not reach `image/compressed`, so the suffix is put on the remapped name
        self.image_topic = transport_topic(node.resolve_topic_name("image"), transport)
        image_type = CompressedImage if transport == "compressed" else Image
        made = CalibrationSource(calibration) if calibration else None
        self.camera_info_topic = made.getTopic() if made else node.resolve_topic_name("camera_info")
        self._sources = (
            subscribe(node, image_type, self.image_topic, qos.sensor_qos()),
            made or subscribe(node, CameraInfo, self.camera_info_topic, qos.sensor_qos()),
        )
        self._subscriptions = [source.sub for source in self._sources if source.sub is not None]
        images, infos = (self._with_good_stamps(source) for source in self._sources)
        images.registerCallback(self._image_arrived)  # before the synchronizer's callbacks
        infos.registerCallback(self._info_arrived)
        if slop > 0:
            self._sync = message_filters.ApproximateTimeSynchronizer([images, infos], SYNC_QUEUE, slop)
        else:
            self._sync = message_filters.TimeSynchronizer([images, infos], SYNC_QUEUE)
        self._sync.registerCallback(self._paired)
        steady = Clock(clock_type=ClockType.STEADY_TIME)
        self._timer = node.create_timer(self._wait, self._time_is_up, clock=steady)
        self._timer.cancel()
        self._guard = node.create_guard_condition(self._dispatch_expired)
        if use_latest_info:
            infos.registerCallback(lambda info: self._set_timer())  # after the synchronizer's
        if made:
            made.follow(images)

    def destroy(self) -> None:
        """Unsubscribe."""
        for subscription in self._subscriptions:
            self._node.destroy_subscription(subscription)
        self._node.destroy_timer(self._timer)
        self._node.destroy_guard_condition(self._guard)
        self._subscriptions = []
        self._waiting.clear()

    def look(self) -> None:
        """Look at who publishes; to be called now and then."""
        self._look_for_latched()
        problem = next(filter(None, (qos.subscription_mismatch(self._node, s.sub) for s in self._sources if s.sub)), "")
        if problem and problem != self.qos_problem:
            self._node.get_logger().error(problem)
        self.qos_problem = problem

    def values(self) -> dict[str, str]:
        """For a DiagnosticStatus."""
        silent = time.monotonic() - self.counts.last_image > CAMERA_TIMEOUT
        values = {
            "images received": str(self.counts.images),
            "image rate (Hz)": f"{0.0 if silent else self.loss.rate():.1f}",
            "images lost (%)": f"{100 * self.loss.lost():.0f}",
            "camera_info received": str(self.counts.infos),
            "pairs": str(self.counts.pairs),
            "pairs with the latest camera_info": str(self.counts.pairs_with_latest_info),
        }
        if self.counts.negative_stamps:
            values["messages with a negative stamp"] = str(self.counts.negative_stamps)
        if self.counts.pairs:
            values["age of the last pair (s)"] = f"{time.monotonic() - self.counts.last_pair:.2f}"
        return values

    def problem(self) -> str | None:
        """What is wrong with the camera, in one line with the cure; None where nothing is."""
        now, images, infos = time.monotonic(), self.counts.images, self.counts.infos
        if self.counts.negative_stamps and now - self.counts.last_negative_stamp <= CAMERA_TIMEOUT:
            return self._negative_stamp
        if self.qos_problem and not self.counts.pairs:
            return self.qos_problem
        if images and (age := now - self.counts.last_image) > CAMERA_TIMEOUT:
            return f"no frame on {self.image_topic} for {age:.0f} s: is the camera's driver alive?"
        if self.counts.pairs and now - self.counts.last_pair <= CAMERA_TIMEOUT:
            if (lost := self.loss.lost()) > LOSS_WARNING:
                return f"{lost:.0%} of the images on {self.image_topic} are lost on the way: {qos.loss_advice()}"
            return self.qos_problem or None
        if not images and (not infos or self._sources[1].sub is None):
            other = "" if self._sources[1].sub is None else f" and no camera_info on {self.camera_info_topic}"
            return f"no image on {self.image_topic}{other} yet"
        if not infos:
            return (
                f"images arrive on {self.image_topic} but no camera_info on {self.camera_info_topic}: "
                "publish the calibration there or remap camera_info"
            )
        if images and not self._use_latest and self._streamed and (age := now - self._streamed[1]) > CAMERA_TIMEOUT:
            return (
                f"images arrive on {self.image_topic} but no camera_info on {self.camera_info_topic} for {age:.0f} s: "
                "is its publisher alive? Or set use_latest_camera_info"
            )
        if not images:
            return (
                f"camera_info arrives on {self.camera_info_topic} but no image on {self.image_topic}: "
                "remap image, or check image_transport"
            )
        if self._use_latest:
            return (
                f"stamps and frame_ids on {self.image_topic} and {self.camera_info_topic} never agree: "
                "publish the same header on both, or set sync_slop"
            )
        return (
            f"stamps on {self.image_topic} and {self.camera_info_topic} never agree: "
            "set sync_slop to the greatest difference in seconds, or use_latest_camera_info"
        )

    # -- subscriptions ------------------------------------------------------------------------------------------------
    def _with_good_stamps(self, source: message_filters.Subscriber) -> message_filters.SimpleFilter:
        """What a synchronizer can take: rclpy's Time raises on negative seconds, whatever the nanoseconds."""
        good, topic = message_filters.SimpleFilter(), source.getTopic()

        def check(message: ImageMessage | CameraInfo) -> None:
            if self._has_good_stamp(message, topic):
                good.signalMessage(message)

        source.registerCallback(check)
        return good

    def _has_good_stamp(self, message: ImageMessage | CameraInfo, topic: str) -> bool:
        seconds = message.header.stamp.sec
        if seconds < 0:
            self.counts.negative_stamps += 1
            self.counts.last_negative_stamp = time.monotonic()
            self._negative_stamp = (
                f"a message on {topic} has a negative stamp ({seconds} s) and is ignored: "
                "check the publisher's clock and its header.stamp"
            )
        return seconds >= 0

    def _look_for_latched(self) -> None:
        """What was latched before this node came is only sent to a transient-local subscription; but one of that kind
        does not match drivers that stream without latching, which then warn. So it is made where it is of use."""
        if not self._use_latest or len(self._subscriptions) != 2:  # it is made already, or a file's is taken
            return
        publishers = self._node.get_publishers_info_by_topic(self.camera_info_topic)
        if any(p.qos_profile.durability == DurabilityPolicy.TRANSIENT_LOCAL for p in publishers):
            self._subscriptions.append(
                self._node.create_subscription(
                    CameraInfo, self.camera_info_topic, self._latched_arrived, qos.latched_qos()
                )
            )

    # -- pairing ------------------------------------------------------------------------------------------------------
    def _image_arrived(self, image: ImageMessage) -> None:
        stamp = stamp_nanoseconds(image.header)
        self.counts.images += 1
        self.counts.last_image = time.monotonic()
        self.loss.image(stamp)
        self._handle_time_jump(self.image_topic, stamp)
        if stamp in self._done_early:
            self._done_early.remove(stamp)  # sent again on purpose
        if self._use_latest:
            self._waiting.append(_Waiting(image, time.monotonic() + self._wait))
            if len(self._waiting) > SYNC_QUEUE:  # of a camera of 200 Hz: memory is bounded
                self._waiting[0].due = time.monotonic()
                self._dispatch_expired()
            self._set_timer()

    def _info_arrived(self, info: CameraInfo) -> None:
        stamp = stamp_nanoseconds(info.header)
        self.counts.infos += 1
        self.loss.info(stamp)
        self._handle_time_jump(self.camera_info_topic, stamp)
        self._streamed = (info, time.monotonic())

    def _latched_arrived(self, info: CameraInfo) -> None:
        if not self._has_good_stamp(info, self.camera_info_topic):
            return
        self._latched = (info, time.monotonic())
        if self._latest() is self._latched:  # else it has come on the other subscription too
            self.counts.infos += 1
            self._set_timer()

    def _latest(self) -> Arrival | None:
        """The latest camera_info. A latched one may have been published long ago, so a stream counts while it lasts;
        else what came last, since a driver that starts anew may bring another calibration."""
        streamed, latched = self._streamed, self._latched
        if streamed is None or latched is None:
            return streamed or latched
        streams = time.monotonic() - streamed[1] <= LATCHED_AFTER
        return streamed if streams or streamed[1] > latched[1] else latched

    def _set_timer(self) -> None:
        """Wake when the first image has waited long enough, if there is anything to pair it with then."""
        if not self._waiting or self._latest() is None:
            self._timer.cancel()
            return
        self._timer.timer_period_ns = max(round(1e9 * (self._waiting[0].due - time.monotonic())), 1)
        self._timer.reset()

    def _time_is_up(self) -> None:
        """Not yet: an executor that was held up finds the timer and the camera_info ready at once, and takes the timer
        first. It comes to the guard after all that was ready."""
        self._timer.cancel()
        self._guard.trigger()

    def _dispatch_expired(self) -> None:
        """Pair the images that have waited long enough with the latest camera_info; then hand over what can be."""
        now, latest = time.monotonic(), self._latest()
        while self._waiting and self._waiting[0].due <= now and self._waiting[0].info is None:
            if latest is None and len(self._waiting) == 1:
                break  # the newest is kept for the first camera_info to come
            image = self._waiting.popleft().image
            if latest is not None and latest[0].header.frame_id == image.header.frame_id:
                self.counts.pairs_with_latest_info += 1
                self._done_early.append(stamp_nanoseconds(image.header))
                self._hand_over(image, latest[0])
            self._dispatch_paired()
        self._set_timer()

    def _dispatch_paired(self) -> None:
        """Hand over the images that have their own camera_info and none before them that waits."""
        while self._waiting and (info := self._waiting[0].info) is not None:
            self._hand_over(self._waiting.popleft().image, info)

    def _paired(self, image: ImageMessage, info: CameraInfo) -> None:
        stamp = stamp_nanoseconds(image.header)
        waiting = next((each for each in self._waiting if each.image is image), None)
        if waiting is not None:
            waiting.info = info
            self._dispatch_paired()
            self._set_timer()
        elif stamp in self._done_early:
            self._done_early.remove(stamp)  # its own camera_info came after all, too late
        else:
            self._hand_over(image, info)

    def _hand_over(self, image: ImageMessage, info: CameraInfo) -> None:
        self.counts.pairs += 1
        self.counts.last_pair = time.monotonic()
        self._on_pair(image, info)

    def _handle_time_jump(self, topic: str, stamp: int) -> None:
        """Time goes back where a bag starts again. The synchronizer drops the oldest when its queue is full, so what
        waits from before the jump would push out every new message."""
        newest = self._newest.get(topic, stamp)
        if stamp <= newest - LATE:
            newest = stamp
            with self._sync.lock:
                for queue in self._sync.queues:
                    for late in [key for key in queue if key > stamp]:
                        del queue[late]
        self._newest[topic] = max(newest, stamp)
