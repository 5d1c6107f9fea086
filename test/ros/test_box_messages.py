"""2D boxes of messages: what their pixels are, which are taken, what their classes become. No node, no DDS."""

from __future__ import annotations

import copy
import math
import sys
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from ros_harness import boxes_2d
from vision_msgs.msg import Detection2D, Detection2DArray, ObjectHypothesis, ObjectHypothesisWithPose

from skd_core.boxes import Boxes2D
from skd_core.data.ros_detections_2d import REJECTED, Fit, Row, to_boxes2d, vision_rows, yolo_rows
from skd_core.errors import UserError
from skd_core.supervision.box_classes import BoxClasses
from skd_wm3d_ros.box_statistics import BoxStatistics
from skd_wm3d_ros.detections_2d import message_type
from skd_wm3d_ros.diagnostics import RECENT

CLASSES = ("Car", "Pedestrian", "Cyclist")
sides = st.integers(16, 4000)
numbers = st.floats(0, 1)


# -- pixels -----------------------------------------------------------------------------------------------------------
def fitted(xyxy, width, height, w, h, letterbox):
    """What a detector does to an image, step by step: scale, then put borders of equal width on two sides."""
    if not letterbox:
        return [xyxy[0] / width * w, xyxy[1] / height * h, xyxy[2] / width * w, xyxy[3] / height * h]
    scale = w / width if w * height <= h * width else h / height
    left, top = (w - width * scale) / 2, (h - height * scale) / 2
    return [xyxy[0] * scale + left, xyxy[1] * scale + top, xyxy[2] * scale + left, xyxy[3] * scale + top]


@given(sides, sides, sides, sides, st.booleans(), st.tuples(numbers, numbers, numbers, numbers))
def test_what_a_detector_fits_into_its_picture_comes_back(width, height, w, h, letterbox, share):
    xyxy = [share[0] * width, share[1] * height, share[2] * width, share[3] * height]
    seen = torch.tensor([fitted(xyxy, width, height, w, h, letterbox)], dtype=torch.float64)
    assert seen.min() >= -1e-6
    assert (seen <= torch.tensor([w, h, w, h]) + 1e-6).all()  # it does fit
    back = Fit(w, h, letterbox).to_image(seen, width, height)
    torch.testing.assert_close(back[0], torch.tensor(xyxy, dtype=torch.float64), rtol=0, atol=1e-6)


@given(sides, sides, sides, sides)
def test_a_letterbox_keeps_the_shape_of_boxes_and_the_middle_of_the_image(width, height, w, h):
    fit = Fit(w, h, letterbox=True)
    middle = fit.to_image(
        torch.tensor([[w / 2 - 5, h / 2 - 5, w / 2 + 5, h / 2 + 5]], dtype=torch.float64), width, height
    )
    x1, y1, x2, y2 = middle[0].tolist()
    assert (x1 + x2) / 2 == pytest.approx(width / 2)
    assert (y1 + y2) / 2 == pytest.approx(height / 2)
    assert x2 - x1 == pytest.approx(y2 - y1)


@given(sides, sides, st.integers(1, 4))
def test_letterbox_and_stretch_are_one_where_the_shapes_are(width, height, factor):
    box = torch.tensor([[1.0, 2.0, 30.0, 40.0]], dtype=torch.float64)
    letterbox = Fit(factor * width, factor * height, True).to_image(box, width, height)
    torch.testing.assert_close(letterbox, Fit(factor * width, factor * height).to_image(box, width, height))
    torch.testing.assert_close(letterbox, box / factor)


@given(sides, sides, st.booleans())
def test_without_a_size_the_pixels_are_the_image_s(width, height, letterbox):
    box = torch.tensor([[1.0, 2.0, 30.0, 40.0]], dtype=torch.float64)
    assert torch.equal(Fit(letterbox=letterbox).to_image(box, width, height), box)


def test_an_hd_image_in_a_square():
    """1280x720 in 640x640: half the size, 140 rows above and below."""
    box = torch.tensor([[320.0, 140.0, 640.0, 320.0]])
    assert Fit(640, 640, True).to_image(box, 1280, 720).tolist() == [[640.0, 0.0, 1280.0, 360.0]]
    stretched = torch.tensor([[320.0, 160.0, 640.0, 320.0]])
    assert Fit(640, 640).to_image(stretched, 1280, 720).tolist() == [[640.0, 180.0, 1280.0, 360.0]]


# -- which are taken --------------------------------------------------------------------------------------------------
GOOD = Row(("car",), 0.5, 50.0, 40.0, 20.0, 10.0, 0.0)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"names": ()}, "without a class"),
        ({"width": 0.0}, "of no size or not finite"),
        ({"height": -3.0}, "of no size or not finite"),
        ({"width": math.inf}, "of no size or not finite"),
        ({"height": math.nan}, "of no size or not finite"),
        ({"x": math.nan}, "of no size or not finite"),
        ({"y": -math.inf}, "of no size or not finite"),
        ({"theta": math.nan}, "of no size or not finite"),
        ({"score": 1.5}, "with a score outside 0 to 1"),
        ({"score": -0.1}, "with a score outside 0 to 1"),
        ({"score": math.nan}, "with a score outside 0 to 1"),
        ({"theta": 0.3}, "rotated"),
        ({"x": -10.0}, "outside the image"),  # its edge touches the image's
        ({"x": 500.0}, "outside the image"),
        ({"y": 85.0}, "outside the image"),
    ],
)
def test_boxes_that_are_not_taken(change, reason):
    boxes, rejected = to_boxes2d([GOOD, GOOD._replace(**change), GOOD], Fit(), 100, 80)
    assert boxes.xyxy.tolist() == [[40.0, 35.0, 60.0, 45.0]] * 2
    assert rejected == {**dict.fromkeys(REJECTED, 0), reason: 1}


def test_boxes_across_the_border_are_clipped():
    boxes, rejected = to_boxes2d([GOOD._replace(x=0.0), GOOD._replace(x=95.0, y=78.0)], Fit(), 100, 80)
    assert boxes.xyxy.tolist() == [[0.0, 35.0, 10.0, 45.0], [85.0, 73.0, 100.0, 80.0]]
    assert not any(rejected.values())


def test_no_boxes():
    boxes, rejected = to_boxes2d([], Fit(640, 640, True), 100, 80)
    assert boxes.xyxy.shape == (0, 4)
    assert not any(rejected.values())


def test_the_first_name_that_is_known_counts():
    rows = [
        GOOD._replace(names=("minibus", "2")),
        GOOD._replace(names=("car", "2")),
        GOOD._replace(names=("tree", "9")),
    ]
    assert to_boxes2d(rows, Fit(), 100, 80, {"car", "2"}.__contains__)[0].labels == ("2", "car", "tree")


# -- messages ---------------------------------------------------------------------------------------------------------
def test_vision_msgs():
    message = boxes_2d(("car", 0.9, 10, 20, 30, 60), ("person", 0.25, 0, 0, 4, 8))
    message.detections[1].bbox.center.theta = 0.5
    assert vision_rows(message) == [
        Row(("car",), 0.9, 20.0, 40.0, 20.0, 40.0, 0.0),
        Row(("person",), 0.25, 2.0, 4.0, 4.0, 8.0, 0.5),
    ]


def test_of_several_results_the_best_counts():
    results = [
        ObjectHypothesisWithPose(hypothesis=ObjectHypothesis(class_id=name, score=score))
        for name, score in (("bus", 0.2), ("car", 0.7), ("tree", 0.1))
    ]
    (row,) = vision_rows(Detection2DArray(detections=[Detection2D(results=results)]))
    assert (row.names, row.score) == (("car",), 0.7)
    for nan in range(3):  # which of them is the best cannot be told
        told = [copy.deepcopy(result) for result in results]
        told[nan].hypothesis.score = math.nan
        (row,) = vision_rows(Detection2DArray(detections=[Detection2D(results=told)]))
        assert math.isnan(row.score)
    (row,) = vision_rows(Detection2DArray(detections=[Detection2D()]))
    assert row.names == ()


def yolo_detection(name, number, score, x, y, width, height):
    """With the fields of yolo_msgs/Detection that are read."""
    center = SimpleNamespace(position=SimpleNamespace(x=x, y=y), theta=0.0)
    bbox = SimpleNamespace(center=center, size=SimpleNamespace(x=width, y=height))
    return SimpleNamespace(class_name=name, class_id=number, score=score, bbox=bbox)


def test_yolo_msgs():
    message = SimpleNamespace(
        detections=[
            yolo_detection("car", 2, 0.9, 20.0, 40.0, 20.0, 40.0),
            yolo_detection("", 0, 0.5, 1.0, 2.0, 3.0, 4.0),
        ]
    )
    assert yolo_rows(message) == [
        Row(("car", "2"), 0.9, 20.0, 40.0, 20.0, 40.0, 0.0),
        Row(("0",), 0.5, 1.0, 2.0, 3.0, 4.0, 0.0),
    ]


def test_yolo_msgs_are_looked_for_when_they_are_asked_for(monkeypatch):
    assert message_type("vision_msgs") == (Detection2DArray, vision_rows)
    monkeypatch.setitem(sys.modules, "yolo_msgs.msg", None)
    monkeypatch.setitem(sys.modules, "yolo_msgs", None)
    with pytest.raises(UserError, match="'yolo_msgs' needs the package yolo_msgs"):
        message_type("yolo_msgs")
    monkeypatch.setitem(sys.modules, "yolo_msgs", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "yolo_msgs.msg", SimpleNamespace(DetectionArray=list))
    assert message_type("yolo_msgs") == (list, yolo_rows)


# -- classes ----------------------------------------------------------------------------------------------------------
def named(*labels):
    return Boxes2D(torch.tensor([[0.0, 0.0, 10.0, 10.0]]).repeat(len(labels), 1), labels)


def test_without_a_class_map_names_count_and_ids_do_not():
    classes = BoxClasses([], CLASSES)
    found = classes.map(named("car", "Person", "CYCLIST", "pedestrian"))
    assert found.labels == ("Car", "Pedestrian", "Cyclist", "Pedestrian")
    assert not any(map(classes.knows, ("2", "0", "tree", "")))
    assert classes.knows("truck")  # which is not to be placed
    assert classes.map(named("truck", "bus", "tree")).labels == ()


def test_a_class_map_says_all():
    classes = BoxClasses(["2:car", "0:PEDESTRIAN", "Lorry:dontcare"], CLASSES)
    assert classes.map(named("2", "0", "lorry", "car", "7")).labels == ("Car", "Pedestrian")
    assert [classes.knows(name) for name in ("2", "LORRY", "car", "7")] == [True, True, False, False]


def test_persons_on_cycles():
    xyxy = torch.tensor([[10.0, 0, 30, 60], [5, 30, 35, 70], [80, 0, 99, 60], [50, 30, 70, 60]])
    boxes = Boxes2D(xyxy, ("0", "1", "0", "1"))
    mapped = BoxClasses(["0:pedestrian", "1:cycle"], CLASSES).map(boxes)
    assert mapped.labels == ("Cyclist", "Pedestrian")  # the cycle that stands alone is not placed
    assert mapped.xyxy.tolist() == [[5.0, 0.0, 35.0, 70.0], [80.0, 0.0, 99.0, 60.0]]
    assert BoxClasses(["0:pedestrian", "1:cycle"], ("Pedestrian",)).map(boxes).labels == ("Pedestrian",)


def test_a_class_of_the_weights_is_no_cycle():
    """nuScenes has bicycles of its own."""
    classes = BoxClasses([], ("car", "pedestrian", "bicycle"))
    assert classes.map(named("bicycle", "person")).labels == ("bicycle", "pedestrian")


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        (["2:tram"], "class_map: unknown class 'tram'; the weights know Car, Pedestrian, Cyclist"),
        (["car"], "write SOURCE:TARGET"),
        (["2:car", "2:cyclist"], "'2' is named twice"),
    ],
)
def test_class_maps_that_cannot_be(entries, said):
    with pytest.raises(UserError, match=said):
        BoxClasses(entries, CLASSES)


# -- statistics -------------------------------------------------------------------------------------------------------
def test_what_became_of_the_boxes(monkeypatch):
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    statistics = BoxStatistics("/boxes")
    assert statistics.problem() is None
    statistics.add(0, {}, frozenset(), 0)
    assert statistics.problem() is None
    statistics.add(2, {}, frozenset({"9", "tree"}), 0)
    assert not statistics.ever_known()
    assert statistics.problem() == (
        "class_map knows no class of the 2D boxes on /boxes: '9', 'tree'; name them there, such as 2:car"
    )
    statistics.add(4, {"rotated": 0, "outside the image": 2}, frozenset({"tree"}), 1)
    assert statistics.ever_known()
    assert statistics.problem() == f"2 of 6 2D boxes on /boxes are outside the image: {REJECTED['outside the image']}"
    now[0] += RECENT + 1
    assert statistics.problem() is None
    assert statistics.values() == {
        "2D boxes received": "6",
        "2D boxes of unknown classes": "3",
        "2D boxes rejected: outside the image": "2",
    }
