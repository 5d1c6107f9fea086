"""Truth in recordings: in which frame, of which image, of which class; and what is said where that is in doubt."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from skd_core.boxes import Boxes3D, wrap_angle
from skd_core.camera import Camera
from skd_core.data.bag import (
    CAMERA_INFO,
    DETECTIONS,
    LABEL_INFO,
    BagWriter,
    Frame,
    read_detections,
    read_frames,
    read_static_transforms,
    typestore,
)
from skd_core.data.bag_transforms import StaticTransforms
from skd_core.data.bag_types import TRANSFORMS
from skd_core.data.bag_writer import _detections, _header
from skd_core.errors import UserError
from skd_core.evaluation import bag_report
from skd_core.evaluation.bag_eval import evaluate_bag
from skd_core.evaluation.bag_pairing import Images, duration, files_of_images
from skd_core.evaluation.report import report_kitti
from skd_core.evaluation.show import Choice, draw_pictures, views

P = torch.tensor([[100.0, 0, 64, 0], [0, 100, 32, 0], [0, 0, 1, 0]], dtype=torch.float64)
CAMERA = Camera(P, 128, 64)
FIRST, STEP = 1_700_000_000_000_000_000, 100_000_000
OPTICAL = Rotation.from_matrix([[0, -1, 0], [0, 0, -1], [1, 0, 0]]).inv()
"""Of an optical frame in a body frame: z forward is x, x right is -y, y down is -z."""
TRUTH, TEXTS = "/gt/boxes", "/camera/ground_truth_kitti"
Write = Callable[[BagWriter], None]


def cars(number: int) -> Boxes3D:
    """Another place in every frame."""
    z = 10.0 + 3 * number
    center = torch.tensor([[-0.5, 0.4, z], [1.0, 0.3, z + 2]], dtype=torch.float64)
    size = torch.tensor([[4.0, 1.6, 1.5], [0.8, 0.7, 1.7]], dtype=torch.float64)
    yaw = torch.tensor([0.3 + 0.2 * number, -1.2], dtype=torch.float64)
    return Boxes3D(center, size, yaw, ("Car", "Pedestrian"))


def text_of(number: int) -> str:
    """The same as label lines, with 2D boxes."""
    objects = cars(number)
    xyxy = objects.project(CAMERA).xyxy
    rows = torch.cat([objects.alpha[:, None], xyxy, objects.dimensions_hwl, objects.bottom, objects.yaw[:, None]], -1)
    pairs = zip(objects.labels, rows.tolist(), strict=True)
    return "".join(f"{label} 0 0 {' '.join(map(repr, row))}\n" for label, row in pairs)


TIMES = tuple(FIRST + number * STEP for number in range(4))


def make_bag(
    path: Path, *more: Write, stamps: Sequence[int] = TIMES, times: Sequence[int] = TIMES, late: int = 0
) -> Path:
    """Frames of these stamps, recorded ``late`` nanoseconds after these times."""
    rng = np.random.default_rng(5)
    with BagWriter(path) as writer:
        for stamp, time in zip(stamps, times, strict=True):
            frame = Frame(rng.integers(0, 255, (64, 128, 3), np.uint8), CAMERA, stamp, "camera")
            with recorded_at(writer, time + late):
                writer.write_frame(frame, "/camera/image", "/camera/camera_info")
        for write in more:
            write(writer)
    return path


class recorded_at:
    """Within the block all is recorded at one time, whatever its stamp."""

    def __init__(self, writer: BagWriter, time: int) -> None:
        self.writer, self.time = writer, time

    def __enter__(self) -> None:
        write = self.writer.write
        self.writer.write = lambda topic, kind, message, _: write(topic, kind, message, self.time)  # type: ignore[method-assign]

    def __exit__(self, *_: object) -> None:
        del self.writer.write


def truth(
    shift: int = 0,
    frame_id: str = "camera",
    change: Callable[[Any], None] | None = None,
    numbers: Sequence[int] = range(4),
) -> Write:
    """Messages on /gt/boxes, their stamps ``shift`` nanoseconds after the images'."""

    def write(writer: BagWriter) -> None:
        for number in numbers:
            stamp = FIRST + number * STEP
            message = _detections(cars(number), _header(stamp + shift, frame_id))
            if change is not None:
                change(message)
            writer.write(TRUTH, DETECTIONS, message, stamp + 1)

    return write


def texts(numbers: Sequence[int] = range(4), late: int = 0) -> Write:
    def write(writer: BagWriter) -> None:
        for number in numbers:
            writer.write_text(TEXTS, text_of(number), FIRST + number * STEP + late)

    return write


def static(*links: tuple[str, str, Rotation, tuple[float, float, float]], topic: str = "/tf_static") -> Write:
    """parent, child, rotation and place of the child in the parent."""

    def write(writer: BagWriter) -> None:
        writer.write(topic, TRANSFORMS, transforms(*links), FIRST)

    return write


def transforms(*links: tuple[str, str, Rotation, tuple[float, float, float]]) -> Any:
    types = {name.rsplit("/", 1)[1]: kind for name, kind in typestore().types.items() if "action" not in name}
    items = []
    for parent, child, rotation, place in links:
        transform = types["Transform"](types["Vector3"](*place), types["Quaternion"](*rotation.as_quat().tolist()))
        items.append(types["TransformStamped"](_header(0, parent), child, transform))
    return typestore().types[TRANSFORMS](items)


def moved(rotation: Rotation, place: tuple[float, float, float]) -> Callable[[Any], None]:
    """Changes a message of camera coordinates to a frame in which the camera stands so."""

    def change(message: Any) -> None:
        for detection in message.detections:
            pose = detection.bbox.center
            position = rotation.apply([pose.position.x, pose.position.y, pose.position.z]) + np.array(place)
            pose.position.x, pose.position.y, pose.position.z = position.tolist()
            q = pose.orientation
            turned = (rotation * Rotation.from_quat([q.x, q.y, q.z, q.w])).as_quat().tolist()
            q.x, q.y, q.z, q.w = turned

    return change


@pytest.fixture(autouse=True)
def no_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its pictures take seconds, and test_bag_eval.py looks at them."""
    monkeypatch.setattr(bag_report, "write_report", lambda *_: None)


class Knowing:
    """Answers with the truth: 3D AP by distance is 1 where the labels are those of the frame, and less elsewhere."""

    def __call__(self, frame: Frame) -> tuple[Boxes3D, float]:
        return cars(frame.number), 0.01


def score(bag: Path, out: Path, **options: Any) -> dict[str, Any]:
    return evaluate_bag(bag, Knowing(), ("Car", "Pedestrian"), out, **options)


def is_right(scores: dict[str, Any]) -> bool:
    aps = [scores["distance_ap"][name]["0.5"] for name in ("Car", "Pedestrian")]
    return scores["labelled"] == 4 and min(aps) > 0.999 and scores["errors"]["Car"]["yaw_median"] < 0.01


# --- in which frame ---------------------------------------------------------------------------------------------------

MOUNT = (1.5, 0.1, 1.2)
TILTED = OPTICAL * Rotation.from_euler("x", 0.03)


@pytest.mark.parametrize("topic", ["/tf_static", "/robot/tf_static"])
@pytest.mark.parametrize(
    "links",
    [
        [("base_link", "camera", OPTICAL, MOUNT)],
        [("base_link", "mast", Rotation.identity(), MOUNT), ("mast", "camera", OPTICAL, (0.0, 0, 0))],
        [("camera", "base_link", OPTICAL.inv(), tuple((-OPTICAL.inv().apply(MOUNT)).tolist()))],
        [("map", "base_link", Rotation.identity(), (5.0, 0, 0)), ("map", "camera", OPTICAL, (6.5, 0.1, 1.2))],
        [("/base_link", "/camera", OPTICAL, MOUNT)],
    ],
    ids=["direct", "two links", "upwards", "over a third frame", "tf1 names"],
)
def test_truth_in_another_frame_is_brought_to_the_cameras(tmp_path: Path, links: Any, topic: str) -> None:
    bag = make_bag(tmp_path / "bag", static(*links, topic=topic), truth(0, "base_link", moved(OPTICAL, MOUNT)))
    assert is_right(score(bag, tmp_path / "out", truth_topic=TRUTH))


@pytest.mark.parametrize("frame_id", ["base_link", "map", ""])
def test_truth_in_a_frame_that_nothing_ties_to_the_camera_is_refused_by_name(tmp_path: Path, frame_id: str) -> None:
    link = ("odom", "lidar", Rotation.identity(), (0.0, 0, 0))
    moving = static(("base_link", "camera", OPTICAL, MOUNT), topic="/tf")
    bag = make_bag(tmp_path / "bag", static(link), moving, truth(0, frame_id))
    with pytest.raises(UserError, match=f"boxes are in frame '{frame_id}', the images in 'camera', and /tf_static"):
        score(bag, tmp_path / "out", truth_topic=TRUTH)
    with pytest.raises(UserError, match="/tf_static"):
        list(views(bag, Choice(truth=TRUTH)))
    with pytest.raises(UserError, match="/tf_static"):
        list(read_detections(bag, TRUTH, to_camera=read_static_transforms(bag).into("camera")))


def test_each_detection_may_have_a_frame_of_its_own(tmp_path: Path) -> None:
    """Its header goes before that of the array."""

    def change(message: Any) -> None:
        first = message.detections[0]
        first.header = _header(FIRST, "base_link")
        moved(OPTICAL, MOUNT)(type(message)(message.header, [first]))

    bag = make_bag(tmp_path / "bag", static(("base_link", "camera", OPTICAL, MOUNT)), truth(change=change))
    assert is_right(score(bag, tmp_path / "out", truth_topic=TRUTH))


def test_truth_that_was_not_asked_for_and_is_elsewhere_is_told_and_not_scored(tmp_path: Path) -> None:
    def beside(writer: BagWriter) -> None:
        writer.write_detections("/camera/ground_truth", cars(0), FIRST, "base_link")

    scores = score(make_bag(tmp_path / "bag", beside), tmp_path / "out")
    assert scores["truth"] is None
    assert "distance_ap" not in scores
    assert any("no truth" in problem and "base_link" in problem for problem in scores["problems"])


angles = st.floats(-3, 3)
places = st.tuples(*[st.floats(-20, 20)] * 3)


@settings(deadline=None, max_examples=30)
@given(st.lists(st.tuples(angles, angles, angles, places, st.booleans()), min_size=1, max_size=4))
def test_a_chain_is_the_product_of_its_links(links: list[tuple[float, float, float, Any, bool]]) -> None:
    """However each link is written down, up or down; against 4x4 matrices."""
    whole, items = np.eye(4), []
    for i, (a, b, c, place, upwards) in enumerate(links):
        step = np.eye(4)
        step[:3, :3], step[:3, 3] = Rotation.from_euler("zyx", (a, b, c)).as_matrix(), place
        whole = whole @ step
        parent, child = (f"f{i + 1}", f"f{i}") if upwards else (f"f{i}", f"f{i + 1}")
        step = np.linalg.inv(step) if upwards else step
        items.append((parent, child, Rotation.from_matrix(step[:3, :3]), tuple(step[:3, 3].tolist())))
    children = [item[1] for item in items]
    if len(set(children)) < len(children):  # two parents: no tree
        return
    rotation, translation = StaticTransforms([transforms(*items)], "bag").pose(f"f{len(links)}", "f0")
    assert np.allclose(rotation, whole[:3, :3], atol=1e-9)
    assert np.allclose(translation, whole[:3, 3], atol=1e-6)


def test_a_circle_and_a_transform_that_is_none_are_named() -> None:
    still = (0.0, 0, 0)
    circle = transforms(("a", "b", Rotation.identity(), still), ("b", "a", Rotation.identity(), still))
    with pytest.raises(UserError, match="circle"):
        StaticTransforms([circle], "bag").pose("a", "c")
    broken = transforms(("a", "b", Rotation.identity(), still))
    broken.transforms[0].transform.rotation.w = 0.0
    with pytest.raises(UserError, match="'a' has no rotation"):
        StaticTransforms([broken], "bag").pose("b", "a")


# --- of which image ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "stamps", [(0, 0, 0, 0), (FIRST, FIRST, FIRST + STEP, FIRST + 2 * STEP)], ids=["all zero", "two share one"]
)
def test_images_that_share_a_stamp(tmp_path: Path, stamps: tuple[int, ...]) -> None:
    """A topic cannot be told to them; a folder can, in the order of recording, and so can a topic of texts."""

    def stamped(writer: BagWriter) -> None:
        for number, stamp in enumerate(stamps):
            message = _detections(cars(number), _header(stamp, "camera"))
            writer.write(TRUTH, DETECTIONS, message, FIRST + number * STEP + 1)

    bag = make_bag(tmp_path / "bag", stamped, stamps=stamps)
    with pytest.raises(UserError, match=rf"of 4 images on /camera/image share a stamp .*{TRUTH}.*--labels DIR"):
        score(bag, tmp_path / "out", truth_topic=TRUTH)
    folder = tmp_path / "labels"
    folder.mkdir()
    for number in range(4):
        (folder / f"{number + 8}.txt").write_text(text_of(number))  # 8, 9, 10, 11
    scores = score(bag, tmp_path / "out", labels=folder)
    assert is_right(scores)
    assert any("share a stamp" in problem for problem in scores["problems"])
    assert [path.stem for path in sorted((tmp_path / "out/results").iterdir())] == ["10", "11", "8", "9"]
    (pictured,) = list(views(bag, Choice(labels=folder, frames="2")))
    assert pictured.truth is not None
    assert torch.allclose(pictured.truth.center, cars(2).center)
    assert is_right(score(make_bag(tmp_path / "text", texts(), stamps=stamps), tmp_path / "out2"))


def test_without_stamps_the_calibration_is_the_one_recorded_nearest(tmp_path: Path) -> None:
    with BagWriter(tmp_path / "bag") as writer:
        for number in range(4):
            camera = Camera(P * torch.tensor([[1.0 + number], [1], [1]], dtype=torch.float64), 128, 64)
            with recorded_at(writer, FIRST + number * STEP):
                frame = Frame(np.zeros((64, 128, 3), np.uint8), camera, 0, "camera")
                writer.write_frame(frame, "/camera/image", "/camera/camera_info")
    assert [frame.camera.fx for frame in read_frames(tmp_path / "bag")] == [100, 200, 300, 400]


def test_truth_at_no_images_stamp_is_an_error_that_says_how_far(tmp_path: Path) -> None:
    bag = make_bag(tmp_path / "bag", truth(20_000_000))
    with pytest.raises(UserError, match=r"/gt/boxes: 4 messages, none .* \(4 images\); the nearest is 20 ms off"):
        score(bag, tmp_path / "out", truth_topic=TRUTH)


def test_some_truth_at_no_images_stamp_is_told(tmp_path: Path) -> None:
    bag = make_bag(tmp_path / "bag", truth(0, numbers=range(4)), truth(30_000_000, numbers=[1, 2]))
    scores = score(bag, tmp_path / "out", truth_topic=TRUTH)
    assert is_right(scores)
    assert any("6 messages, only 4 with the stamp" in p and "30 ms" in p for p in scores["problems"])


def test_two_messages_of_one_stamp(tmp_path: Path) -> None:
    """The same again is the same; another one is a question."""
    same = make_bag(tmp_path / "same", truth(), truth(numbers=[2]))
    assert is_right(score(same, tmp_path / "out", truth_topic=TRUTH))
    other = make_bag(tmp_path / "other", truth(), truth(STEP, numbers=[1]))
    with pytest.raises(UserError, match=f"two messages of stamp {FIRST + 2 * STEP} that differ"):
        score(other, tmp_path / "out2", truth_topic=TRUTH)


@pytest.mark.parametrize("late", [0, 86_400_000_000_000, 7_000_000], ids=["as written", "a day later", "7 ms later"])
def test_texts_are_told_by_their_order_whenever_they_were_recorded(tmp_path: Path, late: int) -> None:
    scores = score(make_bag(tmp_path / "bag", texts(late=late), late=late), tmp_path / "out")
    assert is_right(scores)
    assert scores["problems"] == []


def test_texts_by_order_where_images_were_not_recorded_at_their_stamps(tmp_path: Path) -> None:
    """Some times of recording are the stamp of another image by chance."""
    for stamps in ((FIRST + 7, *TIMES[:3]), TIMES[::-1]):
        bag = make_bag(tmp_path / str(stamps[0]), texts(), stamps=stamps)
        scores = score(bag, tmp_path / f"out{stamps[0]}")
        assert is_right(scores)
        assert scores["problems"] == []


def test_texts_that_are_too_few(tmp_path: Path) -> None:
    """At their images' stamps, as bag-make records them, it can be told which are missing; later it cannot."""
    scores = score(make_bag(tmp_path / "bag", texts([0, 2, 3])), tmp_path / "out")
    assert scores["labelled"] == 3
    assert scores["distance_ap"]["Car"]["0.5"] > 0.999
    later = make_bag(tmp_path / "later", texts([0, 2, 3], late=7_000_000), late=7_000_000)
    with pytest.raises(UserError, match=r"3 messages, none .*; the nearest is 7 ms off; a String has no stamp"):
        score(later, tmp_path / "out2", truth_topic=TEXTS)
    unasked = score(later, tmp_path / "out2")
    assert unasked["truth"] is None
    assert any("3 messages, none" in problem for problem in unasked["problems"])


def test_texts_recorded_nearer_to_other_images_are_told(tmp_path: Path) -> None:
    """As many as images, but one of the images and another of the texts were lost."""
    stamps = [FIRST + n * STEP for n in (0, 1, 2, 4)]
    bag = make_bag(tmp_path / "bag", texts([0, 2, 3, 4], late=3), stamps=stamps, times=stamps)
    scores = score(bag, tmp_path / "out")
    assert scores["labelled"] == 4
    assert any("recorded nearer to another image" in problem for problem in scores["problems"])


def test_labels_named_by_stamps(tmp_path: Path) -> None:
    images = Images("/image", tuple(FIRST + n * STEP for n in range(4)), ("camera",) * 4, (0, 1, 2, 3))
    names, notes = [str(FIRST + n * STEP) for n in (3, 1)], []
    assert files_of_images(images, tmp_path, names, notes) == {3: names[0], 1: names[1]}
    assert notes == []
    longer = [str(FIRST + n * STEP) for n in range(2, 6)]
    assert files_of_images(images, tmp_path, longer, notes) == {2: longer[0], 3: longer[1]}
    assert "4 files, only 2 with the stamp" in notes[0]
    shifted = [str(FIRST + n * STEP + 20_000_000) for n in range(4)]
    with pytest.raises(UserError, match=r"4 files, none with the stamp of an image .* 20 ms off"):
        files_of_images(images, tmp_path, shifted, notes)
    assert files_of_images(images, tmp_path, ["0", "7", "9", "11"], notes) == dict(enumerate(["0", "7", "9", "11"]))
    with pytest.raises(UserError, match="3 files for 4 frames"):
        files_of_images(images, tmp_path, ["0", "1", "2"], notes)


def test_time_spans_are_readable() -> None:
    spans = (3, 4_500, 20_000_000, 86_400_000_000_000)
    assert [duration(ns) for ns in spans] == ["3 ns", "4.5 us", "20 ms", "86400 s"]


def test_truth_only_of_frames_that_cannot_be_used(tmp_path: Path) -> None:
    bag = make_bag(tmp_path / "bag", truth(numbers=[0]))

    def not_the_first(frame: Frame) -> tuple[Boxes3D, float] | None:
        return None if frame.number == 0 else Knowing()(frame)

    with pytest.raises(UserError, match="none of the 3 frames that were used has labels"):
        evaluate_bag(bag, not_the_first, ("Car",), tmp_path / "out", TRUTH)


# --- of which class ---------------------------------------------------------------------------------------------------


def numbered(message: Any) -> None:
    for detection in message.detections:
        hypothesis = detection.results[0].hypothesis
        hypothesis.class_id = {"car": "0", "pedestrian": "1"}[hypothesis.class_id]


def label_info(topic: str, names: Sequence[str]) -> Write:
    def write(writer: BagWriter) -> None:
        types = typestore().types
        entries = [types["vision_msgs/msg/VisionClass"](i, name) for i, name in enumerate(names)]
        writer.write(topic, LABEL_INFO, types[LABEL_INFO](_header(FIRST, ""), entries, 0.4), FIRST)

    return write


def test_class_ids_that_are_numbers(tmp_path: Path) -> None:
    """Named where nothing says what they mean; by a class map or the LabelInfo beside them they are right."""
    bag = make_bag(tmp_path / "bag", truth(change=numbered))
    with pytest.raises(
        UserError, match=r"no class of the truth is one of the detector's \(Car, Pedestrian\).*'0' \(4\)"
    ):
        score(bag, tmp_path / "out", truth_topic=TRUTH)
    mapped = score(bag, tmp_path / "out", truth_topic=TRUTH, class_map=("0:car", "1:PEDESTRIAN"))
    assert is_right(mapped)
    detectors = label_info("/detector/label_info", ["pedestrian", "car"])
    beside = label_info("/gt/label_info", ["car", "pedestrian"])
    named = score(
        make_bag(tmp_path / "b", truth(change=numbered), detectors, beside), tmp_path / "b_out", truth_topic=TRUTH
    )
    assert is_right(named)
    assert any("/gt/label_info names them: 0 is car, 1 is pedestrian" in problem for problem in named["problems"])


def test_some_classes_that_nobody_knows_are_named(tmp_path: Path) -> None:
    def change(message: Any) -> None:
        message.detections[1].results[0].hypothesis.class_id = "robot"

    scores = score(make_bag(tmp_path / "bag", truth(change=change)), tmp_path / "out", truth_topic=TRUTH)
    assert any("does not know do not count: 'robot' (4)" in problem for problem in scores["problems"])


def test_label_files_of_foreign_classes_are_named(tmp_path: Path) -> None:
    bag, folder = make_bag(tmp_path / "bag"), tmp_path / "labels"
    folder.mkdir()
    for number in range(4):
        (folder / f"{number}.txt").write_text(text_of(number).replace("Car", "0").replace("Pedestrian", "1"))
    with pytest.raises(UserError, match=r"labels: no class of the truth .*'0' \(4\), '1' \(4\)"):
        score(bag, tmp_path / "out", labels=folder)


def broken(**changes: Any) -> Callable[[Any], None]:
    """Changes the first detection of each message: a field of a part of it, or its results."""

    def change(message: Any) -> None:
        first = message.detections[0]
        for name, value in changes.items():
            if name == "results":
                first.results = value
            elif name in ("class_id", "score"):
                setattr(first.results[0].hypothesis, name, value)
            else:
                part = {
                    "position": first.bbox.center.position,
                    "q": first.bbox.center.orientation,
                    "size": first.bbox.size,
                }[name]
                for axis in vars(part):
                    if not axis.startswith("_"):
                        setattr(part, axis, value)

    return change


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"results": []}, "has no class (results is empty)"),
        ({"class_id": " "}, "has no class (class_id is empty)"),
        ({"score": math.nan}, "has a score that is NaN"),
        ({"q": 0.0}, "has no orientation (a quaternion of zeros)"),
        ({"q": math.nan}, "holds NaN or infinity"),
        ({"position": math.inf}, "holds NaN or infinity"),
        ({"size": 0.0}, "has no size (a side of 0 m or less)"),
    ],
)
def test_boxes_that_are_none_are_counted_and_named(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    bag = make_bag(tmp_path / "bag", truth(change=broken(**changes)))
    scores = score(bag, tmp_path / "out", truth_topic=TRUTH)
    expected = f"4 of 8 boxes cannot be used, the first {said}, stamp {FIRST}; they are left out"
    assert any(problem.endswith(expected) for problem in scores["problems"])
    assert scores["distance_ap"]["Pedestrian"]["0.5"] > 0.999

    def all_of_them(message: Any) -> None:
        message.detections = message.detections[:1]
        broken(**changes)(message)

    bag = make_bag(tmp_path / "all", truth(change=all_of_them))
    with pytest.raises(UserError, match=r"/gt/boxes: 4 of 4 boxes cannot be used, the first "):
        score(bag, tmp_path / "out2", truth_topic=TRUTH)
    with pytest.raises(UserError, match=r"/gt/boxes: stamp \d+: detection 0: "):
        list(read_detections(bag, TRUTH))


def test_a_quaternion_of_any_length_and_the_surest_result_count(tmp_path: Path) -> None:
    def change(message: Any) -> None:
        for detection in message.detections:
            q = detection.bbox.center.orientation
            q.x, q.y, q.z, q.w = (3 * value for value in (q.x, q.y, q.z, q.w))
            surest = detection.results[0]
            fainter = replace(surest, hypothesis=replace(surest.hypothesis, class_id="truck", score=0.1))
            detection.results = [fainter, surest]

    bag = make_bag(tmp_path / "bag", truth(change=change))
    assert is_right(score(bag, tmp_path / "out", truth_topic=TRUTH))
    for number, (_, _, boxes) in enumerate(read_detections(bag, TRUTH, ("Car", "Pedestrian"))):
        assert boxes.labels == ("Car", "Pedestrian")
        assert wrap_angle(boxes.yaw - cars(number).yaw).abs().max() < 1e-9


def test_label_sets_without_2d_boxes_are_named(tmp_path: Path) -> None:
    bag, folder = make_bag(tmp_path / "bag"), tmp_path / "labels"
    folder.mkdir()
    for number in range(4):
        lines = [line.split() for line in text_of(number).splitlines()]
        flat = [" ".join([*line[:4], "0", "0", "0", "0", *line[8:]]) for line in lines]
        (folder / f"{number}.txt").write_text("\n".join(flat))
    scores = score(bag, tmp_path / "out", labels=folder)
    assert any("every 2D box of the labels has no area (such as 0 0 0 0)" in p for p in scores["problems"])


def test_label_sets_without_3d_boxes_are_named(tmp_path: Path) -> None:
    bag, folder = make_bag(tmp_path / "bag"), tmp_path / "labels"
    folder.mkdir()
    for number in range(4):
        lines = [line.split()[:8] for line in text_of(number).splitlines()]
        text = "".join(f"{' '.join(line)} -1 -1 -1 -1000 -1000 -1000 -10\n" for line in lines)
        (folder / f"{number}.txt").write_text(text)
    scores = score(bag, tmp_path / "out", labels=folder)
    assert any("every object of the labels has no 3D box" in problem for problem in scores["problems"])


def test_truth_without_one_object_is_named(tmp_path: Path) -> None:
    """As from an annotation tool that was opened and closed again."""
    bag = make_bag(tmp_path / "bag", truth(change=lambda message: message.detections.clear()))
    scores = score(bag, tmp_path / "out", truth_topic=TRUTH)
    assert any(problem.startswith("/gt/boxes: there is no object in the truth") for problem in scores["problems"])


def test_truth_of_which_nothing_is_in_any_picture_is_named(tmp_path: Path) -> None:
    """As where a frame is called the camera's and is not: what is ahead is then beside."""

    def to_the_side(message: Any) -> None:
        position = message.detections[0].bbox.center.position
        position.x, position.y, position.z = position.z, -position.x, -position.y

    scores = score(make_bag(tmp_path / "bag", truth(change=to_the_side)), tmp_path / "out", truth_topic=TRUTH)
    said = [problem for problem in scores["problems"] if "no box is in any picture" in problem]
    assert len(said) == 1
    assert "'Car' (4) no box" in said[0]


def test_eval_kitti_names_labels_that_cannot_count(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Foreign classes, and 2D boxes of 0 0 0 0 in labels or results."""
    line = "Car 0 0 0 {} 1.5 1.6 4 0 1.7 20 0"
    good, flat = line.format("1 1 90 60"), line.format("0 0 0 0")
    bare = "Car 0 0 0 1 1 90 60 -1 -1 -1 -1000 -1000 -1000 -10"
    for label, result, said in [
        (good, f"{good} 1", ""),
        (flat, f"{good} 1", "labels: every 2D box has no area"),
        (f"{good}\n{flat}", f"{good} 1", "labels: 1 of 2 2D boxes have no area"),
        (good, f"{flat} 1", "results: every 2D box has no area"),
        (good, f"{good} 1\n{flat} 1", ""),
        (f"{good}\n{bare}", f"{good} 1", "labels: 1 of 2 objects do not have a 3D box"),
        (bare, f"{good} 1", "labels: no object has a 3D box (sides of -1, place of -1000); 3D and BEV AP miss these"),
        (good.replace("Car", "7"), f"{good} 1", "no labels of Car, Pedestrian, Cyclist; the classes there are '7' (1)"),
    ]:
        for name, text in (("labels", label), ("results", result)):
            (tmp_path / name).mkdir(exist_ok=True)
            (tmp_path / name / "000000.txt").write_text(text)
        report_kitti(tmp_path / "labels", tmp_path / "results")
        notes = capsys.readouterr().err
        assert said in notes
        assert ("no area" in notes) == ("no area" in said)
        assert ("3D box" in notes) == ("3D box" in said)


# --- which camera -----------------------------------------------------------------------------------------------------


def test_a_recording_without_camera_info(tmp_path: Path) -> None:
    """A calibration file stands in, for bag-eval and for show; without one the option is named."""
    whole = make_bag(tmp_path / "whole")
    images_only = tmp_path / "images"
    with BagWriter(images_only) as writer:
        write = writer.write
        writer.write = lambda topic, kind, *rest: None if kind == CAMERA_INFO else write(topic, kind, *rest)  # type: ignore[method-assign]
        for frame in read_frames(whole):
            writer.write_frame(frame, "/camera/image", "/camera/camera_info")
    with pytest.raises(UserError, match=r"no camera_info for /camera/image; give a calibration .*--camera FILE"):
        score(images_only, tmp_path / "out")
    file = tmp_path / "calib.txt"
    file.write_text("P2: " + " ".join(map(str, P.flatten().tolist())) + "\n")
    assert score(images_only, tmp_path / "out", camera_file=file)["frames"] == 4
    assert draw_pictures(tmp_path / "pictures", views(images_only, Choice(camera=file, frames="0"))) == 1
    for a, b in itertools.zip_longest(read_frames(whole), read_frames(images_only, camera_file=file)):
        assert torch.equal(a.camera.P, b.camera.P)
        assert np.array_equal(a.image, b.image)
    with pytest.raises(UserError, match=r"calib.txt: holds no K and D of the raw image"):
        list(read_frames(images_only, rectified=False, camera_file=file))


def test_raw_images_are_undistorted_by_a_calibration_file(tmp_path: Path) -> None:
    """As they are by a camera_info that says the same."""
    bag = make_bag(tmp_path / "bag")
    info = {"height": 64, "width": 128, "distortion_model": "plumb_bob", "d": [-0.3, 0.1, 0.0, 0.0, 0.0]}
    info |= {"k": P[:, :3].flatten().tolist(), "p": P.flatten().tolist(), "r": np.eye(3).flatten().tolist()}
    file = tmp_path / "info.yaml"
    file.write_text(yaml.safe_dump(info))
    K, d = P[:, :3].numpy(), np.array(info["d"])
    straight = list(read_frames(bag))
    for raw, frame in zip(read_frames(bag, rectified=False, camera_file=file), straight, strict=True):
        expected = cv2.undistort(frame.image, K, d)
        assert np.abs(raw.image.astype(int) - expected).mean() < 2
        assert not np.array_equal(raw.image, frame.image)
    file.write_text(yaml.safe_dump(info | {"width": 64}))
    with pytest.raises(UserError, match="64x64 images"):
        list(read_frames(bag, rectified=False, camera_file=file))


def test_show_says_why_no_frame_can_be_used(tmp_path: Path) -> None:
    with BagWriter(tmp_path / "bag") as writer:
        frame = Frame(np.zeros((32, 64, 3), np.uint8), CAMERA, FIRST, "camera")
        writer.write_frame(frame, "/camera/image", "/other/camera_info")
        writer.write_frame(
            Frame(np.zeros((64, 128, 3), np.uint8), CAMERA, FIRST, "camera"), "/x", "/camera/camera_info"
        )
    with pytest.raises(
        UserError, match=r"no frame that can be used; .*/camera/image is 64x32, but /camera/camera_info"
    ):
        list(views(tmp_path / "bag", Choice(image_topic="/camera/image")))
