"""2D boxes recorded in a bag: told to images by stamp, placed as files of the same boxes are."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from skd_core.cli import app
from skd_core.data.bag import BagWriter, read_frames, typestore
from skd_core.data.bag_make import BagOptions, make_bag
from skd_core.data.bag_types import DETECTIONS_2D
from skd_core.data.kitti import read_objects
from skd_core.errors import UserError
from skd_core.evaluation.bag_boxes import BoxOptions, box_fit
from skd_core.evaluation.bag_eval import BagEvalOptions, bag_eval
from skd_core.synthetic import SynthConfig, write_dataset

TOPIC = "/detector_2d/detections"
FRAMES = 4
Box = tuple[str, float, float, float, float, float]  # class id, score, x1, y1, x2, y2


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "set"
    write_dataset(folder, SynthConfig(480, 144), FRAMES, 11)
    return folder


@pytest.fixture(scope="module")
def boxes(root: Path) -> list[list[Box]]:
    """What a 2D detector might say of each frame: the labels' boxes."""
    found = []
    for number in range(FRAMES):
        objects = read_objects(root / "training" / "label_2" / f"{number:06d}.txt")
        rows = zip(objects.type, objects.xyxy.tolist(), strict=True)
        found.append([(kind, 0.75, *box) for kind, box in rows if kind in ("Car", "Pedestrian", "Cyclist")])
    assert sum(map(len, found)) > FRAMES
    return found  # type: ignore[return-value]


def message(stamp: int, rows: Sequence[Box], to_pixels: Callable[[float, float], tuple[float, float]]) -> Any:
    """A Detection2DArray."""
    types = typestore().types
    point, quaternion = types["geometry_msgs/msg/Point"](0, 0, 0), types["geometry_msgs/msg/Quaternion"](0, 0, 0, 1)
    pose = types["geometry_msgs/msg/Pose"](point, quaternion)
    time = types["builtin_interfaces/msg/Time"](stamp // 10**9, stamp % 10**9)
    header = types["std_msgs/msg/Header"](time, "camera")
    detections = []
    for name, score, x1, y1, x2, y2 in rows:
        (x1, y1), (x2, y2) = to_pixels(x1, y1), to_pixels(x2, y2)
        center = types["vision_msgs/msg/Point2D"](0.5 * (x1 + x2), 0.5 * (y1 + y2))
        box = types["vision_msgs/msg/BoundingBox2D"](types["vision_msgs/msg/Pose2D"](center, 0.0), x2 - x1, y2 - y1)
        with_covariance = types["geometry_msgs/msg/PoseWithCovariance"](pose, np.zeros(36))
        hypothesis = types["vision_msgs/msg/ObjectHypothesis"](name, score)
        result = types["vision_msgs/msg/ObjectHypothesisWithPose"](hypothesis, with_covariance)
        detections.append(types["vision_msgs/msg/Detection2D"](header, [result], box, ""))
    return types[DETECTIONS_2D](header, detections)


def recorded(
    root: Path,
    out: Path,
    boxes: Sequence[Sequence[Box] | None],
    to_pixels: Callable[[float, float], tuple[float, float]] = lambda x, y: (x, y),
    shift: int = 0,
) -> Path:
    """A bag of the set with a message for each image whose boxes are not None."""
    make_bag("kitti", root, out.with_name("plain"), BagOptions())
    with BagWriter(out) as bag:
        for frame, rows in zip(read_frames(out.with_name("plain")), boxes, strict=True):
            bag.write_frame(frame, "/camera/image", "/camera/camera_info")
            if rows is not None:
                bag.write(TOPIC, DETECTIONS_2D, message(frame.stamp + shift, rows, to_pixels), frame.stamp + 5)
    shutil.rmtree(out.with_name("plain"))
    return out


def results(out: Path) -> list[str]:
    return [path.read_text() for path in sorted((out / "results").iterdir())]


def evaluate(bag: Path, out: Path, **options: Any) -> dict[str, Any]:
    bag_eval(bag, "default", out, BagEvalOptions(threshold=0.05, device="cpu", boxes=BoxOptions(**options)))
    scores: dict[str, Any] = json.loads((out / "scores.json").read_text())
    return scores


@pytest.fixture(scope="module")
def from_files(root: Path, boxes: list[list[Box]], tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The results with the same boxes from files."""
    folder = tmp_path_factory.mktemp("files")
    (folder / "boxes").mkdir()
    for number, rows in enumerate(boxes):
        lines = [
            f"{name} -1 -1 -10 {x1!r} {y1!r} {x2!r} {y2!r} -1 -1 -1 -1000 -1000 -1000 -10 {score}\n"
            for name, score, x1, y1, x2, y2 in rows
        ]
        (folder / "boxes" / f"{number:06d}.txt").write_text("".join(lines))
    bag = recorded(root, folder / "bag", [None] * FRAMES)
    evaluate(bag, folder / "out", folder=folder / "boxes")
    found = results(folder / "out")
    assert any(found)
    return found


def close(text: str, other: str) -> bool:
    """Results that differ by no more than what centre and size lose against corners."""
    rows, others = ([line.split() for line in part.splitlines()] for part in (text, other))
    if [row[0] for row in rows] != [row[0] for row in others]:
        return False
    pairs = [
        (float(a), float(b))
        for row, like in zip(rows, others, strict=True)
        for a, b in zip(row[1:], like[1:], strict=True)
    ]
    return all(abs(a - b) < 2e-2 for a, b in pairs)


def test_recorded_boxes_are_placed_as_files_of_the_same_boxes(
    root: Path, boxes: list[list[Box]], from_files: list[str], tmp_path: Path
) -> None:
    bag = recorded(root, tmp_path / "bag", boxes)
    scores = evaluate(bag, tmp_path / "out", topic=TOPIC)
    assert (scores["frames"], scores["dropped"], scores["problems"]) == (FRAMES, 0, [])
    assert all(map(close, results(tmp_path / "out"), from_files))


def test_ids_and_other_pixels_are_translated(
    root: Path, boxes: list[list[Box]], from_files: list[str], tmp_path: Path
) -> None:
    """Boxes in a picture of 640x640 that the image of 480x144 was fitted into, with ids as classes."""
    ids = {"Car": "2", "Pedestrian": "0", "Cyclist": "7"}
    numbered = [[(ids[row[0]], *row[1:]) for row in rows] for rows in boxes]
    scale, top = 640 / 480, 0.5 * (640 - 640 / 480 * 144)
    bag = recorded(root, tmp_path / "bag", numbered, lambda x, y: (scale * x, scale * y + top))  # type: ignore[arg-type]
    options = {"topic": TOPIC, "fit": box_fit("640x640", "letterbox")}
    evaluate(bag, tmp_path / "out", **options, class_map=("2:car", "0:pedestrian", "7:cyclist"))
    assert all(map(close, results(tmp_path / "out"), from_files))
    with pytest.raises(UserError, match=r"the class map knows no class of the 2D boxes.*'0', '2'"):
        evaluate(bag, tmp_path / "other", **options)
    assert not (tmp_path / "other").exists()


def test_an_image_without_recorded_boxes_is_dropped_and_an_empty_message_is_not(
    root: Path, boxes: list[list[Box]], tmp_path: Path
) -> None:
    bag = recorded(root, tmp_path / "bag", [None, boxes[1], [], boxes[3]])
    scores = evaluate(bag, tmp_path / "out", topic=TOPIC)
    assert (scores["frames"], scores["dropped"]) == (FRAMES - 1, 1)
    assert scores["problems"] == [f"{TOPIC}: 1 of {FRAMES} images have no 2D boxes and are dropped"]
    assert results(tmp_path / "out")[1] == ""


def test_boxes_that_cannot_be_taken_are_counted(root: Path, boxes: list[list[Box]], tmp_path: Path) -> None:
    bad: list[Box] = [("Car", 0.5, 900, 10, 950, 40), ("Car", 1.5, 10, 10, 90, 60), ("tram", 0.5, 10, 10, 90, 60)]
    bag = recorded(root, tmp_path / "bag", [boxes[0] + bad, boxes[1] + bad[:1], *boxes[2:]])
    scores = evaluate(bag, tmp_path / "out", topic=TOPIC)
    told = sorted(problem.split(":")[1] for problem in scores["problems"])
    assert told == [
        " 1 2D boxes are of classes that the class map does not know",
        " 1 2D boxes are with a score outside 0 to 1",
        " 2 2D boxes are outside the image",
    ]


def test_boxes_of_other_stamps_are_refused(root: Path, boxes: list[list[Box]], tmp_path: Path) -> None:
    bag = recorded(root, tmp_path / "bag", boxes, shift=20_000_000)
    with pytest.raises(
        UserError, match=f"{FRAMES} messages, none with the stamp of an image.*the nearest is 20 ms off"
    ):
        evaluate(bag, tmp_path / "out", topic=TOPIC)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--boxes-topic", "/nowhere"], "name one topic with --boxes-topic; the bag has Detection2DArray on"),
        (["--boxes-topic", TOPIC, "--detector", "yolox.onnx"], "give --detector or --boxes-topic, not both"),
        (["--boxes-topic", TOPIC, "--boxes-size", "640"], "--boxes-size '640': write WIDTHxHEIGHT"),
        (["--boxes-topic", TOPIC, "--boxes-fit", "crop"], "--boxes-fit 'crop': must be stretch or letterbox"),
        (["--boxes-topic", TOPIC, "--boxes-class-map", "2-car"], "2-car"),
        (["--boxes-topic", TOPIC, "--raw-images"], "--boxes-topic needs rectified images"),
    ],
)
def test_what_does_not_fit_is_refused(
    root: Path, boxes: list[list[Box]], tmp_path: Path, options: list[str], message: str
) -> None:
    bag = recorded(root, tmp_path / "bag", boxes)
    done = CliRunner().invoke(app, ["bag-eval", str(bag), "--out", str(tmp_path / "out"), *options])
    assert isinstance(done.exception, UserError)
    assert message in str(done.exception)
    assert not (tmp_path / "out").exists()
