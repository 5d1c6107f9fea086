"""2D detectors: YOLOX's format, windows, class map, rider rule, torchvision's models."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torchvision.models import get_model
from torchvision.ops import box_iou
from yolox_like import export, square_finder, street

from skd_core.boxes import Boxes2D
from skd_core.data.kitti import read_objects
from skd_core.data.sample import read_image
from skd_core.errors import UserError
from skd_core.supervision.class_map import COCO_MAP, COCO_NAMES, CYCLE, join_riders, map_classes, parse_class_map
from skd_core.supervision.detector_2d import YoloxNetwork, letterbox, load_detector_2d
from skd_core.supervision.label_report import compare
from skd_core.supervision.tiles import EDGE, drop_cut, merge, suppress, windows

DATA = Path(__file__).resolve().parents[1].parent / "shared" / "data"


@pytest.fixture(scope="module")
def finder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return square_finder(tmp_path_factory.mktemp("onnx") / "squares.onnx")


def boxes(*rows: tuple[str, float, float, float, float, float]) -> Boxes2D:
    """(label, score, x1, y1, x2, y2) each."""
    return Boxes2D(
        torch.tensor([row[2:] for row in rows]).reshape(-1, 4),
        tuple(row[0] for row in rows),
        torch.tensor([row[1] for row in rows]),
    )


def rows(found: Boxes2D) -> list[tuple]:
    """(label, score, x1, y1, x2, y2) of each, in hundredths."""
    return [
        (label, round(score, 2), *(round(v, 2) for v in box))
        for label, score, box in zip(found.labels, found.scores.tolist(), found.xyxy.tolist(), strict=True)
    ]


# --- YOLOX's format ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("decoded", [False, True])
def test_boxes_known_by_hand(tmp_path: Path, decoded: bool) -> None:
    detector = load_detector_2d(square_finder(tmp_path / "net.onnx", decoded=decoded))
    image = street(64, 64, [("car", 16, 32, 16), ("person", 48, 0, 16)])
    assert sorted(rows(detector.detect(image))) == [("Car", 1, 16, 32, 32, 48), ("Pedestrian", 1, 48, 0, 64, 16)]


def test_image_is_scaled_to_fit_at_the_top_left(finder: Path) -> None:
    image = street(128, 64, [("car", 64, 32, 32)])
    assert [row[2:] for row in rows(load_detector_2d(finder).detect(image))] == [(64, 32, 96, 64)]
    scaled, scale = letterbox(torch.from_numpy(image).permute(2, 0, 1), 64, 64)
    assert scale == 0.5
    assert (scaled[:, 32:] == 114).all()
    assert scaled[:, 24, 40].tolist() == [255, 0, 0]
    assert scaled[:, 8, 40].tolist() == [0, 0, 0]


def test_least_score(finder: Path) -> None:
    image = street(64, 64, [("car", 0, 0, 16), ("car", 32, 32, 12)])  # the second fills (12 / 16)^2 of its cell
    assert [row[1] for row in rows(load_detector_2d(finder, score=0.5).detect(image))] == [1, 0.56]
    assert [row[1] for row in rows(load_detector_2d(finder, score=0.6).detect(image))] == [1]


def test_cycles_without_rider_and_trucks_only_on_request(finder: Path) -> None:
    image = street(64, 64, [("bicycle", 0, 0, 16), ("car", 32, 32, 16)])
    assert [row[0] for row in rows(load_detector_2d(finder).detect(image))] == ["Car"]
    assert sorted(load_detector_2d(finder).detect(image, dont_care=True).labels) == ["Car", "DontCare"]
    detector = load_detector_2d(finder, class_map=["2:dontcare"])
    assert detector.detect(image).labels == ()
    assert detector.detect(image, dont_care=True).labels == ("DontCare",)


def test_windows_find_what_the_whole_image_is_too_coarse_for(finder: Path) -> None:
    image = street(112, 112, [("car", 64, 64, 16)])  # windows of 64 px at 0 and 48; scaled whole, no cell is half full
    assert rows(load_detector_2d(finder, score=0.5).detect(image)) == []
    assert rows(load_detector_2d(finder, score=0.5, tiles=4).detect(image)) == [("Car", 1, 64, 64, 80, 80)]


def test_same_boxes_every_time_and_for_every_memory_layout(finder: Path) -> None:
    image = np.random.default_rng(0).integers(0, 256, (90, 150, 3), dtype=np.uint8)
    detector = load_detector_2d(finder, score=0.01, tiles=4, threads=1)
    first = detector.detect(image)
    assert len(first) > 5
    mirrored = np.ascontiguousarray(image[:, ::-1])[:, ::-1]
    mirrored.flags.writeable = False
    other = load_detector_2d(finder, score=0.01, tiles=4)
    for again in (detector.detect(image), detector.detect(mirrored), other.detect(image)):
        assert rows(again) == rows(first)


def test_other_classes_need_a_map(tmp_path: Path) -> None:
    path = square_finder(tmp_path / "three.onnx", classes=3)
    with pytest.raises(UserError, match="3 classes that are not COCO's; give a class map"):
        load_detector_2d(path)
    detector = load_detector_2d(path, class_map=["2:Van"])
    assert rows(detector.detect(street(64, 64, [("car", 16, 16, 16), ("person", 0, 0, 16)]))) == [
        ("Van", 1, 16, 16, 32, 32)
    ]
    assert detector.classes == ("Van",)


class Flat(nn.Module):
    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return image.flatten(2).transpose(1, 2)


def test_unsuitable_files(tmp_path: Path) -> None:
    (tmp_path / "broken.onnx").write_bytes(b"no model")
    grey = export(Flat(), tmp_path / "grey.onnx", torch.zeros(1, 1, 64, 64))
    odd = export(Flat(), tmp_path / "odd.onnx", torch.zeros(1, 3, 50, 64))
    two = export(Flat(), tmp_path / "two.onnx", torch.zeros(2, 3, 64, 64))
    cells = export(Flat(), tmp_path / "cells.onnx", torch.zeros(1, 3, 64, 64))
    for path, message in (
        (tmp_path / "none.onnx", "no such file"),
        (tmp_path / "broken.onnx", "not a usable ONNX model"),
        (grey, "needs one float32 image input"),
        (odd, "multiples of 32"),
        (two, r"image input \(1, 3, H, W\)"),
        (cells, "not YOLOX's output format"),
    ):
        with pytest.raises(UserError, match=message) as caught:
            YoloxNetwork(path)
        assert str(path) in str(caught.value)


def test_wrong_use(finder: Path) -> None:
    with pytest.raises(UserError, match="minimum score"):
        load_detector_2d(finder, score=1.5)
    detector = load_detector_2d(finder)
    for image in (np.zeros((64, 64), np.uint8), np.zeros((64, 64, 3), np.float32), np.zeros((64, 64, 4), np.uint8)):
        with pytest.raises(UserError, match=r"must be \(H, W, 3\) uint8 RGB"):
            detector.detect(image)
    with pytest.raises(UserError, match="use fewer"):
        load_detector_2d(finder, tiles=16).detect(np.zeros((64, 64, 3), np.uint8))


# --- torchvision ---------------------------------------------------------------------------------------------------

SMALL = "ssdlite320_mobilenet_v3_large"


def save_random(path: Path, classes: int = 91, checkpoint: bool = False) -> Path:
    torch.manual_seed(0)
    state = get_model(SMALL, weights=None, weights_backbone=None, num_classes=classes).state_dict()
    torch.save({"model": state, "epoch": 3} if checkpoint else state, path)
    return path


def test_torchvision_model_of_coco(tmp_path: Path) -> None:
    path = save_random(tmp_path / "m.pth")
    detector = load_detector_2d(f"torchvision:{SMALL}@{path}", score=0.0)
    assert [detector.mapping[name] for name in ("person", "car", "bicycle", "8")] == [
        "Pedestrian",
        "Car",
        CYCLE,
        "DontCare",
    ]
    image = np.random.default_rng(0).integers(0, 256, (80, 120, 3), dtype=np.uint8)
    assert len(detector.detect(image, dont_care=True)) == len(detector.detect(image, dont_care=True))


def test_torchvision_model_of_own_classes(tmp_path: Path) -> None:
    path = save_random(tmp_path / "m.pth", classes=4, checkpoint=True)
    name = f"torchvision:{SMALL}@{path}"
    with pytest.raises(UserError, match="4 classes that are not COCO's"):
        load_detector_2d(name)
    image = np.random.default_rng(0).integers(0, 256, (80, 120, 3), dtype=np.uint8)
    found = load_detector_2d(name, class_map=["1:car"], score=0.0, tiles=2).detect(image)
    assert set(found.labels) == {"Car"}
    assert (found.xyxy >= 0).all()
    assert (found.xyxy <= torch.tensor([120.0, 80, 120, 80])).all()


def test_torchvision_bad_names_and_files(tmp_path: Path) -> None:
    (tmp_path / "broken.pth").write_bytes(b"no weights")
    (tmp_path / "broken.safetensors").write_bytes(b"no weights")
    torch.save({"model": [1, 2]}, tmp_path / "list.pth")
    torch.save({"a": torch.zeros(1)}, tmp_path / "other.pth")
    for spec, message in (
        (SMALL, "write torchvision:MODEL@FILE"),
        (f"resnet50@{tmp_path}/broken.pth", "has no detector 'resnet50'; it has .*fasterrcnn_resnet50_fpn"),
        (f"{SMALL}@{tmp_path}/none.pth", "no such file"),
        (f"{SMALL}@{tmp_path}/broken.pth", "not a file of weights"),
        (f"{SMALL}@{tmp_path}/broken.safetensors", "not a file of weights"),
        (f"{SMALL}@{tmp_path}/list.pth", "holds no state dict"),
        (f"{SMALL}@{tmp_path}/other.pth", f"not the weights of torchvision's {SMALL}"),
    ):
        with pytest.raises(UserError, match=message):
            load_detector_2d(f"torchvision:{spec}")


# --- windows -------------------------------------------------------------------------------------------------------


def test_windows_known_by_hand() -> None:
    assert windows(100, 50, 0) == windows(100, 50, 1) == [(0, 0, 100, 50)]
    assert windows(112, 112, 4)[1:] == [(0, 0, 64, 64), (48, 0, 112, 64), (0, 48, 64, 112), (48, 48, 112, 112)]
    kitti = windows(1242, 375, 4)[1:]
    assert [(w[0], w[2]) for w in kitti] == [(0, 383), (286, 669), (572, 955), (859, 1242)]
    assert {(w[1], w[3]) for w in kitti} == {(0, 375)}


@given(st.integers(64, 2000), st.integers(64, 2000), st.integers(0, 9), st.sampled_from([0.5, 1.0, 2.0]))
def test_windows_cover_every_pixel(width: int, height: int, tiles: int, aspect: float) -> None:
    try:
        whole, *parts = windows(width, height, tiles, aspect)
    except UserError:
        assert min(width, height) < 32 * tiles
        return
    assert whole == (0, 0, width, height)
    assert len(parts) == (tiles if tiles > 1 else 0)
    assert len({(x1 - x0, y1 - y0) for x0, y0, x1, y1 in parts}) <= 1
    seen = np.zeros((height, width), bool)
    for x0, y0, x1, y1 in parts or [whole]:
        assert 0 <= x0 < x1 <= width
        assert 0 <= y0 < y1 <= height
        seen[y0:y1, x0:x1] = True
    assert seen.all()


@st.composite
def windows_with_boxes(draw: st.DrawFn) -> tuple[int, int, list[tuple[tuple[int, int, int, int], Boxes2D]]]:
    width, height = draw(st.integers(150, 800)), draw(st.integers(150, 800))
    parts = []
    for window in windows(width, height, draw(st.sampled_from([0, 2, 4, 6]))):
        w, h = window[2] - window[0], window[3] - window[1]
        found = []
        for _ in range(draw(st.integers(0, 4))):
            x = sorted(draw(st.tuples(st.floats(-5, w + 5), st.floats(-5, w + 5))))
            y = sorted(draw(st.tuples(st.floats(-5, h + 5), st.floats(-5, h + 5))))
            found.append(
                (draw(st.sampled_from(["Car", "Pedestrian"])), draw(st.floats(0.1, 1)), x[0], y[0], x[1], y[1])
            )
        parts.append((window, boxes(*found)))
    return width, height, parts


@given(windows_with_boxes())
def test_no_box_ends_at_an_inner_edge(case: tuple[int, int, list]) -> None:
    width, height, parts = case
    for window, found in parts:
        moved = found.crop(-window[0], -window[1])
        left = drop_cut(moved, window, width, height)
        x0, y0, x1, y1 = window
        near_x, near_y = EDGE * (x1 - x0), EDGE * (y1 - y0)
        inner = [
            (x0 > 0) & (moved.xyxy[:, 0] < x0 + near_x),
            (y0 > 0) & (moved.xyxy[:, 1] < y0 + near_y),
            (x1 < width) & (moved.xyxy[:, 2] > x1 - near_x),
            (y1 < height) & (moved.xyxy[:, 3] > y1 - near_y),
        ]
        assert rows(left) == rows(moved[~torch.stack(inner).any(0)])  # these and no others
    joined = merge(parts, width, height)
    assert (joined.xyxy[:, 2:] > joined.xyxy[:, :2]).all()
    assert (joined.xyxy >= 0).all()
    assert (joined.xyxy <= torch.tensor([width, height, width, height])).all()
    for label in set(joined.labels):
        own = joined.xyxy[[other == label for other in joined.labels]]
        assert (box_iou(own, own) - torch.eye(len(own)) <= 0.6 + 1e-6).all()


def test_cut_and_double_boxes_by_hand() -> None:
    left, right = (0, 0, 60, 50), (40, 0, 100, 50)  # of an image of 100 x 50
    parts = [
        ((0, 0, 100, 50), boxes(("Car", 0.5, 30, 10, 70, 30))),
        (left, boxes(("Car", 0.9, 30, 10, 60, 30), ("Car", 0.8, 0, 0, 20, 20))),  # cut at 60; at the image's own border
        (
            right,
            boxes(("Car", 0.6, 0.5, 10, 30, 30), ("Car", 0.7, 20, 10, 55, 30), ("Bus", 0.3, 20, 10, 55, 30)),
        ),
    ]
    found = merge(parts, 100, 50)
    assert sorted(rows(found)) == [
        ("Bus", 0.3, 60, 10, 95, 30),
        ("Car", 0.5, 30, 10, 70, 30),
        ("Car", 0.7, 60, 10, 95, 30),
        ("Car", 0.8, 0, 0, 20, 20),
    ]


def test_suppression_is_within_a_class() -> None:
    found = suppress(boxes(("Car", 0.5, 0, 0, 10, 10), ("Car", 0.9, 0, 0, 10, 9), ("Truck", 0.3, 0, 0, 10, 10)), 0.6)
    assert [row[:2] for row in rows(found)] == [("Car", 0.9), ("Truck", 0.3)]
    assert len(suppress(boxes(("Car", 0.5, 0, 0, 10, 10), ("Car", 0.9, 0, 0, 10, 5)), 0.6)) == 2  # IoU .5
    assert len(suppress(Boxes2D.empty())) == 0


# --- class map and riders ------------------------------------------------------------------------------------------


def test_class_map_takes_names_and_ids() -> None:
    mapping = parse_class_map(["2:car", "Person:pedestrian", "traffic light:Light"], COCO_NAMES)
    assert mapping == {
        "2": "Car", "car": "Car", "0": "Pedestrian", "person": "Pedestrian", "9": "Light", "traffic light": "Light",
    }  # fmt: skip
    found = boxes(("CAR", 0.9, 0, 0, 1, 1), ("dog", 0.8, 0, 0, 2, 2), ("0", 0.7, 0, 0, 3, 3))
    assert rows(map_classes(found, mapping)) == [("Car", 0.9, 0, 0, 1, 1), ("Pedestrian", 0.7, 0, 0, 3, 3)]
    assert parse_class_map(["2:car"]) == {"2": "Car"}  # without names, as a message gives them
    assert len(map_classes(Boxes2D.empty(), mapping)) == 0


def test_coco_default() -> None:
    mapping = parse_class_map(COCO_MAP, COCO_NAMES)
    assert len(COCO_NAMES) == len(set(COCO_NAMES)) == 80
    assert {name: mapping[name] for name in COCO_NAMES if name in mapping} == {
        "person": "Pedestrian", "bicycle": CYCLE, "car": "Car", "motorcycle": CYCLE, "bus": "DontCare",
        "train": "DontCare", "truck": "DontCare",
    }  # fmt: skip
    assert [mapping.get(str(number)) for number in (0, 2, 7, 9)] == ["Pedestrian", "Car", "DontCare", None]


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        (["car"], "write SOURCE:TARGET"),
        ([":car"], "write SOURCE:TARGET"),
        (["car:"], "write SOURCE:TARGET"),
        (["car:big car"], "write SOURCE:TARGET"),
        (["lorry:truck"], "no class 'lorry'; it has person, bicycle"),
        (["80:car"], "no class '80'"),
        (["2:car", "car:van"], "'car' is named twice"),
    ],
)
def test_class_map_errors(entries: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse_class_map(entries, COCO_NAMES)


def test_riders_by_hand() -> None:
    found = boxes(
        ("Pedestrian", 0.9, 10, 0, 30, 60),  # rides: lower half 30..60 meets 40..80, 20 of 20 px shared
        (CYCLE, 0.5, 5, 40, 45, 80),
        ("Pedestrian", 0.8, 100, 0, 120, 60),  # beside it: 8 of 20 px
        (CYCLE, 0.4, 112, 40, 150, 80),
        ("Pedestrian", 0.7, 200, 0, 220, 60),  # above it: the lower half ends where it begins
        (CYCLE, 0.3, 200, 60, 220, 90),
        ("Car", 0.6, 5, 40, 45, 80),
    )
    assert rows(join_riders(found)) == [
        ("Cyclist", 0.9, 5, 0, 45, 80),
        ("Pedestrian", 0.8, 100, 0, 120, 60),
        ("DontCare", 0.4, 112, 40, 150, 80),
        ("Pedestrian", 0.7, 200, 0, 220, 60),
        ("DontCare", 0.3, 200, 60, 220, 90),
        ("Car", 0.6, 5, 40, 45, 80),
    ]


def test_a_cycle_carries_the_one_who_fits_best() -> None:
    found = boxes(
        ("Pedestrian", 0.9, 0, 0, 20, 60), ("Pedestrian", 0.5, 8, 0, 28, 60), (CYCLE, 0.5, 8, 30, 48, 80)
    )  # fmt: skip
    assert [row[0] for row in rows(join_riders(found))] == ["Pedestrian", "Cyclist"]


@given(
    st.lists(
        st.tuples(st.sampled_from(["Pedestrian", CYCLE, "Car"]), *[st.integers(0, 50)] * 2, *[st.integers(1, 40)] * 2),
        max_size=8,
    )
)
def test_riders_and_cycles_are_counted_once(objects: list[tuple[str, int, int, int, int]]) -> None:
    found = boxes(*((label, 0.5, x, y, x + w, y + h) for label, x, y, w, h in objects))
    joined = join_riders(found)
    count = {label: joined.labels.count(label) for label in ("Pedestrian", "Cyclist", "DontCare", "Car", CYCLE)}
    assert count[CYCLE] == 0
    assert count["Car"] == found.labels.count("Car")
    assert count["Pedestrian"] + count["Cyclist"] == found.labels.count("Pedestrian")
    assert count["Cyclist"] + count["DontCare"] == found.labels.count(CYCLE)
    for label, box in zip(joined.labels, joined.xyxy, strict=True):
        if label == "Cyclist":  # the union of a person and a cycle
            inside = (found.xyxy[:, :2] >= box[:2]).all(1) & (found.xyxy[:, 2:] <= box[2:]).all(1)
            assert {"Pedestrian", CYCLE} <= {found.labels[i] for i in inside.nonzero()[:, 0].tolist()}


# --- real streets --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("tiles", "least"), [(0, 0.55), (4, 0.90)])
def test_cars_of_kitti_dev(tiles: int, least: float) -> None:
    root = DATA / "kitti_dev" / "training"
    if not root.is_dir():
        pytest.skip(f"{root} is not here")
    detector = load_detector_2d(DATA / "weights" / "yolox_nano.onnx", tiles=tiles, threads=1)
    pairs = []
    for label in sorted((root / "label_2").glob("*.txt")):
        image = read_image(next((root / "image_2").glob(f"{label.stem}.*"))).permute(1, 2, 0).numpy()
        pairs.append((detector.detect(image), read_objects(label)))
    assert compare(pairs, ["Car"])["Car"].row()["recall_50"] >= least
