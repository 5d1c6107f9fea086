"""Data sets as bags, and their evaluation: the same numbers as from the folder."""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import replace
from pathlib import Path

import cv2
import matplotlib
import numpy as np
import nuscenes_tree
import pytest
import torch

from skd_core.boxes import Boxes3D
from skd_core.camera import Camera
from skd_core.data.bag import BagWriter, CameraTopics, Frame, find_cameras, read_detections, read_frames, read_texts
from skd_core.data.bag_make import make_bag
from skd_core.data.kitti import KittiDataset, read_objects
from skd_core.data.nuscenes import NuScenesDataset
from skd_core.data.synthetic import SynthConfig, write_dataset
from skd_core.errors import UserError
from skd_core.evaluation.bag_eval import _latency, bag_eval, evaluate_bag
from skd_core.evaluation.bag_truth import find_truth, labels_from_boxes
from skd_core.evaluation.report import report_kitti
from skd_core.evaluation.show import show
from skd_core.inference.detector import Detector
from skd_core.inference.predict import predict_images

CLASSES = ("Car", "Pedestrian", "Cyclist", "Van", "Truck")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Large enough for objects of more than 25 pixels, the least that KITTI counts."""
    folder = tmp_path_factory.mktemp("data") / "set"
    write_dataset(folder, SynthConfig(480, 144), 5, 11)
    return folder


@pytest.mark.parametrize("storage", ["mcap", "sqlite3"])
def test_a_data_set_survives_as_a_bag(root: Path, tmp_path: Path, storage: str) -> None:
    assert make_bag("kitti", root, tmp_path / "bag", rate=20, storage=storage) == 5
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
        torch.testing.assert_close(boxes.center, expected.center, rtol=0, atol=0)
        torch.testing.assert_close(boxes.size, expected.size, rtol=0, atol=0)
        torch.testing.assert_close(boxes.yaw, expected.yaw, rtol=0, atol=1e-12)
        assert texts[index] == (stamp, label.read_text())


def test_a_folder_of_images_as_a_bag(root: Path, tmp_path: Path) -> None:
    images, calib = root / "training" / "image_2", root / "training" / "calib" / "000000.txt"
    assert make_bag("folder", images, tmp_path / "bag", camera=calib) == 5
    assert [c.image for c in find_cameras(tmp_path / "bag")] == ["/camera/image"]
    with pytest.raises(UserError, match="no Detection3DArray"):
        list(read_detections(tmp_path / "bag"))


def test_nuscenes_as_a_bag_of_six_cameras(tmp_path: Path) -> None:
    pytest.importorskip("nuscenes", reason="needs the extra [nuscenes]")
    root = nuscenes_tree.write_tree(tmp_path / "mini", nuscenes_tree.miniature(1))
    assert make_bag("nuscenes", root, tmp_path / "bag", split="mini_val") == 6
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
        (("kitti", root, tmp_path / "x", None, root / "calib.txt"), "--camera FILE goes with folder"),
        (("kitti", root, tmp_path / "x", None, None, 0.0), "--rate 0"),
        (("kitti", root, tmp_path / "x", None, None, 10.0, "hdf5"), "--storage hdf5"),
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
    assert report.count("<img") == 6
    assert "nan" not in report.split("<img")[0].lower()


def test_the_detector_finds_in_a_bag_what_it_finds_in_the_folder(root: Path, bag: Path, tmp_path: Path) -> None:
    detector = Detector.random()
    detector.save(tmp_path / "w.safetensors")
    bag_eval(bag, str(tmp_path / "w.safetensors"), tmp_path / "out", None, None, None, None, 0.0, "cpu", None)
    for index in range(2):
        name = f"{index:06d}"
        image, calib = (root / "training" / d / f"{name}.{s}" for d, s in (("image_2", "png"), ("calib", "txt")))
        predict_images([image], calib, detector, tmp_path / "folder", 0.0, draw=False)
        expected = (tmp_path / "folder" / "results" / f"{name}.txt").read_text()
        assert expected
        assert (tmp_path / "out" / "results" / f"{name}.txt").read_text() == expected
    found = list(read_detections(tmp_path / "out" / "detections", classes=detector.classes))
    frames = list(read_frames(bag))
    assert [(stamp, frame_id) for stamp, frame_id, _ in found] == [(f.stamp, f.frame_id) for f in frames]
    boxes = detector.predict(frames[0].image, frames[0].camera, 0.0)
    torch.testing.assert_close(found[0][2].center, boxes.center.double(), rtol=0, atol=0)
    assert found[0][2].labels == boxes.labels


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
    make_bag("folder", root / "training/image_2", tmp_path / "bag", camera=root / "training/calib/000000.txt")
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
    topics = CameraTopics("/camera/image", "/camera/camera_info")
    stamp = next(read_frames(bag)).stamp
    (tmp_path / f"{stamp}.txt").write_text("Car 0 0 0 1 1 9 60 1.5 1.6 4 0 1.7 20 0\n")
    truth = find_truth(bag, topics, None, tmp_path, ("Car",), tmp_path / "copies")
    assert truth is not None
    camera = next(read_frames(bag)).camera
    assert len(truth.at(stamp, camera) or ()) == 1
    assert truth.at(stamp + 100_000_000, camera) is None
    (tmp_path / "other.txt").touch()
    with pytest.raises(UserError, match="2 label files for 5 frames"):
        find_truth(bag, topics, None, tmp_path, ("Car",), tmp_path / "copies")
    with pytest.raises(UserError, match="not both"):
        find_truth(bag, topics, "/x", tmp_path, ("Car",), tmp_path / "copies")


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
    make_bag("kitti", root, tmp_path / "bag", storage="sqlite3")
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


def test_show_draws_truth_over_detections(root: Path, bag: Path, tmp_path: Path) -> None:
    """The same picture from the bag and from the folder; two rows of 144 pixels and 4 between, a square beside."""
    results = tmp_path / "results"
    results.mkdir()
    for index in range(5):
        (results / f"{index:06d}.txt").write_text("Car -1 -1 0 1 1 9 60 1.5 1.6 4 0 1.7 20 0 0.9\n")
    assert show(root, tmp_path / "a", results=results, frames="1:5:2") == 2
    assert show(bag, tmp_path / "b", results=results, frames="1:5:2") == 2
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == ["000001.png", "000003.png"]
    for path in (tmp_path / "a").iterdir():
        picture = cv2.imread(str(path))
        assert picture.shape == (292, 480 + 292, 3)
        assert np.array_equal(picture, cv2.imread(str(tmp_path / "b" / path.name)))
        assert not np.array_equal(picture[:144, :480], picture[148:, :480])
    assert show(root, tmp_path / "c", frames="0") == 1
    assert cv2.imread(str(tmp_path / "c" / "000000.png")).shape == (144, 480 + 144, 3)


def test_wrong_options_of_show_are_named(root: Path, tmp_path: Path) -> None:
    matplotlib.use("agg")  # on a desktop too: a window would wait for somebody
    for options, message in [
        ({"weights": "a", "results": tmp_path}, "not both"),
        ({"frames": "1:2:3:4"}, "--frames 1:2:3:4"),
        ({"frames": "-1"}, "--frames -1"),
        ({"frames": ""}, "--frames"),
        ({"frames": "::0"}, "STEP must not be 0"),
        ({"frames": "77"}, "no frame in 77"),
        ({"results": tmp_path}, "cannot read"),
        ({"window": True, "frames": "0"}, "no display"),
    ]:
        with pytest.raises(UserError, match=message):
            show(root, tmp_path / "out", **options)


def test_unknown_latencies_are_left_out() -> None:
    assert _latency([math.nan, math.nan]) is None
    known = _latency([math.nan, 0.02, 0.01, 0.03])
    assert known is not None
    assert known["median"] == pytest.approx(20)
    assert known["max"] == pytest.approx(30)
