"""Data sets as bags, and their evaluation: the same numbers as from the folder."""

from __future__ import annotations

import itertools
import json
import math
import sys
import tracemalloc
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path

import cv2
import matplotlib
import numpy as np
import nuscenes_tree
import pytest
import torch
from matplotlib import pyplot
from matplotlib.backend_bases import KeyEvent

from skd_core.boxes import Boxes3D
from skd_core.camera import Camera
from skd_core.data.bag import BagWriter, CameraTopics, Frame, find_cameras, read_detections, read_frames, read_texts
from skd_core.data.bag_make import BagOptions, make_bag
from skd_core.data.kitti import KittiDataset, KittiObjects, read_objects
from skd_core.data.nuscenes import NuScenesDataset
from skd_core.errors import UserError
from skd_core.evaluation.bag_eval import BagEvalOptions, bag_eval, evaluate_bag
from skd_core.evaluation.bag_scores import _latency
from skd_core.evaluation.bag_truth import TruthSource, find_truth, labels_from_boxes
from skd_core.evaluation.object_log import ObjectLog
from skd_core.evaluation.report import report_kitti
from skd_core.evaluation.show import Choice, Stepper, View, draw_pictures, make_window, step_through, views
from skd_core.evaluation.show_rerun import write_recording
from skd_core.inference.detector import Detector
from skd_core.inference.predict import predict_images
from skd_core.synthetic import SynthConfig, write_dataset

CLASSES = ("Car", "Pedestrian", "Cyclist", "Van", "Truck")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Large enough for objects of more than 25 pixels, the least that KITTI counts."""
    folder = tmp_path_factory.mktemp("data") / "set"
    write_dataset(folder, SynthConfig(480, 144), 5, 11)
    return folder


@pytest.mark.parametrize("storage", ["mcap", "sqlite3"])
def test_a_data_set_survives_as_a_bag(root: Path, tmp_path: Path, storage: str) -> None:
    assert make_bag("kitti", root, tmp_path / "bag", BagOptions(rate=20, storage=storage)) == 5
    dataset = KittiDataset(root)
    frames = list(read_frames(tmp_path / "bag"))
    truth = list(read_detections(tmp_path / "bag", classes=CLASSES))
    texts = list(read_texts(tmp_path / "bag", "/camera/ground_truth_kitti"))
    assert {b.stamp - a.stamp for a, b in itertools.pairwise(frames)} == {50_000_000}
    for index in range(5):
        assert np.array_equal(frames[index].image, dataset[index].image.permute(1, 2, 0).numpy())
        assert torch.equal(frames[index].camera.P, dataset[index].camera.P)
        label = dataset.files(index)["label"]
        expected, (stamp, frame_id, boxes) = read_objects(label).boxes3d(), truth[index]
        assert (stamp, frame_id, boxes.labels) == (frames[index].stamp, "camera_optical_frame", expected.labels)
        own = expected.center + dataset[index].camera.offset  # the frame that the header names
        torch.testing.assert_close(boxes.center, own, rtol=0, atol=1e-12)
        torch.testing.assert_close(boxes.size, expected.size, rtol=0, atol=0)
        torch.testing.assert_close(boxes.yaw, expected.yaw, rtol=0, atol=1e-12)
        assert texts[index] == (stamp, label.read_text())


def test_a_folder_of_images_as_a_bag(root: Path, tmp_path: Path) -> None:
    images, calib = root / "training" / "image_2", root / "training" / "calib" / "000000.txt"
    assert make_bag("folder", images, tmp_path / "bag", BagOptions(camera=calib)) == 5
    assert [c.image for c in find_cameras(tmp_path / "bag")] == ["/camera/image"]
    with pytest.raises(UserError, match="no Detection3DArray"):
        list(read_detections(tmp_path / "bag"))


def test_nuscenes_as_a_bag_of_six_cameras(tmp_path: Path) -> None:
    pytest.importorskip("nuscenes", reason="needs the extra [nuscenes]")
    root = nuscenes_tree.write_tree(tmp_path / "mini", nuscenes_tree.miniature(1))
    assert make_bag("nuscenes", root, tmp_path / "bag", BagOptions(split="mini_val")) == 6
    cameras = find_cameras(tmp_path / "bag")
    assert [c.image for c in cameras][:2] == ["/cam_back/image", "/cam_back_left/image"]
    assert len(cameras) == 6
    with pytest.raises(UserError, match=r"--image-topic; the bag has /cam_back/image, /cam_back_left/image"):
        list(read_frames(tmp_path / "bag"))
    dataset = NuScenesDataset(root, "mini_val", with_3d=True)
    for index, name in enumerate(dataset.names):
        _, camera, microseconds = name.split("__")
        (frame,) = read_frames(tmp_path / "bag", f"/{camera.lower()}/image")
        ((stamp, frame_id, boxes),) = read_detections(tmp_path / "bag", f"/{camera.lower()}/ground_truth")
        expected = dataset[index].boxes3d
        assert expected is not None
        assert frame.stamp == stamp == 1000 * int(microseconds)
        assert (frame_id, boxes.labels) == (camera, expected.labels)
        torch.testing.assert_close(boxes.center, expected.center.double(), rtol=0, atol=0)


def test_wrong_options_of_bag_make_are_named(root: Path, tmp_path: Path) -> None:
    for arguments, message in [
        (("kitty", root, tmp_path / "x"), "must be kitti, folder or nuscenes"),
        (("folder", root, tmp_path / "x"), "--camera FILE goes with folder"),
        (("kitti", root, tmp_path / "x", BagOptions(camera=root / "calib.txt")), "--camera FILE goes with folder"),
        (("kitti", root, tmp_path / "x", BagOptions(rate=0.0)), "--rate 0"),
        (("kitti", root, tmp_path / "x", BagOptions(storage="hdf5")), "--storage hdf5"),
    ]:
        with pytest.raises(UserError, match=message):
            make_bag(*arguments)
    assert list(tmp_path.iterdir()) == []


class Cheat:
    """Answers with the truth of a KITTI folder, moved a little: scores that are neither 0 nor 100."""

    def __init__(self, root: Path, drop: frozenset[int] = frozenset()) -> None:
        folder = KittiDataset(root)
        self.boxes = [read_objects(folder.files(i)["label"]).boxes3d(["Car", "Pedestrian"]) for i in range(len(folder))]
        self.number, self.drop = -1, drop

    def __call__(self, frame: Frame) -> tuple[Boxes3D, float] | None:
        self.number += 1
        if self.number in self.drop:
            return None
        boxes = self.boxes[self.number]
        rng = torch.Generator().manual_seed(self.number)
        scores = torch.rand(len(boxes), generator=rng, dtype=torch.float64)
        shift = 1 + 0.01 * torch.randn(len(boxes), 1, generator=rng, dtype=torch.float64)
        return replace(boxes, center=boxes.center * shift, scores=scores), 0.01


@pytest.fixture(scope="module")
def bag(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("bags") / "bag"
    make_bag("kitti", root, out)
    return out


CAR_AND_PEDESTRIAN = ("Car", "Pedestrian")


def test_scores_of_a_bag_are_those_of_the_folder(root: Path, bag: Path, tmp_path: Path) -> None:
    """To the last digit: through the bag's label lines, through a label folder, and by eval kitti on the files."""
    by_topic = evaluate_bag(bag, Cheat(root), CAR_AND_PEDESTRIAN, tmp_path / "a", json_file=tmp_path / "a.json")
    label_folder = root / "training" / "label_2"
    by_folder = evaluate_bag(bag, Cheat(root), CAR_AND_PEDESTRIAN, tmp_path / "b", labels=label_folder)
    report_kitti(label_folder, tmp_path / "b" / "results", tmp_path / "folder.json")
    of_files = json.loads((tmp_path / "folder.json").read_text())
    car = by_topic["kitti"]["Car"]["3d"]["R40"]["0.50"]
    assert 0 < car[1] < 100
    for name in CAR_AND_PEDESTRIAN:
        assert by_topic["kitti"][name] == by_folder["kitti"][name] == of_files[name]
    for path in (tmp_path / "a.json", tmp_path / "a" / "scores.json"):
        assert json.loads(path.read_text()) == by_topic
    assert by_topic["truth"] == "/camera/ground_truth_kitti"
    assert (by_topic["frames"], by_topic["labelled"], by_topic["dropped"]) == (5, 5, 0)
    assert by_topic["recall"]["Car"]["all"]["recall"] > 0.8
    assert 0 < by_topic["errors"]["Car"]["depth_median"] < 0.06
    report_kitti(tmp_path / "a" / "labels", tmp_path / "a" / "results", tmp_path / "again.json")
    assert json.loads((tmp_path / "again.json").read_text()) == of_files
    report = (tmp_path / "a" / "report.html").read_text()
    assert "<meta name=viewport content='width=device-width'>" in report
    assert report.count("<table>") == report.count('<div class="wide"><table>') > 3
    assert report.count("<img") == 6
    assert "nan" not in report.split("<img")[0].lower()


def test_the_detector_finds_in_a_bag_what_it_finds_in_the_folder(root: Path, bag: Path, tmp_path: Path) -> None:
    """The bundled weights: the same result files, so the same AP to the last digit; and the same in the bag written."""
    detector = Detector.load("default", "cpu")
    bag_eval(bag, "default", tmp_path / "out", BagEvalOptions(threshold=0.05, device="cpu"))
    training = root / "training"
    for index in range(5):
        name = f"{index:06d}"
        image, calib = training / "image_2" / f"{name}.png", training / "calib" / f"{name}.txt"
        predict_images([image], calib, detector, tmp_path / "folder", 0.05, draw=False)
        expected = (tmp_path / "folder" / "results" / f"{name}.txt").read_text()
        assert expected
        assert (tmp_path / "out" / "results" / f"{name}.txt").read_text() == expected
    report_kitti(training / "label_2", tmp_path / "folder" / "results", tmp_path / "folder.json")
    assert (
        json.loads((tmp_path / "folder.json").read_text())
        == json.loads((tmp_path / "out" / "scores.json").read_text())["kitti"]
    )
    found = list(read_detections(tmp_path / "out" / "detections", classes=detector.classes))
    frames = list(read_frames(bag))
    assert [(stamp, frame_id) for stamp, frame_id, _ in found] == [(f.stamp, f.frame_id) for f in frames]
    boxes = detector.predict(frames[0].image, frames[0].camera, 0.05)
    published = boxes.moved(frames[0].camera.offset)  # into the frame that the header names
    torch.testing.assert_close(found[0][2].center, published.center.double(), rtol=0, atol=0)
    assert found[0][2].labels == boxes.labels


def test_a_right_stereo_camera_is_evaluated_in_its_own_frame(tmp_path: Path) -> None:
    """Detections and truth of the bag are in the frame that the header names; label files and results are in KITTI's,
    from which P projects. Exact detections are worth as much by either truth."""
    write_dataset(tmp_path / "set", SynthConfig(480, 144), 2, 11)
    calib = tmp_path / "set" / "training" / "calib"
    for file in calib.glob("*.txt"):
        lines = [line.split() for line in file.read_text().splitlines() if line]
        for line in lines:
            if line[0] == "P2:":
                line[4] = repr(float(line[4]) - 0.54 * float(line[1]))
        file.write_text("".join(" ".join(line) + "\n" for line in lines))
    for label in (tmp_path / "set" / "training" / "label_2").glob("*.txt"):  # the scene stays, as the camera sees it
        rows = [line.split() for line in label.read_text().splitlines()]
        for row in rows:
            row[11] = repr(float(row[11]) + 0.54)
        label.write_text("".join(" ".join(row) + "\n" for row in rows))
    bag = tmp_path / "bag"
    make_bag("kitti", tmp_path / "set", bag, BagOptions())
    dataset = KittiDataset(tmp_path / "set")
    shift = dataset[0].camera.offset
    assert -0.55 < float(shift[0]) < -0.4
    exact = [read_objects(dataset.files(i)["label"]).boxes3d() for i in range(2)]
    for boxes, (_, _, told) in zip(exact, read_detections(bag, "/camera/ground_truth", CLASSES), strict=True):
        torch.testing.assert_close(told.center, boxes.center.double() + shift, rtol=0, atol=1e-6)
    answers = iter([*exact, *exact])
    frames = list(read_frames(bag))
    for truth in ("/camera/ground_truth", "/camera/ground_truth_kitti"):
        scores = evaluate_bag(bag, lambda frame: (next(answers), 0.01), CLASSES[:2], tmp_path / "out", truth)
        assert scores["recall"]["Car"]["all"]["recall"] == 1
        found = list(read_detections(tmp_path / "out" / "detections", classes=CLASSES))
        for frame, boxes, (_, frame_id, told) in zip(frames, exact, found, strict=True):
            assert frame_id == frame.frame_id
            torch.testing.assert_close(told.center, boxes.center.double() + shift, rtol=0, atol=1e-6)


def test_dropped_frames_and_the_truth_of_a_detections_topic(root: Path, bag: Path, tmp_path: Path) -> None:
    """Dropped frames are counted and not scored."""
    cheat, topic = Cheat(root, frozenset([1, 3])), "/camera/ground_truth"
    scores = evaluate_bag(bag, cheat, CAR_AND_PEDESTRIAN, tmp_path / "out", topic)
    assert scores["truth"] == topic
    assert (scores["frames"], scores["labelled"], scores["dropped"]) == (3, 3, 2)
    assert scores["recall"]["Car"]["all"]["recall"] > 0.8
    assert sorted(p.stem for p in (tmp_path / "out/results").iterdir()) == ["000000", "000001", "000002"]
    with pytest.raises(UserError, match="5 frames were dropped"):
        evaluate_bag(bag, lambda frame: None, CAR_AND_PEDESTRIAN, tmp_path / "none")
    with pytest.raises(UserError, match="the bag has Detection3DArray or String on /camera/ground_truth,"):
        evaluate_bag(bag, cheat, CAR_AND_PEDESTRIAN, tmp_path / "x", "/nothing")


def test_without_truth_there_are_detections_jitter_and_latency(root: Path, tmp_path: Path) -> None:
    calib = root / "training/calib/000000.txt"
    make_bag("folder", root / "training/image_2", tmp_path / "bag", BagOptions(camera=calib))
    scores = evaluate_bag(tmp_path / "bag", Cheat(root), CAR_AND_PEDESTRIAN, tmp_path / "out")
    assert "kitti" not in scores
    assert scores["truth"] is None
    assert scores["latency_ms"]["median"] == pytest.approx(10)
    assert (tmp_path / "out/report.html").read_text().count("<img") == 1
    evaluate_bag(tmp_path / "bag", Cheat(root), CAR_AND_PEDESTRIAN, tmp_path / "out")  # replaces its own files
    (tmp_path / "out/scores.json").unlink()
    with pytest.raises(UserError, match="is not from an evaluation"):
        evaluate_bag(tmp_path / "bag", Cheat(root), CAR_AND_PEDESTRIAN, tmp_path / "out")


def test_labels_by_stamp_and_labels_that_do_not_fit(bag: Path, tmp_path: Path) -> None:
    topics, copies, notes = CameraTopics("/camera/image", "/camera/camera_info"), tmp_path / "copies", []
    first, second, *_ = read_frames(bag)
    stamp = first.stamp
    (tmp_path / f"{stamp}.txt").write_text("Car 0 0 0 1 1 9 60 1.5 1.6 4 0 1.7 20 0\n")
    truth = find_truth(bag, topics, TruthSource(labels=tmp_path), ("Car",), copies, notes)
    assert truth is not None
    assert len(truth.at(first) or ()) == 1
    assert truth.at(second) is None
    assert notes == []
    (tmp_path / "other.txt").touch()
    with pytest.raises(UserError, match="2 files for 5 frames"):
        find_truth(bag, topics, TruthSource(labels=tmp_path), ("Car",), copies, notes)
    with pytest.raises(UserError, match="not both"):
        find_truth(bag, topics, TruthSource("/x", tmp_path), ("Car",), copies, notes)


def test_malformed_labels_in_a_bag_are_named(tmp_path: Path) -> None:
    with BagWriter(tmp_path / "bag") as writer:
        writer.write_frame(a_frame(0), "/camera/image", "/camera/camera_info")
        writer.write_text("/camera/ground_truth_kitti", "Car 1 2\n", a_frame(0).stamp)
    with pytest.raises(UserError, match=r"bag: /camera/ground_truth_kitti: 000000.txt:1: "):
        evaluate_bag(tmp_path / "bag", lambda frame: None, CAR_AND_PEDESTRIAN, tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_labels_from_boxes_by_hand() -> None:
    """A cube of 2 m whose left half is outside of the image, one wholly outside, one behind."""
    P = torch.tensor([[100.0, 0, 50, 0], [0, 100, 50, 0], [0, 0, 1, 0]], dtype=torch.float64)
    center = torch.tensor([[-5.0, 0, 10], [30, 0, 10], [0, 0, -10]])
    boxes = Boxes3D(center, torch.full((3, 3), 2.0), torch.zeros(3), ("Car",) * 3)
    objects = labels_from_boxes(boxes, Camera(P, 100, 100))
    assert len(objects) == 1
    left, right = 50 + 100 * -6 / 9, 50 + 100 * -4 / 11
    height = 2 * 100 / 9
    assert objects.xyxy[0].tolist() == pytest.approx([0, 50 - height / 2, right, 50 + height / 2])
    assert objects.truncated[0] == pytest.approx(-left / (right - left))
    assert (objects.occluded[0], objects.score[0], objects.location[0, 1]) == (0, 1, 1)


def test_a_cut_recording_is_scored_as_far_as_it_goes(root: Path, tmp_path: Path) -> None:
    make_bag("kitti", root, tmp_path / "bag", BagOptions(storage="sqlite3"))
    with BagWriter(tmp_path / "long", storage="sqlite3") as writer:
        for frame in read_frames(tmp_path / "bag"):
            for k in range(8):
                shifted = replace(frame, stamp=frame.stamp + k * 1000)
                writer.write_frame(shifted, "/camera/image", "/camera/camera_info")
    file = tmp_path / "long" / "long.db3"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])

    def nothing(frame: Frame) -> tuple[Boxes3D, float]:
        return Boxes3D.empty(), 0.01

    scores = evaluate_bag(tmp_path / "long", nothing, CAR_AND_PEDESTRIAN, tmp_path / "out")
    assert 10 <= scores["frames"] < 40
    assert any("damaged" in problem for problem in scores["problems"])
    assert "damaged" in (tmp_path / "out/report.html").read_text()


def test_an_interrupted_evaluation_leaves_the_one_before(root: Path, bag: Path, tmp_path: Path) -> None:
    """And where there is none before, nothing that would stop the next."""

    def interrupted(frame: Frame) -> tuple[Boxes3D, float]:
        if frame.stamp % 1_000_000_000:
            raise KeyboardInterrupt
        return Boxes3D.empty(), 0.01

    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        evaluate_bag(bag, interrupted, CAR_AND_PEDESTRIAN, out)
    assert list(out.iterdir()) == []
    evaluate_bag(bag, Cheat(root), CAR_AND_PEDESTRIAN, out)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    with pytest.raises(KeyboardInterrupt):
        evaluate_bag(bag, interrupted, CAR_AND_PEDESTRIAN, out)
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


SMALL = Camera(torch.tensor([[70.0, 0, 32, 0], [0, 70, 24, 0], [0, 0, 1, 0]], dtype=torch.float64), 64, 48)


def a_frame(number: int) -> Frame:
    return Frame(np.zeros((48, 64, 3), np.uint8), SMALL, 10**18 + number * 10**8, "camera")


def ten_cars(seed: int) -> Boxes3D:
    """In about the same places for every seed."""
    spread = torch.randn(10, 1, generator=torch.Generator().manual_seed(seed))
    places = torch.stack([torch.linspace(-9, 9, 10), torch.ones(10), torch.linspace(10, 40, 10)], -1)
    center, size = places * (1 + 0.01 * spread), torch.tensor([[4.0, 1.6, 1.5]]).repeat(10, 1)
    boxes = Boxes3D(center, size, torch.zeros(10), ("Car",) * 10, torch.full((10,), 0.5))
    return replace(boxes, xyxy=boxes.project(SMALL).xyxy)


def test_memory_does_not_grow_with_the_recording(tmp_path: Path) -> None:
    """From frame 50 to 200, each with ten detections and ten labels: numbers stay and no objects, let alone images."""
    with BagWriter(tmp_path / "bag") as writer:
        for number in range(200):
            frame = a_frame(number)
            writer.write_frame(frame, "/camera/image", "/camera/camera_info")
            writer.write_detections("/camera/ground_truth", ten_cars(0), frame.stamp, "camera")
    number, kept = 0, []
    writers_buffer = tracemalloc.Filter(False, "*/rosbags/*")  # up to 1 MB, then written

    def predict(frame: Frame) -> tuple[Boxes3D, float]:
        nonlocal number
        number += 1
        if number in (50, 200):
            own = tracemalloc.take_snapshot().filter_traces([writers_buffer])
            traces = own.statistics("filename")
            kept.append((sum(t.size for t in traces), sum(t.count for t in traces)))
        return ten_cars(number), 0.01

    tracemalloc.start()
    try:
        scores = evaluate_bag(tmp_path / "bag", predict, ("Car",), tmp_path / "out")
    finally:
        tracemalloc.stop()
    assert (scores["frames"], scores["detections"]) == (200, 2000)
    (bytes_before, blocks_before), (bytes_after, blocks_after) = kept
    assert (bytes_after - bytes_before) / 150 < 5000  # 20 objects of 122 bytes, 10 of tracks 48, and room to grow
    assert (blocks_after - blocks_before) / 150 < 12  # a frame kept as objects is 80 and more


def test_a_log_of_objects_gives_back_what_it_took() -> None:
    rng = np.random.default_rng(1)
    log, frames = ObjectLog(), []
    for n in (3, 0, 1, 5):
        kinds = rng.choice(["Car", "Van", "DontCare"], n).tolist()
        shapes = {"xyxy": (n, 4), "dimensions": (n, 3), "location": (n, 3)}
        columns = {f.name: rng.normal(size=shapes.get(f.name, n)) for f in fields(KittiObjects)[1:]}
        frames.append(KittiObjects(kinds, **columns))
        log.append(frames[-1])
    assert (len(log), log.count()) == (4, 9)
    for before, after in zip(frames, log, strict=True):
        assert after.type == before.type
        for f in fields(KittiObjects)[1:]:
            assert np.array_equal(getattr(after, f.name), getattr(before, f.name))
    for wrong in (4, -1):
        with pytest.raises(IndexError):
            log[wrong]


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """A car in each of five frames."""
    folder = tmp_path / "results"
    folder.mkdir()
    for index in range(5):
        (folder / f"{index:06d}.txt").write_text("Car -1 -1 0 1 1 9 60 1.5 1.6 4 0 1.7 20 0 0.9\n")
    return folder


def test_show_draws_truth_over_detections(root: Path, bag: Path, results: Path, tmp_path: Path) -> None:
    """The same picture from the bag and from the folder; two rows of 144 pixels and 4 between, a square beside."""
    chosen = Choice(results=results, frames="1:5:2")
    assert draw_pictures(tmp_path / "a", views(root, chosen)) == 2
    assert draw_pictures(tmp_path / "b", views(bag, chosen)) == 2
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == ["000001.png", "000003.png"]
    for path in (tmp_path / "a").iterdir():
        picture = cv2.imread(str(path))
        assert picture.shape == (292, 480 + 292, 3)
        assert np.array_equal(picture, cv2.imread(str(tmp_path / "b" / path.name)))
        assert not np.array_equal(picture[:144, :480], picture[148:, :480])
    assert draw_pictures(tmp_path / "c", views(root, Choice(frames="0"))) == 1
    assert cv2.imread(str(tmp_path / "c" / "000000.png")).shape == (240, 480 + 240, 3)  # at least 240 from above


def test_arrow_keys_step_through_the_frames(bag: Path, results: Path) -> None:
    """Frames are read when they are first wanted, and at both ends nothing happens."""
    matplotlib.use("agg")
    taken: list[int] = []

    def watched() -> Iterator[View]:
        for view in views(bag, Choice(results=results)):
            taken.append(view.number)
            yield view

    figure = make_window(Stepper(watched()))
    axes = figure.axes[0]
    seen = [axes.get_title()]
    for key in ["left", "right", "x", "right", "left", *5 * ["right"]]:
        KeyEvent("key_press_event", figure.canvas, key)._process()
        seen.append(axes.get_title())
        assert taken == list(range(max(taken) + 1))
    pyplot.close(figure)
    steps = [0, 0, 1, 1, 2, 1, 2, 3, 4, 4, 4]
    assert [title.split(";")[0] for title in seen] == [f"{i:06d} (frame {i})" for i in steps]
    assert taken == [0, 1, 2, 3, 4]


def test_a_rerun_recording_holds_images_cameras_and_boxes(bag: Path, results: Path, tmp_path: Path) -> None:
    dataframe = pytest.importorskip("rerun.dataframe", reason="needs the extra [rerun]", exc_type=ImportError)
    frames = list(read_frames(bag))
    assert write_recording(tmp_path / "a" / "x.rrd", views(bag, Choice(results=results, frames="1:4:2"))) == 2
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["x.rrd"]
    recording = dataframe.load_recording(tmp_path / "a" / "x.rrd")
    table = recording.view(index="frame", contents="/**").select().read_all()
    assert table.column("frame").to_pylist() == [1, 3]
    assert [stamp.value for stamp in table.column("stamp")] == [frames[1].stamp, frames[3].stamp]
    (center,) = table.column("/detections:PoseTranslation3D")[0].as_py()
    assert center == pytest.approx([0, 1.7 - 1.5 / 2, 20])
    (half,) = table.column("/detections:HalfSize3D")[0].as_py()
    assert half == pytest.approx([2, 0.8, 0.75])
    assert table.column("/detections:Text")[0].as_py() == ["Car 0.90"]
    projection = table.column("/camera:PinholeProjection")[0].as_py()[0]  # by columns
    assert projection == pytest.approx(frames[1].camera.P[:, :3].T.flatten().tolist())


def test_without_rerun_the_extra_is_named(bag: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rerun", None)
    with pytest.raises(UserError, match=r"--rerun needs rerun-sdk .*pip install"):
        write_recording(tmp_path / "x.rrd", views(bag, Choice()))
    assert list(tmp_path.iterdir()) == []


def test_wrong_options_of_show_are_named(root: Path, tmp_path: Path) -> None:
    for options, message in [
        ({"weights": "a", "results": tmp_path}, "not both"),
        ({"frames": "1:2:3:4"}, "--frames 1:2:3:4"),
        ({"frames": "-1"}, "--frames -1"),
        ({"frames": ""}, "--frames"),
        ({"frames": "::0"}, "STEP must not be 0"),
        ({"frames": "77"}, "no frame in 77"),
        ({"results": tmp_path}, "cannot read"),
    ]:
        with pytest.raises(UserError, match=message):
            draw_pictures(tmp_path / "out", views(root, Choice(**options)))
    matplotlib.use("agg")  # on a desktop too: a window would wait for somebody
    with pytest.raises(UserError, match="no display"):
        step_through(views(root, Choice(frames="0")))


def test_unknown_latencies_are_left_out() -> None:
    assert _latency([math.nan, math.nan]) is None
    known = _latency([math.nan, 0.02, 0.01, 0.03])
    assert known is not None
    assert known["median"] == pytest.approx(20)
    assert known["max"] == pytest.approx(30)
