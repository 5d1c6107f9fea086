"""Pictures of every encoding by hand-worked colours, compressed ones, and any bytes, of which only UserError comes."""

from __future__ import annotations

import array
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from skd_core import notes
from skd_core.data.decoding import ENCODINGS, EncodingError, decode_picture, decode_pixels, from_opencv
from skd_core.data.ros_messages import camera_from_info, undistortion_maps
from skd_core.data.sample import read_image
from skd_core.errors import UserError

RNG = np.random.default_rng(0)
COLOURS = RNG.integers(0, 256, (6, 8, 3), np.uint8)
COLOURS[0, 0] = 255  # so that 16 bits are used in full
GREY = COLOURS[..., 0]
ALPHA = np.full((6, 8, 1), 7, np.uint8)
LAYOUTS = {
    "rgb": COLOURS, "bgr": COLOURS[..., ::-1], "rgba": np.concatenate([COLOURS, ALPHA], -1),
    "bgra": np.concatenate([COLOURS[..., ::-1], ALPHA], -1), "mono": GREY,
}  # fmt: skip
OPENCV_NAMES = {
    "8UC1": "mono8",
    "8UC3": "bgr8",
    "8UC4": "bgra8",
    "16UC1": "mono16",
    "16UC3": "bgr16",
    "16UC4": "bgra16",
}


@pytest.fixture(autouse=True)
def nothing_said_yet() -> None:
    notes._said.clear()


def rows(pixels: np.ndarray, padding: int = 0) -> tuple[bytes, int]:
    """Bytes and step of an array whose rows are padded."""
    bare = np.ascontiguousarray(pixels).reshape(len(pixels), -1).view(np.uint8)
    padded = np.concatenate([bare, np.full((len(pixels), padding), 99, np.uint8)], 1)
    return padded.tobytes(), padded.shape[1]


def decoded(pixels: np.ndarray, encoding: str, padding: int = 0, big_endian: bool = False) -> np.ndarray:
    data, step = rows(pixels, padding)
    return decode_pixels(data, encoding, (pixels.shape[1], len(pixels)), step, big_endian)


@pytest.mark.parametrize("padding", [0, 1, 7])
@pytest.mark.parametrize("order", LAYOUTS)
def test_colours_and_depths(order: str, padding: int) -> None:
    pixels = LAYOUTS[order]
    expected = COLOURS if order != "mono" else np.repeat(GREY[..., None], 3, -1)
    assert np.array_equal(decoded(pixels, f"{order}8", padding), expected)
    for kind, big in (("<u2", False), (">u2", True)):
        deep = (pixels.astype(np.uint16) * 257).astype(kind)
        assert np.array_equal(decoded(deep, f"{order}16", padding, big), expected)


@pytest.mark.parametrize(("name", "same"), OPENCV_NAMES.items())
def test_opencvs_names(name: str, same: str) -> None:
    pixels = LAYOUTS[same.rstrip("168")]
    pixels = pixels.astype(np.uint16) * 257 if same.endswith("16") else pixels
    assert np.array_equal(decoded(pixels, name), decoded(pixels, same))


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("pattern", ["rggb", "bggr", "gbrg", "grbg"])
def test_a_mosaic_of_three_colours(pattern: str, bits: int) -> None:
    """Every red pixel of the pattern has one value, every green and blue one another: so has each decoded pixel."""
    values = {"r": 250, "g": 100, "b": 30}
    mosaic = np.zeros((16, 16), np.uint8)
    for at, letter in enumerate(pattern):
        mosaic[at // 2 :: 2, at % 2 :: 2] = values[letter]
    pixels = mosaic.astype(np.uint16) * 257 if bits == 16 else mosaic
    assert (decoded(pixels, f"bayer_{pattern}{bits}", 3)[2:-2, 2:-2] == [250, 100, 30]).all()


# Full-range colours by BT.601 with luma 16..235: red is (81, 90, 240), blue (41, 240, 110), white (235, 128, 128).
YUV = {"red": (81, 90, 240), "blue": (41, 240, 110), "white": (235, 128, 128)}
RGB = {"red": (255, 0, 0), "blue": (0, 0, 255), "white": (255, 255, 255)}


@pytest.mark.parametrize("colour", YUV)
@pytest.mark.parametrize("encoding", ["yuv422", "uyvy", "yuv422_yuy2", "yuyv", "nv12", "nv21"])
def test_yuv_colours(encoding: str, colour: str) -> None:
    y, u, v = YUV[colour]
    for padding in (0, 6):
        if encoding.startswith("nv"):
            pair = (u, v) if encoding == "nv12" else (v, u)
            planes = np.concatenate([np.full((4, 8), y), np.tile(pair, (2, 4))]).astype(np.uint8)
            data, step = rows(planes, padding)
            found = decode_pixels(data, encoding, (8, 4), step)
        else:
            four = (u, y, v, y) if encoding in ("yuv422", "uyvy") else (y, u, y, v)
            found = decoded(np.tile(four, (4, 4)).astype(np.uint8).reshape(4, 8, 2), encoding, padding)
        assert found.shape == (4, 8, 3)
        assert np.abs(found.astype(int) - RGB[colour]).max() <= 2


@pytest.mark.parametrize("step", [8, 12, 16, 0])
def test_nv12_without_padding_whatever_its_step_says(step: int) -> None:
    data = np.concatenate([np.full(32, 235), np.full(16, 128)]).astype(np.uint8).tobytes()
    assert (decode_pixels(data, "nv12", (8, 4), step) == 255).all()


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview, list, lambda data: array.array("B", data)])
def test_kinds_of_bytes(kind: type) -> None:
    data, step = rows(COLOURS)
    assert np.array_equal(decode_pixels(kind(data), "rgb8", (8, 6), step), COLOURS)


def test_what_is_behind_the_last_row_is_ignored() -> None:
    data, step = rows(COLOURS, 5)
    assert np.array_equal(decode_pixels(data + b"more", "rgb8", (8, 6), step), COLOURS)


@pytest.mark.parametrize(
    ("encoding", "size", "step", "message"),
    [
        ("32FC1", (8, 6), 32, "encoding '32FC1' cannot be decoded: it is not one of mono8, mono16"),
        ("", (8, 6), 8, "encoding '' cannot be decoded"),
        ("yuyv", (7, 6), 14, "its width must be even, got 7"),
        ("nv21", (8, 5), 8, "its size must be even"),
        ("bayer_rggb8", (1, 6), 1, "a Bayer mosaic of 1x6 has no colours"),
    ],
)
def test_encodings_that_cannot_be(encoding: str, size: tuple[int, int], step: int, message: str) -> None:
    with pytest.raises(EncodingError, match="/cam: .*" + message):
        decode_pixels(bytes(1000), encoding, size, step, name="/cam")


@pytest.mark.parametrize(
    ("encoding", "size", "step", "length"),
    [
        ("rgb8", (8, 6), 24, 143), ("rgb8", (8, 6), 23, 144), ("rgb8", (0, 6), 24, 144), ("rgb8", (8, 0), 24, 144),
        ("rgb16", (8, 6), 24, 144), ("nv12", (8, 6), 8, 71), ("mono8", (8, 6), 8, 0), ("yuyv", (8, 6), 8, 96),
    ],
)  # fmt: skip
def test_bytes_that_do_not_fit(encoding: str, size: tuple[int, int], step: int, length: int) -> None:
    with pytest.raises(UserError, match=f"^/cam: {length} bytes are no {size[0]}x{size[1]} {encoding} image with"):
        decode_pixels(bytes(length), encoding, size, step, name="/cam")


# -- 16 bits that are not filled -------------------------------------------------------------------------------------
@pytest.mark.parametrize("bits", [8, 10, 12, 14])
def test_the_lower_bits_of_sixteen(bits: int, caplog: pytest.LogCaptureFixture) -> None:
    """What a camera of few bits puts into the lower ones comes out at full brightness, and that is said once."""
    ramp = np.arange(48).reshape(6, 8)
    deep = np.round(ramp / 47 * ((1 << bits) - 1)).astype(np.uint16)
    for found in (decoded(deep, "mono16"), from_opencv(deep), decoded(deep, "16UC1")):
        assert np.abs(found[..., 0] - ramp / 47 * 255).max() <= 1
    assert len(caplog.records) == 1
    assert f"brightest pixel is {(1 << bits) - 1} of 65535 is taken as one of {bits} bits" in caplog.text


def test_all_sixteen_bits_and_black_say_nothing(caplog: pytest.LogCaptureFixture) -> None:
    deep = np.array([[0, 300, 65535]], np.uint16)
    assert from_opencv(deep)[0, :, 0].tolist() == [0, 1, 255]
    assert not from_opencv(np.zeros((2, 2), np.uint16)).any()
    assert not caplog.records


# -- compressed -------------------------------------------------------------------------------------------------------
def compressed(pixels: np.ndarray, kind: str = ".png", *options: int) -> bytes:
    return cv2.imencode(kind, pixels, options)[1].tobytes()


def mosaic(pattern: str) -> np.ndarray:
    pixels = np.zeros((32, 32), np.uint8)
    for at, letter in enumerate(pattern):
        pixels[at // 2 :: 2, at % 2 :: 2] = {"r": 250, "g": 100, "b": 30}[letter]
    return pixels


@pytest.mark.parametrize("pattern", ["rggb", "bggr", "gbrg", "grbg"])
@pytest.mark.parametrize(
    "words", ["bayer_{}8; png compressed bayer_{}8", "bayer_{}8; png compressed ", "bayer_{}8;png compressed",
              "bayer_{}16; png compressed", " BAYER_{}8 ; tiff compressed", "bayer_{}8"],
)  # fmt: skip
def test_a_compressed_mosaic_gets_its_colours(pattern: str, words: str) -> None:
    pixels = mosaic(pattern)
    pixels = pixels.astype(np.uint16) * 257 if "16" in words else pixels
    data = compressed(pixels, ".tiff" if "tiff" in words else ".png")
    assert (decode_picture(data, words.format(pattern, pattern))[2:-2, 2:-2] == [250, 100, 30]).all()
    if not words.startswith(" "):
        colour = compressed(cv2.cvtColor(pixels, cv2.COLOR_GRAY2BGR))  # three equal channels are a mosaic too
        assert (decode_picture(colour, words.format(pattern, pattern))[2:-2, 2:-2] == [250, 100, 30]).all()


def test_a_bayer_camera_whose_publisher_worked_out_the_colours(caplog: pytest.LogCaptureFixture) -> None:
    """image_transport's JPEG of a Bayer image is grey (mono8), its colours are gone: that is said."""
    data = compressed(COLOURS[..., ::-1])
    for words in ("bayer_rggb8; png compressed bgr8", "rgb8; png compressed bgr8", "png", ""):
        assert np.array_equal(decode_picture(data, words), COLOURS)
    assert not caplog.records
    grey = decode_picture(compressed(GREY), "bayer_rggb8; jpeg compressed mono8")
    assert np.array_equal(grey, np.repeat(GREY[..., None], 3, -1))
    assert "made its Bayer image grey" in caplog.text
    caplog.clear()
    assert np.array_equal(decode_picture(compressed(GREY), "bayer_rggb8; png compressed bgr8"), grey)
    assert "made its Bayer image grey" in caplog.text


@pytest.mark.parametrize(
    "words", ["mono8; jpeg compressed mono8", "mono16; png compressed ", "bgr8; jpeg compressed bgr8"]
)
def test_no_mosaic(words: str) -> None:
    assert np.array_equal(decode_picture(compressed(GREY), words), np.repeat(GREY[..., None], 3, -1))


def test_a_mosaic_of_unknown_pattern_and_a_depth_image_are_refused() -> None:
    with pytest.raises(UserError, match="no known Bayer pattern"):
        decode_picture(compressed(GREY), "bayer_rgbw8; png compressed bayer_rgbw8")
    with pytest.raises(UserError, match="is a depth image"):
        decode_picture(bytes(12) + compressed(GREY), "16UC1; compressedDepth png")
    with pytest.raises(UserError, match="pixels of type float32 are not a picture"):
        decode_picture(compressed(np.ones((4, 4), np.float32), ".tiff"), "32FC1; tiff compressed ")


def test_sixteen_bits_compressed() -> None:
    deep = COLOURS[..., ::-1].astype(np.uint16) * 257
    assert np.array_equal(decode_picture(compressed(deep), "rgb16; png compressed bgr16"), COLOURS)
    assert np.array_equal(decode_picture(compressed(deep >> 4), "rgb16; png compressed bgr16"), COLOURS)  # 12 bits
    clear = np.concatenate([COLOURS[..., ::-1], ALPHA], -1)
    assert np.array_equal(decode_picture(compressed(clear), "png"), COLOURS)


PHOTO = cv2.resize(COLOURS, (64, 48))
JPEGS = {
    "baseline": compressed(PHOTO, ".jpg"),
    "progressive": compressed(PHOTO, ".jpg", cv2.IMWRITE_JPEG_PROGRESSIVE, 1),
    "restarts": compressed(PHOTO, ".jpg", cv2.IMWRITE_JPEG_RST_INTERVAL, 1),
    "grey": compressed(PHOTO[..., 0], ".jpg"),
    "with a preview": compressed(PHOTO, ".jpg")[:2] + b"\xff\xe1" + struct.pack(">H", 6) + b"\xff\xd8\xff\xd9"
    + compressed(PHOTO, ".jpg")[2:],
}  # fmt: skip


@pytest.mark.parametrize("name", JPEGS)
@pytest.mark.parametrize("padding", [b"\0", bytes(63), bytes(512), b"\xff" * 100, bytes(range(256)) * 300])
def test_padding_behind_a_jpeg(name: str, padding: bytes) -> None:
    """The end marker is looked for in its place: however long the padding, and whatever lies in a preview."""
    plain = decode_picture(JPEGS[name], "jpeg")
    assert plain.shape == (48, 64, 3)
    assert np.array_equal(decode_picture(JPEGS[name] + padding, "jpeg"), plain)
    for cut in (2, 10, len(JPEGS[name]) // 2):
        for data in (JPEGS[name][:-cut], JPEGS[name][:-cut] + bytes(512)):
            with pytest.raises(UserError, match=f"^/cam: incomplete JPEG of {len(data)} bytes"):
                decode_picture(data, "jpeg", "/cam")


def test_padding_behind_a_png() -> None:
    data = compressed(PHOTO)
    assert np.array_equal(decode_picture(data + bytes(1000)), decode_picture(data))
    for short in (data[: len(data) // 2], data[:-9] + bytes(1000), data[:9]):
        with pytest.raises(UserError, match="incomplete PNG"):
            decode_picture(short)


def png(width: int, height: int) -> bytes:
    """A PNG whose header promises a size, and which has nearly no data."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


@pytest.mark.parametrize("size", [(100_000, 100_000), (2**31 - 1, 2**31 - 1), (30_000, 30_000)])
def test_a_forged_size_takes_no_memory(size: tuple[int, int]) -> None:
    with pytest.raises(UserError, match="pixels"):
        decode_picture(png(*size))


def test_an_exif_rotation_is_named_and_not_applied(caplog: pytest.LogCaptureFixture) -> None:
    tiff = b"II*\x00\x08\x00\x00\x00\x01\x00\x12\x01\x03\x00\x01\x00\x00\x00\x06\x00\x00\x00\x00\x00\x00\x00"
    plain, exif = JPEGS["baseline"], b"Exif\x00\x00" + tiff
    turned = plain[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + plain[2:]
    for _ in range(2):
        assert np.array_equal(decode_picture(turned, "jpeg", "/cam/image"), decode_picture(plain, "jpeg"))
    assert [r.message.partition(": pixels")[0] for r in caplog.records] == [
        "/cam/image: its EXIF orientation (6: on its side) is not applied"
    ]


def test_a_tiff_that_its_tag_would_turn_is_refused(tmp_path: Path) -> None:
    """Pillow and OpenCV turn it, and its calibration does not turn with it."""
    exif = Image.Exif()
    for turn in (1, 3, 6):
        exif[0x0112] = turn
        Image.fromarray(PHOTO).save(tmp_path / f"{turn}.tif", exif=exif)
        content = (tmp_path / f"{turn}.tif").read_bytes()
        if turn == 1:
            assert np.array_equal(decode_picture(content, "tiff"), PHOTO)
            continue
        for read in (lambda c=content: decode_picture(c, "tiff"), lambda t=turn: read_image(tmp_path / f"{t}.tif")):
            with pytest.raises(UserError, match=rf"its orientation \({turn}: "):
                read()


@pytest.mark.parametrize("kind", [".jpg", ".png"])
def test_a_file_that_was_cut_and_filled_up_is_incomplete(tmp_path: Path, kind: str) -> None:
    """As disks leave them after a power cut: Pillow makes grey of the rest."""
    content, path = compressed(PHOTO, kind), tmp_path / f"frame{kind}"
    for text in (content[: len(content) // 2] + bytes(len(content) // 2), content[:-20] + bytes(20)):
        path.write_bytes(text)
        with pytest.raises(UserError, match=r"incomplete (JPEG|PNG)"):
            read_image(path)
    path.write_bytes(content)
    whole = read_image(path)
    path.write_bytes(content + bytes(64))
    assert torch.equal(read_image(path), whole)


# -- any bytes --------------------------------------------------------------------------------------------------------
def outcome(decode: Callable[[], np.ndarray]) -> np.ndarray | str:
    """The picture, or the one line that says why there is none; any other error goes through."""
    try:
        return decode()
    except UserError as error:
        said = str(error)
    assert len(said.splitlines()) == 1
    return said


@given(
    st.binary(max_size=300), st.sampled_from([*ENCODINGS, "32FC1", "x"]),
    st.integers(0, 12), st.integers(0, 12), st.integers(0, 60), st.booleans(),
)  # fmt: skip
def test_any_raw_bytes(data: bytes, encoding: str, width: int, height: int, step: int, big: bool) -> None:
    found = outcome(lambda: decode_pixels(data, encoding, (width, height), step, big))
    assert isinstance(found, str) or found.shape == (height, width, 3)


WHOLE = [*JPEGS.values(), compressed(PHOTO), compressed(PHOTO, ".bmp"), compressed(PHOTO, ".tiff"), png(3, 3), b""]


@given(
    st.sampled_from(WHOLE), st.lists(st.tuples(st.integers(0, 700), st.binary(max_size=8)), max_size=4),
    st.integers(0, 5000), st.text(max_size=12) | st.sampled_from(["bayer_rggb8; png compressed", "jpeg"]),
)  # fmt: skip
def test_any_compressed_bytes(whole: bytes, changes: list[tuple[int, bytes]], keep: int, words: str) -> None:
    data = bytearray(whole[:keep])
    for at, new in changes:
        data[at : at + len(new)] = new
    found = outcome(lambda: decode_picture(bytes(data), words))
    assert isinstance(found, str) or (found.dtype == np.uint8 and found.ndim == 3)


# -- D with zeros at the end ------------------------------------------------------------------------------------------
def maps(model: str, d: list[float]) -> tuple[np.ndarray, ...] | None:
    k = [90.0, 0, 31.5, 0, 90, 23.5, 0, 0, 1]
    roi = SimpleNamespace(x_offset=0, y_offset=0, width=0, height=0)
    info = SimpleNamespace(
        width=64, height=48, k=k, p=[0.0] * 12, d=d, distortion_model=model, binning_x=0, binning_y=0, roi=roi
    )
    return undistortion_maps(info, camera_from_info(info, "front", rectified=False), "front")


PLUMB, RATIONAL, FISH = (
    [-0.3, 0.1, 0.001, -0.002, 0.05],
    [0.1, -0.2, 0.001, 0.002, 0.05, 0.3, -0.1, 0.02],
    [0.1, 0.02, 0, 0],
)


@pytest.mark.parametrize(
    ("model", "d", "zeros"),
    [
        *(("plumb_bob", PLUMB, n) for n in (1, 3, 7, 9)),
        *(("plumb_bob", PLUMB[:4], n) for n in (1, 4, 10)),
        *(("rational_polynomial", RATIONAL, n) for n in (1, 4, 6, 12)),
        *(("equidistant", FISH, n) for n in (1, 4, 10)),
        ("plumb_bob", [-0.3, 0.1], 12),
    ],
)
def test_zeros_at_the_end_of_d_say_nothing(model: str, d: list[float], zeros: int) -> None:
    expected = maps(model, d if len(d) >= 4 else d + [0.0] * (4 - len(d)))
    for one, other in zip(expected, maps(model, d + [0.0] * zeros), strict=True):
        assert np.array_equal(one, other)


@pytest.mark.parametrize(
    ("model", "d"),
    [
        ("plumb_bob", [*PLUMB, 0.1]), ("plumb_bob", [*PLUMB, 0, 0, 0.1]), ("plumb_bob", PLUMB[:3]),
        ("equidistant", [0.1] * 5), ("rational_polynomial", RATIONAL[:5]), ("rational_polynomial", [0.1] * 15),
    ],
)  # fmt: skip
def test_a_d_that_does_not_fit_is_refused(model: str, d: list[float]) -> None:
    with pytest.raises(UserError, match=f"front: distortion_model '{model}' needs .* coefficients in D, got {len(d)}"):
        maps(model, d)


NUMBERS = st.floats() | st.sampled_from([0.0, 1e308, -1e308, 1e-308]) | st.floats(-3000, 3000)
SIZES = st.sampled_from([0, 1, 48, 64, 4000, 2**31, 2**32 - 1])


@settings(deadline=None)
@given(
    st.lists(NUMBERS, min_size=9, max_size=9) | st.just([90.0, 0, 31.5, 0, 90, 23.5, 0, 0, 1]),
    st.lists(NUMBERS, min_size=12, max_size=12),
    st.lists(NUMBERS, max_size=16),
    st.sampled_from(["plumb_bob", "rational_polynomial", "equidistant", "fisheye", "", "x\n"]),
    st.tuples(*[SIZES] * 6, st.integers(0, 5)),
    st.booleans(),
)
def test_any_camera_info(
    k: list[float], p: list[float], d: list[float], model: str, sizes: tuple[int, ...], rectified: bool
) -> None:
    """Into :class:`Camera` and maps of bounded size, or one line."""
    width, height, x, y, w, h, binning = sizes
    roi = SimpleNamespace(x_offset=x, y_offset=y, width=w, height=h)
    info = SimpleNamespace(width=width, height=height, k=k, p=p, d=d, roi=roi)
    info.binning_x, info.binning_y, info.distortion_model = binning, binning, model
    said = "one line"
    try:
        camera = camera_from_info(info, "front", rectified)
        undistortion_maps(info, camera, "front")
    except UserError as error:
        said = str(error)
    assert len(said.splitlines()) == 1
