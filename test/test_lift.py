"""2D boxes from outside on the command line: lifting without a network, `lift`, `predict` and `bag-eval`."""

from __future__ import annotations

import json
import math
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from skd_core import Boxes2D, Boxes3D, Camera, Detector
from skd_core.cli import main
from skd_core.data.bag_make import make_bag
from skd_core.data.kitti import KittiDataset, read_given_boxes2d, read_objects
from skd_core.errors import UserError
from skd_core.geometry import geometric_depth, half_extent, mean_half_extent
from skd_core.iou import bev_iou
from skd_core.priors import prior_sizes
from skd_core.supervision.lift import lift
from skd_core.synthetic import SynthConfig, write_dataset

WIDTH, HEIGHT = 1242, 375
CAMERA = tiny.kitti_camera()


def average(x: float, z: float, yaw: float, kind: str = "Car", y: float = 1.65) -> Boxes3D:
    """An average object on the road."""
    size = prior_sizes([kind]).double()
    center = torch.tensor([[x, y, z]], dtype=torch.float64) - torch.tensor([[0, 0.5, 0]]) * size[:, 2:]
    return Boxes3D(center, size, torch.tensor([yaw], dtype=torch.float64), (kind,))


def turned(a: torch.Tensor, b: torch.Tensor) -> float:
    """Angle between two yaws modulo pi, degrees."""
    return abs(math.degrees(math.remainder(float(a - b), math.pi)))


# -- the formula -------------------------------------------------------------------------------------------------------
def test_the_formula_by_hand() -> None:
    assert geometric_depth(700.0, 1.5, 50.0, 2.0) == 23.0
    together = geometric_depth(torch.tensor(700.0), torch.tensor([1.5, 3]), torch.tensor([50.0, 50]), torch.tensor(2.0))
    assert together.tolist() == [23, 44]
    size = torch.tensor([4.0, 2, 1.5])
    assert half_extent(size, torch.tensor(0.0)) == 1
    assert half_extent(size, torch.tensor(math.pi / 2)) == 2
    yaws = torch.linspace(0, math.pi, 10001)[:-1]
    assert mean_half_extent((4.0, 2.0, 1.5)) == pytest.approx(float(half_extent(size.expand(10000, 3), yaws).mean()))


# -- lifting -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("z", [10.0, 20.0, 45.0])
@pytest.mark.parametrize("x", [-6.0, 0.0, 3.0])
def test_a_car_seen_from_behind_is_put_where_it_stands(x: float, z: float) -> None:
    truth = average(x, z, math.pi / 2)
    found = lift(truth.project(CAMERA), CAMERA)
    assert float(found.center[0, 2]) == pytest.approx(z, rel=0.03)
    assert float(found.center[0, 0]) == pytest.approx(x, abs=0.1 + 0.02 * z)
    assert float(found.center[0, 1]) == pytest.approx(float(truth.center[0, 1]), abs=0.1)
    assert turned(found.yaw[0], truth.yaw[0]) < 12
    assert float(bev_iou(found.bev.double(), truth.bev)) > 0.5
    torch.testing.assert_close(found.size.double(), truth.size, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", ["Car", "Pedestrian", "Cyclist", "truck"])
@pytest.mark.parametrize("yaw", [0.0, 0.6, math.pi / 2, 2.2])
def test_the_projected_box_lies_on_the_2d_box(kind: str, yaw: float) -> None:
    given = average(2.0, 25.0, yaw, kind).project(CAMERA)
    found = lift(given, CAMERA)
    again = found.project(CAMERA).xyxy.double()
    wh = given.xyxy[0, 2:] - given.xyxy[0, :2]
    assert ((again + again.roll(2, -1))[0, :2] / 2 - (given.xyxy + given.xyxy.roll(2, -1))[0, :2] / 2).abs().max() < 0.3
    # as wide and as high, but for the 2 % and the faces of a square footprint that no yaw makes narrower
    assert float((again[0, 2] - again[0, 0]) / wh[0]) == pytest.approx(1, abs=0.05)
    assert float((again[0, 3] - again[0, 1]) / wh[1]) == pytest.approx(1, abs=0.08)


def test_of_two_yaws_that_are_as_wide_the_one_along_the_axis_is_taken() -> None:
    """A crossing car in the middle of the image looks as wide turned either way; one along it has no rival."""
    for yaw in (0.9, math.pi - 0.9):
        found = lift(average(0.0, 20.0, yaw).project(CAMERA), CAMERA)
        assert turned(found.yaw[0], torch.tensor(math.pi / 2)) <= 40
    assert turned(lift(average(0, 20, math.pi / 2).project(CAMERA), CAMERA).yaw[0], torch.tensor(math.pi / 2)) < 3


def test_a_box_cut_at_the_bottom_is_placed_by_its_width() -> None:
    truth = average(1.0, 6.0, math.pi / 2, y=2.6)
    given = truth.project(CAMERA)
    assert float(given.xyxy[0, 3]) == HEIGHT
    assert float(given.xyxy[0, 3] - given.xyxy[0, 1]) < 200
    found = lift(given, CAMERA)
    assert float(found.center[0, 2]) == pytest.approx(6.0, rel=0.1)
    assert float(found.center[0, 1]) == pytest.approx(float(truth.center[0, 1]), abs=0.25)  # by its upper edge


def test_a_box_cut_at_the_side_is_placed_by_its_height_and_its_inner_edge() -> None:
    truth = average(-7.5, 9.0, math.pi / 2, y=1.4)
    given = truth.project(CAMERA)
    assert float(given.xyxy[0, 0]) == 0
    assert float(given.xyxy[0, 3]) < HEIGHT - 3
    found = lift(given, CAMERA)
    assert float(found.center[0, 2]) == pytest.approx(9.0, rel=0.1)
    assert turned(found.yaw[0], truth.yaw[0]) < 1
    assert float(found.center[0, 0]) == pytest.approx(-7.5, abs=0.6)
    assert float(found.project(CAMERA).xyxy[0, 2]) == pytest.approx(float(given.xyxy[0, 2]), abs=1)
    mirrored = lift(given.flip(WIDTH), CAMERA.flip())
    torch.testing.assert_close(mirrored.center, found.flip().center, rtol=1e-4, atol=0.1)


boxes = st.tuples(
    st.floats(40, 1100), st.floats(40, 200), st.floats(8, 100), st.floats(8, 100), st.sampled_from(tiny.CLASSES)
)


@settings(max_examples=40)
@given(rows=st.lists(boxes, min_size=1, max_size=5), zoom=st.floats(0.5, 3.0))
def test_an_image_at_another_scale_gives_the_same_boxes(
    rows: list[tuple[float, float, float, float, str]], zoom: float
) -> None:
    xyxy = torch.tensor([[x, y, x + w, y + h] for x, y, w, h, _ in rows], dtype=torch.float64)
    given = Boxes2D(xyxy, tuple(row[4] for row in rows), torch.linspace(0.1, 0.9, len(rows), dtype=torch.float64))
    larger = Camera(torch.diag(torch.tensor([zoom, zoom, 1.0], dtype=torch.float64)) @ CAMERA.P, 4 * 1242, 4 * 375)
    window = Camera(CAMERA.P, 4 * 1242, 4 * 375)  # no border near the boxes in either
    once, twice = lift(given, window), lift(given.scale(zoom, zoom), larger)
    assert once.labels == twice.labels == given.labels
    for name in ("center", "size", "yaw", "scores", "depth_std"):
        torch.testing.assert_close(getattr(twice, name), getattr(once, name), rtol=1e-4, atol=1e-4, msg=name)
    torch.testing.assert_close(twice.xyxy, once.xyxy * zoom, rtol=1e-5, atol=1e-3)


@settings(max_examples=40)
@given(rows=st.lists(boxes, min_size=1, max_size=5), focal=st.floats(1.2, 3.0))
def test_higher_boxes_are_nearer_and_longer_lenses_see_farther(
    rows: list[tuple[float, float, float, float, str]], focal: float
) -> None:
    xyxy = torch.tensor([[x, y, x + w, y + h] for x, y, w, h, _ in rows], dtype=torch.float64)
    labels = tuple(row[4] for row in rows)
    found = lift(Boxes2D(xyxy, labels), CAMERA)
    assert (found.center[:, 2] > 0).all()
    higher = torch.cat([xyxy[:, :3], xyxy[:, 1:2] + 1.5 * (xyxy[:, 3:] - xyxy[:, 1:2])], -1)
    low_enough = higher[:, 3] < HEIGHT - 4
    nearer = lift(Boxes2D(higher, labels), CAMERA)
    extent = 0.5 * (found.size[:, 0] + found.size[:, 1])  # e may differ by no more, with the yaw
    assert (nearer.center[:, 2] < found.center[:, 2] + extent)[low_enough].all()
    longer = torch.diag(torch.tensor([focal, focal, 1.0], dtype=torch.float64)) @ CAMERA.P
    longer[:2, 2] = CAMERA.P[:2, 2]
    farther = lift(Boxes2D(xyxy, labels), Camera(longer, WIDTH, HEIGHT))
    assert (farther.center[:, 2] > found.center[:, 2] - extent).all()


def test_scores_boxes_and_order_are_kept_and_empty_boxes_left_out() -> None:
    xyxy = [[100.0, 100, 200, 180], [-50, 100, -10, 180], [300, 100, 300.5, 180], [-20, 150, 60, 220]]
    found = lift(
        Boxes2D(torch.tensor(xyxy), ("Car", "Car", "Car", "Pedestrian"), torch.tensor([0.1, 0.2, 0.3, 0.4])), CAMERA
    )
    assert found.labels == ("Car", "Pedestrian")
    assert found.scores.tolist() == pytest.approx([0.1, 0.4])
    assert found.xyxy.tolist() == [[100, 100, 200, 180], [0, 150, 60, 220]]
    assert float(found.depth_std[0] / (found.center[0, 2] + CAMERA.P[2, 3])) == pytest.approx(0.076)
    assert len(lift(Boxes2D.empty(), CAMERA)) == 0
    with pytest.raises(UserError, match="unknown class 'Tram'"):
        lift(Boxes2D(torch.tensor(xyxy[:1]), ("Tram",)), CAMERA)
    kitti, small = (lift(Boxes2D(torch.tensor(xyxy[:1]), (name,)), CAMERA) for name in ("Car", "car"))
    assert torch.equal(kitti.center, small.center)  # not nuScenes' car, which is higher
    assert small.labels == ("car",)
    with pytest.raises(UserError, match="box 0 needs finite"):
        lift(Boxes2D(torch.tensor([[9.0, 9, 5, 20]]), ("Car",)), CAMERA)


# -- files of 2D boxes -------------------------------------------------------------------------------------------------
def test_label_and_result_files_of_2d_boxes(tmp_path: Path) -> None:
    line = "Car 0 0 0 10 20 30 40 1.5 1.6 4 0 1.6 20 0"
    path = tmp_path / "a.txt"
    path.write_text(f"{line}\nDontCare -1 -1 -10 0 0 9 9 -1 -1 -1 -1000 -1000 -1000 -10\n")
    boxes = read_given_boxes2d(path)
    assert (boxes.labels, boxes.scores.tolist(), boxes.xyxy.tolist()) == (("Car",), [1.0], [[10, 20, 30, 40]])
    path.write_text(f"\n{line} 0.25\n")
    assert read_given_boxes2d(path).scores.tolist() == [0.25]
    path.write_text("Car 0 0 0 10 20 30 40\n")  # the 2D columns alone
    assert len(read_given_boxes2d(path)) == 1
    path.write_text("")
    assert len(read_given_boxes2d(path)) == 0
    for text, said in (
        (f"{line} 0.5\n{line}\n", r"a\.txt:2"),
        ("Car 0 0\n", r"a\.txt:1"),
        (f"{line} high", r"a\.txt:1"),
    ):
        path.write_text(text)
        with pytest.raises(UserError, match=said):
            read_given_boxes2d(path)


# -- the commands ------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("tree") / "set"
    write_dataset(root, SynthConfig(320, 96), 3, 11)
    return root


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "w.safetensors"
    Detector.random(1).save(path)
    return path


@pytest.fixture
def known(tree: Path, tmp_path: Path) -> Path:
    """Result files: the labels' boxes of the three classes that the weights know, with scores."""
    folder = tmp_path / "boxes"
    folder.mkdir()
    for path in (tree / "training" / "label_2").glob("*.txt"):
        lines = [line for line in path.read_text().splitlines() if line.split()[0] in tiny.CLASSES]
        (folder / path.name).write_text("".join(f"{line} {0.9 - 0.01 * i}\n" for i, line in enumerate(lines)))
    return folder


@pytest.fixture
def network(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """A 2D network that finds one car and one tree in every image; what it was loaded with."""
    loaded = []

    def load_detector_2d(model: str, *, tiles: int = 0) -> SimpleNamespace:
        loaded.append((model, tiles))
        return SimpleNamespace(detect=detect)

    def detect(image: NDArray[np.uint8]) -> Boxes2D:
        assert image.shape[2] == 3
        return Boxes2D(torch.tensor([[100.0, 40, 160, 80], [0, 0, 9, 90]]), ("car", "Tree"), torch.tensor([0.8, 0.7]))

    monkeypatch.setitem(
        sys.modules, "skd_core.supervision.detector_2d", SimpleNamespace(load_detector_2d=load_detector_2d)
    )
    return loaded


Run = Callable[..., tuple[int, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """`skd_core ...` in this process: exit code and the last line of stderr."""

    def call(*arguments: object) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["skd_core", *map(str, arguments)])
        code = 0
        try:
            main()
        except SystemExit as end:
            code = int(end.code or 0)
        return code, (capsys.readouterr().err.strip().splitlines() or [""])[-1]

    return call


def result(folder: Path, name: str = "000000") -> Boxes3D:
    return read_objects(folder / "results" / f"{name}.txt", results=True).boxes3d()


def test_lift_command_on_a_tree_and_on_images(tree: Path, known: Path, run: Run, tmp_path: Path) -> None:
    images, calib = tree / "training" / "image_2", tree / "training" / "calib"
    assert run("lift", tree, "--boxes", known, "--out", tmp_path / "a")[0] == 0
    assert run("lift", images, "--camera", calib, "--boxes", known, "--out", tmp_path / "b", "--draw")[0] == 0
    sample = KittiDataset(tree)[0]
    bare = tmp_path / "bare"  # the boxes come from elsewhere
    shutil.copytree(tree, bare, ignore=shutil.ignore_patterns("label_2"))
    assert run("lift", bare, "--boxes", known, "--out", tmp_path / "c")[0] == 0
    labels = tree / "training" / "label_2"  # where there are, they are not written over
    before = {path.name: path.read_text() for path in labels.iterdir()}
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "results").symlink_to(labels)
    code, line = run("lift", tree, "--boxes", known, "--out", tmp_path / "d")
    assert (code, "would write over an input" in line) == (2, True), line
    assert {path.name: path.read_text() for path in labels.iterdir()} == before
    assert len(KittiDataset(bare, labels=False, with_3d=True)[0].boxes2d) == 0
    with pytest.raises(UserError, match="label_2: no such folder"):
        KittiDataset(bare)
    expected = lift(read_given_boxes2d(known / "000000.txt"), sample.camera)
    for name in "abc":
        found = result(tmp_path / name)
        assert found.labels == expected.labels
        torch.testing.assert_close(found.center, expected.center.double(), rtol=0, atol=1e-6)
        torch.testing.assert_close(found.scores, expected.scores.double(), rtol=0, atol=0)
    assert not (tmp_path / "a" / "pictures").exists()
    assert (tmp_path / "b" / "pictures" / "000001.png").is_file()


def test_predict_places_boxes_from_files(tree: Path, known: Path, weights: Path, run: Run, tmp_path: Path) -> None:
    images, calib = tree / "training" / "image_2", tree / "training" / "calib"
    common = ("--camera", calib, "--weights", weights, "--device", "cpu", "--no-draw")
    assert run("predict", images, *common, "--boxes", known, "--threshold", 0.0, "--out", tmp_path / "out")[0] == 0
    sample, detector = KittiDataset(tree)[0], Detector.load(weights, "cpu")
    given = read_given_boxes2d(known / "000000.txt")
    pixels = sample.image.permute(1, 2, 0).numpy()
    expected = detector.predict(pixels, sample.camera, 0.0, boxes2d=given)
    found = result(tmp_path / "out")
    assert len(found) == len(given) > 0
    torch.testing.assert_close(found.scores, expected.scores.double(), rtol=0, atol=0)
    torch.testing.assert_close(found.center, expected.center.double(), rtol=0, atol=1e-6)


def test_a_2d_detector_in_the_process(
    tree: Path, weights: Path, run: Run, tmp_path: Path, network: list[tuple[str, int]]
) -> None:
    """Its boxes of classes that the weights know are placed; windows as asked for."""
    images, calib = tree / "training" / "image_2", tree / "training" / "calib"
    common = ("--camera", calib, "--detector", "net.onnx", "--out", tmp_path / "out")
    assert run("predict", images, *common, "--weights", weights, "--device", "cpu", "--threshold", 0.0)[0] == 0
    found = result(tmp_path / "out", "000002")
    assert found.labels == ("Car",)
    torch.testing.assert_close(found.xyxy, torch.tensor([[100.0, 40, 160, 80]]).double(), rtol=0, atol=1e-4)
    code, said = run(
        "eval", "real", tree, "--boxes", "net.onnx", "--lift", "--tiles", 2, "--kind", "Car", "--device", "cpu"
    )
    assert code == 0, said
    assert network == [("net.onnx", 4), ("net.onnx", 2)]


def test_bag_eval_places_the_boxes_that_predict_places(
    tree: Path, known: Path, weights: Path, run: Run, tmp_path: Path, network: list[tuple[str, int]]
) -> None:
    bag, images, calib = tmp_path / "bag", tree / "training" / "image_2", tree / "training" / "calib"
    make_bag("kitti", tree, bag)
    common = ("--weights", weights, "--device", "cpu", "--threshold", 0.0)
    for name, source in (("files", ("--boxes", known)), ("net", ("--detector", "net.onnx", "--tiles", 1))):
        assert run("bag-eval", bag, *common, *source, "--out", tmp_path / name)[0] == 0
        assert run("predict", images, "--camera", calib, *common, *source, "--out", tmp_path / f"{name}2")[0] == 0
        for number in range(3):
            a, b = (result(folder, f"{number:06d}") for folder in (tmp_path / name, tmp_path / f"{name}2"))
            assert a.labels == b.labels
            assert len(a)
            torch.testing.assert_close(a.center, b.center, rtol=0, atol=0)
            torch.testing.assert_close(a.scores, b.scores, rtol=0, atol=0)
    assert network == [("net.onnx", 1), ("net.onnx", 1)]
    read = tmp_path / "files" / "results"
    assert "over an input" in run("bag-eval", bag, *common, "--boxes", read, "--out", tmp_path / "files")[1]
    (known / "000002.txt").unlink()
    code, said = run("bag-eval", bag, *common, "--boxes", known, "--out", tmp_path / "x")
    assert (code, "2 files for 3 frames" in said) == (2, True), said
    frames = json.loads((tmp_path / "files" / "scores.json").read_text())["frames"]
    assert frames == 3


def test_natural_order_of_a_bags_boxes(tree: Path, weights: Path, run: Run, tmp_path: Path) -> None:
    """b2 before b10: files are told to images in the order of recording."""
    bag, folder = tmp_path / "bag", tmp_path / "boxes"
    make_bag("kitti", tree, bag)
    folder.mkdir()
    for name, x in (("b10", 200), ("b2", 100), ("b1", 0)):
        (folder / f"{name}.txt").write_text(f"Car 0 0 0 {x} 40 {x + 60} 80\n")
    common = ("--weights", weights, "--device", "cpu", "--threshold", 0.0, "--boxes", folder, "--out", tmp_path / "out")
    assert run("bag-eval", bag, *common)[0] == 0
    edges = [float(result(tmp_path / "out", f"{number:06d}").xyxy[0, 0]) for number in range(3)]
    assert edges == pytest.approx([0, 100, 200], abs=1e-3)


def test_wrong_input_is_one_line(tree: Path, known: Path, weights: Path, run: Run, tmp_path: Path) -> None:
    images, calib = tree / "training" / "image_2", tree / "training" / "calib"
    out = ("--out", tmp_path / "out")
    empty, odd = tmp_path / "empty", tmp_path / "odd"
    empty.mkdir()
    odd.mkdir()
    for name in ("000000", "000001", "000002"):
        (odd / f"{name}.txt").write_text(f"{'Tram' if name == '000002' else 'Car'} 0 0 0 10 20 30 40\n")
    (tmp_path / "text.onnx").write_text("no network")
    predict = ("predict", images, "--camera", calib, "--weights", weights, "--device", "cpu", *out)
    cases: list[tuple[tuple[object, ...], str]] = [
        (("lift", tree, *out), "--boxes DIR or --detector"),
        (("lift", tree, "--boxes", known, "--detector", "x.onnx", *out), "not both"),
        (("lift", tree, "--camera", calib, "--boxes", known, *out), "own calibrations"),
        (("lift", images, "--boxes", known, *out), "--camera"),
        (("lift", images, "--camera", calib, "--split", "val", "--boxes", known, *out), "--split"),
        (("lift", tree, "--split", "nowhere", "--boxes", known, *out), "no such split"),
        (("lift", tree, "--boxes", empty, *out), "empty: no 2D boxes"),
        (("lift", tree, "--boxes", tmp_path / "none", *out), "none: no such folder"),
        (("lift", tree, "--boxes", odd, *out), "unknown class 'Tram'"),
        ((*predict, "--boxes", odd), "unknown class 'Tram'; the weights know Car, Pedestrian, Cyclist"),
        ((*predict, "--boxes", known, "--detector", "x.onnx"), "not both"),
        ((*predict, "--boxes", tmp_path / "none"), "none: no such folder"),
    ]
    for arguments, said in cases:
        code, line = run(*arguments)
        assert code == 2, arguments
        assert re.search(said, line), line
    assert not list((tmp_path / "out").rglob("*.txt"))  # nor of the frames before the one that is wrong
    Image.new("RGB", (9, 9)).save(tmp_path / "extra.png")
    code, line = run("predict", tmp_path / "extra.png", *predict[2:], "--boxes", known)
    assert code == 2
    assert "extra" in line


def test_faults_of_2d_boxes_name_their_file_before_anything_is_written(
    tree: Path, known: Path, weights: Path, run: Run, tmp_path: Path
) -> None:
    images, calib, out = tree / "training" / "image_2", tree / "training" / "calib", tmp_path / "out"
    predict = ("predict", images, "--camera", calib, "--weights", weights, "--device", "cpu")
    label = "Car 0 0 0 10 10 50 60"
    scored = "Car -1 -1 -10 {} 10 50 60 1 1 1 1 1 1 1 {}"
    mixed = f"{label}\n{scored.format(10, 0.5)}"
    for text in (None, "Car 0 0 0 nan 1 2 3", scored.format(10, 7.5), scored.format(100, 0.5), mixed):
        last = known / "000002.txt"
        last.unlink(missing_ok=True)
        if text is not None:
            last.write_text(text + "\n")
        for command in (predict, ("lift", tree)):
            code, line = run(*command, "--boxes", known, "--out", out)
            assert code == 2, text
            assert str(last) in line, line
            assert not out.exists(), text


def test_what_is_read_is_not_written_over(tree: Path, known: Path, weights: Path, run: Run, tmp_path: Path) -> None:
    calib = tree / "training" / "calib"
    shutil.copytree(known, tmp_path / "a" / "results")
    shutil.copytree(tree / "training" / "image_2", tmp_path / "a" / "pictures")
    (tmp_path / "link").symlink_to(tmp_path / "a" / "results")
    before = {path: path.read_bytes() for path in (tmp_path / "a").rglob("*") if path.is_file()}
    common = ("--camera", calib, "--out", tmp_path / "a")
    predict = ("--weights", weights, "--device", "cpu")
    for arguments in (
        ("predict", tree / "training" / "image_2", *common, *predict, "--no-draw", "--boxes", tmp_path / "link"),
        ("predict", tmp_path / "a" / "pictures", *common, *predict),
        ("lift", tree, "--out", tmp_path / "a", "--boxes", tmp_path / "a" / "results"),
    ):
        code, line = run(*arguments)
        assert code == 2, arguments
        assert "would write over an input" in line
    assert before == {path: path.read_bytes() for path in (tmp_path / "a").rglob("*") if path.is_file()}
    arguments = ("predict", tmp_path / "a" / "pictures", *common, *predict, "--no-draw", "--boxes", known)
    assert run(*arguments)[0] == 0
