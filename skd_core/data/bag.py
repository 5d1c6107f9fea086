"""Camera frames and detections in rosbag2 bags (sqlite3 and MCAP), without ROS.

Bags are read one message at a time; only numbers are kept (a camera's calibrations, never its images). They are written
in a temporary folder and renamed, so that an interrupted run leaves none behind.
"""

from __future__ import annotations

import functools
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rosbags.rosbag2 import CompressionFormat, CompressionMode, StoragePlugin, Writer
from rosbags.typesys import Stores, get_types_from_msg, get_typestore
from rosbags.typesys.store import Typestore

from skd_core.boxes import Boxes3D, pose_covariance
from skd_core.camera import Camera
from skd_core.data.bag_reader import BagReader, first_line, open_bag
from skd_core.data.ros_messages import (
    Maps,
    boxes_from_detections,
    camera_from_info,
    decode_compressed,
    decode_raw,
    is_distorted,
    stamp_nanoseconds,
    undistort,
    undistortion_maps,
)
from skd_core.errors import UserError
from skd_core.files import make_folder

__all__ = [
    "CAMERA_INFO", "COMPRESSED_IMAGE", "DETECTIONS", "IMAGE", "STRING", "BagReader", "BagWriter", "CameraTopics",
    "Frame", "find_camera", "find_cameras", "find_topic", "open_bag", "read_detections", "read_frames", "read_texts",
    "typestore", "write_frames",
]  # fmt: skip

IMAGE = "sensor_msgs/msg/Image"
COMPRESSED_IMAGE = "sensor_msgs/msg/CompressedImage"
CAMERA_INFO = "sensor_msgs/msg/CameraInfo"
DETECTIONS = "vision_msgs/msg/Detection3DArray"
STRING = "std_msgs/msg/String"

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


def find_topic(path: str | Path, kinds: Sequence[str], wanted: str | None, option: str) -> tuple[str, str]:
    """The topic of some types, and its type: the one that is named, or the only one there is.

    Raises:
        UserError: none, or several to choose from; the message lists them and names the option.
    """
    with open_bag(path) as reader:
        types = {c.topic: c.msgtype for c in reader.connections}
    found = [topic for topic, kind in sorted(types.items()) if kind in kinds and wanted in (None, topic)]
    if len(found) != 1:
        names = " or ".join(kind.rsplit("/", 1)[-1] for kind in kinds)
        others = [topic for topic, kind in sorted(types.items()) if kind in kinds]
        have = f"{names} on {', '.join(others)}" if others else f"no {names}, only {', '.join(sorted(types)) or '-'}"
        raise UserError(f"{path}: name one topic with {option}; the bag has {have}")
    return found[0], types[found[0]]


def find_cameras(path: str | Path) -> list[CameraTopics]:
    """The cameras of a bag: image topics with a camera_info beside them, in the order of their names.

    Where a camera has raw and compressed images, only the raw ones are listed.
    """
    with open_bag(path) as reader:
        types = {c.topic: c.msgtype for c in reader.connections}
    infos = {topic for topic, kind in types.items() if kind == CAMERA_INFO}
    cameras = []
    for topic in _image_topics(types):
        if _beside(topic, types) in infos:
            cameras.append(CameraTopics(topic, _beside(topic, types), types[topic] == COMPRESSED_IMAGE))
    return cameras


def find_camera(path: str | Path, image_topic: str | None = None, camera_info_topic: str | None = None) -> CameraTopics:
    """One camera of a bag: the image topic named, or else the only one with a camera_info beside it, or the only one.

    The camera_info is the one named, the one beside the image, or the only one.

    Raises:
        UserError: none, or several to choose from; the message lists them.
    """
    with open_bag(path) as reader:
        types = {c.topic: c.msgtype for c in reader.connections}
    images = _image_topics(types) if image_topic is None else [image_topic]
    infos = [topic for topic, kind in types.items() if kind == CAMERA_INFO and camera_info_topic in (None, topic)]
    if image_topic is None and camera_info_topic is None:
        images = [topic for topic in images if _beside(topic, types) in infos] or images
    if len(images) != 1 or types.get(images[0]) not in (IMAGE, COMPRESSED_IMAGE):
        several = image_topic is None and len(images) > 1
        found = ", ".join(images) if several else f"only {', '.join(sorted(types)) or 'nothing'}"
        raise UserError(f"{path}: name one image topic with --image-topic; the bag has {found}")
    image = images[0]
    if len(infos) > 1 and _beside(image, types) in infos:
        infos = [_beside(image, types)]
    if len(infos) != 1:
        found = ", ".join(infos) if infos else "none"
        raise UserError(f"{path}: name the camera_info of {image} with --camera-info-topic; the bag has {found}")
    return CameraTopics(image, infos[0], types[image] == COMPRESSED_IMAGE)


def read_frames(
    path: str | Path,
    image_topic: str | None = None,
    camera_info_topic: str | None = None,
    problems: list[str] | None = None,
    rectified: bool = True,
) -> Iterator[Frame]:
    """Frames of one camera in a bag, in the order of recording; each with the camera_info nearest in time.

    Args:
        problems: gets a line for each image that cannot be used, which is then skipped, and for what of the bag cannot
            be read or is in doubt; without it an unusable image is an error, and doubts are only logged.
        rectified: True: P of camera_info is the images' camera; False: they are raw, and are undistorted with K and D
            as the node does where ``image_is_rectified`` is false. No message says which it is.

    Raises:
        UserError: no such camera, an image that cannot be decoded, an uncalibrated camera, or sizes that disagree.
    """
    topics = find_camera(path, image_topic, camera_info_topic)
    with open_bag(path) as reader:
        calibrations = _read_calibrations(reader, topics.camera_info, rectified)
        if rectified and "rect" not in topics.image and any(c.distorted for c in calibrations):
            reader.note(
                f"{path}: {topics.image} is taken as rectified, though {topics.camera_info} tells of distortion and "
                "the topic's name does not say; if it is raw, say so (--raw-images)"
            )
        decode = decode_compressed if topics.compressed else decode_raw
        for message in _messages(reader, topics.image, problems):
            stamp = stamp_nanoseconds(message.header)
            try:
                calibration = min(calibrations, key=lambda c: c.distance(stamp))
                camera = calibration.camera
                image = decode(message, f"{path}: {topics.image}")
                if image.shape[:2] != (camera.height, camera.width):
                    raise UserError(
                        f"{path}: {topics.image} is {image.shape[1]}x{image.shape[0]}, "
                        f"but {topics.camera_info} is for {camera.width}x{camera.height}"
                    )
            except UserError as error:
                if problems is None:
                    raise
                problems.append(f"{error} (stamp {stamp})")
                continue
            yield Frame(undistort(image, calibration.maps), camera, stamp, message.header.frame_id)
        if problems is not None:
            problems += reader.problems


def read_detections(
    path: str | Path, topic: str | None = None, classes: Sequence[str] = ()
) -> Iterator[tuple[int, str, Boxes3D]]:
    """(stamp in nanoseconds, frame_id, boxes) of every Detection3DArray of a bag, or of one topic of it.

    Args:
        classes: names as the data set spells them; messages have them in lower case.
    """
    with open_bag(path) as reader:
        topics = {c.topic for c in reader.connections if c.msgtype == DETECTIONS and topic in (None, c.topic)}
        if not topics:
            raise UserError(f"{path}: no Detection3DArray" + (f" on {topic}" if topic else ""))
        for name in sorted(topics):
            for message in _messages(reader, name):
                boxes = boxes_from_detections(message, classes)
                yield stamp_nanoseconds(message.header), message.header.frame_id, boxes


def read_texts(path: str | Path, topic: str) -> Iterator[tuple[int, str]]:
    """(time of recording in nanoseconds, text) of a std_msgs/String topic."""
    with open_bag(path) as reader:
        connections = [c for c in reader.connections if c.topic == topic]
        for connection, timestamp, data in reader.messages(connections) if connections else ():
            yield timestamp, typestore().deserialize_cdr(data, connection.msgtype).data  # type: ignore[attr-defined]


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
        make_folder(self.path.parent)
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
        header = _header(frame.stamp, frame.frame_id)
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

    def write_detections(self, topic: str, boxes: Boxes3D, stamp: int, frame_id: str) -> None:
        """Write boxes in the frame ``frame_id`` as a Detection3DArray."""
        self.write(topic, DETECTIONS, _detections(boxes, _header(stamp, frame_id)), stamp)

    def write_text(self, topic: str, text: str, stamp: int) -> None:
        """Write a std_msgs/String."""
        self.write(topic, STRING, typestore().types[STRING](text), stamp)


def write_frames(path: str | Path, frames: Iterable[Frame], namespace: str = "/camera", **options: Any) -> None:
    """Write frames as a bag with the topics ``<namespace>/image`` and ``<namespace>/camera_info``."""
    with BagWriter(path, **options) as bag:
        for frame in frames:
            bag.write_frame(frame, f"{namespace}/image", f"{namespace}/camera_info")


@dataclass
class _Calibration:
    """A camera, and from when to when its camera_info said so, nanoseconds."""

    camera: Camera
    maps: Maps | None
    distorted: bool
    content: tuple[Any, ...]
    first: int
    last: int

    def distance(self, stamp: int) -> int:
        return max(self.first - stamp, stamp - self.last, 0)


def _read_calibrations(reader: BagReader, topic: str, rectified: bool) -> list[_Calibration]:
    """The calibrations of a camera_info topic; messages in a row that say the same are one."""
    name = f"{reader.path}: {topic}"
    runs: list[_Calibration] = []
    for message in _messages(reader, topic, reader.problems):
        stamp = stamp_nanoseconds(message.header)
        fields = (message.k, message.p, message.d, message.height, message.width, message.binning_x, message.binning_y)
        content = (*(np.asarray(field).tobytes() for field in fields), message.distortion_model, repr(message.roi))
        if runs and runs[-1].content == content and stamp >= runs[-1].last:
            runs[-1].last = stamp
        else:
            camera = camera_from_info(message, name, rectified)
            maps = None if rectified else undistortion_maps(message, camera, name)
            runs.append(_Calibration(camera, maps, is_distorted(message), content, stamp, stamp))
    if not runs:
        raise UserError(f"{reader.path}: no message on {topic}")
    return runs


def _image_topics(types: dict[str, str]) -> list[str]:
    """Image topics by name; without the compressed ones of a camera that has raw ones, and without depth."""
    images = [topic for topic, kind in sorted(types.items()) if kind in (IMAGE, COMPRESSED_IMAGE)]
    images = [topic for topic in images if not topic.endswith("/compressedDepth")]
    return [t for t in images if types[t] == IMAGE or t.rsplit("/", 1)[0] not in images]


def _beside(image: str, types: dict[str, str]) -> str:
    base = image.removesuffix("/compressed") if types.get(image) == COMPRESSED_IMAGE else image
    return base.rsplit("/", 1)[0] + "/camera_info"


def _detections(boxes: Boxes3D, header: Any) -> Any:
    """A Detection3DArray such as the node publishes: every detection has the array's header."""
    types = {name.rsplit("/", 1)[1]: kind for name, kind in typestore().types.items()}
    boxes = boxes.to("cpu", torch.float64)
    rows = zip(
        boxes.center.tolist(), boxes.size.tolist(), boxes.quaternion.tolist(), boxes.labels,
        boxes.scores.clamp(0, 1).tolist(), pose_covariance(boxes).numpy().reshape(-1, 36), strict=True,
    )  # fmt: skip
    detections = []
    for center, size, quaternion, label, score, covariance in rows:
        pose = types["Pose"](types["Point"](*center), types["Quaternion"](*quaternion))
        hypothesis = types["ObjectHypothesis"](label.lower(), score)
        result = types["ObjectHypothesisWithPose"](hypothesis, types["PoseWithCovariance"](pose, covariance))
        bbox = types["BoundingBox3D"](pose, types["Vector3"](*size))
        detections.append(types["Detection3D"](header, [result], bbox, ""))
    return types["Detection3DArray"](header, detections)


def _header(stamp: int, frame_id: str) -> Any:
    types = typestore().types
    time = types["builtin_interfaces/msg/Time"](stamp // 1_000_000_000, stamp % 1_000_000_000)
    return types["std_msgs/msg/Header"](time, frame_id)


def _messages(reader: BagReader, topic: str, problems: list[str] | None = None) -> Iterator[Any]:
    """Messages of a topic of a type we know; those that cannot be read are errors, or problems if there is a list."""
    connections = [c for c in reader.connections if c.topic == topic]
    store = typestore()
    for connection in connections:
        ours = store.hash_rihs01(connection.msgtype)
        if connection.digest and connection.digest != ours:
            raise UserError(f"{reader.path}: {topic} is another version of {connection.msgtype} ({connection.digest})")
    for connection, timestamp, data in reader.messages(connections) if connections else ():
        try:
            message = store.deserialize_cdr(data, connection.msgtype)
        except Exception as error:  # rosbags' generated code raises whatever malformed bytes lead to
            problem = f"{reader.path}: {topic}: message at {timestamp} cannot be read ({first_line(error)})"
            if problems is None:
                raise UserError(problem) from None
            problems.append(problem)
            continue
        yield message
