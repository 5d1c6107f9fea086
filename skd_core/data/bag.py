"""Camera frames and detections in rosbag2 bags (sqlite3 and MCAP), without ROS.

Bags are read one message at a time; only numbers are kept (a camera's calibrations, never its images). What others need
of bag_reader, bag_types and bag_writer is offered here too.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from skd_core.boxes import Boxes3D
from skd_core.calibration import read_calibration
from skd_core.camera import Camera
from skd_core.data.bag_reader import BagReader, first_line, open_bag
from skd_core.data.bag_transforms import StaticTransforms, is_static
from skd_core.data.bag_types import (
    CAMERA_INFO,
    COMPRESSED_IMAGE,
    DETECTIONS,
    IMAGE,
    LABEL_INFO,
    STRING,
    CameraTopics,
    Frame,
    typestore,
)
from skd_core.data.bag_writer import BagWriter, write_frames
from skd_core.data.ros_detections import Pose, boxes_from_detections
from skd_core.data.ros_messages import (
    Maps,
    camera_from_info,
    decode_compressed,
    decode_raw,
    is_distorted,
    stamp_nanoseconds,
    undistort,
    undistortion_maps,
)
from skd_core.errors import UserError

__all__ = [
    "CAMERA_INFO", "COMPRESSED_IMAGE", "DETECTIONS", "IMAGE", "LABEL_INFO", "STRING", "BagReader", "BagWriter",
    "CameraTopics", "Frame", "ImageHeader", "find_camera", "find_cameras", "find_topic", "open_bag", "read_detections",
    "read_frames", "read_headers", "read_messages", "read_static_transforms", "read_texts", "typestore", "write_frames",
]  # fmt: skip


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


def find_camera(
    path: str | Path,
    image_topic: str | None = None,
    camera_info_topic: str | None = None,
    needs_info: bool = True,
) -> CameraTopics:
    """One camera of a bag: the image topic named, or else the only one with a camera_info beside it, or the only one.

    The camera_info is the one named, the one beside the image, or the only one; "" where none is needed.

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
    if not needs_info:
        infos = [""]
    if not infos and camera_info_topic is None:
        raise UserError(f"{path}: has no camera_info for {image}; give a calibration (bag-eval, show: --camera FILE)")
    if len(infos) != 1:
        found = ", ".join(infos) if infos else "no topic of that name"
        raise UserError(f"{path}: name the camera_info of {image} with --camera-info-topic; the bag has {found}")
    return CameraTopics(image, infos[0], types[image] == COMPRESSED_IMAGE)


def read_frames(
    path: str | Path,
    image_topic: str | None = None,
    camera_info_topic: str | None = None,
    problems: list[str] | None = None,
    rectified: bool = True,
    *,
    camera_file: Path | None = None,
) -> Iterator[Frame]:
    """Frames of one camera in a bag, in the order of recording; each with the camera_info nearest in time.

    "Nearest" is by stamp and, where several are equally near (all stamps 0), by the time of recording.

    Args:
        problems: gets a line for each image that cannot be used, which is then skipped, and for what of the bag cannot
            be read or is in doubt; without it an unusable image is an error, and doubts are only logged.
        rectified: True: P of camera_info is the images' camera; False: they are raw, and are undistorted with K and D
            as the node does where ``image_is_rectified`` is false. No message says which it is.
        camera_file: calibration in place of camera_info, see :func:`skd_core.calibration.read_calibration`.

    Raises:
        UserError: no such camera, an unsuitable camera_file, an image that cannot be decoded, an uncalibrated camera,
            or sizes that disagree.
    """
    given = None if camera_file is None else _GivenCamera(camera_file, rectified)
    topics = find_camera(path, image_topic, camera_info_topic, given is None)
    with open_bag(path) as reader:
        calibrations = [] if given is not None else _read_calibrations(reader, topics.camera_info, rectified)
        if rectified and "rect" not in topics.image and any(c.distorted for c in calibrations):
            reader.note(
                f"{path}: {topics.image} is taken as rectified, though {topics.camera_info} tells of distortion and "
                "the topic's name does not say; if it is raw, say so (--raw-images)"
            )
        decode = decode_compressed if topics.compressed else decode_raw
        for number, recorded, message in read_messages(reader, topics.image, problems):
            stamp, maps = stamp_nanoseconds(message.header), None
            try:
                image = decode(message, f"{path}: {topics.image}")
                height, width = image.shape[:2]
                if given is not None:
                    camera, maps = given.of_size(width, height)
                else:
                    calibration = min(calibrations, key=lambda c: c.distance(stamp, recorded))
                    camera, maps = calibration.camera, calibration.maps
                if (width, height) != (camera.width, camera.height):
                    raise UserError(
                        f"{path}: {topics.image} is {width}x{height}, "
                        f"but {topics.camera_info} is for {camera.width}x{camera.height}"
                    )
            except UserError as error:
                if problems is None:
                    raise
                problems.append(f"{error} (stamp {stamp})")
                continue
            yield Frame(undistort(image, maps), camera, stamp, message.header.frame_id, number)
        if problems is not None:
            problems += reader.problems


def read_detections(
    path: str | Path,
    topic: str | None = None,
    classes: Sequence[str] = (),
    to_camera: Callable[[str], Pose] | None = None,
) -> Iterator[tuple[int, str, Boxes3D]]:
    """(stamp in nanoseconds, frame_id, boxes) of every Detection3DArray of a bag, or of one topic of it.

    Args:
        classes: names as the data set spells them; messages have them in lower case.
        to_camera: from a frame's name to its pose in the camera's, see :class:`StaticTransforms`; without it the boxes
            are taken to be in the frame of their camera.

    Raises:
        UserError: no such topic; see :func:`skd_core.data.ros_detections.boxes_from_detections`.
    """
    with open_bag(path) as reader:
        topics = {c.topic for c in reader.connections if c.msgtype == DETECTIONS and topic in (None, c.topic)}
        if not topics:
            raise UserError(f"{path}: no Detection3DArray" + (f" on {topic}" if topic else ""))
        for name in sorted(topics):
            for _, _, message in read_messages(reader, name):
                try:
                    boxes = boxes_from_detections(message, classes, to_camera=to_camera)
                except UserError as error:
                    raise UserError(f"{path}: {name}: {error}") from None
                yield stamp_nanoseconds(message.header), message.header.frame_id, boxes


def read_static_transforms(path: str | Path) -> StaticTransforms:
    """The fixed transforms of a bag; none where it has no ``/tf_static``."""
    with open_bag(path) as reader:
        topics = [c.topic for c in reader.connections if is_static(c.topic, c.msgtype)]
        return StaticTransforms([m for topic in topics for _, _, m in read_messages(reader, topic, [])], path)


def read_texts(path: str | Path, topic: str, problems: list[str] | None = None) -> Iterator[tuple[int, str]]:
    """(time of recording in nanoseconds, text) of a std_msgs/String topic; ``problems`` as of :func:`read_messages`."""
    with open_bag(path) as reader:
        for _, recorded, message in read_messages(reader, topic, problems):
            yield recorded, message.data


@dataclass(frozen=True)
class ImageHeader:
    """What is said of an image.

    Attributes:
        stamp: nanoseconds; None where it cannot be read.
        frame_id: the camera's frame.
        recorded: time of recording, nanoseconds.
    """

    stamp: int | None
    frame_id: str
    recorded: int


def read_headers(path: str | Path, topic: str) -> list[ImageHeader]:
    """The headers of a topic's messages in the order of recording, without decoding what follows."""
    out = []
    with open_bag(path) as reader:
        for _, recorded, data in reader.messages([c for c in reader.connections if c.topic == topic]):
            try:
                order = "<" if data[1] & 1 else ">"
                seconds, nanoseconds, length = struct.unpack_from(f"{order}iII", data, 4)
                frame_id = bytes(data[16 : 16 + length]).rstrip(b"\0").decode()
            except (IndexError, struct.error, UnicodeDecodeError):
                out.append(ImageHeader(None, "", recorded))
                continue
            out.append(ImageHeader(seconds * 1_000_000_000 + nanoseconds, frame_id, recorded))
    return out


@dataclass
class _Calibration:
    """A camera, and from when to when its camera_info said so, nanoseconds: by stamp, and by time of recording."""

    camera: Camera
    maps: Maps | None
    distorted: bool
    content: tuple[Any, ...]
    first: int
    last: int
    begin: int
    end: int

    def distance(self, stamp: int, recorded: int) -> tuple[int, int]:
        return max(self.first - stamp, stamp - self.last, 0), max(self.begin - recorded, recorded - self.end, 0)


class _GivenCamera:
    """A calibration file in the place of camera_info.

    Raises:
        UserError: see :func:`skd_core.calibration.read_calibration`; it has no K for raw images.
    """

    def __init__(self, path: Path, rectified: bool) -> None:
        self._path, self._rectified = path, rectified
        self._info = read_calibration(path)
        if not rectified and self._info.k[0] == 0:
            raise UserError(f"{path}: holds no K and D of the raw image, which --raw-images needs")
        self._known: dict[tuple[int, int], tuple[Camera, Maps | None]] = {}

    def of_size(self, width: int, height: int) -> tuple[Camera, Maps | None]:
        """The camera of an image of that size, and the maps that undistort it where it is raw.

        Raises:
            UserError: the file is for another size; see :meth:`skd_core.camera.Camera.from_file`.
        """
        if (width, height) not in self._known:
            self._known[width, height] = self._make(width, height)
        return self._known[width, height]

    def _make(self, width: int, height: int) -> tuple[Camera, Maps | None]:
        if self._rectified:
            return Camera.from_file(self._path, width, height), None
        info = self._info if self._info.width else replace(self._info, width=width, height=height)
        camera = camera_from_info(info, str(self._path), rectified=False)
        if (camera.width, camera.height) != (width, height):
            raise UserError(f"{self._path}: is for {camera.width}x{camera.height} images, this one is {width}x{height}")
        return camera, undistortion_maps(info, camera, str(self._path))


def _read_calibrations(reader: BagReader, topic: str, rectified: bool) -> list[_Calibration]:
    """The calibrations of a camera_info topic; messages in a row that say the same are one."""
    name = f"{reader.path}: {topic}"
    runs: list[_Calibration] = []
    for _, recorded, message in read_messages(reader, topic, reader.problems):
        stamp = stamp_nanoseconds(message.header)
        fields = (message.k, message.p, message.d, message.height, message.width, message.binning_x, message.binning_y)
        content = (*(np.asarray(field).tobytes() for field in fields), message.distortion_model, repr(message.roi))
        if runs and runs[-1].content == content and stamp >= runs[-1].last:
            runs[-1].last, runs[-1].end = stamp, recorded
        else:
            camera = camera_from_info(message, name, rectified)
            maps = None if rectified else undistortion_maps(message, camera, name)
            times = (stamp, stamp, recorded, recorded)
            runs.append(_Calibration(camera, maps, is_distorted(message), content, *times))
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


def read_messages(reader: BagReader, topic: str, problems: list[str] | None = None) -> Iterator[tuple[int, int, Any]]:
    """(number, time of recording in nanoseconds, message) of a topic of a type we know, in the order of recording.

    Args:
        problems: gets a line for each message that cannot be read, which keeps its number; without it that is an error.

    Raises:
        UserError: the topic's type is another version of ours; see ``problems``.
    """
    connections = [c for c in reader.connections if c.topic == topic]
    store = typestore()
    for connection in connections:
        ours = store.hash_rihs01(connection.msgtype)
        if connection.digest and connection.digest != ours:
            raise UserError(f"{reader.path}: {topic} is another version of {connection.msgtype} ({connection.digest})")
    for number, (connection, timestamp, data) in enumerate(reader.messages(connections) if connections else ()):
        try:
            message = store.deserialize_cdr(data, connection.msgtype)
        except Exception as error:  # rosbags' generated code raises whatever malformed bytes lead to
            problem = f"{reader.path}: {topic}: message at {timestamp} cannot be read ({first_line(error)})"
            if problems is None:
                raise UserError(problem) from None
            problems.append(problem)
            continue
        yield number, timestamp, message
