"""rosbag2 bags (sqlite3 and MCAP) without ROS: camera frames in and out, detections in, raw messages through.

Bags are written in a temporary folder and renamed, so that an interrupted run leaves none behind.
"""

from __future__ import annotations

import bisect
import contextlib
import functools
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rosbags.highlevel import AnyReader, AnyReaderError
from rosbags.rosbag2 import CompressionFormat, CompressionMode, ReaderError, StoragePlugin, Writer
from rosbags.typesys import Stores, get_types_from_msg, get_typestore
from rosbags.typesys.store import Typestore

from skd_core.boxes import Boxes3D
from skd_core.camera import Camera
from skd_core.data.ros_messages import (
    boxes_from_detections,
    camera_from_info,
    decode_compressed,
    decode_raw,
    stamp_nanoseconds,
)
from skd_core.errors import UserError

IMAGE = "sensor_msgs/msg/Image"
COMPRESSED_IMAGE = "sensor_msgs/msg/CompressedImage"
CAMERA_INFO = "sensor_msgs/msg/CameraInfo"
DETECTIONS = "vision_msgs/msg/Detection3DArray"

VISION_MSGS = {
    "vision_msgs/msg/ObjectHypothesis": "string class_id\nfloat64 score\n",
    "vision_msgs/msg/ObjectHypothesisWithPose": (
        "vision_msgs/ObjectHypothesis hypothesis\ngeometry_msgs/PoseWithCovariance pose\n"
    ),
    "vision_msgs/msg/BoundingBox3D": "geometry_msgs/Pose center\ngeometry_msgs/Vector3 size\n",
    "vision_msgs/msg/Detection3D": (
        "std_msgs/Header header\nvision_msgs/ObjectHypothesisWithPose[] results\n"
        "vision_msgs/BoundingBox3D bbox\nstring id\n"
    ),
    DETECTIONS: "std_msgs/Header header\nvision_msgs/Detection3D[] detections\n",
}
"""vision_msgs is not among rosbags' built-in types; its fields as in the ROS 2 package (a test holds the type hash)."""


@functools.cache
def typestore() -> Typestore:
    """The message types of ROS 2 Jazzy and vision_msgs."""
    store = get_typestore(Stores.ROS2_JAZZY)
    for name, text in VISION_MSGS.items():
        store.register(get_types_from_msg(text, name))
    return store


@dataclass(frozen=True)
class Frame:
    """One camera frame.

    Attributes:
        image: shape (H, W, 3), uint8, RGB.
        camera: the camera that took it.
        stamp: time of exposure, nanoseconds.
        frame_id: name of the camera's optical frame.
    """

    image: NDArray[np.uint8]
    camera: Camera
    stamp: int
    frame_id: str = "camera"


@dataclass(frozen=True)
class CameraTopics:
    """The two topics of one camera in a bag."""

    image: str
    camera_info: str
    compressed: bool = False


@contextlib.contextmanager
def open_bag(path: str | Path) -> Iterator[AnyReader]:
    """A reader of a bag folder, open for the length of a ``with`` block.

    Raises:
        UserError: the folder is missing or no bag.
    """
    path = Path(path)
    if not path.is_dir():
        raise UserError(f"{path}: no such bag folder")
    try:
        reader = AnyReader([path], default_typestore=typestore())
        reader.open()
    except (AnyReaderError, ReaderError, OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as a rosbag2 bag ({_first_line(error)})") from None
    try:
        yield reader
    finally:
        reader.close()


def find_camera(path: str | Path, image_topic: str | None = None, camera_info_topic: str | None = None) -> CameraTopics:
    """The camera of a bag: its only image topic, or the one named, and the camera_info next to it.

    Raises:
        UserError: none, or several to choose from; the message lists them.
    """
    with open_bag(path) as reader:
        types = {c.topic: c.msgtype for c in reader.connections}
    images = [t for t, kind in types.items() if kind in (IMAGE, COMPRESSED_IMAGE) and image_topic in (None, t)]
    if len(images) > 1 and image_topic is None:  # the same camera, raw and compressed: take raw
        images = [t for t in images if types[t] == IMAGE or t.rsplit("/", 1)[0] not in images]
    if len(images) != 1:
        found = ", ".join(images) if images else f"only {', '.join(sorted(types)) or 'nothing'}"
        raise UserError(f"{path}: name one image topic with --image-topic; the bag has {found}")
    image, compressed = images[0], types[images[0]] == COMPRESSED_IMAGE
    infos = [t for t, kind in types.items() if kind == CAMERA_INFO and camera_info_topic in (None, t)]
    base = image.removesuffix("/compressed") if compressed else image
    beside = base.rsplit("/", 1)[0] + "/camera_info"
    if len(infos) > 1 and beside in infos:
        infos = [beside]
    if len(infos) != 1:
        found = ", ".join(infos) if infos else "none"
        raise UserError(f"{path}: name the camera_info of {image} with --camera-info-topic; the bag has {found}")
    return CameraTopics(image, infos[0], compressed)


def read_frames(
    path: str | Path, image_topic: str | None = None, camera_info_topic: str | None = None
) -> Iterator[Frame]:
    """Frames of one camera in a bag, in the order of recording; each with the camera_info nearest in time.

    Raises:
        UserError: no such camera, an image that cannot be decoded, an uncalibrated camera, or sizes that disagree.
    """
    topics = find_camera(path, image_topic, camera_info_topic)
    with open_bag(path) as reader:
        infos = sorted(
            ((stamp_nanoseconds(m.header), m) for m in _messages(reader, topics.camera_info)), key=lambda item: item[0]
        )
        if not infos:
            raise UserError(f"{path}: no message on {topics.camera_info}")
        stamps = [stamp for stamp, _ in infos]
        decode = decode_compressed if topics.compressed else decode_raw
        for message in _messages(reader, topics.image):
            stamp = stamp_nanoseconds(message.header)
            at = bisect.bisect_left(stamps, stamp)
            nearest = min(range(max(at - 1, 0), min(at + 1, len(stamps))), key=lambda i: abs(stamps[i] - stamp))
            camera = camera_from_info(infos[nearest][1], f"{path}: {topics.camera_info}")
            image = decode(message, f"{path}: {topics.image}")
            if image.shape[:2] != (camera.height, camera.width):
                raise UserError(
                    f"{path}: {topics.image} is {image.shape[1]}x{image.shape[0]}, "
                    f"but {topics.camera_info} is for {camera.width}x{camera.height}"
                )
            yield Frame(image, camera, stamp, message.header.frame_id)


def read_detections(path: str | Path, topic: str | None = None) -> Iterator[tuple[int, str, Boxes3D]]:
    """(stamp in nanoseconds, frame_id, boxes) of every Detection3DArray of a bag, or of one topic of it."""
    with open_bag(path) as reader:
        topics = {c.topic for c in reader.connections if c.msgtype == DETECTIONS and topic in (None, c.topic)}
        if not topics:
            raise UserError(f"{path}: no Detection3DArray" + (f" on {topic}" if topic else ""))
        for name in sorted(topics):
            for message in _messages(reader, name):
                yield stamp_nanoseconds(message.header), message.header.frame_id, boxes_from_detections(message)


class BagWriter:
    """Write a bag: a context manager; the folder appears, complete, when it is left without an error.

    Args:
        path: the folder to make.
        storage: "mcap" (compressed with zstd) or "sqlite3".
        overwrite: replace an existing folder, if it is a bag.

    Raises:
        UserError: the folder exists.
    """

    def __init__(self, path: str | Path, storage: str = "mcap", overwrite: bool = False) -> None:
        self.path = Path(path)
        if self.path.exists() and not (overwrite and (self.path / "metadata.yaml").is_file()):
            raise UserError(f"{self.path}: exists already; choose another name or remove it")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._folder = Path(tempfile.mkdtemp(prefix=f".{self.path.name}.", dir=self.path.parent))
        plugin = StoragePlugin.MCAP if storage == "mcap" else StoragePlugin.SQLITE3
        self._writer = Writer(self._folder / self.path.name, version=9, storage_plugin=plugin)
        if plugin is StoragePlugin.MCAP:
            self._writer.set_compression(CompressionMode.STORAGE, CompressionFormat.ZSTD)
        self._connections: dict[str, Any] = {}

    def __enter__(self) -> BagWriter:
        self._writer.open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._writer.__exit__(kind, error, trace)
        if kind is None:
            if self.path.exists():
                shutil.rmtree(self.path)
            (self._folder / self.path.name).rename(self.path)
        shutil.rmtree(self._folder, ignore_errors=True)

    def write(self, topic: str, msgtype: str, message: Any, stamp: int) -> None:
        """Write one message, an object of :func:`typestore` or serialized (CDR) bytes, at ``stamp`` nanoseconds."""
        if topic not in self._connections:
            self._connections[topic] = self._writer.add_connection(topic, msgtype, typestore=typestore())
        data = message if isinstance(message, bytes) else typestore().serialize_cdr(message, msgtype)
        self._writer.write(self._connections[topic], stamp, data)

    def write_frame(self, frame: Frame, image_topic: str, camera_info_topic: str) -> None:
        """Write the camera_info, then the image (rgb8), both with the frame's stamp."""
        types = typestore().types
        height, width = frame.image.shape[:2]
        stamp = types["builtin_interfaces/msg/Time"](frame.stamp // 1_000_000_000, frame.stamp % 1_000_000_000)
        header = types["std_msgs/msg/Header"](stamp, frame.frame_id)
        P = frame.camera.P.numpy()
        info = types[CAMERA_INFO](
            header=header, height=height, width=width, distortion_model="plumb_bob", d=np.zeros(5),
            k=P[:, :3].flatten(), r=np.eye(3).flatten(), p=P.flatten(), binning_x=0, binning_y=0,
            roi=types["sensor_msgs/msg/RegionOfInterest"](0, 0, 0, 0, False),
        )  # fmt: skip
        image = types[IMAGE](
            header=header, height=height, width=width, encoding="rgb8", is_bigendian=0, step=3 * width,
            data=np.ascontiguousarray(frame.image).reshape(-1),
        )  # fmt: skip
        self.write(camera_info_topic, CAMERA_INFO, info, frame.stamp)
        self.write(image_topic, IMAGE, image, frame.stamp)


def write_frames(path: str | Path, frames: Iterable[Frame], namespace: str = "/camera", **options: Any) -> None:
    """Write frames as a bag with the topics ``<namespace>/image`` and ``<namespace>/camera_info``."""
    with BagWriter(path, **options) as bag:
        for frame in frames:
            bag.write_frame(frame, f"{namespace}/image", f"{namespace}/camera_info")


def _messages(reader: AnyReader, topic: str) -> Iterator[Any]:
    connections = [c for c in reader.connections if c.topic == topic]
    for connection, _, data in reader.messages(connections):
        yield reader.deserialize(data, connection.msgtype)


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
