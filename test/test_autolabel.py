"""Autolabel: which boxes become labels, what stays of a tree when it is run again, the pages, the numbers."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from typer.testing import CliRunner
from yolox_like import square_finder, street

from skd_core.boxes import Boxes2D
from skd_core.cli import app, main
from skd_core.data.bag_make import BagOptions, make_bag
from skd_core.data.kitti import KittiDataset, KittiObjects, read_boxes2d, read_objects
from skd_core.errors import UserError
from skd_core.iou import covered
from skd_core.supervision import autolabel as module
from skd_core.supervision.autolabel_command import Options, parse_keep, run_autolabel
from skd_core.supervision.detector_2d import Detector2D
from skd_core.supervision.label_report import compare
from skd_core.supervision.label_rules import LabelRules
from skd_core.supervision.review_page import reject

DATA = Path(__file__).resolve().parents[1].parent / "shared" / "data"
CALIB = "P2: 100 0 32 0 0 100 32 0 0 0 1 0\n"
UNKNOWN = "-1 -1 -1 -1000 -1000 -1000 -10"
CAR, FAINT = ("car", 16, 16, 16), ("car", 48, 32, 10)  # scores 1 and (10 / 16)^2 = .39
run = CliRunner()


@pytest.fixture(scope="module")
def finder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return square_finder(tmp_path_factory.mktemp("onnx") / "squares.onnx")


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Three images: a car and a faint one, a person, nothing."""
    folder = tmp_path / "images"
    folder.mkdir()
    for name, squares in (("a", [CAR, FAINT]), ("b", [("person", 0, 32, 16)]), ("c", [])):
        Image.fromarray(street(64, 64, squares)).save(folder / f"{name}.png")
    (tmp_path / "calib.txt").write_text(CALIB)
    return folder


@pytest.fixture
def label(images: Path, finder: Path, tmp_path: Path) -> Any:
    """Run autolabel on the images with these options; gives what it says."""
    base = Options(camera=tmp_path / "calib.txt", tiles=0, threads=1)

    def call(out: str = "out", **changes: Any) -> str:
        source = changes.pop("source", images)
        return run_autolabel(source, str(finder), tmp_path / out, replace(base, **changes))

    return call


def labels_of(tree: Path) -> dict[str, str]:
    return {path.stem: path.read_text() for path in sorted((tree / "training" / "label_2").glob("*.txt"))}


def no_detection(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> Boxes2D:
        raise AssertionError("the detector was asked")

    monkeypatch.setattr(Detector2D, "detect", refuse)


# --- the tree ------------------------------------------------------------------------------------------------------


def test_tree_that_training_reads(label: Any, tmp_path: Path, images: Path) -> None:
    said = label()
    out = tmp_path / "out"
    assert labels_of(out) == {
        "a": f"Car -1 -1 -10 16.00 16.00 32.00 32.00 {UNKNOWN}\nDontCare -1 -1 -10 48.00 32.00 64.00 48.00 {UNKNOWN}\n",
        "b": f"Pedestrian -1 -1 -10 0.00 32.00 16.00 48.00 {UNKNOWN}\n",
        "c": "",
    }
    assert said.splitlines()[0] == (
        f"{out}: 3 frames (3 labelled, 0 as they were, 0 corrected by hand): Car 1, DontCare 1, Pedestrian 1"
    )
    dataset = KittiDataset(out, "all")
    assert dataset.names == ["a", "b", "c"]
    sample = dataset[0]
    assert (sample.boxes2d.labels, sample.ignore.labels) == (("Car",), ("DontCare",))
    assert torch.equal(sample.camera.P, torch.tensor([[100.0, 0, 32, 0], [0, 100, 32, 0], [0, 0, 1, 0]]).double())
    link = out / "training" / "image_2" / "a.png"
    assert link.is_symlink()
    assert not link.readlink().is_absolute()
    assert link.resolve() == (images / "a.png").resolve()
    assert [read_objects(out / "training" / "label_2" / f"{n}.txt").type for n in "ac"] == [["Car", "DontCare"], []]


def test_copies_outlive_the_images(label: Any, tmp_path: Path, images: Path) -> None:
    label(copy=True)
    shutil.rmtree(images)
    assert len(KittiDataset(tmp_path / "out")[0].boxes2d) == 1


def test_scores_decide(label: Any, tmp_path: Path) -> None:
    label("low", keep="0.3")
    label("one", keep="Pedestrian=0.3,Car=0.35")
    label("high", doubtful=0.4, keep="0.5")
    assert labels_of(tmp_path / "low")["a"].count("Car ") == labels_of(tmp_path / "one")["a"].count("Car ") == 2
    assert labels_of(tmp_path / "high")["a"] == f"Car -1 -1 -10 16.00 16.00 32.00 32.00 {UNKNOWN}\n"


def test_bag(label: Any, tmp_path: Path, images: Path) -> None:
    make_bag("folder", images, tmp_path / "bag", BagOptions(camera=tmp_path / "calib.txt"))
    label("from_bag", source=tmp_path / "bag", camera=None)
    label("from_images")
    bag, folder = tmp_path / "from_bag", tmp_path / "from_images"
    assert list(labels_of(bag).values()) == list(labels_of(folder).values())
    assert list(labels_of(bag)) == ["000000", "000001", "000002"]
    assert torch.equal(KittiDataset(bag)[0].image, KittiDataset(folder)[0].image)
    assert "0 labelled, 3 as they were" in label("from_bag", source=tmp_path / "bag", camera=None)


# --- run again -----------------------------------------------------------------------------------------------------


def test_same_input_same_bytes(label: Any, tmp_path: Path) -> None:
    label("one")
    label("two")
    for name in ("autolabel.json", "autolabel.jsonl", "ImageSets/all.txt", "training/label_2/a.txt"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_second_run_asks_no_detector(label: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    label()
    before = labels_of(tmp_path / "out")
    no_detection(monkeypatch)
    assert "0 labelled, 3 as they were" in label(threads=2, review=False)
    assert labels_of(tmp_path / "out") == before


def test_interrupted_run_goes_on(label: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    label("whole")
    write = module.write_atomic

    def killed(path: Path, content: str) -> None:
        if Path(path).name == "b.txt" and Path(path).parent.name == "label_2":
            raise KeyboardInterrupt
        write(path, content)

    monkeypatch.setattr(module, "write_atomic", killed)
    with pytest.raises(KeyboardInterrupt):
        label()
    monkeypatch.setattr(module, "write_atomic", write)
    log = tmp_path / "out" / "autolabel.jsonl"
    log.write_text(log.read_text()[:-20])  # and its last line was only half on the disk
    assert "2 labelled, 1 as they were, 0 corrected" in label()
    assert labels_of(tmp_path / "out") == labels_of(tmp_path / "whole")


def test_killed_between_log_and_file_is_no_correction(
    label: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Relabelled with another recipe, the log has the new line, the disk still the old file."""
    label()
    out = tmp_path / "out"
    write = module.write_atomic

    def killed(path: Path, text: str) -> None:
        if path.parent.name == "label_2":
            raise KeyboardInterrupt
        write(path, text)

    with monkeypatch.context() as patch:
        patch.setattr(module, "write_atomic", killed)
        with pytest.raises(KeyboardInterrupt):
            label(keep="0.3")
    assert "3 labelled, 0 as they were, 0 corrected" in label(keep="0.3")
    assert labels_of(out)["a"].count("Car ") == 2


def test_what_autolabel_wrote_before_is_a_correction_too(label: Any, tmp_path: Path) -> None:
    """Whoever brings back by hand what an earlier recipe gave means it."""
    label(keep="0.3")
    out = tmp_path / "out"
    earlier = labels_of(out)["a"]
    label()
    assert labels_of(out)["a"] != earlier
    (out / "training" / "label_2" / "a.txt").write_text(earlier)
    assert "0 labelled, 2 as they were, 1 corrected" in label()
    assert labels_of(out)["a"] == earlier


def test_an_image_of_the_tree_itself_is_no_input(label: Any, tmp_path: Path) -> None:
    label(copy=True)
    place = tmp_path / "out" / "training" / "image_2" / "a.png"
    before = place.read_bytes()
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "a.png").symlink_to(place)
    with pytest.raises(UserError, match="would write over its input"):
        label(source=tmp_path / "links", tiles=1)
    assert not place.is_symlink()
    assert place.read_bytes() == before


def test_an_image_that_cannot_be_labelled_is_named(label: Any, images: Path) -> None:
    Image.new("RGB", (9, 9)).save(images / "tiny.png")
    with pytest.raises(UserError, match=r"tiny\.png: tiles: 4 windows"):
        label(tiles=4)
    (images / "tiny.png").unlink()
    os.mkfifo(images / "pipe.png")
    with pytest.raises(UserError, match=r"pipe\.png"):
        label()


def test_links_become_copies_and_copies_links(label: Any, tmp_path: Path) -> None:
    for copy in (False, True, False):
        label(copy=copy)
        assert {p.is_symlink() for p in (tmp_path / "out/training/image_2").iterdir()} == {not copy}


def test_a_given_box_outside_of_its_image_has_a_page_too(label: Any, tmp_path: Path) -> None:
    (tmp_path / "given").mkdir()
    (tmp_path / "given" / "a.txt").write_text(
        "car 0 0 0 16 16 32 32\nBus 0 0 0 2000 100 2100 200\nVan 0 0 0 -90 -9 -50 -2\n"
    )
    assert "Bus 1, DontCare 1, Pedestrian 1, Van 1, car 1" in label(given=tmp_path / "given")
    pages = "".join(path.read_text() for path in (tmp_path / "out" / "review").iterdir())
    assert "Bus" in pages


def test_corrections_of_another_image_are_refused(label: Any, tmp_path: Path, images: Path) -> None:
    label()
    file = tmp_path / "out" / "training" / "label_2" / "a.txt"
    corrected = f"Car -1 -1 -10 1.00 2.00 30.00 40.00 {UNKNOWN}\n"
    file.write_text(corrected)
    Image.fromarray(street(64, 64, [("car", 32, 48, 16)])).save(images / "a.png")
    with pytest.raises(UserError, match=r"a\.txt: was corrected by hand for another image; .* delete it"):
        label()
    assert file.read_text() == corrected
    file.unlink()
    assert "1 labelled, 2 as they were, 0 corrected" in label()


def test_corrections_by_hand_survive_everything(label: Any, tmp_path: Path, images: Path) -> None:
    label()
    out = tmp_path / "out"
    corrected = f"Car -1 -1 -10 1.00 2.00 30.00 40.00 {UNKNOWN}\n"
    (out / "training" / "label_2" / "a.txt").write_text(corrected)
    (out / "training" / "label_2" / "c.txt").write_text(corrected)
    assert "0 labelled, 1 as they were, 2 corrected by hand): Car 2, Pedestrian 1" in label()
    assert "1 labelled, 0 as they were, 2 corrected" in label(keep="0.3")  # another recipe: b is made anew
    Image.fromarray(street(64, 64, [("car", 32, 48, 16)])).save(images / "b.png")  # another image
    assert "1 labelled, 0 as they were, 2 corrected" in label(keep="0.3")
    assert labels_of(out)["a"] == labels_of(out)["c"] == corrected
    assert labels_of(out)["b"].startswith("Car -1 -1 -10 32.00 48.00")
    (out / "training" / "label_2" / "a.txt").unlink()  # to have it made anew
    assert "1 labelled, 1 as they were, 1 corrected" in label(keep="0.3")


def test_new_calibration_is_taken_over(label: Any, tmp_path: Path) -> None:
    label()
    out = tmp_path / "out"
    (out / "training" / "label_2" / "a.txt").write_text("")  # by hand
    (tmp_path / "calib.txt").write_text(CALIB.replace("100", "200"))
    label()
    assert [KittiDataset(out)[i].camera.fx for i in range(3)] == [200, 200, 200]


def test_lost_image_is_put_back(label: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    label()
    (tmp_path / "out" / "training" / "image_2" / "b.png").unlink()
    no_detection(monkeypatch)
    label()
    assert len(KittiDataset(tmp_path / "out")) == 3


# --- labels that are there already ---------------------------------------------------------------------------------


def test_an_image_in_another_format_takes_the_place_of_the_first(label: Any, tmp_path: Path, images: Path) -> None:
    label()
    with Image.open(images / "a.png") as picture:
        picture.save(images / "a.webp", lossless=True)
    (images / "a.png").unlink()
    label()
    assert sorted(p.name for p in (tmp_path / "out/training/image_2").iterdir()) == ["a.webp", "b.png", "c.png"]
    assert len(KittiDataset(tmp_path / "out", "all")) == 3


def test_given_labels_stay_and_are_completed(label: Any, tmp_path: Path) -> None:
    files = tmp_path / "given"
    files.mkdir()
    line = f"Van 0.00 1 -1.50 47.00 31.00 64.00 48.00 {UNKNOWN.replace('-1000', '7')}"
    (files / "a.txt").write_text(f"\ufeff{line}  \r\n\n")
    (files / "c.txt").write_text(f"Car -1 -1 -10 0 0 9 9 {UNKNOWN}\n")
    label(given=files)
    found = labels_of(tmp_path / "out")
    # the faint car is the Van; the other is of a class that the files know, so doubtful; persons they do not know
    assert found["a"] == f"{line}\nDontCare -1 -1 -10 16.00 16.00 32.00 32.00 {UNKNOWN}\n"
    assert found["b"] == f"Pedestrian -1 -1 -10 0.00 32.00 16.00 48.00 {UNKNOWN}\n"
    assert "0 labelled, 3 as they were" in label(given=files)
    (files / "a.txt").write_text("")
    assert "3 labelled, 0 as they were" in label(given=files)  # the files know no vans now
    (files / "b.txt").write_text("")  # looked at, and no car in it: persons these files do not know
    assert "1 labelled, 2 as they were" in label(given=files)
    (files / "b.txt").write_text(f"Pedestrian -1 -1 -10 40 0 49 9 {UNKNOWN}\n")  # now they do
    label(given=files)
    assert read_boxes2d(tmp_path / "out" / "training" / "label_2" / "b.txt").labels == ("Pedestrian", "DontCare")
    assert read_boxes2d(tmp_path / "out" / "training" / "label_2" / "a.txt").labels == ("DontCare", "DontCare")


# --- rules ---------------------------------------------------------------------------------------------------------


def boxes(*rows: tuple[str, float, float, float, float, float]) -> Boxes2D:
    """(label, score, x1, y1, x2, y2) each."""
    return Boxes2D(
        torch.tensor([row[2:] for row in rows]).reshape(-1, 4),
        tuple(row[0] for row in rows),
        torch.tensor([row[1] for row in rows]),
    )


def rows(found: Boxes2D) -> list[tuple]:
    return [
        (label, round(score, 2), *box)
        for label, score, box in zip(found.labels, found.scores.tolist(), found.xyxy.tolist(), strict=True)
    ]


def test_rules_by_hand() -> None:
    rules = LabelRules(keep={"Car": 0.4, "Pedestrian": 0.5})
    assert rows(
        rules.apply(
            boxes(
                ("Car", 0.41, 0, 0, 10, 10),
                ("Pedestrian", 0.41, 20, 0, 30, 10),  # too low for its class
                ("DontCare", 0.9, 40, 0, 50, 10),
                ("Car", 0.8, 100, 0, 120, 10), ("Car", 0.7, 101, 1, 109, 9),  # a part of the one before
                ("Car", 0.8, 200, 0, 220, 10), ("DontCare", 0.75, 200, 0, 219, 10),  # a rival as good: both doubtful
                ("Car", 0.8, 300, 0, 320, 10), ("DontCare", 0.5, 300, 0, 319, 10),  # a weak one: gone
                ("DontCare", 0.3, 0, 1, 9, 9),  # within a label
                ("Lorry", 0.49, 60, 0, 70, 10), ("Lorry", 0.51, 80, 0, 90, 10),  # a class without a score of its own
            )
        )
    ) == [
        ("Car", 0.8, 100, 0, 120, 10), ("Car", 0.8, 300, 0, 320, 10), ("Lorry", 0.51, 80, 0, 90, 10),
        ("Car", 0.41, 0, 0, 10, 10),
        ("DontCare", 0.9, 40, 0, 50, 10), ("DontCare", 0.8, 200, 0, 220, 10), ("DontCare", 0.49, 60, 0, 70, 10),
        ("DontCare", 0.41, 20, 0, 30, 10),
    ]  # fmt: skip
    assert len(rules.apply(Boxes2D.empty())) == 0


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["Car", "Pedestrian", "DontCare"]), st.floats(0.2, 1), *[st.integers(0, 60)] * 2,
            *[st.integers(5, 40)] * 2,
        ),
        max_size=8,
    )
)  # fmt: skip
def test_rules_lose_no_object(found: list[tuple]) -> None:
    """Each box found is a label or DontCare, or another covers it or overlaps it enough to be the same object."""
    given_boxes = boxes(*((label, score, x, y, x + w, y + h) for label, score, x, y, w, h in found))
    rules = LabelRules()
    kept = rules.apply(given_boxes)
    assert all(
        s >= rules.min_score(n) for n, s in zip(kept.labels, kept.scores.tolist(), strict=True) if n != "DontCare"
    )
    first_doubt = kept.labels.index("DontCare") if "DontCare" in kept.labels else len(kept)
    assert "DontCare" not in kept.labels[:first_doubt]
    assert set(kept.labels[first_doubt:]) <= {"DontCare"}
    if len(given_boxes):
        most = torch.cat([covered(given_boxes.xyxy, kept.xyxy), covered(kept.xyxy, given_boxes.xyxy).T], 1).amax(1)
        assert (most > 0.6).all()


# --- numbers -------------------------------------------------------------------------------------------------------


def truth(*lines: str) -> KittiObjects:
    """Label lines of "type truncated occluded x1 y1 x2 y2"."""
    words = [line.split() for line in lines]
    numbers = np.array([[float(v) for v in w[1:]] for w in words]).reshape(-1, 6)
    n = len(words)
    none = np.full((n, 3), -1.0)
    return KittiObjects(
        [w[0] for w in words], numbers[:, 0], numbers[:, 1], np.zeros(n), numbers[:, 2:], none, none, np.zeros(n),
        np.ones(n),
    )  # fmt: skip


def test_agreement_by_hand() -> None:
    objects = truth(
        "Car 0 0 0 0 40 40",  # found well
        "Car 0 1 100 0 140 40",  # found by IoU 40 / 64 = .625
        "Car 0 0 200 0 240 40",  # missed, under DontCare
        "Car 0 0 300 0 340 40",  # missed
        "Car 0 2 400 0 440 40",  # hidden: does not count, but the box on it is right
        "Car 0 0 500 0 520 20",  # too low
        "Car 0.6 0 600 0 640 40",  # cut
        "Van 0 0 700 0 740 40",
        "DontCare -1 -1 800 0 900 100",
    )
    found = boxes(
        ("Car", 0.9, 0, 0, 40, 40), ("Car", 0.8, 100, 0, 140, 64), ("DontCare", 0.3, 200, 0, 240, 40),
        ("Car", 0.7, 400, 0, 440, 40), ("Car", 0.6, 700, 0, 740, 40), ("Car", 0.6, 810, 0, 840, 40),
        ("Car", 0.5, 950, 0, 990, 40),  # the only false one
        ("Car", 0.5, 950, 0, 990, 20),  # too low to count
        ("Pedestrian", 0.5, 950, 0, 990, 40),
    )  # fmt: skip
    count = compare([(found, objects)], ["Car", "Cyclist"])
    row = count["Car"].row()
    assert (row["objects"], row["recall_50"], row["recall_70"], row["dont_care"]) == (4, 0.5, 0.25, 0.25)
    assert (row["found"], row["precision"]) == (4, 0.75)
    assert count["Cyclist"].objects == 0
    assert np.isnan(count["Cyclist"].row()["recall_50"])
    assert compare([(found, objects), (found, objects)], ["Car"])["Car"].row() == {**row, "objects": 8, "found": 8}


def test_one_detection_an_object() -> None:
    twice = boxes(("Car", 0.9, 0, 0, 40, 40), ("Car", 0.8, 0, 0, 40, 38))
    row = compare([(twice, truth("Car 0 0 0 0 40 40"))], ["Car"])["Car"].row()
    assert (row["recall_50"], row["found"], row["precision"]) == (1, 1, 1)  # the second lies on an object: not counted


def test_report_of_a_labelled_tree(label: Any, tmp_path: Path, images: Path) -> None:
    tree = tmp_path / "tree"
    shutil.copytree(images, tree / "training" / "image_2")
    for folder in ("calib", "label_2"):
        (tree / "training" / folder).mkdir()
    for name in "abc":
        (tree / "training" / "calib" / f"{name}.txt").write_text(CALIB)
        line = f"Car 0 0 0 16 8 32 36 {UNKNOWN}\n" if name == "a" else ""  # 28 px high, of which 16 are found
        (tree / "training" / "label_2" / f"{name}.txt").write_text(line)
    said = label(source=tree, camera=None, json=tmp_path / "out.json")
    assert re.search(r"^Car +1 +1\.000 +0\.000 +0\.000 +0 +- *$", said, re.MULTILINE)  # the found one is 16 px high
    numbers = json.loads((tmp_path / "out.json").read_text())
    assert numbers["boxes"] == {"Car": 1, "DontCare": 1, "Pedestrian": 1}
    assert numbers["agreement"]["Car"]["recall_50"] == 1
    assert numbers["agreement"]["Pedestrian"]["precision"] is None
    (tree / "ImageSets").mkdir()
    (tree / "ImageSets" / "some.txt").write_text("a\nc\n")
    assert "2 frames" in label("some", source=tree, camera=None, split="some")
    with pytest.raises(UserError, match="no label file for any of the 3 frames"):
        label("out", source=tree, camera=None, labels=tmp_path)


# --- the pages -----------------------------------------------------------------------------------------------------


def test_pages(label: Any, tmp_path: Path) -> None:
    said = label(keep="0.3")
    review = tmp_path / "out" / "review"
    assert said.endswith(f"check the boxes on {review / 'index.html'}")
    index = (review / "index.html").read_text()
    for name in re.findall(r'href="([^"]+)"', index):
        assert (review / name).is_file()
    cars = (review / "car-1.html").read_text()
    assert re.findall(r"<figcaption>(.*?)</figcaption>", cars) == ["0.39 16x16", "1.00 16x16"]  # least sure first
    assert re.findall(r'data-box="(.*?)"', cars) == ["a Car 48.00 32.00 64.00 48.00", "a Car 16.00 16.00 32.00 32.00"]
    pictures = re.findall(r'src="data:image/jpeg;base64,(.*?)"', cars)
    crop = np.asarray(Image.open(io.BytesIO(base64.b64decode(pictures[1]))).convert("RGB")).astype(int)
    assert crop.shape[0] == 112
    assert crop[56, 56, 0] > 200 > 60 > crop[56, 56, 1]  # the red square in the middle, black around it
    assert crop[3, 3].max() < 40
    for page in review.glob("*.html"):
        text = page.read_text()
        assert not re.search(r"(src|href)=\"(https?:)?//", text)
        assert "width=device-width" in text
    assert (review / "frames-1.html").read_text().count("<figure>") == 3


def test_marked_boxes_become_dont_care(label: Any, tmp_path: Path) -> None:
    label(keep="0.3")
    out = tmp_path / "out"
    marked = tmp_path / "rejected.txt"
    marked.write_text("a Car 48.00 32.00 64.00 48.00\n\n")
    assert ", 1 boxes rejected): Car 1, DontCare 1, Pedestrian 1" in label(keep="0.3", rejected=marked)
    assert read_boxes2d(out / "training" / "label_2" / "a.txt").labels == ("Car", "DontCare")
    assert "1 corrected by hand): Car 1, DontCare 1" in label(keep="0.2")  # stays when all is made anew
    assert reject(out, marked) == 0  # once more changes nothing
    before = labels_of(out)
    for text, message in (
        ("a Car 48.00 32.00 64.00\n", "rejected.txt:1: not NAME CLASS x1 y1 x2 y2"),
        ("b Pedestrian 0.00 32.00 16.00 48.00\nz Car 1 2 3 4\n", "rejected.txt:2: not NAME CLASS"),
        ("b Pedestrian 0.00 32.00 16.00 48.00\nb Car 1 2 3 4\n", "rejected.txt:2: .*has no such box"),
    ):
        marked.write_text(text)
        with pytest.raises(UserError, match=message):
            reject(out, marked)
        assert labels_of(out) == before


# --- wrong input ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{images}"], "images without a camera; pass --camera"),
        (["{tmp}/none", "--camera", "{calib}"], "no such image or folder"),
        (["{images}", "--camera", "{tmp}/none.txt"], "no such camera file"),
        (["{images}", "--camera", "{calib}", "--split", "train"], "has no splits"),
        (["{images}", "--camera", "{calib}", "--keep", "Car:0.3"], "--keep Car:0.3: write a score"),
        (
            ["{images}", "--camera", "{calib}", "--keep", "0.1"],
            "must be between 0.01 and the minimum score of a label, 0.1",
        ),
        (["{images}", "--camera", "{calib}", "--keep", "car=0.9,cra=0.9"], "--keep: no class 'cra'"),
        (["{images}", "--camera", "{calib}", "--class-map", "lorry:car"], "no class 'lorry'"),
        (["{images}", "--camera", "{calib}", "--class-map", "car:cars"], "no class 'cars'"),
        (
            ["{images}", "--camera", "{calib}", "--given", "{other}/training/label_2"],
            "no label file for any of the frames",
        ),
        (["{images}", "--camera", "{calib}", "--json", "{tmp}/out/autolabel.jsonl"], "a file of autolabel's own tree"),
        (["{images}", "--camera", "{calib}", "--given", "{images}"], "no label files NAME.txt"),
        (["{images}", "--camera", "{calib}", "--labels", "{images}"], "no label file for any of the 3 frames"),
        (["{images}", "--camera", "{calib}", "--rejected", "{tmp}/none"], "cannot read"),
        (["{images}", "--camera", "{calib}", "--device", "tpu"], "device 'tpu'"),
        (["{images}", "--camera", "{calib}", "--out", "{tmp}"], "would write over its input"),
        (["{images}", "--camera", "{calib}", "--out", "{images}"], "would write over its input"),
        (["{images}", "--camera", "{calib}", "--out", "{other}"], "holds labels that autolabel did not write"),
        (["{images}", "--camera", "{calib}", "--out", "{pictures}"], "holds images that autolabel did not write"),
        (["{spaced}", "--camera", "{calib}"], "my car.png: splits and lists of boxes hold names without spaces"),
        (["{images}", "--camera", "{calib}", "--detector", "{calib}"], "not a usable ONNX model"),
    ],
)
def test_errors_are_one_line(
    arguments: list[str], message: str, images: Path, finder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    other = tmp_path / "other"
    (other / "training" / "label_2").mkdir(parents=True)
    (other / "training" / "label_2" / "x.txt").write_text("")
    pictures, spaced = tmp_path / "pictures", tmp_path / "spaced"
    shutil.copytree(images, pictures / "training" / "image_2")
    spaced.mkdir()
    shutil.copyfile(images / "a.png", spaced / "my car.png")
    words = {
        "tmp": tmp_path, "images": images, "calib": tmp_path / "calib.txt", "other": other, "pictures": pictures,
        "spaced": spaced,
    }  # fmt: skip
    given = [argument.format(**words) for argument in arguments]
    for option, value in (("--detector", finder), ("--out", tmp_path / "out")):
        given += [] if option in given else [option, str(value)]
    monkeypatch.setattr("sys.argv", ["skd_core", "autolabel", *given])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert re.search(re.escape(message), error), error
    assert error.startswith("skd_core: error: ")


def test_damaged_log(label: Any, tmp_path: Path) -> None:
    label()
    log = tmp_path / "out" / "autolabel.jsonl"
    log.write_text("[]\n" + log.read_text())
    with pytest.raises(UserError, match=r"autolabel\.jsonl:1: not a line of autolabel's log"):
        label()


def test_bag_brings_its_camera(label: Any, tmp_path: Path, images: Path) -> None:
    make_bag("folder", images, tmp_path / "bag", BagOptions(camera=tmp_path / "calib.txt"))
    with pytest.raises(UserError, match="leave --camera out"):
        label(source=tmp_path / "bag")


def test_least_scores_from_text() -> None:
    assert parse_keep("0.3") == {"Car": 0.3, "Pedestrian": 0.3, "Cyclist": 0.3}
    assert parse_keep("Van=0.7, Car=0.6") == {"Car": 0.6, "Pedestrian": 0.5, "Cyclist": 0.5, "Van": 0.7}
    for text in ("", "=0.3", "Car", "Car=x", "2", "nan"):
        with pytest.raises(UserError, match="write a score"):
            parse_keep(text)


def test_command(images: Path, finder: Path, tmp_path: Path) -> None:
    options = ["--camera", tmp_path / "calib.txt", "--class-map", "2:van,person:pedestrian", "--tiles", 0]
    call = ["autolabel", images, "--detector", finder, "--out", tmp_path / "out", *options]
    result = run.invoke(app, [str(word) for word in call])
    assert result.exit_code == 0, result.output
    assert "DontCare 1, Pedestrian 1, Van 1" in result.output


# --- real streets --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "least"), [("kitti_dev", 0.90), ("real_streets/kitti_labelled", 0.93)])
@pytest.mark.slow
def test_cars_of_real_streets(name: str, least: float, tmp_path: Path) -> None:
    if not (DATA / name).is_dir():
        pytest.skip(f"{DATA / name} is not here")
    options = Options(threads=1, review=False, json=tmp_path / "numbers.json")
    run_autolabel(DATA / name, str(DATA / "weights" / "yolox_nano.onnx"), tmp_path / "out", options)
    numbers = json.loads((tmp_path / "numbers.json").read_text())["agreement"]["Car"]
    assert numbers["recall_50"] >= least
    assert numbers["precision"] >= 0.8
