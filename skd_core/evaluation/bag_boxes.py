"""2D boxes from outside for the frames of a recording: files, a 2D detector, or a topic of the recording itself."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from skd_core.boxes import Boxes2D
from skd_core.data.bag import CameraTopics, Frame, find_topic, open_bag, read_messages
from skd_core.data.bag_types import DETECTIONS_2D
from skd_core.data.box_files import BoxFolder
from skd_core.data.image_size import parse_size
from skd_core.data.ros_detections_2d import REJECTED, Fit, Row, to_boxes2d, vision_rows
from skd_core.data.ros_messages import stamp_nanoseconds
from skd_core.errors import UserError
from skd_core.evaluation.bag_pairing import Images, files_of_images
from skd_core.inference.outside import detector_source
from skd_core.supervision.box_classes import BoxClasses

WHOLE = Fit()
"""Pixels are the image's own."""
MAX_NAMES = 5
"""Classes that one line of a report names."""


@dataclass(frozen=True)
class BoxOptions:
    """Where the 2D boxes of a recording come from; at most one of folder, detector and topic.

    Attributes:
        folder: of KITTI files, one for each image, see :func:`skd_core.evaluation.bag_pairing.files_of_images`, in
            natural order (2 before 10).
        detector, tiles: see :func:`skd_core.inference.outside.open_source`.
        topic: of the recording, a vision_msgs/Detection2DArray for each image, with its stamp.
        fit: what the pixels of the topic's messages are.
        class_map: for the topic, see :class:`skd_core.supervision.box_classes.BoxClasses`.
    """

    folder: Path | None = None
    detector: str | None = None
    tiles: int = 0
    topic: str | None = None
    fit: Fit = WHOLE
    class_map: tuple[str, ...] = ()


OWN_BOXES = BoxOptions()
"""The weights' own 2D heads."""


def box_fit(size: str | None, fit: str) -> Fit:
    """What the pixels of a topic's messages are, from the command line.

    Args:
        size: WIDTHxHEIGHT, None = the image's; fit: "stretch" or "letterbox".

    Raises:
        UserError: another size or fit.
    """
    if fit not in ("stretch", "letterbox"):
        raise UserError(f"--boxes-fit '{fit}': must be stretch or letterbox")
    return Fit(*(parse_size(size, "--boxes-size") or (0, 0)), fit == "letterbox")


def frame_boxes(
    bag: Path, camera: CameraTopics, options: BoxOptions, classes: Sequence[str], problems: list[str]
) -> Callable[[Frame], Boxes2D | None] | None:
    """The 2D boxes of each frame; None where no source is given. A frame without recorded boxes gets None.

    Args:
        classes: of the weights.
        problems: gets what a user should know of a topic's messages.

    Raises:
        UserError: several sources; files that cannot be told to frames; a frame that has no file; see
            :class:`TopicBoxes`.
    """
    given = (("--boxes", options.folder), ("--detector", options.detector), ("--boxes-topic", options.topic))
    named = [name for name, value in given if value is not None]
    if len(named) > 1:
        raise UserError(f"give {' or '.join(named)}, not {'both' if len(named) == 2 else 'all'}")
    if options.detector is not None:
        network = detector_source(options.detector, options.tiles, classes)
        return lambda frame: network(frame.image)
    if options.topic is not None:
        return TopicBoxes(bag, camera, options, classes, problems).at
    if options.folder is None:
        return None
    folder = BoxFolder(options.folder)
    names = files_of_images(Images.read(bag, camera.image), options.folder, folder.names, [])

    def read(frame: Frame) -> Boxes2D:
        if frame.number not in names:
            raise UserError(f"{folder.folder}: no file for the image of stamp {frame.stamp}")
        return folder.read(names[frame.number])

    return read


class TopicBoxes:
    """Recorded 2D boxes, each message with the image of its stamp, as the node pairs them.

    Args:
        problems: gets what a user should know of the messages, a line for each kind.

    Raises:
        UserError: no such topic, or several images with one stamp; no message with the stamp of an image; the class map
            knows none of the classes.
    """

    def __init__(
        self, bag: Path, camera: CameraTopics, options: BoxOptions, classes: Sequence[str], problems: list[str]
    ) -> None:
        topic, _ = find_topic(bag, [DETECTIONS_2D], options.topic, "--boxes-topic")
        images = Images.read(bag, camera.image)
        if (doubt := images.doubt()) is not None:
            raise UserError(f"{bag}: {doubt}, and 2D boxes on {topic} are matched to images by stamp")
        self._fit, self._classes = options.fit, BoxClasses(options.class_map, classes)
        self.problems = problems
        self._rows: dict[int, list[Row]] = {}
        with open_bag(bag) as reader:
            for _, _, message in read_messages(reader, topic, self.problems):
                self._rows[stamp_nanoseconds(message.header)] = vision_rows(message)
        wanted = set(images.by_stamp())
        lost = [stamp for stamp in self._rows if stamp not in wanted]
        if len(lost) == len(self._rows):
            raise UserError(f"{bag}: {topic}: {images.unmatched('messages', len(lost), lost)}")
        if lost:
            self.problems.append(f"{topic}: {images.unmatched('messages', len(self._rows), lost)}")
        if missing := len(wanted - self._rows.keys()):
            self.problems.append(f"{topic}: {missing} of {len(images)} images have no 2D boxes and are dropped")
        names = {name for rows in self._rows.values() for row in rows for name in row.names}
        if names and not any(map(self._classes.knows, names)):
            some = ", ".join(f"'{name}'" for name in sorted(names)[:MAX_NAMES])
            raise UserError(
                f"{bag}: the class map knows no class of the 2D boxes on {topic}: {some}; name them with "
                "--boxes-class-map, such as 2:car"
            )
        self._topic = topic
        self._counts: Counter[tuple[str, str]] = Counter()  # of what is not taken: why and the cure
        self._lines: dict[tuple[str, str], int] = {}  # where each of them stands in the problems
        self._counted: set[int] = set()  # stamps

    def at(self, frame: Frame) -> Boxes2D | None:
        """The boxes of a frame, under the weights' class names; None where none were recorded."""
        rows = self._rows.get(frame.stamp)
        if rows is None:
            return None
        width, height = frame.camera.width, frame.camera.height
        boxes, rejected = to_boxes2d(rows, self._fit, width, height, self._classes.knows)
        if frame.stamp not in self._counted:
            self._counted.add(frame.stamp)
            for reason, count in rejected.items():
                self._count(f"are {reason}", REJECTED[reason], count)
            unknown = sum(not self._classes.knows(label) for label in boxes.labels)
            self._count("are of classes that the class map does not know", "see --boxes-class-map", unknown)
        return self._classes.map(boxes)

    def _count(self, what: str, cure: str, more: int) -> None:
        """Boxes that are not taken, one line for each reason."""
        if not more:
            return
        key = (what, cure)
        self._counts[key] += more
        line = f"{self._topic}: {self._counts[key]} 2D boxes {what}: {cure}"
        if key in self._lines:
            self.problems[self._lines[key]] = line
        else:
            self._lines[key] = len(self.problems)
            self.problems.append(line)
