"""The node in this process, over DDS, with a detector made for each test: what it says when something is wrong."""

from __future__ import annotations

import functools
import gc
import importlib.util
import math
import threading
import time
import weakref
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import rclpy
import torch
from geometry_msgs.msg import Transform as TransformMessage
from lifecycle_msgs.msg import State, Transition
from rclpy.qos import DurabilityPolicy, ReliabilityPolicy
from ros_harness import (
    ACTIVATE,
    BEST_EFFORT,
    CLEANUP,
    CONFIGURE,
    DEACTIVATE,
    FRAME_ID,
    HEIGHT,
    RELIABLE,
    WIDTH,
    Nodes,
    Rig,
    camera,
    camera_info,
    image_message,
    picture,
)  # fmt: skip
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import Float64
from vision_msgs.msg import Detection3DArray, LabelInfo
from visualization_msgs.msg import Marker, MarkerArray

from skd_core.boxes import Boxes3D
from skd_core.errors import UserError
from skd_core.inference.calibration import Calibration
from skd_core.visualize import draw_bev
from skd_wm3d_ros.cameras import CameraFileError, read_cameras
from skd_wm3d_ros.qos import latched_qos

pytestmark = pytest.mark.usefixtures("ros")

CLASSES = ("Car", "Pedestrian")
STATES = {
    "on_deactivate": State.TRANSITION_STATE_DEACTIVATING,
    "on_shutdown": State.TRANSITION_STATE_SHUTTINGDOWN,
}
"""What rclpy files a transition's callback under."""


class FakeDetector:
    """Finds what it is told to, where it is told to; `act` is called before."""

    def __init__(self, found=None, device="cpu", act=lambda: None, classes=CLASSES, measured=None, heading_known=False):
        self.found = found if found is not None else [("Car", 0.9, 2.0, 10.0), ("Pedestrian", 0.5, -3.0, 20.0)]
        self.device, self.precision, self.classes, self.act = torch.device(device), "fp32", classes, act
        self.backend, self.slow_because = "torch", "onnxruntime is not installed"
        self.metadata, self.threshold = {"focal": [180.0, 181.0]}, 0.4
        self.calibration = Calibration.of(classes, measured or {}, heading_known)
        self.config = SimpleNamespace(input_size=(WIDTH, HEIGHT))

    def warmup(self):
        pass

    def predict(self, image, camera, threshold, boxes2d=None):
        self.act()
        rows = [row for row in self.found if row[1] >= threshold]
        center = torch.tensor([[x, 1.0, z] for _, _, x, z in rows]).reshape(-1, 3)
        boxes = Boxes3D(
            center, torch.tensor([4.0, 2.0, 1.5]).expand(len(rows), 3), torch.zeros(len(rows)),
            tuple(row[0] for row in rows), torch.tensor([row[1] for row in rows]),
        )  # fmt: skip
        return self.calibration(boxes, torch.tensor([self.classes.index(row[0]) for row in rows], dtype=torch.long))


@pytest.fixture(scope="module")
def rig(ros):
    rig = Rig(RELIABLE)
    yield rig
    rig.close()


@pytest.fixture
def start(rig):
    """Start nodes that are configured and active, spun by a thread; closed after the test."""
    nodes = Nodes(rig)

    def make(detector=None, load=None, **options):
        return nodes.start(load or (lambda path, device, precision: detector or FakeDetector()), **options)

    yield make
    nodes.close()


def ask(rig):
    return rig.ask(image_message(picture(1)))


def labels(answer):
    return [d.results[0].hypothesis.class_id for d in answer.detections]


def values(status):
    return {v.key: v.value for v in status.values}


def until_told(rig, *texts, send=True):
    """The first status that holds all texts, while frames come."""
    rig.diagnostics.clear()

    def told():
        if send:
            rig.send(image_message(picture(1)), camera_info())
        return [s for s in rig.diagnostics if all(t in s.message + str(s.values) for t in texts)]

    rig.spin_until(told, f"a diagnostic with {texts}")
    return told()[0]


# -- parameters while frames come -------------------------------------------------------------------------------------
def test_what_is_published_changes_at_run_time(rig, start):
    start()
    assert labels(ask(rig)) == ["car", "pedestrian"]
    for change, expected in [
        ({"class_thresholds.pedestrian": 0.6}, ["car"]),
        ({"score_threshold": 0.95}, []),
        ({"class_thresholds.car": 0.1}, ["car"]),
        ({"class_thresholds.pedestrian": -1.0, "score_threshold": 0.2}, ["car", "pedestrian"]),
        ({"max_range": 15.0}, ["car"]),
        ({"max_range": 0.0}, ["car", "pedestrian"]),
    ]:
        result = rig.set(**change)
        assert result.successful, result.reason
        assert labels(ask(rig)) == expected, change


def test_overlapping_boxes(rig, start):
    start(FakeDetector([("Car", 0.9, 0.0, 10.0), ("Car", 0.8, 0.5, 10.0)]))
    assert len(ask(rig).detections) == 2
    assert rig.set(nms_iou=0.5).successful
    assert len(ask(rig).detections) == 1


@pytest.fixture
def idle(start):
    return start(activate=False)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"device": "gpu"}, "device must be auto, cpu, cuda or cuda:N, got 'gpu'"),
        ({"precision": "fp8"}, "precision must be one of auto, fp32, fp16, bf16, got 'fp8'"),
        ({"target_frame": "/odom"}, "without a leading slash"),
        ({"max_rate_hz": -1.0}, "out of range"),
        ({"max_age_ms": float("nan")}, "nan"),
        ({"nms_iou": 1.5}, "out of range"),
        ({"stuck_after": "long"}, "type"),
        ({"model": 5}, "type"),
    ],
)
def test_bad_values_are_rejected_with_a_reason(rig, idle, change, reason):
    result = rig.set(**change)
    assert not result.successful
    assert reason in result.reason


def test_rate_limit_is_asked_at_each_frame(rig, start):
    node = start(max_rate_hz=4.0)
    assert node._period() == 0.25
    assert rig.set(max_rate_hz=0.0).successful
    assert node._period() == 0.0
    assert ask(rig).detections


def test_old_frames_are_dropped_and_counted(rig, start):
    start(max_age_ms=5000.0)
    status = until_told(rig, "frames rejected: stale", "max_age_ms is 5000")  # the stamps are of 1970
    assert not rig.answers
    assert int(values(status)["frames rejected: stale"]) > 0
    now = rig.node.get_clock().now().nanoseconds

    def answered():
        rig.send(image_message(picture(1)), camera_info(), rig.header(max(now, rig.node.get_clock().now().nanoseconds)))
        return rig.answers

    rig.spin_until(answered, "an answer to a fresh frame")


# -- outputs ----------------------------------------------------------------------------------------------------------
def test_latencies_as_topics_and_diagnostics(rig, start):
    start(FakeDetector(act=lambda: time.sleep(0.02)))
    received = {}
    subscriptions = [
        rig.node.create_subscription(
            Float64, f"/detector/latency/{stage}_ms", lambda m, s=stage: received.setdefault(s, m.data), RELIABLE
        )
        for stage in ("decode", "infer", "publish", "total")
    ]
    rig.spin_until(lambda: len(received) == 4 or not ask(rig), "all latencies")
    assert received["infer"] >= 20
    assert received["total"] > received["infer"]
    assert min(received.values()) > 0
    told = values(until_told(rig, "infer latency (ms)"))
    assert float(told["infer latency (ms)"]) >= 20
    for subscription in subscriptions:
        rig.node.destroy_subscription(subscription)


def test_compressed_debug_image(rig, start):
    start()
    images = []
    subscription = rig.node.create_subscription(
        CompressedImage, "/detector/debug_image/compressed", images.append, RELIABLE
    )
    rig.spin_until(lambda: images or not ask(rig), "a debug image")
    assert "jpeg" in images[0].format
    drawn = cv2.imdecode(np.frombuffer(images[0].data, np.uint8), cv2.IMREAD_COLOR)[..., ::-1].astype(int)
    assert drawn.shape == (HEIGHT, WIDTH, 3)
    assert np.median(np.abs(drawn - picture(1))) < 15  # RGB, with boxes on it
    assert images[0].header.frame_id == FRAME_ID
    rig.node.destroy_subscription(subscription)


def test_bev_image_for_those_who_listen(rig, start):
    """The car is 10 m ahead and 2 m to the right: above the middle of a view that reaches 20 m ahead."""
    node = start(FakeDetector([("Car", 0.9, 2.0, 10.0)]), max_range=20.0)
    assert ask(rig).detections  # no subscribers: nothing is drawn
    images = []
    subscription = rig.node.create_subscription(Image, "/detector/bev_image", images.append, RELIABLE)
    rig.spin_until(lambda: images or not ask(rig), "a bird's-eye view")
    view = np.frombuffer(images[0].data, np.uint8).reshape(images[0].height, images[0].width, 3)
    assert (images[0].encoding, images[0].header.frame_id) == ("rgb8", FRAME_ID)
    expected = node.detector.predict(None, None, 0.0)
    np.testing.assert_array_equal(view, draw_bev(expected, camera=camera(), range_m=20.0))
    assert (view != draw_bev(expected[:0], camera=camera(), range_m=20.0)).any()
    rig.node.destroy_subscription(subscription)


def test_ids_stay_with_the_objects(rig, start):
    start(tracking=True)
    assert [d.id for d in ask(rig).detections] == ["", ""]
    first = [d.id for d in ask(rig).detections]
    assert "" not in first
    assert len(set(first)) == 2
    assert [d.id for d in ask(rig).detections] == first


MEASURED = {
    "Car": {"depth_scale": 1.0, "lateral_std": 0.02, "vertical_std": 0.01, "yaw_std": 0.1, "flip": 0.04},
    "Pedestrian": {"depth_scale": 1.0, "lateral_std": 0.03, "vertical_std": 0.01, "yaw_std": 0.8, "flip": 0.3},
}


def covariances(answer):
    return {d.results[0].hypothesis.class_id: d.results[0].pose.covariance.reshape(6, 6) for d in answer.detections}


def marker_kinds(rig):
    """Class -> type of the heading's marker, of one frame."""
    arrays = []
    subscription = rig.node.create_subscription(MarkerArray, "/detector/markers", arrays.append, RELIABLE)
    rig.spin_until(lambda: arrays or not ask(rig), "markers")
    rig.node.destroy_subscription(subscription)
    names = {m.id: m.text.split()[0] for m in arrays[0].markers if m.ns.endswith("/text")}
    return {names[m.id]: m.type for m in arrays[0].markers if m.ns.endswith("/heading")}


def test_a_yaw_known_modulo_pi_is_published_as_such_of_cars_and_pedestrians_alike(rig, start):
    start(FakeDetector(measured=MEASURED))
    published = covariances(ask(rig))
    flipped = math.pi**2 / 2
    assert published["car"][4, 4] == pytest.approx(0.01 + flipped)
    assert published["pedestrian"][4, 4] == pytest.approx(0.64 + flipped)
    assert marker_kinds(rig) == {"car": Marker.LINE_LIST, "pedestrian": Marker.LINE_LIST}
    told = values(until_told(rig, "heading known"))
    assert told["heading known"] == "no, yaw is known modulo pi"
    assert told["yaw spread modulo pi"] == "car 6 deg, pedestrian 46 deg"


def test_weights_that_nobody_has_measured_claim_nothing_of_the_yaw(rig, start):
    start()
    published = covariances(ask(rig))
    for name in ("car", "pedestrian"):
        assert published[name][4, 4] == pytest.approx(math.pi**2 / 12 + math.pi**2 / 2)
    assert (
        values(until_told(rig, "heading known"))["yaw spread modulo pi"] == "car not measured, pedestrian not measured"
    )


def test_a_heading_that_is_known_is_an_arrow_and_its_flips_are_in_the_covariance(rig, start):
    start(FakeDetector(measured=MEASURED, heading_known=True))
    published = covariances(ask(rig))
    assert published["car"][4, 4] == pytest.approx(0.01 + 0.04 * math.pi**2)
    assert published["pedestrian"][4, 4] == pytest.approx(0.64 + 0.3 * math.pi**2)
    assert marker_kinds(rig) == {"car": Marker.ARROW, "pedestrian": Marker.ARROW}
    assert values(until_told(rig, "heading known"))["heading known"] == "yes"


def test_the_measured_spreads_arrive_in_the_target_frame_with_tracks(rig, start):
    buffer = Buffer()
    buffer.transform = TransformMessage()
    q = buffer.transform.rotation  # of a camera that looks forward
    q.x, q.y, q.z, q.w = -0.5, 0.5, -0.5, 0.5
    start(FakeDetector(measured=MEASURED), tf_buffer=buffer, target_frame="base_link", tracking=True)
    ask(rig)
    answer = ask(rig)
    assert all(d.id for d in answer.detections)
    published = covariances(answer)
    x, y, z = 2.0, 1.0, 10.0  # of the car, in the camera frame
    squared = x * x + y * y + z * z
    # along the ray 10 % of the depth, of which y / |c| is upwards; across it 1 % of the distance, of which the rest is
    along, across = (0.1 * z) ** 2 * squared / z**2, 0.01**2 * squared
    upwards = along * y * y / squared + across * (x * x + z * z) / squared
    assert published["car"][5, 5] == pytest.approx(0.01 + math.pi**2 / 2)  # about z, which points up
    assert published["car"][2, 2] == pytest.approx(upwards, rel=1e-6)


class Buffer:
    """tf2_ros.Buffer's lookup_transform and clear; fails until there is a transform."""

    def __init__(self):
        self.transform, self.asked, self.cleared = None, [], 0

    def clear(self):
        self.cleared += 1

    def lookup_transform(self, target_frame, source_frame, time, timeout):
        self.asked.append((target_frame, source_frame, time.nanoseconds, timeout.nanoseconds))
        if self.transform is None:
            raise LookupError(f'"{target_frame}" passed to lookupTransform argument target_frame does not exist.')
        return SimpleNamespace(transform=self.transform)


def test_target_frame(rig, start):
    buffer = Buffer()
    start(tf_buffer=buffer, target_frame="base_link", transform_timeout=0.0, tracking=True)
    status = until_told(rig, "frames rejected: transform", FRAME_ID, "base_link", "does not exist")
    assert status.level == b"\x02"
    assert not rig.answers
    buffer.transform = TransformMessage()
    q = buffer.transform.rotation  # of a camera that looks forward
    q.x, q.y, q.z, q.w = -0.5, 0.5, -0.5, 0.5
    buffer.transform.translation.z = 1.5
    answer = ask(rig)
    assert answer.header.frame_id == "base_link"
    assert answer.detections[0].header == answer.header
    stamp = answer.header.stamp.sec * 1_000_000_000 + answer.header.stamp.nanosec
    assert ("base_link", FRAME_ID, stamp, 0) in buffer.asked  # at the image's stamp
    place = answer.detections[0].bbox.center.position
    assert (place.x, place.y, place.z) == pytest.approx((10.0, -2.0, 0.5))
    covariance = np.array(answer.detections[0].results[0].pose.covariance).reshape(6, 6)
    assert covariance[0, 0] == pytest.approx(1.0, rel=0.01)  # 10 % of 10 m, along base_link's x
    ids = [d.id for d in ask(rig).detections]
    assert "" not in ids
    assert [d.id for d in ask(rig).detections] == ids


def test_transforms_are_forgotten_when_time_goes_back(rig, start):
    """tf2 refuses what is older than the ten seconds that it keeps, so a bag that begins again would go unanswered."""
    buffer = Buffer()
    buffer.transform = TransformMessage()
    start(tf_buffer=buffer, target_frame="odom")
    ask(rig)
    assert buffer.cleared == 0
    stamp = rig.send(image_message(picture(1)), camera_info(), rig.header(500_000_000))
    rig.spin_until(lambda: stamp in rig.answers, "the first frame of the bag that begins again")
    assert buffer.cleared == 1
    ask(rig)
    assert buffer.cleared == 1


@pytest.mark.skipif(importlib.util.find_spec("tf2_ros") is not None, reason="tf2_ros is installed here")
def test_target_frame_without_tf2_ros(rig, start):
    start(activate=False, target_frame="odom")
    assert rig.transition(CONFIGURE)
    assert not rig.transition(ACTIVATE)
    assert "target_frame 'odom' needs tf2_ros" in rig.wait_for_diagnostic("tf2_ros").message
    assert rig.set(target_frame="").successful
    assert rig.transition(ACTIVATE)
    assert ask(rig).header.frame_id == FRAME_ID


# -- quality of service -----------------------------------------------------------------------------------------------
def test_an_incompatible_publisher_is_named_with_the_cure(rig, start):
    """The node is told to ask for reliable images, the camera offers best effort: silence, but for the diagnostics."""
    start(**{"qos_overrides./image.subscription.reliability": "reliable"})
    camera = rclpy.create_node("old_camera", namespace="front")
    camera.create_publisher(Image, "/image", BEST_EFFORT)
    told = rig.wait_for_diagnostic(
        "/front/old_camera publishes /image with an incompatible QoS (RELIABILITY)",
        "qos_overrides./image.subscription.reliability",
    )
    assert told.level == b"\x01"
    subscriptions = {
        topic: rig.node.get_subscriptions_info_by_topic(topic)[0].qos_profile.reliability
        for topic in ("/image", "/camera_info")
    }
    # an override is of one topic only
    assert subscriptions == {"/image": ReliabilityPolicy.RELIABLE, "/camera_info": ReliabilityPolicy.BEST_EFFORT}
    camera.destroy_node()
    rig.diagnostics.clear()
    rig.spin_until(lambda: rig.diagnostics and "incompatible" not in rig.diagnostics[-1].message, "the complaint's end")
    assert ask(rig).detections  # from the reliable publisher


def test_a_publisher_of_another_type_is_named(rig, start):
    start()
    context = rclpy.Context()  # another participant: DDS allows one type for a topic in each
    context.init()
    camera = rclpy.create_node("zipped_camera", context=context)
    camera.create_publisher(CompressedImage, "/image", BEST_EFFORT)
    rig.wait_for_diagnostic(
        "/zipped_camera publishes sensor_msgs/msg/CompressedImage on /image, not sensor_msgs/msg/Image"
    )
    camera.destroy_node()
    context.shutdown()


def test_an_incompatible_subscriber_is_named_with_the_cure(rig, start):
    start()
    assert ask(rig).detections
    other = rclpy.create_node("recorder")
    other.create_subscription(Detection3DArray, "/detector/detections", lambda _: None, latched_qos())
    until_told(
        rig,
        "/recorder subscribes to /detector/detections with an incompatible QoS (DURABILITY)",
        "qos_overrides./detector/detections.publisher.durability",
    )
    other.destroy_node()


def test_qos_overrides(rig, start):
    start(
        **{
            "qos_overrides./image.subscription.depth": 7,
            "qos_overrides./detector/detections.publisher.durability": "transient_local",
        }
    )
    answer = ask(rig)
    late = []
    subscription = rig.node.create_subscription(Detection3DArray, "/detector/detections", late.append, latched_qos())
    rig.spin_until(lambda: late, "detections from before the subscription")
    assert late[0].header == answer.header
    info = rig.node.get_publishers_info_by_topic("/detector/detections")[0]
    assert info.qos_profile.durability == DurabilityPolicy.TRANSIENT_LOCAL
    rig.node.destroy_subscription(subscription)


def test_whole_numbers_are_taken_for_floats(rig, start):
    """As `ros2 param set /detector max_range 40` sends them; a text is not, and ranges hold."""
    node = start()
    assert rig.set(max_range=15).successful
    assert labels(ask(rig)) == ["car"]
    assert node.get_parameter("max_range").value == 15.0
    assert isinstance(node.get_parameter("max_range").value, float)
    assert rig.set(**{"class_thresholds.car": 1, "max_range": 0}).successful
    assert labels(ask(rig)) == ["pedestrian"]
    for bad in (
        {"max_range": "40"},
        {"max_range": -1},
        {"max_range": 100_000},
        {"lazy": 1},
        {"detector_2d_tiles": 2.0},
    ):
        assert not rig.set(**bad).successful
    assert node.get_parameter("max_range").value == 0.0


def test_lazy_infers_only_while_someone_listens(rig, start):
    inferences = []
    node = start(FakeDetector(act=lambda: inferences.append(1)), lazy=True)
    assert ask(rig).detections  # the rig subscribes to the detections
    rig.node.destroy_subscription(rig.detections)
    rig.spin_until(lambda: not node.count_subscribers("/detector/detections"), "the end of the subscription")
    rig.spin_until(lambda: not node._outputs.subscriber_count(), "the node to know")
    rig.spin_until(lambda: node._worker.waiting() == 0, "the end of the work")
    before = len(inferences)
    told = values(until_told(rig, "frames without subscribers"))
    assert len(inferences) == before
    parts = ("frames answered", "frames rejected", "frames dropped for newer ones", "frames in work")
    assert int(told["pairs"]) == sum(int(told[p]) for p in (*parts, "frames without subscribers"))
    assert told["frames rejected"] == "0"
    assert rig.set(lazy=False).successful
    rig.spin_until(lambda: (rig.send(image_message(picture(1)), camera_info()), len(inferences) > before)[1], "work")
    assert rig.set(lazy=True).successful
    rig.listen()
    assert ask(rig).detections


def test_two_cameras_share_one_display(rig, start):
    """Of equal frame_ids even, their nodes' markers on one topic: neither wipes the other's."""
    fakes = {name: FakeDetector() for name in ("front", "rear")}
    shown = {}

    def take(array):
        assert {m.action for m in array.markers} <= {Marker.ADD, Marker.DELETE}
        for marker in array.markers:
            if marker.action == Marker.ADD:
                shown[marker.ns, marker.id] = marker
            else:
                shown.pop((marker.ns, marker.id), None)

    reliable = rig.node.create_subscription(MarkerArray, "/markers", take, 100)
    for name, fake in fakes.items():
        remaps = ("image:=/image", "camera_info:=/camera_info", "~/markers:=/markers")
        arguments = ["--ros-args", *(part for remap in remaps for part in ("-r", remap))]
        start(fake, options={"namespace": name, "cli_args": arguments}, marker_lifetime=60.0)

    def of(name):
        return {(ns.rsplit("/", 1)[1], number) for ns, number in shown if ns.startswith(f"{name}/")}

    def until(condition, what):
        rig.spin_until(lambda: (rig.send(image_message(picture(1)), camera_info()), condition())[1], what)

    both, one = ({(kind, i) for kind in ("box", "heading", "text") for i in range(n)} for n in (2, 1))
    until(lambda: of("front") == of("rear") == both, "markers of both cameras")
    fakes["front"].found = fakes["front"].found[:1]
    until(lambda: of("front") == one, "the end of what is gone")
    assert of("rear") == both
    fakes["rear"].found = []
    until(lambda: not of("rear"), "the end of all of one camera's")
    assert of("front") == one
    rig.node.destroy_subscription(reliable)


class Seen(FakeDetector):
    """Remembers the focal length and the size of what it was given."""

    def __init__(self):
        super().__init__()
        self.frames = []

    def predict(self, image, camera, threshold, boxes2d=None):
        self.frames.append((camera.fx, image.shape[1], image.shape[0]))
        return super().predict(image, camera, threshold, boxes2d)


@pytest.mark.parametrize("first", ["image", "camera_info"])
def test_a_slow_camera_that_zooms_and_changes_its_size(rig, start, first):
    """One frame in more than two seconds, each unlike the one before, its camera_info a little after or before it."""
    seen = Seen()
    start(seen, camera_info_wait=1.0)  # not 50 ms: a busy machine must not decide
    ask(rig)
    seen.frames.clear()
    expected = []
    for focal, by in ((90.0, 1), (180.0, 2), (270.0, 1)):
        end = time.monotonic() + 2.1
        rig.spin_until(lambda end=end: time.monotonic() > end, "the pause")
        pixels, info = np.ascontiguousarray(picture(1)[::by, ::by]), camera_info()
        info.height, info.width = pixels.shape[:2]
        info.k[[0, 4]] = info.p[[0, 5]] = focal
        image = image_message(pixels)
        image.header = info.header = rig.header()
        publish = [lambda image=image: rig.images.publish(image), lambda info=info: rig.infos.publish(info)]
        for send in publish if first == "image" else publish[::-1]:
            send()
            end = time.monotonic() + 0.03
            rig.spin_until(lambda end=end: time.monotonic() > end, "the other's delay")
        expected.append((focal, info.width, info.height))
        rig.spin_until(lambda: len(seen.frames) == len(expected), "the frame")
    assert seen.frames == expected


# -- what is wrong ----------------------------------------------------------------------------------------------------
def test_a_stuck_inference_is_told(rig, start):
    go_on, inside = threading.Event(), threading.Event()

    def hang():
        inside.set()
        assert go_on.wait(120)

    start(FakeDetector(act=hang), stuck_after=0.2)
    status = until_told(rig, "inference is stuck")
    assert status.level == b"\x02"
    assert inside.is_set()
    go_on.set()
    assert ask(rig).detections
    rig.diagnostics.clear()
    rig.spin_until(lambda: [s for s in rig.diagnostics if s.message == "active"], "the end of the complaint")


def test_a_deactivation_that_fails_leaves_the_node_active(rig, start, monkeypatch):
    """Not deaf and "active": the frame in work took longer than a deactivation waits."""
    monkeypatch.setattr("skd_wm3d_ros.node.STOP_TIMEOUT", 0.1)
    go_on, inside, hang = threading.Event(), threading.Event(), threading.Event()

    def act():
        if hang.is_set():
            inside.set()
            assert go_on.wait(120)

    start(FakeDetector(act=act))
    ask(rig)
    hang.set()
    rig.send(image_message(picture(1)), camera_info())
    rig.spin_until(inside.is_set, "a frame in work")
    assert not rig.transition(DEACTIVATE)
    hang.clear()
    go_on.set()
    assert ask(rig).detections
    assert rig.transition(DEACTIVATE)
    rig.wait_for_diagnostic("inactive")


@pytest.mark.parametrize("failing", ["on_deactivate", "on_shutdown"])
def test_a_frame_that_hung_is_not_published_into_a_later_activation(rig, start, monkeypatch, failing):
    """A transition that raises while an inference hangs: the node is configured anew, with a new detector, and what
    the old thread comes back with is nobody's."""
    monkeypatch.setattr("skd_wm3d_ros.node.STOP_TIMEOUT", 0.1)
    go_on, inside = threading.Event(), threading.Event()

    def hang():
        inside.set()
        assert go_on.wait(120)

    detectors = iter([FakeDetector([("Car", 0.9, 7.0, 10.0)], act=hang), FakeDetector()])
    node = start(load=lambda path, device, precision: next(detectors), diagnostics_period=0.05)
    gone = weakref.ref(node.detector)
    stale = 900_000_000_000  # later than all that follow: in order, it would be the newest

    def sent():
        rig.send(image_message(picture(1)), camera_info(), rig.header(stale))
        return inside.is_set()

    rig.spin_until(sent, "a frame in work")
    (old,) = [t for t in threading.enumerate() if t.name == "inference"]

    def fail(self, state):
        raise RuntimeError("of a transition")

    state = {"on_deactivate": DEACTIVATE, "on_shutdown": Transition.TRANSITION_ACTIVE_SHUTDOWN}[failing]
    with monkeypatch.context() as patch:
        patch.setitem(node._callbacks, STATES[failing], functools.partial(fail, node))
        assert not rig.transition(state)
    assert rig.transition(CONFIGURE)
    assert rig.transition(ACTIVATE)
    assert labels(ask(rig)) == ["car", "pedestrian"]
    go_on.set()
    old.join(30)
    assert not old.is_alive()
    assert labels(ask(rig)) == ["car", "pedestrian"]
    assert stale not in rig.answers
    rig.diagnostics.clear()
    rig.spin_until(lambda: rig.diagnostics, "a status")
    assert "frames rejected: inference" not in values(rig.diagnostics[-1])
    gc.collect()
    assert gone() is None  # the model that hung has gone with its thread


def test_a_node_that_is_shut_down_says_nothing_more(rig, start):
    """By a service call while an inference hangs: the process lives on."""
    go_on, inside = threading.Event(), threading.Event()

    def hang():
        inside.set()
        assert go_on.wait(120)

    start(FakeDetector(act=hang))

    def sent():
        rig.send(image_message(picture(1)), camera_info())
        return inside.is_set()

    rig.spin_until(sent, "a frame in work")
    (old,) = [t for t in threading.enumerate() if t.name == "inference"]
    assert rig.transition(Transition.TRANSITION_ACTIVE_SHUTDOWN)
    go_on.set()
    old.join(30)
    assert not old.is_alive()
    for _ in range(10):
        rclpy.spin_once(rig.node, timeout_sec=0.02)
    assert not rig.answers


def test_stamps_ahead_of_the_clock_are_told(rig, start):
    """use_sim_time without /clock: the clock stands at 0, and no age means anything."""
    start(use_sim_time=True, max_age_ms=100.0)
    assert ask(rig).detections
    status = rig.wait_for_diagnostic("ahead of this node's clock", "/clock")
    assert status.level == b"\x01"


def test_label_info_follows_the_threshold(rig, start):
    start(score_threshold=0.3)
    told = []
    subscription = rig.node.create_subscription(LabelInfo, "/detector/label_info", told.append, latched_qos())
    rig.spin_until(lambda: told, "label_info")
    assert rig.set(score_threshold=0.75, max_range=50.0).successful
    rig.spin_until(lambda: len(told) > 1, "label_info with the new threshold")
    assert [info.threshold for info in told] == pytest.approx([0.3, 0.75])
    rig.node.destroy_subscription(subscription)


def test_the_weights_own_threshold_holds_until_told_otherwise(rig, start):
    fake = FakeDetector()
    fake.threshold = 0.6
    start(fake)
    told = []
    subscription = rig.node.create_subscription(LabelInfo, "/detector/label_info", told.append, latched_qos())
    rig.spin_until(lambda: told, "label_info")
    assert labels(ask(rig)) == ["car"]
    assert rig.set(score_threshold=0.3).successful
    rig.spin_until(lambda: len(told) > 1, "label_info with the parameter's threshold")
    assert labels(ask(rig)) == ["car", "pedestrian"]
    assert rig.set(score_threshold=-1.0).successful
    rig.spin_until(lambda: len(told) > 2, "label_info with the weights' threshold again")
    assert labels(ask(rig)) == ["car"]
    assert [info.threshold for info in told] == pytest.approx([0.6, 0.3, 0.6])
    rig.node.destroy_subscription(subscription)


def test_unknown_parameters_are_named(rig, start, capfd):
    start(**{"score_treshold": 0.9, "class_thresholds.Car": 0.95})
    written = "".join(capfd.readouterr())
    assert "score_treshold (nearest known: score_threshold)" in written
    assert "class_thresholds.Car (nearest known: class_thresholds.car)" in written


def test_a_class_threshold_that_cannot_be_leaves_the_node_unconfigured(rig, start):
    start(activate=False, **{"class_thresholds.car": 7.0})
    assert not rig.transition(CONFIGURE)
    assert "class_thresholds.car" in rig.wait_for_diagnostic("cannot configure").message


def test_ids_are_not_used_again_after_a_pause(rig, start):
    start(tracking=True)
    ask(rig)
    first = {d.id for d in ask(rig).detections}
    assert rig.transition(DEACTIVATE)
    assert rig.transition(ACTIVATE)
    assert {d.id for d in ask(rig).detections} == {""}  # seen once
    assert not first & {d.id for d in ask(rig).detections}


def test_an_inference_that_raises_is_counted(rig, start):
    errors = iter([RuntimeError("layer 7\nexploded"), ValueError("odd")])

    def act():
        for error in errors:
            raise error

    start(FakeDetector(act=act))
    assert ask(rig).detections
    told = values(until_told(rig, "frames rejected: inference"))
    assert told["frames rejected: inference"] == "2"
    assert "ValueError: odd" in told["last rejection"]


def test_gpu_out_of_memory_goes_on_on_the_cpu(rig, start):
    def run_out():
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate")

    def load(path, device, precision):
        return FakeDetector(device="cpu") if device == "cpu" else FakeDetector(device="cuda:0", act=run_out)

    start(load=load, device="cuda:0", cpu_fallback=True)
    assert len(ask(rig).detections) == 2
    status = until_told(rig, "runs on the CPU, the GPU failed", "CUDA out of memory")
    assert status.level == b"\x01"
    assert values(status)["device"] == "cpu"
    assert values(status)["backend"] == "torch (onnxruntime is not installed)"


def test_gpu_out_of_memory_without_fallback(rig, start):
    def run_out():
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate")

    start(FakeDetector(device="cuda:0", act=run_out))
    assert until_told(rig, "CUDA out of memory", "frames rejected: inference").level == b"\x02"


def test_a_camera_unlike_the_training_camera(rig, start):
    start()
    wide = camera_info()
    wide.k[0] = wide.p[0] = 40.0
    wide.k[4] = wide.p[5] = 40.0
    ask(rig)
    assert until_told(rig, "like the training camera").level == b"\x00"

    def told():
        rig.send(image_message(picture(1)), wide)
        return [s for s in rig.diagnostics if "camera unlike the training camera: focal length 40x40" in s.message]

    rig.spin_until(told, "a warning")
    assert told()[0].level == b"\x01"


def test_lost_images_are_noticed_and_the_cure_is_named(rig, start):
    start()
    ask(rig)
    begin = 50_000_000_000_000
    for i in range(120):
        header = rig.header(begin + i * 100_000_000)
        info = camera_info()
        info.header = header
        rig.infos.publish(info)
        if i % 3 == 0:
            image = image_message(picture(1))
            image.header = header
            rig.images.publish(image)
        rclpy.spin_once(rig.node, timeout_sec=0.005)

    def told():
        return [s for s in rig.diagnostics if "are lost on the way" in s.message and "fastdds_images.xml" in s.message]

    rig.spin_until(told, "a warning")


def test_a_camera_that_dies_and_returns(rig, start):
    start()
    ask(rig)
    status = until_told(rig, "no frame on /image for", send=False)
    assert status.level == b"\x01"
    assert ask(rig).detections
    rig.diagnostics.clear()

    def well():
        rig.send(image_message(picture(1)), camera_info())
        return [s for s in rig.diagnostics if s.message == "active"]

    rig.spin_until(well, "the end of the complaint")


def test_every_pair_is_answered_rejected_dropped_or_in_work(rig, start):
    start(FakeDetector(act=lambda: time.sleep(0.01)))
    ask(rig)
    for i in range(60):
        image = image_message(picture(1))
        image.encoding = "nonsense" if i % 5 == 0 else image.encoding
        rig.send(image, camera_info())
        rclpy.spin_once(rig.node, timeout_sec=0.005)
    rig.diagnostics.clear()
    rig.spin_until(lambda: rig.diagnostics, "a status")
    rig.diagnostics.clear()
    rig.spin_until(lambda: rig.diagnostics, "a status after the last frame")
    told = values(rig.diagnostics[-1])
    parts = ("frames answered", "frames rejected", "frames dropped for newer ones", "frames in work")
    assert int(told["pairs"]) == sum(int(told[part]) for part in parts)
    stamps = list(rig.answers)
    assert stamps == sorted(stamps)


# -- lifecycle --------------------------------------------------------------------------------------------------------
def test_fifty_activations(rig, start):
    node = start()
    for _ in range(50):
        assert node.trigger_deactivate().name == "SUCCESS"
        assert node.trigger_activate().name == "SUCCESS"
    assert ask(rig).detections
    assert len(list(node.subscriptions)) < 10
    assert threading.active_count() < 20


def test_other_weights_without_a_restart(rig, start):
    def load(path, device, precision):
        if path == "missing":
            raise UserError("weights 'missing': no such file")
        return FakeDetector() if path == "default" else FakeDetector([("Truck", 0.8, 1.0, 9.0)], classes=("Truck",))

    start(load=load)
    assert labels(ask(rig)) == ["car", "pedestrian"]
    for model, expected in (("trucks", ["truck"]), ("default", ["car", "pedestrian"])):
        assert rig.set(model=model).successful
        assert labels(ask(rig)) != expected  # not before it is configured again
        assert all(rig.transition(t) for t in (DEACTIVATE, CLEANUP, CONFIGURE, ACTIVATE))
        assert labels(ask(rig)) == expected
    assert not rig.set(**{"class_thresholds.truck": 0.5}).successful  # of weights that are gone


def test_two_cameras_in_one_process(rig, start, tmp_path):
    (tmp_path / "cameras.yaml").write_text(
        "cameras:\n"
        "  - {name: front, image_topic: /image, camera_info_topic: /camera_info}\n"
        "  - name: rear\n    image_topic: /image\n    camera_info_topic: /camera_info\n"
        "    parameters: {score_threshold: 0.7, model: some.safetensors}\n"
    )
    received = {}
    for entry in read_cameras(tmp_path / "cameras.yaml"):
        rig.node.create_subscription(
            Detection3DArray,
            f"/{entry.name}/detector/detections",
            lambda m, n=entry.name: received.setdefault(n, labels(m)),
            RELIABLE,
        )
        node = start(options={"namespace": entry.name, "cli_args": entry.ros_arguments()})
    assert node.get_parameter("model").value == "some.safetensors"

    def both():
        rig.send(image_message(picture(1)), camera_info())
        return len(received) == 2

    rig.spin_until(both, "answers of both")
    assert received == {"front": ["car", "pedestrian"], "rear": ["car"]}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("cameras: [", "cannot be read"),
        ("- front", "needs 'cameras:'"),
        ("cameras: []", "needs 'cameras:'"),
        ("cameras: [front]", "camera 1: must be a mapping"),
        ("cameras: [{name: a, image_topic: /i}]", "camera 1: camera_info_topic must be given"),
        ("cameras: [{name: a/b, image_topic: /i, camera_info_topic: /c}]", "name 'a/b' must be"),
        ("cameras: [{name: a, image: /i, camera_info_topic: /c}]", "unknown image; known are name"),
        (
            "cameras: [{name: a, image_topic: /i, camera_info_topic: /c}, "
            "{name: a, image_topic: /i, camera_info_topic: /c}]",
            "camera 2: the name 'a' is there twice",
        ),
    ],
)
def test_camera_files_that_cannot_be(tmp_path, text, said):
    (tmp_path / "cameras.yaml").write_text(text)
    with pytest.raises(CameraFileError, match=said):
        read_cameras(tmp_path / "cameras.yaml")
