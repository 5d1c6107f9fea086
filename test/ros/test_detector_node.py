"""The node as a process, over DDS: what goes in, what comes out, what it survives."""

from __future__ import annotations

import array
import math

import cv2
import numpy as np
import pytest
import rclpy
import torch
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
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
    DetectorProcess,
    Rig,
    camera,
    camera_info,
    image_message,
    picture,
)  # fmt: skip
from sensor_msgs.msg import CameraInfo, CompressedImage, Image
from vision_msgs.msg import Detection3DArray, LabelInfo
from visualization_msgs.msg import Marker, MarkerArray

from skd_core.camera import Camera
from skd_core.data.ros_detections import boxes_from_detections
from skd_core.inference.detector import Detector

pytestmark = pytest.mark.usefixtures("ros")

LATCHED = QoSProfile(depth=1, reliability=ReliabilityPolicy.RELIABLE, durability=DurabilityPolicy.TRANSIENT_LOCAL)
TYPE_HASH = "RIHS01_793f5eab9595ac1c0da07873cc859db42eae51f0ee76056db8562515d830e018"


@pytest.fixture(scope="module")
def detector():
    torch.set_num_threads(1)
    return Detector.random(seed=0)


@pytest.fixture(scope="module")
def weights(detector, tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    detector.save(path)
    return path


@pytest.fixture(scope="module")
def process(weights, tmp_path_factory):
    """One running node for all tests of this file; each leaves it active."""
    log = tmp_path_factory.mktemp("node") / "detector.log"
    process = DetectorProcess(log, model=weights, device="cpu", score_threshold=0.0)
    process.wait_for_output("listening to /image and /camera_info")
    yield process
    process.kill()


@pytest.fixture(scope="module")
def shared_rig(process):
    rig = Rig()
    yield rig
    rig.close()


@pytest.fixture
def rig(shared_rig, process):
    yield shared_rig
    assert process.process.poll() is None, process.output()


# -- what comes out ---------------------------------------------------------------------------------------------------
def test_same_boxes_as_the_library(rig, detector):
    answers = []
    for seed in (1, 2):
        pixels = picture(seed)
        expected = detector.predict(pixels, camera(), score_threshold=0.0)
        boxes = boxes_from_detections(rig.ask(image_message(pixels)), detector.classes)
        assert len(boxes) == len(expected) > 0
        assert boxes.labels == expected.labels
        for name in ("center", "size", "scores", "depth_std"):
            torch.testing.assert_close(
                getattr(boxes, name), getattr(expected, name).double(), rtol=1e-4, atol=1e-4, msg=name
            )
        turned = boxes.yaw - expected.yaw.double()
        torch.testing.assert_close(turned.cos(), torch.ones_like(turned), rtol=0, atol=1e-6)
        answers.append(boxes)
    assert not torch.allclose(answers[0].center[:10], answers[1].center[:10]), "the test needs pictures that differ"


def test_bgr_is_not_taken_for_rgb(rig):
    pixels = picture(3)
    rgb = boxes_from_detections(rig.ask(image_message(pixels)))
    bgr = boxes_from_detections(rig.ask(image_message(pixels[..., ::-1], "bgr8")))
    assert torch.equal(rgb.center, bgr.center)


def test_headers_are_the_image_s(rig):
    array_message = rig.ask(image_message(picture(1)))
    assert array_message.header.frame_id == FRAME_ID
    assert array_message.detections
    assert all(detection.header == array_message.header for detection in array_message.detections)
    assert rig.ask(image_message(picture(1))).header.stamp != array_message.header.stamp


def test_type_hash_of_the_topic(rig):
    rig.ask(image_message(picture(1)))
    info = rig.node.get_publishers_info_by_topic("/detector/detections")[0]
    digest = "".join(f"{byte:02x}" for byte in bytes(info.topic_type_hash.value))
    assert f"RIHS0{info.topic_type_hash.version}_{digest}" == TYPE_HASH
    assert info.qos_profile.reliability == ReliabilityPolicy.RELIABLE


def test_empty_array_when_nothing_is_found(rig):
    assert rig.set(score_threshold=1.0).successful  # at run time
    answer = rig.ask(image_message(picture(1)))
    assert isinstance(answer, Detection3DArray)
    assert not answer.detections
    assert answer.header.frame_id == FRAME_ID
    assert rig.set(score_threshold=0.0).successful
    assert rig.ask(image_message(picture(1))).detections


@pytest.mark.parametrize("qos", [BEST_EFFORT, RELIABLE], ids=["best_effort", "reliable"])
def test_publishers_of_either_reliability(process, qos):
    rig = Rig(qos)
    assert rig.ask(image_message(picture(1))).detections
    rig.close()


def test_label_info_is_latched(rig, detector):
    received = []
    rig.node.create_subscription(LabelInfo, "/detector/label_info", received.append, LATCHED)
    rig.spin_until(lambda: received, "label_info")  # published long ago
    assert [c.class_name for c in received[0].class_map] == [name.lower() for name in detector.classes]


def test_markers_and_debug_image_for_those_who_listen(rig):
    markers, images = [], []
    rig.node.create_subscription(MarkerArray, "/detector/markers", markers.append, RELIABLE)
    rig.node.create_subscription(Image, "/detector/debug_image", images.append, RELIABLE)

    def both():
        if not (markers and images):
            rig.ask(image_message(picture(1)))
        return markers and images

    rig.spin_until(both, "markers and debug image")
    assert {m.action for m in markers[-1].markers} == {Marker.ADD}
    assert {m.ns for m in markers[-1].markers} == {f"{FRAME_ID}/{kind}" for kind in ("box", "heading", "text")}
    assert (images[-1].height, images[-1].width, images[-1].encoding) == (HEIGHT, WIDTH, "rgb8")
    assert images[-1].header.frame_id == FRAME_ID
    assert bytes(images[-1].data) != picture(1).tobytes()


# -- what goes in -----------------------------------------------------------------------------------------------------
def _truncated():
    message = image_message(picture(1))
    message.data = message.data[: len(message.data) // 2]
    return message


def _unknown_encoding():
    message = image_message(picture(1))
    message.encoding = "plasma9"
    return message


def _of_no_size():
    return Image(encoding="rgb8", data=array.array("B"))


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        (_truncated, ["46080 bytes", "320x96"]),
        (_unknown_encoding, ["plasma9"]),
        (_of_no_size, ["0x0"]),
        (lambda: image_message(picture(1)[:, :-16]), ["304x96", "320x96", "/camera_info"]),
    ],
    ids=["truncated", "unknown encoding", "no size", "not the camera's size"],
)
def test_bad_images_are_counted_and_skipped(rig, bad, said):
    rig.ask(image_message(picture(1)))
    rig.diagnostics.clear()
    rejected = []

    def reported():
        rejected.append(rig.send(bad(), camera_info()))
        return [s for s in rig.diagnostics if all(text in str(s.values) for text in said)]

    rig.spin_until(reported, f"a diagnostic that says {said}")
    values = {v.key: v.value for v in reported()[0].values}
    assert int(values["frames rejected"]) > 0
    assert rig.ask(image_message(picture(1))).detections  # still alive
    assert not set(rejected) & set(rig.answers)


def test_padded_rows(rig):
    pixels = picture(4)
    message = image_message(np.concatenate([pixels, np.full((HEIGHT, 4, 3), 77, np.uint8)], 1))
    message.width = WIDTH  # the last 12 bytes of each row are padding
    padded = boxes_from_detections(rig.ask(message))
    assert torch.equal(padded.center, boxes_from_detections(rig.ask(image_message(pixels))).center)


def test_uncalibrated_camera(rig):
    info = camera_info()
    info.k = [0.0] * 9

    def status():
        rig.send(image_message(picture(1)), info)
        texts = ("uncalibrated", "/camera_info", "/image")
        return [s for s in rig.diagnostics if all(t in s.message + str(s.values) for t in texts)]

    rig.spin_until(status, "a diagnostic that names both topics")
    assert rig.ask(image_message(picture(1))).detections


def test_missing_camera_info_names_both_topics(rig):
    reactivate(rig)
    rig.diagnostics.clear()

    def status():
        rig.send(image_message(picture(1)), None)
        return [s for s in rig.diagnostics if "images arrive on /image but no camera_info on /camera_info" in s.message]

    rig.spin_until(status, "a diagnostic that names both topics")
    assert rig.ask(image_message(picture(1))).detections


def reactivate(rig, **values):
    """With other parameters, which it returns to undo."""
    assert rig.transition(DEACTIVATE)
    if values:  # rclpy refuses an empty list where a node has a callback before parameters are set, as ours has
        result = rig.set(**values)
        assert result.successful, result.reason
    assert rig.transition(ACTIVATE)


def test_stamps_that_disagree_and_sync_slop(rig):
    def send():
        image, info = image_message(picture(1)), camera_info()
        image.header, info.header = rig.header(), rig.header()
        rig.infos.publish(info)
        rig.images.publish(image)

    reactivate(rig, use_latest_camera_info=False)
    rig.diagnostics.clear()

    def told():
        send()
        return [s for s in rig.diagnostics if "never agree" in s.message and "sync_slop" in s.message]

    rig.spin_until(told, "a diagnostic about the stamps")
    reactivate(rig, sync_slop=0.15)
    rig.answers.clear()

    def answered():
        send()
        return rig.answers

    rig.spin_until(answered, "detections with sync_slop")
    reactivate(rig, sync_slop=0.0, use_latest_camera_info=True)


def test_camera_info_that_was_latched_before_the_node_came(rig):
    reactivate(rig, image_transport="compressed")  # and back: forget every camera_info
    rig.node.destroy_publisher(rig.infos)
    info = camera_info()
    info.header.frame_id = FRAME_ID
    latched = rig.node.create_publisher(CameraInfo, "camera_info", LATCHED)
    latched.publish(info)
    reactivate(rig, image_transport="raw")
    rig.answers.clear()

    def answered():
        rig.send(image_message(picture(1)), None)
        return rig.answers

    rig.spin_until(answered, "detections with the latched camera_info")
    assert next(iter(rig.answers.values())).detections
    rig.node.destroy_publisher(latched)
    rig.infos = rig.node.create_publisher(CameraInfo, "camera_info", BEST_EFFORT)
    reactivate(rig)


def test_raw_image_with_distortion(rig, detector):
    """What the node undistorts is what the library sees, with K for its camera."""
    reactivate(rig, image_is_rectified=False)
    info = camera_info()
    info.d = [-0.3, 0.1, 0.0, 0.0, 0.0]
    k, d = np.array(info.k).reshape(3, 3), np.array(info.d)
    pixels = picture(6)
    boxes = boxes_from_detections(rig.ask(image_message(pixels), info))
    straight = cv2.undistort(pixels, k, d)
    assert np.abs(straight.astype(int) - pixels).mean() > 1
    pinhole = Camera(torch.from_numpy(np.hstack([k, np.zeros((3, 1))])), WIDTH, HEIGHT)
    expected = detector.predict(straight, pinhole, score_threshold=0.0)
    assert len(boxes) == len(expected)
    torch.testing.assert_close(boxes.center, expected.center.double(), rtol=1e-2, atol=1e-2)
    reactivate(rig, image_is_rectified=True)


def test_time_that_goes_back(rig):
    """A bag that starts again: the synchronizer's queues, full of later stamps, must not swallow the new ones."""
    late = 4_000_000_000_000
    rig.ask(image_message(picture(1)))
    for i in range(30):  # images without partners fill the queue
        rig.send(image_message(picture(1)), None, rig.header(late + i))
        rclpy.spin_once(rig.node, timeout_sec=0.01)
    assert rig.ask(image_message(picture(1))).detections


def test_compressed_images(rig):
    reactivate(rig, image_transport="compressed")
    pixels = picture(5)
    png = cv2.imencode(".png", pixels[..., ::-1])[1].tobytes()
    answer = rig.ask(CompressedImage(format="rgb8; png compressed bgr8", data=array.array("B", png)))
    jpeg = cv2.imencode(".jpg", pixels[..., ::-1])[1].tobytes()
    rig.diagnostics.clear()

    def reported():
        rig.send(CompressedImage(format="jpeg", data=array.array("B", jpeg[: len(jpeg) // 2])), camera_info())
        return [s for s in rig.diagnostics if "incomplete" in str(s.values)]

    rig.spin_until(reported, "a diagnostic about half a JPEG")
    assert rig.ask(CompressedImage(format="jpeg", data=array.array("B", jpeg))).detections
    reactivate(rig, image_transport="raw")
    raw = boxes_from_detections(rig.ask(image_message(pixels)))
    assert torch.equal(boxes_from_detections(answer).center, raw.center)  # PNG loses nothing


# -- lifecycle and parameters -----------------------------------------------------------------------------------------
def test_deactivated_node_says_nothing(rig):
    rig.ask(image_message(picture(1)))
    assert rig.transition(DEACTIVATE)
    rig.answers.clear()
    for _ in range(10):
        rig.send(image_message(picture(1)), camera_info())
        rclpy.spin_once(rig.node, timeout_sec=0.05)
    status = rig.wait_for_diagnostic("inactive")
    assert status.message == "inactive"
    assert not rig.answers
    assert rig.transition(ACTIVATE)
    assert rig.ask(image_message(picture(1))).detections


def test_lifecycle_again_and_again(rig):
    for _ in range(3):
        assert rig.transition(DEACTIVATE)
        assert rig.transition(CLEANUP)
        assert rig.transition(CONFIGURE)
        assert rig.transition(ACTIVATE)
        assert rig.ask(image_message(picture(1))).detections


def test_an_impossible_transition_does_not_end_the_node(rig, process):
    client = rig.node.create_client(ChangeState, "/detector/change_state")
    rig.spin_until(client.service_is_ready, "the service")
    client.call_async(ChangeState.Request(transition=Transition(id=CONFIGURE)))  # it is active
    rig.spin_until(lambda: "was asked for that this state does not have" in process.output(), "the log line")
    rig.node.destroy_client(client)
    assert rig.ask(image_message(picture(1))).detections


def test_missing_weights_fail_the_configuration_with_their_path(rig, process, weights, tmp_path):
    missing = tmp_path / "nowhere.safetensors"
    assert rig.transition(DEACTIVATE)
    assert rig.transition(CLEANUP)
    assert rig.set(model=str(missing)).successful
    assert not rig.transition(CONFIGURE)
    assert f"weights '{missing}': no such file" in process.output()
    assert str(missing) in rig.wait_for_diagnostic(str(missing)).message
    assert rig.set(model=str(weights)).successful
    assert rig.transition(CONFIGURE)
    assert rig.transition(ACTIVATE)
    assert rig.ask(image_message(picture(1))).detections


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"image_transport": "carrier pigeon"}, "must be one of raw, compressed"),
        ({"score_threshold": 1.5}, "out of range"),
        ({"marker_lifetime": 0.0}, "out of range"),
        ({"score_threshold": math.nan}, "nan"),
        ({"autostart": False}, "read-only"),
    ],
)
def test_bad_parameters_are_rejected_with_a_reason(rig, values, reason):
    result = rig.set(**values)
    assert not result.successful
    assert reason in result.reason.replace("read only", "read-only")


def test_incompatible_subscriber_is_named(rig, process):
    rig.node.create_subscription(Detection3DArray, "/detector/detections", lambda _: None, LATCHED)

    def named():
        rclpy.spin_once(rig.node, timeout_sec=0.05)
        return "/rig subscribes to /detector/detections with an incompatible QoS (DURABILITY)" in process.output()

    rig.spin_until(named, "the log line")


# -- the end: last, as it ends the node that all others use ------------------------------------------------------------
def test_sigint_twice_while_working_exits_with_0(shared_rig, process):
    shared_rig.ask(image_message(picture(1)))
    for _ in range(20):
        shared_rig.send(image_message(picture(1)), camera_info())
    assert process.interrupt(times=2) == 0, process.output()
    assert "Traceback" not in process.output()
