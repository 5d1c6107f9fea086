"""Bags without ROS: what is written is read back, and what is wrong is named."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch

from skd_core.camera import Camera
from skd_core.data.bag import (
    CAMERA_INFO,
    COMPRESSED_IMAGE,
    DETECTIONS,
    IMAGE,
    BagWriter,
    Frame,
    find_camera,
    open_bag,
    read_detections,
    read_frames,
    typestore,
    write_frames,
)  # fmt: skip
from skd_core.data.ros_messages import camera_from_info, decode_compressed, decode_raw
from skd_core.errors import UserError

P = torch.tensor([[700.0, 0, 30.5, 40], [0, 710, 20.25, 0.2], [0, 0, 1, 0.003]], dtype=torch.float64)
SECOND = 1_000_000_000


def frames(n: int = 3, width: int = 64, height: int = 48) -> list[Frame]:
    rng = np.random.default_rng(0)
    camera = Camera(P, width, height)
    images = rng.integers(0, 256, (n, height, width, 3), dtype=np.uint8)
    return [
        Frame(image, camera, 1_700_000_000 * SECOND + i * SECOND // 10 + 7, "front") for i, image in enumerate(images)
    ]


@pytest.mark.parametrize("storage", ["mcap", "sqlite3"])
def test_frames_survive(tmp_path: Path, storage: str) -> None:
    written = frames()
    write_frames(tmp_path / "bag", written, storage=storage)
    read = list(read_frames(tmp_path / "bag"))
    assert len(read) == 3
    for a, b in zip(written, read, strict=True):
        assert np.array_equal(a.image, b.image)
        assert torch.equal(a.camera.P, b.camera.P)
        assert (a.camera.width, a.camera.height, a.stamp, a.frame_id) == (
            b.camera.width, b.camera.height, b.stamp, b.frame_id
        )  # fmt: skip
    assert [p.name for p in tmp_path.iterdir()] == ["bag"]  # nothing temporary is left


def test_type_hash_of_our_message_texts() -> None:
    """The bag's Detection3DArray is the one ROS 2 machines have."""
    expected = "RIHS01_793f5eab9595ac1c0da07873cc859db42eae51f0ee76056db8562515d830e018"
    assert typestore().hash_rihs01(DETECTIONS) == expected


def test_an_interrupted_bag_leaves_nothing(tmp_path: Path) -> None:
    def broken():
        yield frames()[0]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_frames(tmp_path / "bag", broken())
    assert list(tmp_path.iterdir()) == []


def test_existing_bags_are_replaced_only_when_asked(tmp_path: Path) -> None:
    write_frames(tmp_path / "bag", frames(1))
    with pytest.raises(UserError, match="exists already"):
        write_frames(tmp_path / "bag", frames(2))
    write_frames(tmp_path / "bag", frames(2), overwrite=True)
    assert len(list(read_frames(tmp_path / "bag"))) == 2
    (tmp_path / "notes").mkdir()
    with pytest.raises(UserError, match="exists already"):  # a folder that is no bag is never removed
        write_frames(tmp_path / "notes", frames(1), overwrite=True)


def test_no_bag_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such bag folder"), open_bag(tmp_path / "none"):
        pass
    with pytest.raises(UserError, match="cannot be read as a rosbag2 bag"), open_bag(tmp_path):
        pass
    (tmp_path / "metadata.yaml").write_text("rosbag2_bagfile_information: {}\n")
    with pytest.raises(UserError, match="cannot be read as a rosbag2 bag"), open_bag(tmp_path):
        pass


def test_truncated_bag_is_named(tmp_path: Path) -> None:
    write_frames(tmp_path / "bag", frames())
    file = tmp_path / "bag" / "bag.mcap"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(UserError, match="cannot be read"):
        list(read_frames(tmp_path / "bag"))


def test_two_cameras_must_be_told_apart(tmp_path: Path) -> None:
    with BagWriter(tmp_path / "bag") as bag:
        for name in ("left", "right"):
            bag.write_frame(frames(1)[0], f"/{name}/image", f"/{name}/camera_info")
    with pytest.raises(UserError, match=r"--image-topic; the bag has /left/image, /right/image"):
        find_camera(tmp_path / "bag")
    assert find_camera(tmp_path / "bag", "/right/image").camera_info == "/right/camera_info"
    with pytest.raises(UserError, match="the bag has only /left/camera_info"):
        find_camera(tmp_path / "bag", "/middle/image")
    with pytest.raises(UserError, match="no Detection3DArray"):
        list(read_detections(tmp_path / "bag"))


def test_compressed_images_and_the_nearest_camera_info(tmp_path: Path) -> None:
    """A latched camera_info has its own stamp; a changed calibration counts from where it is nearer."""
    first, _, last = frames()
    zoomed = Frame(last.image, Camera(P * torch.tensor([[2.0], [2], [1]]), 64, 48), last.stamp, "front")
    types = typestore().types
    with BagWriter(tmp_path / "bag") as bag:
        for frame in (first, zoomed):
            bag.write_frame(frame, "/camera/image", "/camera/camera_info")
        for frame, shift in ((first, 20_000_000), (zoomed, -20_000_000)):
            stamp = frame.stamp + shift
            header = types["std_msgs/msg/Header"](
                types["builtin_interfaces/msg/Time"](stamp // SECOND, stamp % SECOND), "front"
            )
            png = cv2.imencode(".png", frame.image[..., ::-1])[1].reshape(-1)
            bag.write("/camera/image/compressed", COMPRESSED_IMAGE, types[COMPRESSED_IMAGE](header, "png", png), stamp)
    assert find_camera(tmp_path / "bag").image == "/camera/image"  # raw where there are both
    read = list(read_frames(tmp_path / "bag", "/camera/image/compressed"))
    assert [np.array_equal(a.image, b.image) for a, b in zip(read, (first, zoomed), strict=True)] == [True, True]
    assert [frame.camera.fx for frame in read] == [700, 1400]


def test_sizes_that_disagree_are_named(tmp_path: Path) -> None:
    image = frames(1)[0]
    with BagWriter(tmp_path / "bag") as bag:
        bag.write_frame(Frame(image.image, Camera(P, 64, 48), image.stamp), "/camera/image", "/camera/camera_info")
        bag.write_frame(Frame(image.image[:-8], Camera(P, 64, 48), image.stamp + SECOND), "/camera/image", "/x/info")
    with pytest.raises(UserError, match="is 64x40, but /camera/camera_info is for 64x48"):
        list(read_frames(tmp_path / "bag", camera_info_topic="/camera/camera_info"))


def raw(pixels: np.ndarray, encoding: str, padding: int = 0) -> SimpleNamespace:
    height, width = pixels.shape[:2]
    rows = np.ascontiguousarray(pixels).reshape(height, -1)
    rows = np.concatenate([rows, np.full((height, padding), 99, np.uint8)], 1)
    return SimpleNamespace(height=height, width=width, encoding=encoding, step=rows.shape[1], data=rows.reshape(-1))


def test_encodings_by_hand() -> None:
    rgb = np.array([[[10, 20, 30], [40, 50, 60]]], np.uint8)
    alpha = np.full((1, 2, 1), 7, np.uint8)
    for encoding, pixels in {
        "rgb8": rgb,
        "bgr8": rgb[..., ::-1],
        "rgba8": np.concatenate([rgb, alpha], -1),
        "bgra8": np.concatenate([rgb[..., ::-1], alpha], -1),
    }.items():
        for padding in (0, 1, 5):
            assert np.array_equal(decode_raw(raw(pixels, encoding, padding)), rgb), (encoding, padding)
    grey = np.array([[3, 200]], np.uint8)
    assert np.array_equal(decode_raw(raw(grey, "mono8", 3)), np.repeat(grey[..., None], 3, -1))


@pytest.mark.parametrize("pattern", ["rggb", "bggr", "gbrg", "grbg"])
def test_bayer_patterns(pattern: str) -> None:
    """A picture all red: only the pattern's red pixels are lit, and the decoded middle is red."""
    mosaic = np.zeros((16, 16), np.uint8)
    at = pattern.index("r")
    mosaic[at // 2 :: 2, at % 2 :: 2] = 250
    decoded = decode_raw(raw(mosaic, f"bayer_{pattern}8"))[4:-4, 4:-4].reshape(-1, 3)
    assert decoded.mean(0).tolist() == [250, 0, 0]


def test_malformed_images_are_named() -> None:
    pixels = np.zeros((4, 6, 3), np.uint8)
    short = raw(pixels, "rgb8")
    short.data = short.data[:-1]
    narrow = raw(pixels, "rgb8")
    narrow.step = 17
    for message in (short, narrow, SimpleNamespace(height=0, width=6, encoding="rgb8", step=18, data=b"")):
        with pytest.raises(UserError, match=r"^/cam: .* image with a step of"):
            decode_raw(message, "/cam")
    with pytest.raises(UserError, match="'32FC1' is not one of"):
        decode_raw(raw(pixels, "32FC1"))
    jpeg = cv2.imencode(".jpg", np.zeros((40, 40, 3), np.uint8))[1].tobytes()
    assert decode_compressed(SimpleNamespace(data=jpeg + bytes(10), format="jpeg")).shape == (40, 40, 3)  # padded
    for data in (b"", b"nothing of the kind"):
        with pytest.raises(UserError, match="are no picture"):
            decode_compressed(SimpleNamespace(data=data, format="jpeg"))
    with pytest.raises(UserError, match="incomplete JPEG"):
        decode_compressed(SimpleNamespace(data=jpeg[: len(jpeg) // 2], format="jpeg"))


def info(**changes: object) -> SimpleNamespace:
    roi = SimpleNamespace(x_offset=0, y_offset=0, width=0, height=0)
    k, p = P[:, :3].flatten().tolist(), P.flatten().tolist()
    fields = {"width": 64, "height": 48, "k": k, "p": p, "d": [], "binning_x": 0, "binning_y": 0, "roi": roi}
    return SimpleNamespace(**fields | changes)


def test_camera_info_roi_and_binning() -> None:
    """ROI offset first, then binning: cx = (30.5 - 10) / 2, width = 40 / 2."""
    roi = SimpleNamespace(x_offset=10, y_offset=8, width=40, height=32)
    camera = camera_from_info(info(roi=roi, binning_x=2, binning_y=2))
    assert (camera.width, camera.height, camera.cx, camera.cy, camera.fx) == (20, 16, 10.25, 6.125, 350)


def test_uncalibrated_camera_info_is_refused() -> None:
    with pytest.raises(UserError, match=r"^/cam/camera_info: uncalibrated \(K\[0\] = 0\)"):
        camera_from_info(info(k=[0.0] * 9), "/cam/camera_info")
    with pytest.raises(UserError, match="NaN"):
        camera_from_info(info(p=[700.0, 0, float("nan"), 0, 0, 700, 20, 0, 0, 0, 1, 0]))


def test_what_is_written_says_what_it_is(tmp_path: Path) -> None:
    """Another reader needs no knowledge of ours: topics and types are in the bag."""
    write_frames(tmp_path / "bag", frames(1))
    with open_bag(tmp_path / "bag") as reader:
        kinds = {c.topic: c.msgtype for c in reader.connections}
    assert kinds == {"/camera/image": IMAGE, "/camera/camera_info": CAMERA_INFO}
