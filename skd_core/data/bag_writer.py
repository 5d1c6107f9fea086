"""Write rosbag2 bags, in a temporary folder that is renamed: an interrupted run leaves none behind."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch
from rosbags.rosbag2 import CompressionFormat, CompressionMode, StoragePlugin, Writer

from skd_core.boxes import Boxes3D
from skd_core.covariance import pose_covariance
from skd_core.data.bag_types import CAMERA_INFO, DETECTIONS, IMAGE, STRING, Frame, typestore
from skd_core.errors import UserError
from skd_core.files import fresh_folder


class BagWriter:
    """Write a bag: a context manager; the folder appears, complete, when it is left without an error.

    Args:
        path: the folder to make.
        storage: "mcap" (compressed with zstd) or "sqlite3".
        overwrite: replace an existing folder, if it is a bag.

    Raises:
        UserError: the folder exists, or cannot be written; or another command is writing it.
    """

    _writer: Any

    def __init__(self, path: str | Path, storage: str = "mcap", overwrite: bool = False) -> None:
        self.path, self._overwrite = Path(path), overwrite
        self._check_path()
        self._plugin = StoragePlugin.MCAP if storage == "mcap" else StoragePlugin.SQLITE3
        self._connections: dict[str, Any] = {}
        self._stack = contextlib.ExitStack()

    def _check_path(self) -> None:
        if self.path.exists() and not (self._overwrite and (self.path / "metadata.yaml").is_file()):
            raise UserError(f"{self.path}: exists already; choose another name or remove it")

    def __enter__(self) -> BagWriter:
        with contextlib.ExitStack() as stack:
            fresh = stack.enter_context(fresh_folder(self.path))
            self._check_path()  # again, now that no other process can create it
            stack.enter_context(_naming_faults(self.path))
            self._writer = Writer(fresh, version=9, storage_plugin=self._plugin)
            if self._plugin is StoragePlugin.MCAP:
                self._writer.set_compression(CompressionMode.STORAGE, CompressionFormat.ZSTD)
            stack.enter_context(self._writer)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, trace)

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


@contextlib.contextmanager
def _naming_faults(path: Path) -> Iterator[None]:
    """The writer's own faults do not say which file they are of."""
    try:
        yield
    except OSError as error:
        if error.filename is not None:
            raise
        raise UserError(f"{path}: cannot write: {error.strerror or error}") from None
    except sqlite3.Error as error:  # "database or disk is full"
        raise UserError(f"{path}: cannot write: {error}") from None


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
