"""The node with 2D boxes from elsewhere: real publishers and subscribers, real weights (untrained, small)."""

from __future__ import annotations

import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest
import rclpy
import torch
from ros_harness import (
    ACTIVATE,
    BEST_EFFORT,
    CLEANUP,
    CONFIGURE,
    DEACTIVATE,
    FRAME_ID,
    RELIABLE,
    TIMEOUT,
    Nodes,
    Rig,
    boxes_2d,
    camera,
    camera_info,
    image_message,
    picture,
)  # fmt: skip
from vision_msgs.msg import Detection2DArray

from skd_core.boxes import Boxes2D
from skd_core.data.ros_detections import boxes_from_detections
from skd_core.inference.detector import Detector
from skd_core.supervision.detector_2d import load_detector_2d
from skd_wm3d_ros import detections_2d
from skd_wm3d_ros.cameras import read_cameras

pytestmark = pytest.mark.usefixtures("ros")

CAR = ("car", 0.81, 100.0, 30.0, 160.0, 70.0)
PERSON = ("person", 0.5, 20.0, 20.0, 44.0, 84.0)


@pytest.fixture(scope="module")
def detector():
    torch.set_num_threads(1)
    return Detector.random(seed=3)


@pytest.fixture(scope="module")
def rig(ros):
    rig = Rig(RELIABLE)
    rig.boxes = rig.node.create_publisher(Detection2DArray, "detections_2d", RELIABLE)
    yield rig
    rig.close()


@pytest.fixture
def start(rig, detector):
    """Start a node that takes boxes from the topic, whatever their score; closed after the test."""
    nodes = Nodes(rig)

    def make(**values):
        values = {"boxes_from": "topic", "score_threshold": 0.0, "detections_2d_timeout": 10.0} | values
        return nodes.start(lambda path, device, precision: detector, **values)

    yield make
    nodes.close()


def publish(rig, boxes, header):
    boxes.header = header
    rig.boxes.publish(boxes)


def ask(rig, boxes, boxes_first=False, seed=1):
    """Publish image, camera_info and boxes of one stamp until they are answered: the first may be too early."""
    deadline = time.monotonic() + TIMEOUT
    while time.monotonic() < deadline:
        header = rig.header()
        if boxes_first:
            publish(rig, boxes, header)
            rig.spin_until(lambda: True, "nothing")
        stamp = rig.send(image_message(picture(seed)), camera_info(), header)
        if not boxes_first:
            publish(rig, boxes, header)
        retry = time.monotonic() + 1.0
        while time.monotonic() < retry:
            rclpy.spin_once(rig.node, timeout_sec=0.05)
            if stamp in rig.answers:
                return rig.answers[stamp]
    raise AssertionError(f"no detections after {TIMEOUT:.0f} s")


def labels(answer):
    return [d.results[0].hypothesis.class_id for d in answer.detections]


def values(status):
    return {v.key: v.value for v in status.values}


def until_told(rig, *texts, boxes=None, send=True):
    """The first status that holds all texts, while frames come, with boxes where there are any."""
    rig.diagnostics.clear()

    def told():
        if send:
            header = rig.header()
            rig.send(image_message(picture(1)), camera_info(), header)
            if boxes is not None:
                publish(rig, boxes, header)
        return [s for s in rig.diagnostics if all(t in s.message + str(s.values) for t in texts)]

    rig.spin_until(told, f"a diagnostic with {texts}")
    return told()[0]


def assert_same(answer, expected, classes):
    """To the last digit that both can hold: messages are in double precision, the network's numbers in single."""
    boxes = boxes_from_detections(answer, classes)
    assert boxes.labels == expected.labels
    assert len(boxes) > 0
    for name in ("center", "size", "scores", "depth_std"):
        ours, theirs = getattr(boxes, name), getattr(expected, name).double()
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6, msg=name)
    turned = boxes.yaw - expected.yaw.double()
    torch.testing.assert_close(turned.sin(), torch.zeros_like(turned), rtol=0, atol=1e-6)
    assert (turned.cos() > 0).all()


# -- the same numbers -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("boxes_first", [False, True], ids=["image first", "boxes first"])
def test_live_and_offline_give_the_same(rig, start, detector, boxes_first):
    start()
    for seed in (1, 2):
        outside = Boxes2D(torch.tensor([CAR[2:], PERSON[2:], (250.5, 10, 300, 90)]), ("Car", "Pedestrian", "Car"),
                          torch.tensor([0.81, 0.5, 0.25]))  # fmt: skip
        expected = detector.predict(picture(seed), camera(), 0.0, boxes2d=outside)
        answer = ask(rig, boxes_2d(CAR, PERSON, ("car", 0.25, 250.5, 10, 300, 90)), boxes_first, seed)
        assert len(expected) == 3
        assert_same(answer, expected, detector.classes)
        assert answer.header.frame_id == FRAME_ID
    own = detector.predict(picture(2), camera(), 0.0)
    assert len(own) != 3, "the test needs own boxes that differ"


@pytest.mark.parametrize(
    ("size", "fit", "shown"),
    [
        # 320x96 stretched to 640x640; in a letterbox it is 640x192, with 224 rows above
        ([640, 640], "stretch", lambda x, y: (2 * x, y * 640 / 96)),
        ([640, 640], "letterbox", lambda x, y: (2 * x, 2 * y + 224)),
        ([160, 48], "letterbox", lambda x, y: (x / 2, y / 2)),
    ],
)
def test_boxes_in_the_pixels_of_a_network(rig, start, detector, size, fit, shown):
    start(detections_2d_size=size, detections_2d_fit=fit)
    name, score, x1, y1, x2, y2 = CAR
    expected = detector.predict(
        picture(1), camera(), 0.0, boxes2d=Boxes2D(torch.tensor([CAR[2:]]), ("Car",), torch.tensor([score]))
    )
    answer = ask(rig, boxes_2d((name, score, *shown(x1, y1), *shown(x2, y2))))
    boxes = boxes_from_detections(answer, detector.classes)
    torch.testing.assert_close(boxes.center, expected.center.double(), rtol=1e-4, atol=1e-4)


def test_thresholds_are_of_the_joint_score(rig, start, detector):
    start()
    (score,) = (d.results[0].hypothesis.score for d in ask(rig, boxes_2d(CAR)).detections)
    assert 0 < score < 0.9  # the root of 0.81, times the certainty
    assert rig.set(**{"class_thresholds.car": min(score + 0.01, 1.0)}).successful
    assert labels(ask(rig, boxes_2d(CAR, PERSON))) == ["pedestrian"]


# -- what is not answered ---------------------------------------------------------------------------------------------
def test_without_boxes_nothing_is_published(rig, start):
    """No silent fall-back to own boxes, no empty array: that would say that the road is free."""
    start(detections_2d_timeout=0.05)
    told = until_told(rig, "no 2D boxes on /detections_2d yet", "frames rejected: 2D boxes")
    assert told.level == b"\x02"  # no frame was answered
    assert rig.answers == {}
    counted = values(told)
    assert int(counted["frames without 2D boxes"]) == int(counted["frames rejected: 2D boxes"]) > 0
    assert counted["frames answered"] == "0"


def test_late_boxes_are_counted_and_their_frames_stay_unanswered(rig, start):
    start(detections_2d_timeout=0.05)
    header = rig.header()

    def late():
        nonlocal header
        publish(rig, boxes_2d(CAR), header)  # of the image before
        header = rig.header()
        rig.send(image_message(picture(1)), camera_info(), header)
        end = time.monotonic() + 0.3
        while time.monotonic() < end:
            rclpy.spin_once(rig.node, timeout_sec=0.05)
        return [s for s in rig.diagnostics if "after their image, detections_2d_timeout is 0.05 s" in s.message]

    rig.spin_until(late, "a complaint about late boxes")
    assert rig.answers == {}
    rig.diagnostics.clear()
    rig.spin_until(lambda: rig.diagnostics, "a status")
    counted = values(rig.diagnostics[-1])
    assert int(counted["2D box messages too late"]) >= 1
    assert int(counted["frames rejected: 2D boxes"]) >= 2
    assert rig.transition(DEACTIVATE)
    assert rig.set(detections_2d_timeout=10.0).successful
    assert rig.transition(ACTIVATE)
    assert labels(ask(rig, boxes_2d(CAR))) == ["car"]


def test_an_empty_array_is_an_answer(rig, start):
    start()
    answer = ask(rig, boxes_2d())
    assert answer.detections == []
    assert answer.header.frame_id == FRAME_ID


def test_every_pair_is_accounted_for(rig, start):
    start()
    ask(rig, boxes_2d(CAR))
    for i in range(40):
        header = rig.header()
        rig.send(image_message(picture(1)), camera_info(), header)
        if i % 3:
            publish(rig, boxes_2d(CAR), header)
        rclpy.spin_once(rig.node, timeout_sec=0.005)
    for _ in range(2):  # the second is after the last frame
        rig.diagnostics.clear()
        rig.spin_until(lambda: rig.diagnostics, "a status")
    told = values(rig.diagnostics[-1])
    parts = ("frames answered", "frames rejected", "frames dropped for newer ones", "frames in work",
             "frames waiting for 2D boxes")  # fmt: skip
    assert int(told["pairs"]) == sum(int(told[part]) for part in parts)
    assert int(told["frames waiting for 2D boxes"]) + int(told["frames without 2D boxes"]) > 0


def test_a_detector_that_dies_is_told(rig, start):
    start()
    ask(rig, boxes_2d(CAR))
    told = until_told(rig, "no 2D boxes on /detections_2d for", "is the 2D detector alive?")
    assert told.level in (b"\x01", b"\x02")
    assert labels(ask(rig, boxes_2d(CAR))) == ["car"]


# -- boxes and classes ------------------------------------------------------------------------------------------------
def test_boxes_outside_the_image_are_rejected_and_counted(rig, start, detector):
    start()
    boxes = boxes_2d(CAR, ("car", 0.9, 330, 10, 400, 60), ("car", 0.9, 280, 40, 400, 120))
    answer = ask(rig, boxes)
    assert len(answer.detections) == 2  # the last is clipped
    clipped = Boxes2D(torch.tensor([CAR[2:], (280.0, 40, 320, 96)]), ("Car", "Car"), torch.tensor([0.81, 0.9]))
    assert_same(answer, detector.predict(picture(1), camera(), 0.0, boxes2d=clipped), detector.classes)
    told = until_told(rig, "2D boxes on /detections_2d are outside the image", "detections_2d_size", boxes=boxes)
    assert told.level == b"\x01"
    assert int(values(told)["2D boxes rejected: outside the image"]) > 0


def test_a_message_of_rejected_boxes_alone_is_no_free_road(rig, start):
    start()
    ask(rig, boxes_2d(CAR))
    answers = len(rig.answers)
    boxes = boxes_2d(("car", 0.9, 330, 10, 400, 60), ("car", 0.9, 900, 40, 990, 120))
    told = until_told(rig, "2D boxes on /detections_2d are outside the image", "detections_2d_size", boxes=boxes)
    assert int(values(told)["frames rejected: 2D boxes"]) > 0
    assert len(rig.answers) == answers
    assert labels(ask(rig, boxes_2d(CAR))) == ["car"]


def test_class_map_and_riders(rig, start, detector):
    start(class_map=["2:car", "0:pedestrian", "1:cycle"])
    rider = ("0", 0.6, 200.0, 10.0, 220.0, 70.0), ("1", 0.7, 190.0, 44.0, 230.0, 84.0)
    answer = ask(rig, boxes_2d(("2", *CAR[1:]), ("0", *PERSON[1:]), *rider, ("7", 0.9, 0, 0, 50, 50)))
    outside = Boxes2D(
        torch.tensor([CAR[2:], PERSON[2:], (190.0, 10.0, 230.0, 84.0)]),
        ("Car", "Pedestrian", "Cyclist"),
        torch.tensor([0.81, 0.5, 0.6]),
    )
    assert_same(answer, detector.predict(picture(1), camera(), 0.0, boxes2d=outside), detector.classes)


def test_classes_that_nobody_knows_are_named(rig, start):
    start()
    boxes = boxes_2d(("2", *CAR[1:]), ("63", *PERSON[1:]))
    told = until_told(rig, "class_map knows no class of the 2D boxes on /detections_2d: '2', '63'", boxes=boxes)
    assert told.level == b"\x02"
    assert rig.answers == {}  # an empty array would say that nothing is there
    assert labels(ask(rig, boxes_2d(CAR))) == ["car"]
    assert labels(ask(rig, boxes)) == []  # by now the class map is known to be right


def test_yolo_messages(rig, start, detector, monkeypatch):
    """The same path, where yolo_msgs is installed; here its place is taken by a type that DDS knows."""
    monkeypatch.setitem(sys.modules, "yolo_msgs", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "yolo_msgs.msg", SimpleNamespace(DetectionArray=Detection2DArray))
    monkeypatch.setattr(detections_2d, "yolo_rows", detections_2d.vision_rows)
    start(detections_2d_type="yolo_msgs")
    assert labels(ask(rig, boxes_2d(CAR))) == ["car"]


# -- parameters -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"boxes_from": "labels"}, "boxes_from must be one of own, topic, onnx, got 'labels'"),
        ({"detections_2d_fit": "crop"}, "detections_2d_fit must be one of stretch, letterbox"),
        ({"detections_2d_type": "yolo"}, "detections_2d_type must be one of vision_msgs, yolo_msgs"),
        ({"detections_2d_size": [640]}, "a width and a height in pixels, or 0 and 0 for the image's, got '[640]'"),
        ({"detections_2d_size": [640, 0]}, "a width and a height in pixels"),
        ({"detections_2d_size": [-640, -640]}, "a width and a height in pixels"),
        ({"detections_2d_size": "640x640"}, "type"),
        ({"detections_2d_timeout": 0.0}, "out of range"),
        ({"detections_2d_timeout": float("nan")}, "nan"),
        ({"detector_2d_tiles": -1}, "out of range"),
        ({"class_map": ["car"]}, "a list of SOURCE:TARGET (class map: 'car': write SOURCE:TARGET"),
        ({"class_map": ["2:car", "2:cyclist"]}, "'2' is named twice"),
        ({"class_map": "2:car"}, "type"),
    ],
)
def test_bad_values_are_rejected_with_a_reason(rig, start, change, reason):
    start(activate=False)
    result = rig.set(**change)
    assert not result.successful
    assert reason in result.reason


def test_a_change_takes_effect_when_it_is_configured_again(rig, start, detector):
    start(boxes_from="own")
    own = rig.ask(image_message(picture(1)))
    assert len(own.detections) == len(detector.predict(picture(1), camera(), 0.0))
    assert rig.set(boxes_from="topic").successful
    assert len(rig.ask(image_message(picture(1))).detections) == len(own.detections)  # not yet
    assert rig.transition(DEACTIVATE)
    assert rig.transition(CLEANUP)
    assert rig.transition(CONFIGURE)
    assert rig.transition(ACTIVATE)
    assert len(ask(rig, boxes_2d(CAR)).detections) == 1


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"boxes_from": "onnx"}, "boxes_from 'onnx' needs detector_2d"),
        ({"boxes_from": "onnx", "detector_2d": "/nowhere/yolo.onnx"}, "/nowhere/yolo.onnx: no such file"),
        ({"class_map": ["2:tram"]}, "class_map: unknown class 'tram'; the weights know Car"),
    ],
)
def test_what_cannot_be_leaves_the_node_unconfigured(rig, start, given, said):
    start(activate=False, **given)
    assert not rig.transition(CONFIGURE)
    assert said in rig.wait_for_diagnostic("cannot configure").message


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"image_is_rectified": False}, "boxes_from 'topic' needs rectified images"),
        ({"detections_2d_type": "yolo_msgs"}, "'yolo_msgs' needs the package yolo_msgs"),
    ],
)
def test_what_does_not_go_together_is_told_at_activation(rig, start, monkeypatch, given, said):
    monkeypatch.setitem(sys.modules, "yolo_msgs", None)
    monkeypatch.setitem(sys.modules, "yolo_msgs.msg", None)
    node = start(activate=False, **given)
    assert rig.transition(CONFIGURE)
    assert not rig.transition(ACTIVATE)
    assert said in rig.wait_for_diagnostic("cannot activate").message
    assert not [s for s in node.subscriptions if "detections_2d" in s.topic_name]
    back = {"image_is_rectified": True, "detections_2d_type": "vision_msgs"}
    assert rig.set(**back).successful
    assert rig.transition(ACTIVATE)
    assert labels(ask(rig, boxes_2d(CAR))) == ["car"]


def test_parameters_of_a_file(rig, start, tmp_path):
    """Lists in a file of parameters, and in one of cameras with a topic of its own."""
    (tmp_path / "p.yaml").write_text(
        '/**:\n  ros__parameters: {class_map: ["2:car", "traffic light:dontcare"], detections_2d_size: [640, 192]}\n'
    )
    node = start(activate=False, options={"cli_args": ["--ros-args", "--params-file", str(tmp_path / "p.yaml")]})
    assert list(node.get_parameter("class_map").value) == ["2:car", "traffic light:dontcare"]
    assert list(node.get_parameter("detections_2d_size").value) == [640, 192]
    (tmp_path / "cameras.yaml").write_text(
        "cameras:\n  - name: front\n    image_topic: /image\n    camera_info_topic: /camera_info\n"
        "    detections_2d_topic: /detections_2d\n"
        "    parameters: {class_map: ['2:car', '0:pedestrian'], detections_2d_size: [320, 96]}\n"
    )
    (entry,) = read_cameras(tmp_path / "cameras.yaml")
    front = start(options={"namespace": entry.name, "cli_args": entry.ros_arguments()})
    assert list(front.get_parameter("class_map").value) == ["2:car", "0:pedestrian"]
    assert list(front.get_parameter("detections_2d_size").value) == [320, 96]
    assert [s.topic_name for s in front.subscriptions if "2d" in s.topic_name] == ["/detections_2d"]


# -- quality of service -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("qos", [BEST_EFFORT, RELIABLE], ids=["best_effort", "reliable"])
def test_boxes_of_either_reliability(rig, start, qos):
    start()
    usual = rig.boxes
    rig.boxes = rig.node.create_publisher(Detection2DArray, "detections_2d", qos)
    assert labels(ask(rig, boxes_2d(CAR))) == ["car"]
    rig.node.destroy_publisher(rig.boxes)
    rig.boxes = usual


def test_an_incompatible_publisher_of_boxes_is_named_with_the_cure(rig, start):
    start(**{"qos_overrides./detections_2d.subscription.reliability": "reliable"})
    other = rclpy.create_node("old_yolo", namespace="front")
    other.create_publisher(Detection2DArray, "/detections_2d", BEST_EFFORT)
    told = rig.wait_for_diagnostic(
        "/front/old_yolo publishes /detections_2d with an incompatible QoS (RELIABILITY)",
        "qos_overrides./detections_2d.subscription.reliability",
    )
    assert told.level == b"\x01"
    other.destroy_node()


# -- a 2D network in the process --------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def network(tmp_path_factory):
    """A YOLOX file for 64x64 px that finds one car and one person where they were put in, whatever it sees."""
    onnx = pytest.importorskip("onnx")
    from onnx import TensorProto, helper, numpy_helper

    cells = 64 + 16 + 4  # of strides 8, 16 and 32
    raw = np.zeros((1, cells, 85), np.float32)
    raw[0, 64 + 1, :5] = [0.5, 0.5, 0.0, -0.5, 1.0]  # column 1, row 0 of stride 16: the centre is (24, 8)
    raw[0, 64 + 1, 5 + 2] = 0.9
    raw[0, 64 + 3, :5] = [0.25, 0.5, -1.0, -0.5, 1.0]  # column 3
    raw[0, 64 + 3, 5 + 0] = 0.8
    graph = helper.make_graph(
        [
            helper.make_node("ReduceMean", ["images"], ["mean"], keepdims=0),
            helper.make_node("Mul", ["mean", "nothing"], ["zero"]),
            helper.make_node("Add", ["raw", "zero"], ["output"]),
        ],
        "tiny",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, [1, 3, 64, 64])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, [1, cells, 85])],
        [numpy_helper.from_array(raw, "raw"), numpy_helper.from_array(np.float32(0), "nothing")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)])
    model.ir_version = 8
    path = tmp_path_factory.mktemp("network") / "tiny.onnx"
    onnx.save(model, path)
    return path


def test_a_2d_network_in_the_process(rig, start, detector, network):
    start(boxes_from="onnx", detector_2d=str(network))
    found = load_detector_2d(network).detect(picture(1))
    assert sorted(found.labels) == ["Car", "Pedestrian"]
    expected = detector.predict(picture(1), camera(), 0.0, boxes2d=found)
    answer = rig.ask(image_message(picture(1)))  # no boxes are published
    assert_same(answer, expected, detector.classes)
    until_told(rig, "2D network", str(network))


def test_class_map_of_a_2d_network(rig, start, detector, network):
    start(boxes_from="onnx", detector_2d=str(network), class_map=["2:pedestrian"])
    assert labels(rig.ask(image_message(picture(1)))) == ["pedestrian"]


def test_tiles_of_a_2d_network(rig, start, detector, network):
    start(boxes_from="onnx", detector_2d=str(network), detector_2d_tiles=2)
    found = load_detector_2d(network, tiles=2).detect(picture(1))
    assert len(found) > len(load_detector_2d(network).detect(picture(1)))
    expected = detector.predict(picture(1), camera(), 0.0, boxes2d=found)
    assert_same(rig.ask(image_message(picture(1))), expected, detector.classes)
