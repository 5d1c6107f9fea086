"""The evaluation per object: its rules by hand, and against the independent check that the real data come with."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from skd_core import Boxes3D, Detector
from skd_core.cli import main
from skd_core.data.kitti import KittiObjects, read_objects
from skd_core.evaluation.real import PARTS, Tally, join, tally_frame
from skd_core.evaluation.real_report import choose_threshold, split_of
from skd_core.export.command import ExportOptions, export_weights
from skd_core.inference.weights import load_weights
from skd_core.iou import covered

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"
STREETS = SHARED / "data" / "real_streets"
WIDTH, HEIGHT = 400, 120
CALIB = "P2: 200 0 200 0 0 200 60 0 0 0 1 0\n"


def label(
    box: tuple[float, ...] = (100, 40, 160, 80),
    kind: str = "Car",
    truncated: float = 0,
    occluded: int = 0,
    z: float = 20.0,
    x: float = 0.0,
    yaw: float = 0.0,
    known: bool = True,
) -> str:
    space = f"1.5 1.6 4.0 {x} 1.6 {z} {yaw}" if known else "-1 -1 -1 -1000 -1000 -1000 -10"
    return f"{kind} {truncated} {occluded} 0 {' '.join(map(str, box))} {space}\n"


def objects(folder: Path, *lines: str) -> KittiObjects:
    path = folder / "label.txt"
    path.write_text("".join(lines))
    return read_objects(path)


Row = tuple[tuple[float, ...], float]


def found(*rows: Row, kind: str = "Car", z: float = 20.0, x: float = 0.0, yaw: float = 0.0) -> Boxes3D:
    """Detections (2D box, score), each a car of the label's size with its bottom at y = 1.6."""
    n = len(rows)
    return Boxes3D(
        torch.tensor([[x, 1.6 - 0.75, z]]).expand(n, 3),
        torch.tensor([[4.0, 1.6, 1.5]]).expand(n, 3),
        torch.full((n,), yaw),
        (kind,) * n,
        torch.tensor([score for _, score in rows]),
        torch.tensor([box for box, _ in rows]).reshape(-1, 4).float(),
    )


def tally(boxes: Boxes3D, labels: KittiObjects, kind: str = "Car") -> Tally:
    return tally_frame(boxes, labels, kind, WIDTH, HEIGHT)


# -- the rules, by hand ------------------------------------------------------------------------------------------------
def test_a_perfect_detection(tmp_path: Path) -> None:
    found_it = tally(found(((100, 40, 160, 80), 0.8)), objects(tmp_path, label()))
    of = found_it.statistics()
    assert [of[name] for name in ("labels", "recall_50", "recall_70", "bev_50", "iou_3d_50")] == [1, 1, 1, 1, 1]
    assert [of[name] for name in ("depth_error", "depth_bias", "yaw_error")] == pytest.approx([0, 0, 0], abs=1e-6)
    assert found_it["score"].tolist() == pytest.approx([0.8])
    assert found_it.on_nothing == found_it.ill_fitting == 0


def test_errors_of_depth_and_yaw_by_hand(tmp_path: Path) -> None:
    """23 m for 20 m is 15 % too far, 17 m 15 % too near; yaw counts modulo pi."""
    labels = objects(tmp_path, label(yaw=0.1))
    for z, yaw, bias, turn in ((23.0, 0.1 + math.pi, 0.15, 0.0), (17.0, 0.1 - 0.2, -0.15, 0.2), (20, 1.6, 0, 1.5)):
        of = tally(found(((100, 40, 160, 80), 0.8), z=z, yaw=yaw), labels).statistics()
        assert of["depth_bias"] == pytest.approx(bias, abs=1e-6)
        assert of["depth_error"] == pytest.approx(abs(bias), abs=1e-6)
        assert of["yaw_error"] == pytest.approx(math.degrees(turn), abs=1e-4)
    # along the box of 4.0 m (yaw 0: x), 1 m off is an IoU of 3/5, 2 m off one of 1/3
    labels = objects(tmp_path, label())
    for x, bev in ((1.0, 3 / 5), (2.0, 1 / 3)):
        rows = tally(found(((100, 40, 160, 80), 0.8), x=x), labels)
        assert rows["bev"].tolist() == pytest.approx([bev], abs=1e-5)
        assert rows["iou_3d"].tolist() == pytest.approx([bev], abs=1e-5)


def test_which_labels_count(tmp_path: Path) -> None:
    lines = [
        label(),
        label(occluded=1),
        label(occluded=2),  # largely hidden
        label(occluded=-1),  # unknown
        label(box=(100, 40, 160, 64.9)),  # 24.9 px high
        label(box=(100, 40, 160, 65)),
        label(truncated=0.49),
        label(truncated=0.5),
        label(kind="Van"),
        label(kind="DontCare", known=False),
    ]
    assert len(tally(found(), objects(tmp_path, *lines)).rows) == 4


def test_parts(tmp_path: Path) -> None:
    lines = [
        label(),  # whole, far
        label(z=14.9),  # near
        label(z=15.1),
        label(box=(2.9, 40, 160, 80), z=10),  # cut, near
        label(box=(3, 40, 160, 80)),  # 3 px away: whole
        label(box=(100, 40, 160, HEIGHT - 2.9)),  # cut below, and large
        label(box=(100, 40, 160, 80)),  # 40 of 120 px: large
        label(box=(100, 40, 160, 79)),
    ]
    every = tally(found(), objects(tmp_path, *lines))
    counts = {part: len(every.part(part).rows) for part in PARTS}
    assert counts == {
        "whole": 6, "cut": 2, "near": 2, "near, whole": 1, "near, cut": 1, "far, whole": 5, "large": 7, "all": 8,
    }  # fmt: skip


def test_the_best_score_chooses_first_and_each_label_is_taken_once(tmp_path: Path) -> None:
    """Two labels side by side: the surer detection takes the one it fits better, the other gets what is left."""
    labels = objects(tmp_path, label(box=(100, 40, 160, 80)), label(box=(112, 40, 172, 80)))
    near_both = (106, 40, 166, 80)  # overlaps both by 54 / 66
    rows = tally(found((near_both, 0.5), ((100, 40, 160, 80), 0.9)), labels)
    assert rows["score"].tolist() == pytest.approx([0.9, 0.5])
    # a third one finds no label free, but is not on nothing: it overlaps labels well
    third = tally(found((near_both, 0.5), ((100, 40, 160, 80), 0.9), ((101, 40, 161, 80), 0.3)), labels)
    np.testing.assert_array_equal(third.rows, rows.rows)
    assert third.on_nothing == third.ill_fitting == 0


def test_a_label_that_does_not_count_may_be_taken(tmp_path: Path) -> None:
    """A detection of a hidden car is neither a find nor a mistake."""
    rows = tally(found(((100, 40, 160, 80), 0.9)), objects(tmp_path, label(occluded=2)))
    assert (len(rows.rows), rows.on_nothing, rows.ill_fitting) == (0, 0, 0)


def test_on_nothing_and_ill_fitting(tmp_path: Path) -> None:
    labels = objects(
        tmp_path,
        label(box=(100, 40, 160, 80)),
        label(box=(200, 40, 260, 80), kind="Van"),
        label(box=(300, 40, 340, 80), kind="DontCare", known=False),
    )
    cases = {
        (10, 40, 70, 80): (1, 0),  # nothing there
        (130, 40, 190, 80): (0, 1),  # half of the car: 30 / 90
        (140, 40, 200, 80): (1, 0),  # a third of it: 20 / 100
        (200, 40, 260, 80): (0, 0),  # a van is no car, and not nothing
        (300, 40, 379, 80): (0, 0),  # by more than half in a DontCare region
        (300, 40, 380, 80): (1, 0),  # by half
    }
    for box, expected in cases.items():
        got = tally(found((box, 0.5)), labels)
        assert (len(got.nothing), len(got.ill)) == expected, box


def test_other_kinds_do_not_enter(tmp_path: Path) -> None:
    labels = objects(tmp_path, label(), label(kind="Pedestrian"))
    boxes = found(((100, 40, 160, 80), 0.8), kind="car")  # names are compared without case
    assert tally(boxes, labels)["score"].tolist() == pytest.approx([0.8])
    assert tally(boxes, labels, "Pedestrian")["score"].tolist() == [-1]
    assert tally(found(((100, 40, 160, 80), 0.8)), objects(tmp_path, label(kind="car")))["score"].tolist() == [
        pytest.approx(0.8)
    ]
    hidden = objects(tmp_path, "dontcare -1 -1 -10 100 40 160 80 -1 -1 -1 -1000 -1000 -1000 -10\n")
    assert len(tally(found(((100, 40, 160, 80), 0.8)), hidden).nothing) == 0


def test_labels_without_a_place_count_in_2d_only(tmp_path: Path) -> None:
    sized = "Car 0 0 0 100 40 160 80 1.5 1.6 4.0 -1000 -1000 -1000 -10\n"
    for line in (label(known=False), sized, label(z=0.0)):
        of = tally(found(((100, 40, 160, 80), 0.8)), objects(tmp_path, line)).statistics()
        assert (of["labels"], of["recall_50"]) == (1, 1)
        assert all(math.isnan(of[name]) for name in ("bev_50", "iou_3d_50", "depth_error", "depth_bias", "yaw_error"))


def test_empty_frames(tmp_path: Path) -> None:
    nothing = tally(found(), objects(tmp_path))
    assert (len(nothing.rows), nothing.frames) == (0, 1)
    assert math.isnan(nothing.statistics()["recall_50"])
    alone = tally(found(((100, 40, 160, 80), 0.8)), objects(tmp_path))
    both = join([nothing, alone])
    assert (both.on_nothing, both.frames) == (0.5, 2)


def test_covered_by_hand() -> None:
    boxes = torch.tensor([[0.0, 0, 10, 10], [20, 20, 30, 30]])
    by = torch.tensor([[5.0, 0, 20, 10], [0, 0, 2, 10]])
    torch.testing.assert_close(covered(boxes, by), torch.tensor([[0.5, 0.2], [0, 0]]))
    assert covered(boxes, torch.zeros(0, 4)).shape == (2, 0)
    assert covered(torch.zeros(1, 4), boxes).tolist() == [[0, 0]]  # a box without area


boxes_strategy = st.lists(
    st.tuples(st.integers(0, 30), st.integers(0, 2), st.floats(0.01, 0.99)), max_size=8, unique_by=lambda row: row[2]
)


@settings(max_examples=60)
@given(detections=boxes_strategy, truths=boxes_strategy, threshold=st.floats(0, 1))
def test_a_higher_threshold_afterwards_is_the_same_as_before(
    tmp_path_factory: pytest.TempPathFactory,
    detections: list[tuple[int, int, float]],
    truths: list[tuple[int, int, float]],
    threshold: float,
) -> None:
    """What `at` says of kept numbers equals a new measurement of what is left: a threshold is chosen with one run."""
    labels = objects(
        tmp_path_factory.mktemp("labels"),
        *(label(box=(8 * x, 40, 8 * x + 60, 80), occluded=o, z=10 + 20 * r) for x, o, r in truths),
    )
    boxes = found(*(((8 * x + 3 * j, 40, 8 * x + 60, 80), score) for x, j, score in detections))
    later = tally(boxes, labels).at(threshold)
    before = tally(boxes[boxes.scores.double() >= threshold], labels)
    np.testing.assert_array_equal(later.rows, before.rows)
    assert sorted(later.nothing) == sorted(before.nothing)
    assert sorted(later.ill) == sorted(before.ill)


def test_the_chosen_threshold_by_hand() -> None:
    """10 frames allow 3 boxes on nothing; the fourth best of both kinds scores .4."""

    def of(*scores: float) -> Tally:
        return Tally(np.zeros((0, 9)), np.array(scores), np.zeros(0), 10)

    tallies = {"Car": of(0.9, 0.4, 0.1), "Pedestrian": of(0.7, 0.6)}
    chosen = choose_threshold(tallies)
    assert chosen == pytest.approx(0.401)
    assert sum(len(t.at(chosen).nothing) for t in tallies.values()) == 3
    assert choose_threshold({"Car": of(0.9, 0.8, 0.7)}) == 0.05  # no more than may be
    assert choose_threshold({"Car": of(0.9, 0.8, 0.7, 0.01)}) == 0.05
    assert choose_threshold({"Car": of(0.2, 0.2, 0.2, 0.2)}, max_on_nothing=0.1) == pytest.approx(0.201)


# -- the command -------------------------------------------------------------------------------------------------------
def make_tree(root: Path, names: tuple[str, ...] = ("000000", "000001", "000002")) -> Path:
    for folder in ("image_2", "calib", "label_2"):
        (root / "training" / folder).mkdir(parents=True)
    (root / "ImageSets").mkdir()
    rng = np.random.default_rng(5)
    for name in names:
        pixels = rng.integers(0, 255, (HEIGHT, WIDTH, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / "training" / "image_2" / f"{name}.png")
        (root / "training" / "calib" / f"{name}.txt").write_text(CALIB)
        lines = label() + label(box=(200, 30, 300, 110), z=8, x=1, yaw=0.5) + label(kind="DontCare", known=False)
        (root / "training" / "label_2" / f"{name}.txt").write_text(lines + label((20, 30, 40, 90), "Pedestrian"))
    (root / "ImageSets" / "first.txt").write_text(f"{names[0]}\n")
    return root


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tree(tmp_path_factory.mktemp("tree") / "streets")


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "w.safetensors"
    Detector.random(1).save(path)
    return path


Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """`skd_core eval real ...` in this process: exit code, stdout, stderr."""

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["skd_core", "eval", "real", *map(str, arguments), "--device", "cpu"])
        code = 0
        try:
            main()
        except SystemExit as end:
            code = int(end.code or 0)
        out, err = capsys.readouterr()
        return code, out, err

    return call


def test_labels_own_boxes_are_all_found(tree: Path, weights: Path, run: Run, tmp_path: Path) -> None:
    code, out, _ = run(tree, f"{tree}:first", "--weights", weights, "--boxes", "labels", "--json", tmp_path / "r.json")
    assert code == 0
    numbers = json.loads((tmp_path / "r.json").read_text())
    assert list(numbers["sets"]) == [str(tree), f"{tree}:first"]
    assert set(numbers["together"]) == {"Car", "Pedestrian", "Cyclist"}
    car = numbers["together"]["Car"]
    assert (car["frames"], car["parts"]["all"]["labels"], car["parts"]["near"]["labels"]) == (4, 8, 4)
    assert (car["parts"]["all"]["recall_70"], car["on_nothing"], car["ill_fitting"]) == (1, 0, 0)
    assert numbers["together"]["Cyclist"]["parts"]["all"] == dict.fromkeys(car["parts"]["all"], None) | {"labels": 0}
    assert "streets:first Pedestrian (1 frames)" in out
    spelled = ("--kind", "car", "--kind", "CAR", "--boxes", "labels", "--json", tmp_path / "r.json")
    assert run(tree, f"{tree}:first", "--weights", weights, *spelled)[0] == 0
    assert json.loads((tmp_path / "r.json").read_text())["together"] == {"Car": car}
    assert "together Car (4 frames)" in out


def test_labels_that_autolabel_drew_are_said_not_to_count(tree: Path, weights: Path, run: Run, tmp_path: Path) -> None:
    assert "no label was counted" not in run(tree, "--weights", weights, "--boxes", "labels")[1]
    drawn = make_tree(tmp_path / "drawn")
    for file in (drawn / "training" / "label_2").iterdir():
        file.write_text("Car -1 -1 -10 40 40 120 100 -1 -1 -1 -1000 -1000 -1000 -10\n")
    code, out, _ = run(drawn, "--weights", weights, "--boxes", "labels")
    assert (code, "no label was counted" in out) == (0, True)
    copy = tmp_path / "w.safetensors"
    copy.write_bytes(weights.read_bytes())
    code, _, message = run(drawn, "--weights", copy, "--choose-threshold", "--store")
    assert (code, "no threshold can be chosen: no label was counted" in message) == (2, True)
    assert copy.read_bytes() == weights.read_bytes()


def test_boxes_from_a_folder_equal_those_of_the_labels(tree: Path, weights: Path, run: Run, tmp_path: Path) -> None:
    common = (tree, "--weights", weights, "--kind", "Car", "--json", tmp_path / "r.json")
    answers = []
    for boxes in ("labels", tree / "training" / "label_2"):
        assert run(*common, "--boxes", boxes)[0] == 0
        answers.append(json.loads((tmp_path / "r.json").read_text())["together"])
    assert answers[0] == answers[1]
    folder = tmp_path / "shifted"  # result files: their scores and places count
    folder.mkdir()
    for name in ("000000", "000001", "000002"):
        line = "Car -1 -1 0 10 40 70 80 1 1 1 0 0 0 0 0.9\n" if name == "000001" else ""
        (folder / f"{name}.txt").write_text(line)
    assert run(*common, "--boxes", folder)[0] == 0
    car = json.loads((tmp_path / "r.json").read_text())["together"]["Car"]
    assert (car["on_nothing"], car["parts"]["all"]["recall_50"]) == (pytest.approx(1 / 3), 0)


def test_the_threshold_is_chosen_and_stored(tree: Path, weights: Path, run: Run, tmp_path: Path) -> None:
    copy = tmp_path / "w.safetensors"
    copy.write_bytes(weights.read_bytes())
    common = (tree, "--weights", copy, "--json", tmp_path / "r.json")
    assert run(*common, "--choose-threshold")[0] == 0
    assert "threshold" not in load_weights(copy)[1]
    assert run(*common, "--choose-threshold", "--store")[0] == 0
    numbers = json.loads((tmp_path / "r.json").read_text())
    assert load_weights(copy)[1]["threshold"] == numbers["threshold"]
    assert sum(kind["on_nothing"] for kind in numbers["together"].values()) <= 0.3
    assert run(*common)[0] == 0  # stored is the default
    again = json.loads((tmp_path / "r.json").read_text())
    assert again["threshold"] == numbers["threshold"]
    assert again["together"] == numbers["together"]
    assert run(*common, "--threshold", "0.0")[0] == 0
    assert json.loads((tmp_path / "r.json").read_text())["threshold"] == 0
    link = tmp_path / "link.safetensors"
    link.symlink_to(copy.name)
    export_weights(ExportOptions(str(copy)), tmp_path / "w.onnx")
    code, said, _ = run(tree, "--weights", link, "--choose-threshold", "--store")
    assert code == 0
    assert "w.onnx has them beside these weights only" in said
    assert link.is_symlink()


def test_wrong_input_is_one_line(tree: Path, weights: Path, run: Run, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    one = tmp_path / "one"
    one.mkdir()
    (one / "000000.txt").write_text("")
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "000000.txt").write_text("Car 0 0 0 90 40 10 80\n")
    good = (tree, "--weights", weights)
    exported = tmp_path / "w.onnx"
    exported.write_bytes(b"")
    cases: list[tuple[tuple[object, ...], str]] = [
        ((tmp_path / "nowhere", "--weights", weights), "nowhere"),
        ((f"{tree}:val", "--weights", weights), r"val\.txt: no such split; there are: first"),
        ((tree, "--weights", tmp_path / "none"), "none"),
        ((*good, "--boxes", empty), "empty: no 2D boxes"),
        ((*good, "--boxes", one), r"000001\.txt: no such file"),
        ((*good, "--boxes", broken), r"000000\.txt:1: 2D box needs x1 <= x2"),
        ((*good, "--boxes", tmp_path / "none.onnx"), r"none\.onnx: no such"),
        ((*good, "--kind", "Tram"), "Tram.*Car, Pedestrian, Cyclist"),
        ((*good, "--threshold", "high"), "high.*stored"),
        ((*good, "--threshold", "1.5"), r"1\.5.*0 to 1"),
        ((*good, "--boxes", "labels", "--threshold", "high"), "high.*stored"),
        ((tree, "--weights", exported, "--choose-threshold", "--store"), "exported from"),
        ((tree, "--weights", exported, "--calibrate"), "exported from"),
        ((*good, "--store"), "--choose-threshold"),
        ((*good, "--choose-threshold", "--boxes", "labels"), "own boxes"),
        ((*good, "--choose-threshold", "--threshold", "0.3"), "without --lift and --threshold"),
        ((*good, "--choose-threshold", "--lift"), "own boxes"),
    ]
    for arguments, said in cases:
        code, _, message = run(*arguments)
        line = message.strip().splitlines()[-1]
        assert code == 2, arguments
        assert re.search(said, line), line
        assert "Traceback" not in message


def test_a_root_with_a_colon_in_its_name(tree: Path, tmp_path: Path) -> None:
    odd = tmp_path / "a:b"
    odd.mkdir()
    assert split_of(str(odd), "val") == (str(odd), "val")
    assert split_of(f"{odd}:train", "val") == (str(odd), "train")
    assert split_of(str(tree)) == (str(tree), None)


# -- against the check that comes with the real data -------------------------------------------------------------------
@pytest.mark.slow
@pytest.mark.parametrize("boxes", ["own", "labels"])
def test_it_agrees_with_the_independent_check(boxes: str, run: Run, tmp_path: Path) -> None:
    check, labelled = SHARED / "checks" / "real_check.py", STREETS / "kitti_labelled"
    if not check.is_file() or not labelled.is_dir():
        pytest.skip(f"no real frames: {check} and {labelled} are not there")
    tree = tmp_path / "few"
    (tree / "ImageSets").mkdir(parents=True)
    (tree / "training").symlink_to(labelled / "training")
    names = (labelled / "ImageSets" / "all.txt").read_text().split()
    chosen = [*names[::11], *(labelled / "ImageSets" / "stereo.txt").read_text().split()[:4]]
    (tree / "ImageSets" / "few.txt").write_text("\n".join(sorted(set(chosen))))
    (tree / "ImageSets" / "two.txt").write_text("\n".join(sorted(set(chosen))[:2]))
    trees = (f"{tree}:few", f"{tree}:two")
    done = subprocess.run(
        [sys.executable, check, ",".join(trees), "default", "--threshold", "stored", "--boxes", boxes],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    number = r"([-+\d.]+)"
    pattern = re.compile(
        rf"^  (\w+): (\d+), 2D recall at .5 {number} at .7 {number}, BEV>.5 {number} 3D>.5 {number}, "
        rf"depth error {number} % bias {number} %, yaw mod pi {number} deg$",
        re.MULTILINE,
    )
    code, _, _ = run(*trees, "--boxes", boxes, "--json", tmp_path / "r.json", "--kind", "Car")
    assert code == 0
    numbers = json.loads((tmp_path / "r.json").read_text())
    own = [*numbers["sets"].values(), numbers["together"]]
    blocks = re.split(r"^(?=\S)", done.stdout, flags=re.MULTILINE)[1:]
    assert len(blocks) == len(own) == 3
    compared = 0
    for block, mine in zip(blocks, own, strict=True):
        car = mine["Car"]
        alone = re.search(rf"on nothing {number}, ill-fitting {number} a frame", block)
        assert alone
        assert [float(v) for v in alone.groups()] == pytest.approx([car["on_nothing"], car["ill_fitting"]], abs=0.0051)
        for part, *values in pattern.findall(block):
            of, theirs = car["parts"][part], [float(value) for value in values]
            assert theirs[0] == of["labels"]
            shares = [of[name] for name in ("recall_50", "recall_70", "bev_50", "iou_3d_50")]
            assert theirs[1:5] == pytest.approx(shares, abs=0.001)
            assert theirs[5:7] == pytest.approx([100 * of["depth_error"], 100 * of["depth_bias"]], abs=0.0501)
            assert theirs[7] == pytest.approx(of["yaw_error"], abs=0.501)
            compared += 1
    assert compared >= 8
