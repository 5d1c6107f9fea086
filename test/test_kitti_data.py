"""KITTI files, the KITTI tree and folders of images: what is read, and what each fault is called."""

from __future__ import annotations

import math
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from skd_core import notes
from skd_core.boxes import Boxes3D
from skd_core.camera import Camera
from skd_core.data.folder import ImageFolder
from skd_core.data.kitti import KittiDataset, read_boxes2d, read_given_boxes2d, read_objects, write_results
from skd_core.data.sample import Sample, read_depth, read_image
from skd_core.errors import UserError

DATA = Path(__file__).resolve().parents[1].parent / "shared" / "data"
DEV = DATA / "kitti_dev"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason=f"no real data at {DATA}")

CAR = "Car 0.00 0 1.55 614.24 181.78 727.31 284.77 1.57 1.73 4.15 1.00 1.75 13.22 1.62"
VAN = "Van 0.10 2 -1.75 500.00 170.00 560.00 230.00 2.20 1.90 5.00 -4.00 1.80 25.00 -1.90"
WALKER = "Pedestrian 0.00 1 0.20 300.00 160.00 330.00 250.00 1.80 0.60 0.80 -6.00 1.70 14.00 -0.20"
DONT_CARE = "DontCare -1 -1 -10 5.00 229.89 214.12 367.61 -1 -1 -1 -1000 -1000 -1000 -10"
P2 = "721.5377 0 609.5593 44.85728 0 721.5377 172.854 0.2163791 0 0 1 0.002745884"


def text_file(tmp_path: Path, text: str, name: str = "000007.txt") -> Path:
    path = tmp_path / name
    path.write_bytes(text.encode())
    return path


# -- label and result files -------------------------------------------------------------------------------------------
def test_columns_of_a_label(tmp_path: Path) -> None:
    objects = read_objects(text_file(tmp_path, f"{CAR}\n{DONT_CARE}\n"))
    assert objects.type == ["Car", "DontCare"]
    assert objects.truncated.tolist() == [0, -1]
    assert objects.occluded.tolist() == [0, -1]
    assert objects.alpha.tolist() == [1.55, -10]
    assert objects.xyxy.tolist() == [[614.24, 181.78, 727.31, 284.77], [5, 229.89, 214.12, 367.61]]
    assert objects.dimensions.tolist() == [[1.57, 1.73, 4.15], [-1, -1, -1]]
    assert objects.location.tolist() == [[1, 1.75, 13.22], [-1000] * 3]
    assert objects.rotation_y.tolist() == [1.62, -10]
    assert objects.score.tolist() == [1, 1]


def test_columns_of_a_result(tmp_path: Path) -> None:
    objects = read_objects(text_file(tmp_path, f"{CAR} -17.25\n"), results=True)
    assert objects.score.tolist() == [-17.25]
    assert objects.boxes3d().scores.tolist() == [-17.25]


def test_boxes_of_a_label(tmp_path: Path) -> None:
    objects = read_objects(text_file(tmp_path, f"{DONT_CARE}\n{CAR}\n{VAN}\n"))
    boxes = objects.boxes3d()
    assert boxes.labels == ("Car", "Van")
    assert boxes.center[0].tolist() == [1, 1.75 - 1.57 / 2, 13.22]
    assert boxes.size[0].tolist() == [4.15, 1.73, 1.57]
    assert boxes.yaw[0] == 1.62
    assert boxes.xyxy[0].tolist() == [614.24, 181.78, 727.31, 284.77]
    assert objects.boxes3d(["Van"]).labels == ("Van",)
    assert objects.boxes2d().labels == ("DontCare", "Car", "Van")
    assert objects.boxes2d(["DontCare"]).xyxy.tolist() == [[5, 229.89, 214.12, 367.61]]


@pytest.mark.parametrize("ending", ["\n", "\r\n", " \n", "\n\n", "\t\r\n\r\n"])
def test_line_endings_and_blank_lines(tmp_path: Path, ending: str) -> None:
    path = text_file(tmp_path, ending + ending.join([CAR, DONT_CARE, WALKER]))
    assert read_objects(path).type == ["Car", "DontCare", "Pedestrian"]
    assert read_boxes2d(path).labels == ("Car", "DontCare", "Pedestrian")


def test_an_editor_s_byte_order_mark_is_no_part_of_the_class(tmp_path: Path) -> None:
    path = text_file(tmp_path, "\ufeff" + CAR)
    assert read_objects(path).type == ["Car"]
    assert read_boxes2d(path).labels == ("Car",)


@pytest.mark.parametrize("text", ["", "\n", "  \r\n\r\n"])
def test_an_empty_file_holds_no_objects(tmp_path: Path, text: str) -> None:
    path = text_file(tmp_path, text)
    objects = read_objects(path)
    assert len(objects) == len(objects.boxes2d()) == len(objects.boxes3d()) == len(read_boxes2d(path)) == 0
    assert objects.xyxy.shape == (0, 4)
    assert len(objects[objects.is_class(["Car"])]) == 0


def test_selection(tmp_path: Path) -> None:
    objects = read_objects(text_file(tmp_path, f"{CAR}\n{VAN}\n{DONT_CARE}\n"))
    assert objects[[2, 0]].type == ["DontCare", "Car"]
    assert objects[objects.occluded >= 0].type == ["Car", "Van"]
    assert objects[1:].occluded.tolist() == [2, -1]
    assert objects[[]].location.shape == (0, 3)
    assert objects[np.array([False, True, False])].alpha.tolist() == [-1.75]


def broken(column: int, value: str) -> str:
    columns = CAR.split()
    columns[column] = value
    return " ".join(columns)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (CAR.rsplit(" ", 1)[0], r":3: expected 15 columns, as a label line has, got 14"),
        ("Car 0 0 0 1 2 3 4", r":3: expected 15 columns.*got 8 \(2D boxes alone; 3D boxes are needed here\)"),
        ("Car", r":3: expected 15 columns.*got 1$"),
        (broken(3, "abc"), r":3: column 4 must be a number, got 'abc'"),
        (broken(14, "nan"), r":3: column 15 must be finite, got 'nan'"),
        (broken(11, "inf"), r":3: column 12 must be finite, got 'inf'"),
        (broken(6, "600"), r":3: 2D box needs x1 <= x2 and y1 <= y2, got 614.24 181.78 600 284.77"),
        (broken(7, "-3"), r":3: 2D box needs x1 <= x2"),
    ],
)
def test_a_malformed_label_is_named_with_its_line(tmp_path: Path, line: str, message: str) -> None:
    path = text_file(tmp_path, f"{CAR}\n\n{line}\n{VAN}\n")
    with pytest.raises(UserError, match="000007.txt" + message) as caught:
        read_objects(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("more", [" 0.0000", " 0.9 17", " nan", " -1 -1 -1 track7", "\t1e400"])
def test_columns_of_labels_beyond_the_15th_are_ignored(tmp_path: Path, more: str) -> None:
    """nuscenes-devkit's export has a score there, trackers an id; lines of one file need not be alike."""
    plain, path = read_objects(text_file(tmp_path, f"{CAR}\n{VAN}\n")), text_file(tmp_path, f"{CAR}{more}\n{VAN}\n")
    for found, expected in zip(vars(read_objects(path)).values(), vars(plain).values(), strict=True):
        assert np.array_equal(found, expected)
    assert read_boxes2d(path).xyxy.tolist() == plain.xyxy.tolist()


def test_labels_of_2d_boxes_alone_do_where_only_those_are_read(tmp_path: Path) -> None:
    path = text_file(tmp_path, "Car 0.00 0 -10 1 2 3 4\n\nVan -1 -1 -10 5 6 7.5 8\n")
    assert read_boxes2d(path).xyxy.tolist() == [[1, 2, 3, 4], [5, 6, 7.5, 8]]
    assert read_given_boxes2d(path).labels == ("Car", "Van")
    with pytest.raises(UserError, match="3D boxes are needed here"):
        read_objects(path)
    objects = read_objects(path, with_3d=False)
    assert objects.xyxy.tolist() == [[1, 2, 3, 4], [5, 6, 7.5, 8]]
    assert objects.location.tolist() == [[-1000] * 3] * 2
    assert objects.rotation_y.tolist() == [-10, -10]


READERS = (read_objects, read_boxes2d, read_given_boxes2d, lambda path: read_objects(path, results=True))


@pytest.mark.parametrize("read", READERS)
def test_a_pipe_and_a_huge_file_are_no_labels(tmp_path: Path, read: Callable[[Path], object]) -> None:
    os.mkfifo(tmp_path / "pipe.txt")
    with open(tmp_path / "sparse.txt", "wb") as file:
        file.truncate(1 << 40)
    for name, message in (("pipe.txt", "not a regular file"), ("sparse.txt", "more than the")):
        with pytest.raises(UserError, match=f"cannot read label file: .*{message}"):
            read(tmp_path / name)


NUMBER = st.floats().map(str) | st.integers(-3, 2000).map(str) | st.sampled_from(["-", "1e400", "0x1", "1_0", "\u0661"])
WORD = st.text(st.characters(codec="utf-8"), max_size=4) | NUMBER


LINES = st.lists(WORD, max_size=18).map(" ".join) | st.sampled_from([CAR, CAR + " 0.5"])


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(LINES, max_size=4).map("\n".join))
def test_of_any_text_come_objects_or_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "000007.txt").write_bytes(text.encode())
    for read in READERS:
        said = "one line"
        try:
            read(tmp_path / "000007.txt")
        except UserError as error:
            said = str(error)
        assert len(said.splitlines()) == 1


def test_a_label_is_no_result(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r":1: expected 16 columns.*got 15 \(this looks like a label line\)"):
        read_objects(text_file(tmp_path, CAR), results=True)


def test_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"gone.txt: cannot read label file: No such file"):
        read_objects(tmp_path / "gone.txt")
    with pytest.raises(UserError, match="cannot read"):
        read_boxes2d(tmp_path)
    (tmp_path / "picture.txt").write_bytes(bytes(range(256)))
    with pytest.raises(UserError, match="not a text file"):
        read_objects(tmp_path / "picture.txt")


# -- only 2D boxes ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "line",
    [
        CAR,
        "Car ? ? ? 614.24 181.78 727.31 284.77 the rest is of no concern, nan or missing",
        "Car - - - 614.24 181.78 727.31 284.77",
        "Car nan nan nan 614.24 181.78 727.31 284.77 nan nan nan nan nan nan nan",
    ],
)
def test_2d_boxes_are_read_without_looking_at_the_rest(tmp_path: Path, line: str) -> None:
    boxes = read_boxes2d(text_file(tmp_path, f"{line}\n"))
    assert boxes.labels == ("Car",)
    assert boxes.xyxy.tolist() == [[614.24, 181.78, 727.31, 284.77]]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("Car 0 0 0 1 2 3", r":2: expected at least 8 columns, got 7"),
        (broken(4, "x"), r":2: column 5 must be a number, got 'x'"),
        (broken(7, "nan"), r":2: column 8 must be finite"),
        (broken(6, "0"), r":2: 2D box needs"),
    ],
)
def test_malformed_2d_boxes(tmp_path: Path, line: str, message: str) -> None:
    with pytest.raises(UserError, match="000007.txt" + message):
        read_boxes2d(text_file(tmp_path, f"{CAR}\n{line}\n"))


# -- results are exact ------------------------------------------------------------------------------------------------
finite = st.floats(-1e4, 1e4)


@given(st.lists(st.tuples(*[finite] * 7, st.floats(0, 1), *[finite] * 4), max_size=4), st.sampled_from([32, 64]))
def test_results_read_back_to_the_last_bit(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[float, ...]], bits: int
) -> None:
    dtype = torch.float32 if bits == 32 else torch.float64
    table = torch.tensor(rows, dtype=dtype).reshape(-1, 12)
    corners = table[:, 8:].reshape(-1, 2, 2).sort(1).values.reshape(-1, 4)
    boxes = Boxes3D(
        table[:, :3], table[:, 3:6], table[:, 6], ("Car",) * len(table), scores=table[:, 7], xyxy=corners
    )  # fmt: skip
    path = tmp_path_factory.mktemp("results") / "000000.txt"
    write_results(path, boxes)
    again = read_objects(path, results=True)
    assert torch.from_numpy(again.location).equal(boxes.to(torch.float64).bottom)
    back = again.boxes3d()
    for name in ("size", "yaw", "scores", "xyxy"):
        assert getattr(back, name).equal(getattr(boxes, name).double()), name
    assert torch.from_numpy(again.alpha).equal(boxes.to(torch.float64).alpha)
    assert (again.truncated.tolist(), again.occluded.tolist()) == ([-1] * len(boxes), [-1] * len(boxes))
    torch.testing.assert_close(back.center, boxes.center.double(), rtol=1e-12, atol=1e-12)


def one_box(**changes: object) -> Boxes3D:
    fields: dict[str, object] = {
        "center": torch.tensor([[1.0, 1, 20]]),
        "size": torch.tensor([[4.0, 2, 1.5]]),
        "yaw": torch.tensor([0.5]),
        "labels": ("Car",),
        "xyxy": torch.tensor([[10.0, 20, 30, 40]]),
    }
    return Boxes3D(**{**fields, **changes})  # type: ignore[arg-type]


def test_a_result_line(tmp_path: Path) -> None:
    write_results(tmp_path / "a.txt", one_box(scores=torch.tensor([0.25])))
    before, alpha, after = (tmp_path / "a.txt").read_text().partition(" 0.45004160427805")
    assert float(alpha) == pytest.approx(0.5 - math.atan2(1, 20), abs=1e-13)
    assert before == "Car -1 -1"
    assert after.split(" ", 1)[1] == "10.0 20.0 30.0 40.0 1.5 2.0 4.0 1.0 1.75 20.0 0.5 0.25\n"
    write_results(tmp_path / "empty.txt", Boxes3D.empty())
    assert (tmp_path / "empty.txt").read_text() == ""


@pytest.mark.parametrize(
    ("boxes", "message"),
    [
        (one_box(xyxy=None), "detection 0 holds NaN"),
        (one_box(yaw=torch.tensor([math.inf])), "detection 0 holds NaN or infinity"),
        (one_box(labels=("traffic cone",)), "'traffic cone' cannot be written"),
        (one_box(labels=("",)), "'' cannot be written"),
    ],
)
def test_what_cannot_be_written(tmp_path: Path, boxes: Boxes3D, message: str) -> None:
    with pytest.raises(UserError, match=message):
        write_results(tmp_path / "a.txt", boxes)
    assert list(tmp_path.iterdir()) == []


# -- pictures ---------------------------------------------------------------------------------------------------------
def save(path: Path, pixels: np.ndarray, **options: object) -> Path:
    Image.fromarray(pixels).save(path, **options)
    return path


def test_colours_keep_their_order(tmp_path: Path) -> None:
    pixels = np.zeros((4, 6, 3), np.uint8)
    pixels[1, 2] = (200, 100, 50)
    image = read_image(save(tmp_path / "a.png", pixels))
    assert image.shape == (3, 4, 6)
    assert image.dtype == torch.uint8
    assert image[:, 1, 2].tolist() == [200, 100, 50]
    assert int(image.sum()) == 350


def test_grey_transparent_palette_and_16_bit_pictures(tmp_path: Path) -> None:
    grey = np.arange(24, dtype=np.uint8).reshape(4, 6) * 10
    assert read_image(save(tmp_path / "grey.png", grey)).tolist() == [grey.tolist()] * 3
    deep = np.array([[0, 257, 128 * 257], [65535, 300, 256]], np.uint16)
    assert read_image(save(tmp_path / "deep.png", deep))[1].tolist() == [[0, 1, 128], [255, 1, 1]]
    clear = np.full((2, 2, 4), (10, 20, 30, 0), np.uint8)
    assert read_image(save(tmp_path / "clear.png", clear))[:, 0, 0].tolist() == [10, 20, 30]
    Image.fromarray(np.full((2, 2, 3), 77, np.uint8)).convert("P").save(tmp_path / "palette.png")
    assert read_image(tmp_path / "palette.png").shape == (3, 2, 2)
    Image.fromarray(grey).convert("1").save(tmp_path / "bits.png")
    assert set(read_image(tmp_path / "bits.png").flatten().tolist()) <= {0, 255}


def test_a_rotation_note_is_not_obeyed(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # "turn me by 90 degrees"
    path = save(tmp_path / "a.jpg", np.zeros((4, 9, 3), np.uint8), exif=exif)
    assert read_image(path).shape == (3, 4, 9)


def test_pictures_of_more_than_8_bits(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """In colour too, which Pillow cuts to the upper byte; of 12 bits in 16 the lower ones are filled."""
    notes._said.clear()
    rgb = np.random.default_rng(0).integers(0, 256, (6, 8, 3), np.uint8)
    rgb[0, 0] = 255
    deep = rgb.astype(np.uint16) * 257
    for suffix in ("png", "tiff"):
        for shift in (0, 4, 2, 6):
            path = tmp_path / f"{shift}.{suffix}"
            cv2.imwrite(str(path), deep[..., ::-1] >> shift)
            assert np.array_equal(read_image(path).permute(1, 2, 0).numpy(), rgb), path
            cv2.imwrite(str(path), deep[..., 1] >> shift)
            assert np.array_equal(read_image(path)[2].numpy(), rgb[..., 1]), path
            assert len(caplog.records) == {0: 0, 4: 1, 2: 2, 6: 3}[shift] or suffix == "tiff"
    assert "4.png: a 16-bit picture whose brightest pixel is 4095 of 65535 is taken as one of 12 bits" in caplog.text
    cv2.imwrite(str(tmp_path / "depth.tiff"), np.ones((4, 4), np.float32))
    with pytest.raises(UserError, match=r"depth.tiff: pixels of type float32 are not a picture"):
        read_image(tmp_path / "depth.tiff")


def test_what_is_no_picture_file_is_named_without_reading_it(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "folder.png").mkdir()
    with open(tmp_path / "sparse.png", "wb") as file:
        file.truncate(1 << 42)
    (tmp_path / "program.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n")
    shape = {"descr": "<f4", "fortran_order": False, "shape": (1 << 20, 1 << 20)}
    with open(tmp_path / "huge.npy", "wb") as file:
        np.lib.format.write_array_header_1_0(file, shape)
    for name, message in [
        ("pipe.png", "not a regular file"), ("folder.png", "Is a directory"), ("sparse.png", "more than the"),
        ("program.png", "not an image"), ("huge.npy", ""),
    ]:  # fmt: skip
        for read in (read_image, read_depth) if name != "huge.npy" else (read_depth,):
            with pytest.raises(UserError, match=f"{name}: cannot read (image|depth map): .*{message}"):
                read(tmp_path / name)


@given(st.binary(max_size=400), st.sampled_from([".png", ".jpg", ".tiff", ".bmp", ".ppm", ".npy"]), st.booleans())
def test_of_any_bytes_comes_a_picture_or_one_line(data: bytes, suffix: str, header: bool) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"a{suffix}"
        if suffix == ".npy":
            np.save(path, np.ones((3, 3), np.float32))
        else:
            cv2.imwrite(str(path), np.full((5, 4, 3), 77, np.uint8))
        whole = path.read_bytes()
        path.write_bytes(whole[:60] + data if header else data + whole[len(data) :])
        for read in (read_image, read_depth):
            said = "one line"
            try:
                read(path)
            except UserError as error:
                said = str(error)
            assert len(said.splitlines()) == 1


def test_pictures_that_cannot_be_read(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    whole = save(tmp_path / "whole.png", noise).read_bytes()
    for length in (0, 20, 50, len(whole) // 2):
        (tmp_path / "cut.png").write_bytes(whole[:length])
        with pytest.raises(UserError, match=r"cut.png: cannot read image: ") as caught:
            read_image(tmp_path / "cut.png")
        assert "\n" not in str(caught.value)
    (tmp_path / "words.png").write_text("no picture")
    with pytest.raises(UserError, match=r"words.png: cannot read image: not an image"):
        read_image(tmp_path / "words.png")
    with pytest.raises(UserError, match=r"gone.png: cannot read image: No such file"):
        read_image(tmp_path / "gone.png")


def test_depth_maps(tmp_path: Path) -> None:
    png = np.array([[0, 256, 257], [65535, 10, 5120]], np.uint16)
    depth = read_depth(save(tmp_path / "a.png", png))
    assert depth.dtype == torch.float32
    assert depth.tolist() == [[0, 1, 257 / 256], [65535 / 256, 10 / 256, 20]]
    np.save(tmp_path / "b.npy", np.array([[math.nan, 2.5], [-1, math.inf]]))
    assert read_depth(tmp_path / "b.npy").tolist() == [[0, 2.5], [0, 0]]


def test_depth_maps_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"rgb.png: depth must be a 16-bit grey PNG .* got mode RGB"):
        read_depth(save(tmp_path / "rgb.png", np.zeros((2, 2, 3), np.uint8)))
    with pytest.raises(UserError, match=r"grey.png: .*got mode L"):
        read_depth(save(tmp_path / "grey.png", np.zeros((2, 2), np.uint8)))
    np.save(tmp_path / "cube.npy", np.zeros((2, 2, 2)))
    with pytest.raises(UserError, match=r"cube.npy: depth must be a 2D array"):
        read_depth(tmp_path / "cube.npy")
    for content in (b"", b"junk", (tmp_path / "cube.npy").read_bytes()[:100]):
        (tmp_path / "bad.npy").write_bytes(content)
        with pytest.raises(UserError, match=r"bad.npy: cannot read depth map"):
            read_depth(tmp_path / "bad.npy")
    with pytest.raises(UserError, match=r"gone.png: cannot read depth map: No such file"):
        read_depth(tmp_path / "gone.png")


# -- the tree ---------------------------------------------------------------------------------------------------------
@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Three frames of 900x400: one crowded with CRLF, one grey without objects, one JPEG."""
    training = tmp_path / "kitti" / "training"
    for folder in ("image_2", "calib", "label_2", "depth"):
        (training / folder).mkdir(parents=True)
    (tmp_path / "kitti" / "ImageSets").mkdir()
    (tmp_path / "kitti" / "ImageSets" / "train.txt").write_text("000002\r\n000000\r\n\r\n")
    (tmp_path / "kitti" / "ImageSets" / "val.txt").write_text("000001\n")
    shape = (400, 900)
    save(training / "image_2" / "000000.png", np.full((*shape, 3), (1, 2, 3), np.uint8))
    save(training / "image_2" / "000001.png", np.full(shape, 7, np.uint8))
    save(training / "image_2" / "000002.jpg", np.full((*shape, 3), 9, np.uint8))
    text_file(training / "label_2", "\r\n".join([DONT_CARE, WALKER, VAN, CAR]) + "\r\n", "000000.txt")
    text_file(training / "label_2", "", "000001.txt")
    text_file(training / "label_2", CAR, "000002.txt")
    for i in range(3):
        text_file(training / "calib", f"P2: {P2}\n", f"{i:06d}.txt")
        save(training / "depth" / f"{i:06d}.png", np.full(shape, 256 * (i + 1), np.uint16))
    return tmp_path / "kitti"


def test_a_sample(tree: Path) -> None:
    dataset = KittiDataset(tree, classes=("Car", "Pedestrian"))
    assert dataset.names == ["000000", "000001", "000002"]
    sample = dataset[0]
    assert sample.name == "000000"
    assert sample.image[:, 5, 5].tolist() == [1, 2, 3]
    assert sample.camera.P.flatten().tolist() == [float(v) for v in P2.split()]
    assert (sample.camera.width, sample.camera.height) == (900, 400)
    assert sample.boxes2d.labels == ("Pedestrian", "Car")
    assert sample.ignore.labels == ("DontCare", "Van")
    assert sample.boxes2d.xyxy.dtype == torch.float32
    torch.testing.assert_close(sample.boxes2d.xyxy[1], torch.tensor([614.24, 181.78, 727.31, 284.77]))
    assert sample.depth is None
    assert sample.boxes3d is None


def test_a_grey_frame_without_objects(tree: Path) -> None:
    sample = KittiDataset(tree, "val", with_3d=True)[0]
    assert sample.image.shape == (3, 400, 900)
    assert len(sample.boxes2d) == len(sample.ignore) == 0
    assert sample.boxes3d is not None
    assert len(sample.boxes3d) == 0


def test_a_split_keeps_its_order(tree: Path) -> None:
    dataset = KittiDataset(tree, "train", depth_dir="depth")
    assert dataset.names == ["000002", "000000"]
    assert len(dataset) == 2
    assert [sample.name for sample in (dataset[0], dataset[1])] == dataset.names
    depth = dataset[0].depth
    assert depth is not None
    assert depth.unique().tolist() == [3]


def test_3d_truth_is_that_of_the_2d_boxes(tree: Path) -> None:
    sample = KittiDataset(tree, classes=("Car", "Pedestrian"), with_3d=True)[0]
    assert sample.boxes3d is not None
    assert sample.boxes3d.labels == sample.boxes2d.labels == ("Pedestrian", "Car")
    assert sample.boxes3d.xyxy.equal(sample.boxes2d.xyxy)
    torch.testing.assert_close(sample.boxes3d.bottom[1], torch.tensor([1, 1.75, 13.22]))


def test_boxes_end_at_the_image(tree: Path) -> None:
    lines = [CAR.replace("727.31", "950.5"), CAR.replace("614.24", "900.0").replace("727.31", "950.5"), WALKER]
    lines.append("DontCare -1 -1 -10 910 20 950 40 -1 -1 -1 -1000 -1000 -1000 -10")
    text_file(tree / "training" / "label_2", "\n".join(lines), "000000.txt")
    sample = KittiDataset(tree, with_3d=True)[0]
    assert sample.boxes2d.labels == ("Car", "Pedestrian")
    assert float(sample.boxes2d.xyxy[0, 2]) == 900
    assert len(sample.ignore) == 0
    assert sample.boxes3d is not None
    assert sample.boxes3d.labels == ("Car", "Pedestrian")
    assert sample.boxes3d.xyxy.equal(sample.boxes2d.xyxy)


def test_no_3d_label_reaches_training(tree: Path) -> None:
    """With every column but class and 2D box replaced by garbage, the training samples are the same."""
    before = [KittiDataset(tree)[i] for i in range(3)]
    for path in (tree / "training" / "label_2").glob("*.txt"):
        lines = [line.split() for line in path.read_text().splitlines()]
        spoilt = [" ".join([c[0], "#", "nan", "?", *c[4:8], *["garbage"] * 7]) for c in lines]
        path.write_text("\n".join(spoilt))
    after = [KittiDataset(tree)[i] for i in range(3)]
    for one, other in zip(before, after, strict=True):
        assert one.image.equal(other.image)
        assert one.camera.P.equal(other.camera.P)
        assert one.boxes2d.xyxy.equal(other.boxes2d.xyxy)
        assert one.ignore.xyxy.equal(other.ignore.xyxy)
        assert (one.boxes2d.labels, one.ignore.labels) == (other.boxes2d.labels, other.ignore.labels)
        assert one.boxes3d is other.boxes3d is None
    with pytest.raises(UserError, match=r"000000.txt:1: column 2 must be a number, got '#'"):
        KittiDataset(tree, with_3d=True)[0]


def remove(relative: str) -> Callable[[Path], None]:
    return lambda tree: (tree / relative).unlink()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (remove("training/image_2/000001.png"), r"image_2: 1 of 3 frames have no file, first 000001"),
        (remove("training/calib/000002.txt"), r"calib: 1 of 3 frames have no file, first 000002"),
        (remove("training/label_2/000000.txt"), r"label_2: 1 of 3 frames have no file, first 000000"),
        (remove("training/depth/000002.png"), r"depth: 1 of 3 frames have no file, first 000002"),
        (remove("ImageSets/all.txt"), r"all.txt: no such split; there are: train, val"),
        (lambda tree: (tree / "ImageSets/all.txt").write_text("\n"), r"all.*no frames"),
        (lambda tree: (tree / "ImageSets/all.txt").write_text("000000\n1 2\n"), r"all.txt:2: expected one frame name"),
        (
            lambda tree: (tree / "ImageSets/all.txt").write_text("1\n\n0\n1\n"),
            r"all.txt:4: frame 1 again, as in line 1",
        ),
        (lambda tree: shutil.rmtree(tree / "training/calib"), r"calib: no such folder; the standard KITTI tree has"),
        (lambda tree: shutil.rmtree(tree / "training"), r"image_2: no such folder"),
    ],
)
def test_what_is_missing_is_named_at_once(tree: Path, spoil: Callable[[Path], None], message: str) -> None:
    (tree / "ImageSets" / "all.txt").write_text("000000\n000001\n000002\n")
    spoil(tree)
    with pytest.raises(UserError, match=message) as caught:
        KittiDataset(tree, "all", depth_dir="depth")
    assert "\n" not in str(caught.value)


def test_an_empty_tree(tree: Path) -> None:
    for path in (tree / "training" / "image_2").iterdir():
        path.unlink()
    with pytest.raises(UserError, match="image_2: no frames"):
        KittiDataset(tree)


def test_malformed_files_are_named_when_their_frame_is_read(tree: Path) -> None:
    dataset = KittiDataset(tree, depth_dir="depth")
    text_file(tree / "training" / "calib", "P2: 1 2\n", "000000.txt")
    with pytest.raises(UserError, match=r"calib/000000.txt:1: P2 must be 12 numbers, got 2"):
        dataset[0]
    text_file(tree / "training" / "label_2", f"{CAR}\nCar 1 2\n", "000001.txt")
    with pytest.raises(UserError, match=r"label_2/000001.txt:2: expected at least 8 columns, got 3"):
        dataset[1]
    save(tree / "training" / "depth" / "000002.png", np.zeros((10, 20), np.uint16))
    with pytest.raises(UserError, match=r"depth/000002.png: depth is 20x10, the image 900x400"):
        dataset[2]


def test_a_sample_that_contradicts_itself_is_refused(tree: Path) -> None:
    sample = KittiDataset(tree)[0]
    parts = (sample.name, sample.image, sample.camera, sample.boxes2d, sample.ignore)
    with pytest.raises(ValueError, match="image must be uint8"):
        Sample("a", sample.image[:, 1:], *parts[2:])
    with pytest.raises(ValueError, match="image must be uint8"):
        Sample("a", sample.image.float(), *parts[2:])
    with pytest.raises(ValueError, match="depth must have the image's shape"):
        Sample(*parts, depth=torch.zeros(3, 3))
    with pytest.raises(ValueError, match="same objects"):
        Sample(*parts, boxes3d=Boxes3D.empty())


# -- folders of images ------------------------------------------------------------------------------------------------
@pytest.fixture
def folder(tmp_path: Path) -> Path:
    images = tmp_path / "images"
    images.mkdir()
    for name in ("10.png", "9.PNG", "100.jpg"):
        save(images / name, np.full((48, 64, 3), int(name.split(".")[0]), np.uint8))
    (images / "notes.txt").write_text("no picture")
    text_file(tmp_path, f"P2: {P2}\n", "calib.txt")
    text_file(tmp_path, "image_width: 64\nimage_height: 48\nP: [50, 0, 32, 0, 0, 50, 24, 0, 0, 0, 1, 0]\n", "cam.yaml")
    return images


def test_a_folder_of_images(folder: Path) -> None:
    images = ImageFolder(folder, folder.parent / "cam.yaml")
    assert images.names == ["9", "10", "100"]
    assert len(images) == 3
    sample = images[1]
    assert sample.name == "10"
    assert sample.image.unique().tolist() == [10]
    assert sample.camera.fx == 50
    assert len(sample.boxes2d) == len(sample.ignore) == 0


def test_a_folder_of_calibrations_holds_one_for_each_image(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "calib").mkdir()
    for name, focal in (("a", 700.0), ("b", 720.0)):
        Image.new("RGB", (40, 20)).save(tmp_path / "images" / f"{name}.png")
        row = f"P2: {focal} 0 20 0 0 {focal} 10 0 0 0 1 0\n"
        (tmp_path / "calib" / f"{name}.txt").write_text(row, encoding="utf-8")
    images = ImageFolder(tmp_path / "images", tmp_path / "calib")
    assert [images[i].camera.fx for i in range(2)] == [700.0, 720.0]
    (tmp_path / "calib" / "b.txt").unlink()
    with pytest.raises(UserError, match="no calibration for image b"):
        ImageFolder(tmp_path / "images", tmp_path / "calib")


def test_a_list_of_images_and_a_kitti_calibration(folder: Path) -> None:
    images = ImageFolder([folder / "10.png", str(folder / "9.PNG")], folder.parent / "calib.txt")
    assert images.names == ["9", "10"]
    assert (images[0].camera.width, images[0].camera.height) == (64, 48)


def test_faults_of_a_folder(folder: Path, tmp_path: Path) -> None:
    camera = tmp_path / "cam.yaml"
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"empty: no images \(.png"):
        ImageFolder(tmp_path / "empty", camera)
    with pytest.raises(UserError, match=r"images: no images"):
        ImageFolder([], camera)
    with pytest.raises(UserError, match=r"gone.png: no such image or folder"):
        ImageFolder([folder / "gone.png"], camera)
    with pytest.raises(UserError, match=r"gone.yaml: no such camera file"):
        ImageFolder(folder, tmp_path / "gone.yaml")
    save(folder / "9.jpg", np.zeros((48, 64, 3), np.uint8))
    with pytest.raises(UserError, match=r"9.jpg: same name as .*9.PNG|9.PNG: same name as .*9.jpg"):
        ImageFolder(folder, camera)
    save(tmp_path / "large.png", np.zeros((50, 64, 3), np.uint8))
    with pytest.raises(UserError, match=r"cam.yaml: is for 64x48 images, but the image is 64x50"):
        ImageFolder(tmp_path / "large.png", camera)[0]


# -- the real thing ---------------------------------------------------------------------------------------------------
@needs_data
def test_the_real_frames() -> None:
    dataset = KittiDataset(DEV, "dev", with_3d=True)
    assert len(dataset) == 20
    assert dataset.names[:3] == ["000000", "000003", "000007"]
    cars = 0
    for i in range(len(dataset)):
        sample = dataset[i]
        assert tuple(sample.image.shape[1:]) in {(375, 1242), (370, 1224)}
        assert 20 < float(sample.image.float().mean()) < 200
        assert sample.boxes3d is not None
        cars += sample.boxes2d.labels.count("Car")
        weak = KittiDataset(DEV, "dev")[i]
        assert weak.boxes2d.xyxy.equal(sample.boxes2d.xyxy)
        assert weak.ignore.labels == sample.ignore.labels
    assert cars == 55
    lines = [line for p in (DEV / "training" / "label_2").glob("*.txt") for line in p.read_text().splitlines()]
    assert sum(line.startswith("Car ") for line in lines) == cars


@needs_data
def test_the_real_depth_is_where_the_labels_are() -> None:
    """LiDAR within the box of the nearest car of frame 3 lies on the car, between its front and its centre."""
    with pytest.raises(UserError, match="lidar_depth: 16 of 20 frames have no file, first 000007"):
        KittiDataset(DEV, "dev", depth_dir="lidar_depth")
    sample = KittiDataset(DEV, "dev", with_3d=True)[1]
    depth = read_depth(DEV / "training" / "lidar_depth" / "000003.png")
    x1, y1, x2, y2 = sample.boxes2d.xyxy[0].round().int().tolist()
    inside = depth[y1:y2, x1:x2]
    assert sample.boxes3d is not None
    z, length = float(sample.boxes3d.center[0, 2]), float(sample.boxes3d.size[0, 0])
    assert z - length / 2 - 0.5 < float(inside[inside > 0].median()) < z


@needs_data
@pytest.mark.parametrize("folder", ["kitti_eval/label_2", "kitti_layouts/label_2"])
def test_all_real_labels_are_read(folder: str) -> None:
    paths = sorted((DATA / folder).glob("*.txt"))
    assert len(paths) > 1000
    assert sum(len(read_objects(path)) for path in paths) > 5000


@needs_data
def test_real_labels_survive_a_round_trip(tmp_path: Path) -> None:
    for path in sorted((DEV / "training" / "label_2").glob("*.txt")):
        boxes = read_objects(path).boxes3d()
        write_results(tmp_path / path.name, boxes)
        again = read_objects(tmp_path / path.name, results=True).boxes3d()
        assert again.yaw.equal(boxes.yaw)
        assert again.xyxy.equal(boxes.xyxy)
        torch.testing.assert_close(again.center, boxes.center, rtol=0, atol=1e-14)


@needs_data
def test_a_real_folder() -> None:
    frames = ImageFolder(DATA / "kitti_drive0052" / "image_02", DATA / "kitti_drive0052" / "calib.txt")
    assert len(frames) == 78
    assert isinstance(frames[0].camera, Camera)
    assert frames.names == sorted(frames.names)
