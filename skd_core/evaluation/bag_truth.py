"""What is truly in the frames of a bag: from a topic of the bag or from a folder of KITTI label files."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch

from skd_core.boxes import Boxes3D, project_boxes
from skd_core.camera import Camera
from skd_core.data.bag import DETECTIONS, STRING, CameraTopics, find_topic, open_bag, read_detections, read_texts
from skd_core.data.bag_make import GROUND_TRUTH, GROUND_TRUTH_KITTI
from skd_core.data.kitti import KittiObjects, read_objects
from skd_core.errors import UserError
from skd_core.evaluation.kitti import no_objects, objects_from_boxes
from skd_core.evaluation.object_log import ObjectLog
from skd_core.evaluation.overlaps import Floats
from skd_core.files import write_atomic


@dataclass(eq=False)
class Truth:
    """Labels by the frames' stamps.

    Attributes:
        source: where they are from, for the report.
        names: stamp -> name of the label file, where there are files.
    """

    source: str
    names: dict[int, str] = field(default_factory=dict)
    _objects: ObjectLog = field(default_factory=ObjectLog)
    _boxes: dict[int, tuple[tuple[str, ...], Floats]] = field(default_factory=dict)  # (N, 8): centre, size, yaw, score
    _numbers: dict[int, int] = field(default_factory=dict)  # stamp -> frame of _objects

    def at(self, stamp: int, camera: Camera) -> KittiObjects | None:
        """The labels of a frame; None where nothing is said of it (which is not "no objects")."""
        if stamp in self._boxes:
            labels, values = self._boxes[stamp]
            center, size, yaw, scores = map(torch.from_numpy, np.split(values, [3, 6, 7], -1))
            boxes = Boxes3D(center, size, yaw[:, 0], labels, scores[:, 0])  # in the frame that the header names
            return labels_from_boxes(boxes.moved(-camera.offset), camera)
        return self._objects[self._numbers[stamp]] if stamp in self._numbers else None

    def add_boxes(self, stamp: int, boxes: Boxes3D) -> None:
        """Keep the boxes of a frame."""
        columns = (boxes.center, boxes.size, boxes.yaw[:, None], boxes.scores[:, None])
        self._boxes[stamp] = boxes.labels, torch.cat(columns, -1).to(torch.float64).numpy()

    def add_file(self, stamp: int, path: Path) -> None:
        """Keep the lines of a frame's label file."""
        self.names[stamp], self._numbers[stamp] = path.stem, len(self._objects)
        self._objects.append(read_objects(path))


def find_truth(
    bag: Path, camera: CameraTopics, topic: str | None, labels: Path | None, classes: tuple[str, ...], copies: Path
) -> Truth | None:
    """The labels of a camera's frames; without topic and folder what ``bag-make`` writes beside the image, if there.

    Args:
        topic: of type Detection3DArray (matched by header stamp) or String (lines of a KITTI label file, by time of
            recording).
        labels: folder of ``NAME.txt``: each named by a frame's stamp in nanoseconds, or as many as there are frames, in
            the order of their names.
        classes: how the detector spells class names; messages have them in lower case.
        copies: folder that gets the label files of a String topic.

    Raises:
        UserError: no such topic or folder, or files that cannot be told to frames.
    """
    if labels is not None:
        if topic is not None:
            raise UserError("give --truth or --labels, not both")
        return _from_folder(bag, camera, labels)
    kind: str | None = None
    if topic is None:
        namespace = camera.image.removesuffix("/compressed").rsplit("/", 1)[0]
        with open_bag(bag) as reader:
            there = {c.topic: c.msgtype for c in reader.connections}
        beside = ((f"{namespace}/{GROUND_TRUTH_KITTI}", STRING), (f"{namespace}/{GROUND_TRUTH}", DETECTIONS))
        topic, kind = next(((name, kind) for name, kind in beside if there.get(name) == kind), (None, None))
        if topic is None:
            return None
    else:
        topic, kind = find_topic(bag, (DETECTIONS, STRING), topic, "--truth")
    truth = Truth(topic)
    if kind == DETECTIONS:
        spelling = (*classes, "Car", "Van", "Truck", "Pedestrian", "Person_sitting", "Cyclist", "Tram", "Misc")
        for stamp, _, boxes in read_detections(bag, topic, spelling[::-1]):
            truth.add_boxes(stamp, boxes)
        return truth
    copies.mkdir(parents=True, exist_ok=True)
    for number, (stamp, text) in enumerate(read_texts(bag, topic)):
        path = copies / f"{number:06d}.txt"
        write_atomic(path, text)
        try:
            truth.add_file(stamp, path)
        except UserError as error:
            raise UserError(f"{bag}: {topic}: {str(error).removeprefix(f'{copies}/')}") from None
    return truth


def labels_from_boxes(boxes: Boxes3D, camera: Camera) -> KittiObjects:
    """True 3D boxes as labels: 2D boxes by projection, truncation from what of them is outside the image.

    Nothing is known of occlusion, so it is 0; boxes outside the image are left out.
    """
    exact = boxes.to(torch.float64)
    exact = exact[exact.center[:, 2] > 0]
    if not len(exact):
        return no_objects()
    whole = project_boxes(camera.P, exact.center, exact.size, exact.yaw)
    exact.xyxy = exact.project(camera).xyxy
    inside, full = ((box[:, 2:] - box[:, :2]).clamp(min=0).prod(-1) for box in (exact.xyxy, whole))
    visible = inside > 0
    objects = objects_from_boxes(exact[visible])
    truncated = (1 - inside / full.clamp(min=1e-9))[visible].numpy()
    return replace(objects, truncated=truncated, occluded=np.zeros(len(objects)), score=np.ones(len(objects)))


def _from_folder(bag: Path, camera: CameraTopics, labels: Path) -> Truth:
    if not labels.is_dir():
        raise UserError(f"{labels}: no such folder of labels")
    truth = Truth(str(labels))
    for stamp, name in names_by_stamp(
        bag, camera, labels, [path.stem for path in sorted(labels.glob("*.txt"))]
    ).items():
        truth.add_file(stamp, labels / f"{name}.txt")
    return truth


def names_by_stamp(bag: Path, camera: CameraTopics, folder: Path, names: Sequence[str]) -> dict[int, str]:
    """Which file of a folder belongs to which image of a recording.

    Args:
        names: of the files: each the stamp of an image in nanoseconds, or as many as there are images, in the order of
            recording.

    Returns:
        stamp -> name.

    Raises:
        UserError: neither.
    """
    stamps = _stamps(bag, camera.image)
    if names and all(name.isdecimal() and int(name) in stamps for name in names):
        return {int(name): name for name in names}
    if len(names) == len(stamps):
        return dict(zip(stamps, names, strict=True))
    raise UserError(
        f"{folder}: {len(names)} files for {len(stamps)} frames on {camera.image}; there must be as many, in the order "
        "of their names, or they must be named by the frames' stamps in nanoseconds"
    )


def _stamps(bag: Path, topic: str) -> list[int]:
    """Header stamps of a topic's messages, nanoseconds, without decoding them."""
    out = []
    with open_bag(bag) as reader:
        for _, _, data in reader.messages([c for c in reader.connections if c.topic == topic]):
            seconds, nanoseconds = struct.unpack_from("<iI" if data[1] & 1 else ">iI", data, 4)
            out.append(seconds * 1_000_000_000 + nanoseconds)
    return out
