"""Ground truth of a bag's frames: from a topic of the bag or from a folder of KITTI label files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch

from skd_core.boxes import Boxes3D, project_boxes
from skd_core.camera import Camera
from skd_core.data.bag import (
    DETECTIONS,
    STRING,
    CameraTopics,
    Frame,
    find_topic,
    open_bag,
    read_messages,
    read_static_transforms,
    read_texts,
)
from skd_core.data.bag_make import GROUND_TRUTH, GROUND_TRUTH_KITTI
from skd_core.data.kitti import KittiObjects, read_objects
from skd_core.data.ros_detections import boxes_from_detections
from skd_core.data.ros_messages import stamp_nanoseconds
from skd_core.errors import UserError
from skd_core.evaluation.bag_classes import KITTI_CLASSES, TruthClasses, read_label_info
from skd_core.evaluation.bag_pairing import Images, files_of_images
from skd_core.evaluation.errors import is_placed
from skd_core.evaluation.kitti import no_objects, objects_from_boxes
from skd_core.evaluation.object_log import ObjectLog
from skd_core.evaluation.overlaps import Floats
from skd_core.files import natural_order, write_atomic


class MalformedLabelsError(UserError):
    """Malformed truth, as opposed to truth of another camera or time: an error even if --truth was not given."""


@dataclass(frozen=True)
class TruthSource:
    """Where the truth is to be looked for; without topic and folder where ``bag-make`` writes it, beside the images.

    Attributes:
        topic: of type Detection3DArray, matched by header stamp, its boxes in any frame that /tf_static ties to the
            camera's; or String (lines of a KITTI label file), in the order of recording.
        labels: folder of ``NAME.txt``: each named by a frame's stamp in nanoseconds, or as many as there are frames, in
            the order of their names.
        class_map: "SOURCE:TARGET" for class ids of a Detection3DArray that are not class names; ids that are numbers
            and no entry names are looked up in the bag's LabelInfo.
    """

    topic: str | None = None
    labels: Path | None = None
    class_map: tuple[str, ...] = ()

    @property
    def asked(self) -> bool:
        """Whether truth was asked for: then it is an error if none can be had."""
        return self.topic is not None or self.labels is not None


@dataclass(eq=False)
class Truth:
    """Labels by the number of the image, see :attr:`skd_core.data.bag.Frame.number`.

    Attributes:
        source: where they are from, for the report.
        names: number of the image -> name of the label file, where there are files.
        classes: how many objects there are of each class.
        flat, hollow: how many objects have a 2D box without area, or no 3D box, where label lines are given.
        seen: how many objects of each class were in the pictures that :meth:`at` was asked for.
    """

    source: str
    names: dict[int, str] = field(default_factory=dict)
    classes: Counter[str] = field(default_factory=Counter)
    flat: int = 0
    hollow: int = 0
    seen: Counter[str] = field(default_factory=Counter)
    _objects: ObjectLog = field(default_factory=ObjectLog)
    _boxes: dict[int, tuple[tuple[str, ...], Floats]] = field(default_factory=dict)  # (N, 8): centre, size, yaw, score
    _numbers: dict[int, int] = field(default_factory=dict)  # image -> frame of _objects

    def at(self, frame: Frame) -> KittiObjects | None:
        """The labels of a frame; None where nothing is said of it (which is not "no objects")."""
        objects = self._at(frame)
        if objects is not None:
            self.seen.update(objects.type)
        return objects

    def _at(self, frame: Frame) -> KittiObjects | None:
        number = frame.number
        if number in self._boxes:
            labels, values = self._boxes[number]
            center, size, yaw, scores = map(torch.from_numpy, np.split(values, [3, 6, 7], -1))
            boxes = Boxes3D(center, size, yaw[:, 0], labels, scores[:, 0])  # in the frame that the header names
            return labels_from_boxes(boxes.moved(-frame.camera.offset), frame.camera)
        return self._objects[self._numbers[number]] if number in self._numbers else None

    def add_boxes(self, number: int, boxes: Boxes3D) -> bool:
        """Keep the boxes of an image; whether they are the same where it has some already."""
        columns = (boxes.center, boxes.size, boxes.yaw[:, None], boxes.scores[:, None])
        values = torch.cat(columns, -1).to(torch.float64).numpy()
        labels, kept = self._boxes.setdefault(number, (boxes.labels, values))
        if kept is values:
            self.classes.update(labels)
        return labels == boxes.labels and np.array_equal(kept, values)

    def add_file(self, number: int, path: Path) -> None:
        """Keep the lines of an image's label file."""
        self.names[number], self._numbers[number] = path.stem, len(self._objects)
        objects = read_objects(path)
        self.classes.update(objects.type)
        real = objects[~objects.is_class(["DontCare"])]
        self.flat += int((real.xyxy[:, 2:] <= real.xyxy[:, :2]).any(-1).sum())
        self.hollow += int((~is_placed(real)).sum())
        self._objects.append(objects)

    def note_absent_classes(self, notes: list[str]) -> None:
        """Name the classes of which no object was in any picture: scores of these are empty."""
        absent = [f"'{name}' ({n})" for name, n in self.classes.items() if not self.seen[name] and name != "DontCare"]
        if absent:
            notes.append(
                f"{self.source}: of {', '.join(absent)} no box is in any picture that was used (behind the camera, or "
                "beside it): is the truth in the frame that its header names?"
            )

    def check(self, classes: Sequence[str], notes: list[str]) -> None:
        """Say what makes scores empty; ``classes`` are those of the detector, none if any will do.

        Raises:
            UserError: there are objects, but none of a class that the detector knows.
        """
        objects = Counter({name: count for name, count in self.classes.items() if name != "DontCare"})
        known = {name.lower() for name in classes}
        strange = Counter({name: count for name, count in objects.items() if classes and name.lower() not in known})
        if not objects:
            notes.append(f"{self.source}: there is no object in the truth: nothing can be found, and AP has no meaning")
        told = ", ".join(f"'{name}' ({count})" for name, count in strange.most_common(6))
        told += ", ..." if len(strange) > 6 else ""
        if objects and strange.total() == objects.total():
            raise UserError(
                f"{self.source}: no class of the truth is one of the detector's ({', '.join(classes)}); the truth has "
                f"{told}; name them in a LabelInfo of the bag, or with --class-map, such as 0:car,1:pedestrian"
            )
        if any(name.lower() not in KITTI_CLASSES for name in strange):
            notes.append(f"{self.source}: classes that the detector does not know do not count: {told}")
        if self.flat:
            every = "every" if self.flat == objects.total() else f"{self.flat} of {objects.total()}"
            notes.append(
                f"{self.source}: {every} 2D box of the labels has no area (such as 0 0 0 0): KITTI's AP judges an "
                "object by the height of its 2D box, so these do not count in it; AP by distance holds"
            )
        if self.hollow:
            every = "every object" if self.hollow == objects.total() else f"{self.hollow} of {objects.total()} objects"
            notes.append(
                f"{self.source}: {every} of the labels has no 3D box (sides of -1, place of "
                "-1000): only 2D AP can count these"
            )


def find_truth(
    bag: Path, camera: CameraTopics, source: TruthSource, classes: tuple[str, ...], copies: Path, notes: list[str]
) -> Truth | None:
    """The labels of a camera's frames; None where none are found, or none that can be used and none was asked for.

    Args:
        classes: how the detector spells class names; messages have them in lower case.
        copies: folder that gets the label files of a String topic.
        notes: gets a line for what of the truth is left out or in doubt, and for why there is none.

    Raises:
        UserError: truth was asked for and there is no such topic or folder, it cannot be told to frames, its boxes are
            in a frame that /tf_static does not tie to the camera's, or none of its classes is one of the detector's.
            Label lines are malformed, whether asked for or not.
    """
    if source.labels is not None and source.topic is not None:
        raise UserError("give --truth or --labels, not both")
    images = Images.read(bag, camera.image)
    try:
        if source.labels is not None:
            truth = _from_folder(images, source.labels, notes)
        else:
            found = _find_topic(bag, camera, source.topic)
            if found is None:
                return None
            topic, kind = found
            if kind == STRING:
                truth = _from_texts(bag, topic, images, copies, notes)
            else:
                names = TruthClasses(classes, source.class_map, *read_label_info(bag, topic))
                truth = _from_detections(bag, topic, images, names, notes)
        truth.check(classes, notes)
        return truth
    except UserError as error:
        if source.asked or isinstance(error, MalformedLabelsError):
            raise
        notes.append(f"no truth: {error}")
        return None


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


def _find_topic(bag: Path, camera: CameraTopics, wanted: str | None) -> tuple[str, str] | None:
    """Topic and type of the truth: the one named, or what ``bag-make`` writes beside the images."""
    if wanted is not None:
        return find_topic(bag, (DETECTIONS, STRING), wanted, "--truth")
    namespace = camera.image.removesuffix("/compressed").rsplit("/", 1)[0]
    with open_bag(bag) as reader:
        there = {c.topic: c.msgtype for c in reader.connections}
    beside = ((f"{namespace}/{GROUND_TRUTH_KITTI}", STRING), (f"{namespace}/{GROUND_TRUTH}", DETECTIONS))
    return next(((name, kind) for name, kind in beside if there.get(name) == kind), None)


def _from_detections(bag: Path, topic: str, images: Images, names: TruthClasses, notes: list[str]) -> Truth:
    """Boxes of a Detection3DArray topic, by their header's stamp, brought to the camera's frame."""
    doubt = images.doubt()
    if doubt is not None:
        raise UserError(
            f"{bag}: {doubt}, so messages on {topic} cannot be matched to them; give --labels DIR, one file for each "
            "image in the order of recording"
        )
    truth, numbers = Truth(topic), images.by_stamp()
    transforms = read_static_transforms(bag)
    lost: list[int] = []
    faults: Counter[str] = Counter()
    first, count, kept = "", 0, 0
    with open_bag(bag) as reader:
        for _, _, message in read_messages(reader, topic, notes):
            stamp, count = stamp_nanoseconds(message.header), count + 1
            if stamp not in numbers:
                lost.append(stamp)
                continue
            number = numbers[stamp]
            found: list[str] = []
            boxes = boxes_from_detections(message, names.spelling, found, transforms.into(images.frames[number]))
            boxes.labels = tuple(names.name(label) for label in boxes.labels)
            if not truth.add_boxes(number, boxes):
                raise UserError(f"{bag}: {topic}: two messages of stamp {stamp} that differ; which one is true?")
            if found and not faults:
                first = f"{found[0]}, stamp {stamp}"
            faults.update(found)
            kept += len(boxes)
    if lost or not count:
        unmatched = f"{bag}: {topic}: {images.unmatched('messages', count, lost)}"
        if len(lost) == count:
            raise UserError(unmatched)
        notes.append(unmatched)
    if faults:
        left_out = f"{faults.total()} of {faults.total() + kept} boxes cannot be used, the first {first}"
        if not kept:
            raise UserError(f"{bag}: {topic}: {left_out}")
        notes.append(f"{bag}: {topic}: {left_out}; they are left out")
    names.tell(topic, notes)
    return truth


def _from_texts(bag: Path, topic: str, images: Images, copies: Path, notes: list[str]) -> Truth:
    """Label lines of a String topic, which has no stamps: in the order of recording.

    By the time of recording where that is the stamp of the images, as bag-make records both.
    """
    texts = list(read_texts(bag, topic, notes))
    at_stamps = all(stamp in (None, recorded) for stamp, recorded in zip(images.stamps, images.recorded, strict=True))
    stamps, times = images.by_stamp() if at_stamps else {}, [recorded for recorded, _ in texts]
    numbers = [stamps.get(recorded) for recorded in times]
    lost = [recorded for recorded, number in zip(times, numbers, strict=True) if number is None]
    if len(lost) < len(texts) and images.doubt() is None:
        if lost:
            notes.append(f"{bag}: {topic}: {images.unmatched('messages', len(texts), lost)}")
    elif len(texts) == len(images):
        numbers = list(range(len(texts)))
        strayed = sum(images.nearest_recorded(recorded) != images.recorded[i] for i, recorded in enumerate(times))
        if strayed:
            notes.append(
                f"{bag}: {topic}: {strayed} of {len(texts)} messages were recorded nearer to another image than to the "
                "one that they belong to by their order; see whether any were lost"
            )
    else:
        raise UserError(
            f"{bag}: {topic}: {images.unmatched('messages', len(texts), lost)}; a String has no stamp of its own, so "
            "there must be as many as images, or each must be recorded at its image's stamp"
        )
    truth = Truth(topic)
    copies.mkdir(parents=True, exist_ok=True)
    for index, (number, (_, text)) in enumerate(zip(numbers, texts, strict=True)):
        if number is None:
            continue
        path = copies / f"{index:06d}.txt"
        write_atomic(path, text)
        try:
            truth.add_file(number, path)
        except UserError as error:
            raise MalformedLabelsError(f"{bag}: {topic}: {str(error).removeprefix(f'{copies}/')}") from None
    return truth


def _from_folder(images: Images, labels: Path, notes: list[str]) -> Truth:
    if not labels.is_dir():
        raise UserError(f"{labels}: no such folder of labels")
    files = sorted(labels.glob("*.txt"), key=lambda path: (natural_order(path), path.name))
    truth = Truth(str(labels))
    for number, name in files_of_images(images, labels, [path.stem for path in files], notes).items():
        truth.add_file(number, labels / f"{name}.txt")
    return truth
