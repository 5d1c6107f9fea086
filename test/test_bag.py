"""Bags without ROS: what is written is read back, and what is wrong is named."""

from __future__ import annotations

import contextlib
import sqlite3
import tracemalloc
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from rosbags.rosbag2 import CompressionMode, StoragePlugin, Writer

from skd_core.boxes import Boxes3D
from skd_core.camera import Camera
from skd_core.data.bag import (
    CAMERA_INFO,
    COMPRESSED_IMAGE,
    DETECTIONS,
    IMAGE,
    BagWriter,
    Frame,
    find_camera,
    find_cameras,
    find_topic,
    open_bag,
    read_detections,
    read_frames,
    read_headers,
    read_texts,
    typestore,
    write_frames,
)  # fmt: skip
from skd_core.data.bag_reader import zstd
from skd_core.data.bag_types import DETECTIONS_2D
from skd_core.data.ros_messages import camera_from_info, decode_compressed, decode_raw
from skd_core.errors import UserError

P = torch.tensor([[700.0, 0, 30.5, 40], [0, 710, 20.25, 0.2], [0, 0, 1, 0.003]], dtype=torch.float64)

K = np.array([[650.0, 0, 31], [0, 660, 21], [0, 0, 1]])
SECOND = 1_000_000_000
ZSTD = b"\x28\xb5\x2f\xfd"


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
    expected = "RIHS01_214274120007f4a683866481336b70310268cfa107aebe9d594a6acf75bda968"
    assert typestore().hash_rihs01(DETECTIONS_2D) == expected


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


@pytest.mark.parametrize(("storage", "suffix"), [("mcap", "mcap"), ("sqlite3", "db3")])
def test_a_recording_cut_short_is_read_up_to_there(
    tmp_path: Path, storage: str, suffix: str, caplog: pytest.LogCaptureFixture
) -> None:
    written = frames(20, 320, 240)
    write_frames(tmp_path / "bag", written, storage=storage)
    (tmp_path / "bag" / "metadata.yaml").unlink()
    file = tmp_path / "bag" / f"bag.{suffix}"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    problems: list[str] = []
    read = list(read_frames(tmp_path / "bag", problems=problems))
    assert 6 <= len(read) <= 10
    for a, b in zip(written, read, strict=False):
        assert np.array_equal(a.image, b.image)
        assert (a.stamp, a.frame_id) == (b.stamp, b.frame_id)
    assert "damaged" in " ".join(problems)
    assert "damaged" in caplog.text
    assert len(list(read_frames(file))) == len(read)  # the file by itself


@pytest.mark.parametrize(("storage", "suffix"), [("mcap", "mcap"), ("sqlite3", "db3")])
def test_missing_metadata_and_split_recordings(tmp_path: Path, storage: str, suffix: str) -> None:
    """The files of a folder count in their natural order: _2 before _10."""
    written = frames(3)
    folder = tmp_path / "bag"
    folder.mkdir()
    for number, frame in zip((1, 2, 10), written, strict=True):
        write_frames(tmp_path / "part", [frame], storage=storage)
        (tmp_path / "part" / f"part.{suffix}").rename(folder / f"bag_{number}.{suffix}")
        (tmp_path / "part" / "metadata.yaml").unlink()
        (tmp_path / "part").rmdir()
    (folder / f"bag_11.{suffix}").write_bytes(b"")
    problems: list[str] = []
    assert [f.stamp for f in read_frames(folder, problems=problems)] == [f.stamp for f in written]
    assert any(f"bag_11.{suffix}: left out" in problem for problem in problems)
    assert any("no metadata.yaml" in problem for problem in problems)


@pytest.mark.parametrize("metadata", [True, False], ids=["whole", "without metadata"])
@pytest.mark.parametrize("storage", [StoragePlugin.MCAP, StoragePlugin.SQLITE3], ids=["mcap", "sqlite3"])
@pytest.mark.parametrize("mode", [CompressionMode.FILE, CompressionMode.MESSAGE], ids=["file", "message"])
def test_compressed_recordings(
    tmp_path: Path, mode: CompressionMode, storage: StoragePlugin, metadata: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """As `ros2 bag record --compression-mode` makes them; file by file too."""
    written = frames(3)
    write_frames(tmp_path / "plain", written)
    with Writer(tmp_path / "bag", version=9, storage_plugin=storage) as writer, open_bag(tmp_path / "plain") as plain:
        copies = {c.topic: writer.add_connection(c.topic, c.msgtype, typestore=typestore()) for c in plain.connections}
        for connection, time, data in plain.messages():
            packed = zstd.compress(data) if mode is CompressionMode.MESSAGE else data
            writer.write(copies[connection.topic], time, packed)
    (file,) = (path for path in (tmp_path / "bag").iterdir() if path.suffix != ".yaml")
    description = tmp_path / "bag" / "metadata.yaml"
    if mode is CompressionMode.FILE:
        packed_file = file.with_name(f"{file.name}.zstd")
        packed_file.write_bytes(zstd.compress(file.read_bytes()))
        file.unlink()
        description.write_text(description.read_text().replace(file.name, packed_file.name))
        file = packed_file
    if metadata:
        text = description.read_text()
        assert "compression_format: ''" in text
        text = text.replace("compression_format: ''", "compression_format: zstd")
        description.write_text(text.replace("compression_mode: ''", f"compression_mode: {mode.name.lower()}"))
    else:
        description.unlink()
    for source in (tmp_path / "bag", file):
        read = list(read_frames(source))
        assert [frame.stamp for frame in read] == [frame.stamp for frame in written]
        assert all(np.array_equal(a.image, b.image) for a, b in zip(read, written, strict=True))
        assert [header.stamp for header in read_headers(source, "/camera/image")] == [f.stamp for f in written]
    if mode is CompressionMode.FILE:
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
        file.with_name("metadata.yaml").unlink(missing_ok=True)
        with contextlib.suppress(UserError):  # nothing of it may be whole
            assert len(list(read_frames(file, problems=[]))) < 3
        assert "ended before the end-of-stream" in caplog.text
        file.write_bytes(b"no zstd at all")
        with pytest.raises(UserError, match="cannot be unpacked as zstd"):
            list(read_frames(file))


def test_a_damaged_compressed_message_costs_only_itself(tmp_path: Path) -> None:
    written = frames(3)
    write_frames(tmp_path / "plain", written)
    with Writer(tmp_path / "bag", version=9) as writer, open_bag(tmp_path / "plain") as plain:
        copies = {c.topic: writer.add_connection(c.topic, c.msgtype, typestore=typestore()) for c in plain.connections}
        for connection, time, data in plain.messages():
            packed = zstd.compress(data)
            cut = time == written[1].stamp and connection.topic == "/camera/image"
            writer.write(copies[connection.topic], time, packed[: len(packed) // 2] if cut else packed)
    problems: list[str] = []
    read = list(read_frames(tmp_path / "bag", problems=problems))
    assert [(frame.stamp, frame.number) for frame in read] == [(written[0].stamp, 0), (written[2].stamp, 2)]
    assert any("cannot be read" in problem for problem in problems)
    assert [header.stamp for header in read_headers(tmp_path / "bag", "/camera/image")][1] is None


def test_a_damaged_chunk_costs_only_itself(tmp_path: Path) -> None:
    written = frames(20, 320, 240)
    write_frames(tmp_path / "bag", written)
    file = tmp_path / "bag" / "bag.mcap"
    data = bytearray(file.read_bytes()[: file.stat().st_size - 40])  # without its end: read record by record
    data[data.index(ZSTD)] ^= 0xFF  # the first compressed chunk's first byte
    file.write_bytes(data)
    problems: list[str] = []
    read = [frame.stamp for frame in read_frames(tmp_path / "bag", problems=problems)]
    stamps = [frame.stamp for frame in written]
    assert set(read) < set(stamps)
    assert read == stamps[-len(read) :]
    assert len(read) >= 5
    assert any("chunk was skipped" in problem for problem in problems)


@pytest.mark.parametrize("which", [0, 4, 7])
def test_a_damaged_chunk_of_a_whole_recording_costs_only_itself(tmp_path: Path, which: int) -> None:
    """Of an indexed file, with metadata.yaml: rosbags stops there, we do not, and no message comes twice. A chunk holds
    five frames; the ninth and last one a text only."""
    written = frames(40, 320, 240)
    with BagWriter(tmp_path / "bag") as bag:
        for number, frame in enumerate(written):
            bag.write_frame(frame, "/camera/image", "/camera/camera_info")
            bag.write_text("/note", str(number), frame.stamp)
    file = tmp_path / "bag" / "bag.mcap"
    data = bytearray(file.read_bytes())
    chunks = [
        at for at in range(len(data)) if data.startswith(b"\x04\0\0\0zstd", at) and data[at + 16 : at + 20] == ZSTD
    ]
    assert len(chunks) == 9
    data[chunks[which] + 16] ^= 0xFF
    file.write_bytes(data)
    problems: list[str] = []
    stamps = [frame.stamp for frame in written]
    read = [frame.stamp for frame in read_frames(tmp_path / "bag", problems=problems)]
    lost = [stamp for stamp in stamps if stamp not in read]
    assert read == [stamp for stamp in stamps if stamp not in lost]
    assert 1 <= len(lost) <= 5
    assert lost == stamps[stamps.index(lost[0]) :][: len(lost)]
    assert any("damaged" in problem for problem in problems)
    assert any("chunk was skipped" in problem for problem in problems)
    texts = [int(text) for _, text in read_texts(tmp_path / "bag", "/note")]
    assert texts == sorted(set(texts))
    assert 35 <= len(texts) < 40


def test_custom_types_do_not_disturb(tmp_path: Path) -> None:
    """A type nobody here knows, its definition not even parseable, beside a camera."""
    frame = frames(1)[0]
    with BagWriter(tmp_path / "bag", storage="sqlite3") as bag:
        bag.write_frame(frame, "/camera/image", "/camera/camera_info")
        bag.write_text("/car/secret", "x", frame.stamp)
    with sqlite3.connect(tmp_path / "bag" / "bag.db3") as database:
        database.execute("UPDATE topics SET type = 'acme_msgs/msg/Secret' WHERE name = '/car/secret'")
        database.execute(
            "UPDATE message_definitions SET topic_type = 'acme_msgs/msg/Secret',"
            " encoded_message_definition = 'no such thing' WHERE topic_type = 'std_msgs/msg/String'"
        )
    metadata = tmp_path / "bag" / "metadata.yaml"
    metadata.write_text(metadata.read_text().replace("std_msgs/msg/String", "acme_msgs/msg/Secret"))
    assert [f.stamp for f in read_frames(tmp_path / "bag")] == [frame.stamp]
    with open_bag(tmp_path / "bag") as reader:
        assert {c.topic for c, _, _ in reader.messages()} == {"/camera/image", "/camera/camera_info", "/car/secret"}


def test_another_version_of_a_type_is_named(tmp_path: Path) -> None:
    write_frames(tmp_path / "bag", frames(1))
    metadata = tmp_path / "bag" / "metadata.yaml"
    digest = typestore().hash_rihs01(CAMERA_INFO)
    assert digest in metadata.read_text()
    metadata.write_text(metadata.read_text().replace(digest, "RIHS01_" + 64 * "0"))
    with pytest.raises(UserError, match="another version of sensor_msgs/msg/CameraInfo"):
        list(read_frames(tmp_path / "bag"))


def test_unusable_images_are_skipped_when_asked(tmp_path: Path) -> None:
    good, bad, late = frames()
    with BagWriter(tmp_path / "bag") as bag:
        bag.write_frame(good, "/camera/image", "/camera/camera_info")
        bag.write_frame(Frame(bad.image[:-8], bad.camera, bad.stamp, "front"), "/camera/image", "/other/camera_info")
        bag.write("/camera/image", IMAGE, b"\0\1\0\0\7", bad.stamp + 1)
        bag.write_frame(late, "/camera/image", "/camera/camera_info")
    problems: list[str] = []
    read = read_frames(tmp_path / "bag", "/camera/image", problems=problems)
    assert [frame.stamp for frame in read] == [good.stamp, late.stamp]
    assert len(problems) == 2
    assert "is 64x40" in problems[0]
    assert "cannot be read" in problems[1]
    with pytest.raises(UserError, match="is 64x40"):
        list(read_frames(tmp_path / "bag", "/camera/image"))


def test_memory_does_not_grow_with_the_recording(tmp_path: Path) -> None:
    """200 frames of 0.9 MB go through in the memory of a few of them."""
    image = np.zeros((480, 640, 3), np.uint8)
    camera = Camera(P, 640, 480)
    write_frames(tmp_path / "bag", (Frame(image, camera, SECOND + i, "front") for i in range(200)))
    tracemalloc.start()
    try:
        assert sum(1 for _ in read_frames(tmp_path / "bag")) == 200
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 25 * image.nbytes


def test_a_camera_is_known_by_the_camera_info_beside_it(tmp_path: Path) -> None:
    """Debug and depth pictures are no cameras."""
    frame = frames(1)[0]
    with BagWriter(tmp_path / "bag") as bag:
        bag.write_frame(frame, "/front/image_raw", "/front/camera_info")
        bag.write_frame(frame, "/detector/debug_image", "/elsewhere/camera_info")
    assert find_camera(tmp_path / "bag").image == "/front/image_raw"
    assert [c.image for c in find_cameras(tmp_path / "bag")] == ["/front/image_raw"]


def test_detections_survive_to_float_precision(tmp_path: Path) -> None:
    boxes = Boxes3D(
        torch.tensor([[1.5, 1.25, 20.0], [-3, 1, 9]], dtype=torch.float64),
        torch.tensor([[4.1, 1.7, 1.5], [0.8, 0.6, 1.8]], dtype=torch.float64),
        torch.tensor([2.9, -1.2], dtype=torch.float64),
        ("Car", "Pedestrian"),
        torch.tensor([0.75, 0.5], dtype=torch.float64),
        depth_std=torch.tensor([1.5, 0.4], dtype=torch.float64),
    )
    with BagWriter(tmp_path / "bag") as bag:
        bag.write_detections("/truth", boxes, 5 * SECOND + 3, "front")
        bag.write_detections("/truth", Boxes3D.empty(), 6 * SECOND, "front")
        bag.write_text("/note", "hello", 5 * SECOND)
    (stamp, frame_id, read), (_, _, nothing) = read_detections(tmp_path / "bag", classes=("Car", "Pedestrian"))
    assert (stamp, frame_id, read.labels, len(nothing)) == (5 * SECOND + 3, "front", ("Car", "Pedestrian"), 0)
    for name in ("center", "size", "yaw", "scores", "depth_std"):
        torch.testing.assert_close(getattr(read, name), getattr(boxes, name), rtol=1e-12, atol=1e-12)
    assert list(read_texts(tmp_path / "bag", "/note")) == [(5 * SECOND, "hello")]
    assert find_topic(tmp_path / "bag", [DETECTIONS], None, "--truth") == ("/truth", DETECTIONS)
    with pytest.raises(UserError, match=r"with --truth; the bag has Detection3DArray on /truth$"):
        find_topic(tmp_path / "bag", [DETECTIONS], "/other", "--truth")


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


def raw_bag(path: Path, topic: str, model: str = "plumb_bob", d: tuple[float, ...] = (-0.3, 0.1, 0, 0, 0)) -> None:
    """Frames whose camera_info tells of distortion; P differs from K."""
    types, (frame, *_) = typestore().types, frames()
    with BagWriter(path) as bag:
        bag.write_frame(frame, topic, "/unused/info")
        header = types["std_msgs/msg/Header"](
            types["builtin_interfaces/msg/Time"](frame.stamp // SECOND, frame.stamp % SECOND), "front"
        )
        info = types[CAMERA_INFO](
            header=header, height=48, width=64, distortion_model=model, d=np.array(d), k=K.flatten(),
            r=np.eye(3).flatten(), p=P.numpy().flatten(), binning_x=0, binning_y=0,
            roi=types["sensor_msgs/msg/RegionOfInterest"](0, 0, 0, 0, False),
        )  # fmt: skip
        bag.write(topic.rsplit("/", 1)[0] + "/camera_info", CAMERA_INFO, info, frame.stamp)


def test_raw_images_are_undistorted_with_k_and_d(tmp_path: Path) -> None:
    raw_bag(tmp_path / "bag", "/camera/image_raw")
    (frame,) = read_frames(tmp_path / "bag", rectified=False)
    D = np.array([-0.3, 0.1, 0, 0, 0])
    expected = cv2.undistort(frames()[0].image, K, D, None, K)
    assert np.abs(frame.image.astype(int) - expected).max() <= 1  # maps of 1/32 pixel
    assert not np.array_equal(frame.image, frames()[0].image)
    assert np.array_equal(frame.camera.K.numpy(), K)
    raw_bag(tmp_path / "fisheye", "/camera/image_raw", "equidistant", (0, 0, 0, 0))
    (frame,) = read_frames(tmp_path / "fisheye", rectified=False)
    assert not np.array_equal(frame.image, frames()[0].image)  # r = f * theta is no pinhole
    raw_bag(tmp_path / "odd", "/camera/image_raw", "acme")
    with pytest.raises(UserError, match="odd: /camera/camera_info: distortion_model 'acme'"):
        list(read_frames(tmp_path / "odd", rectified=False))


def test_it_is_said_where_images_may_be_raw(tmp_path: Path) -> None:
    for name, topic, d, said in [
        ("a", "/camera/image_raw", (-0.3, 0.1, 0, 0, 0), True),
        ("b", "/camera/image_rect", (-0.3, 0.1, 0, 0, 0), False),
        ("c", "/camera/image_raw", (0, 0, 0, 0, 0), False),
    ]:
        raw_bag(tmp_path / name, topic, d=d)
        problems: list[str] = []
        (frame,) = read_frames(tmp_path / name, problems=problems)
        assert np.array_equal(frame.image, frames()[0].image)
        assert torch.equal(frame.camera.P, P)
        assert any("--raw-images" in problem for problem in problems) == said, name


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
    with pytest.raises(UserError, match="encoding '32FC1' cannot be decoded: it is not one of"):
        decode_raw(raw(pixels, "32FC1"))
    jpeg = cv2.imencode(".jpg", np.zeros((40, 40, 3), np.uint8))[1].tobytes()
    assert decode_compressed(SimpleNamespace(data=jpeg + bytes(10), format="jpeg")).shape == (40, 40, 3)  # padded
    for data in (b"", b"nothing of the kind"):
        with pytest.raises(UserError, match="are not a picture"):
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
