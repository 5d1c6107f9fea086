"""2D labels for images that have none: a detector's boxes as a KITTI tree to train on.

::

    out/training/image_2/NAME.jpg   a relative link to the image, or a copy; a PNG where it comes from a bag
    out/training/calib/NAME.txt     P2
    out/training/label_2/NAME.txt   class and 2D box; what would be 3D is written as unknown
    out/ImageSets/all.txt           the frames of the last run
    out/autolabel.json              what made the labels
    out/autolabel.jsonl             a line each time a label file is written: hashes, and its boxes' scores; one with no
                                    name where a run has written all of its files

A label file that is not as autolabel wrote it last was corrected by hand and stays, whatever is run again; where its
image has become another one, the run ends. The others are kept while the image and the recipe (detector, classes,
scores, rules) are the same, and made anew otherwise.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from skd_core.boxes import Boxes2D
from skd_core.camera import Camera
from skd_core.data.folder import IMAGE_SUFFIXES
from skd_core.data.kitti import UNKNOWN_3D, read_boxes2d
from skd_core.errors import UserError
from skd_core.files import make_folder, read_text, replacing, write_atomic
from skd_core.iou import covered
from skd_core.supervision.autolabel_input import Frame
from skd_core.supervision.class_map import DONT_CARE
from skd_core.supervision.detector_2d import Detector2D
from skd_core.supervision.label_rules import LabelRules, uncovered
from skd_core.supervision.tiles import join
from skd_core.visualize import write_image

NOTE, LOG = "autolabel.json", "autolabel.jsonl"
MIN_DONT_CARE_SCORE = 0.2
"""Minimum score of a DontCare box: what a detector is loaded with for autolabelling. [ours]"""


@dataclass
class Tally:
    """What a run did.

    Attributes:
        made, kept, by_hand: frames labelled now, left as they were, and found corrected by hand.
        classes: boxes of each class in the label files, DontCare among them.
        names: of all frames.
    """

    made: int = 0
    kept: int = 0
    by_hand: int = 0
    classes: dict[str, int] = field(default_factory=dict)
    names: list[str] = field(default_factory=list)


def autolabel(
    frames: Iterable[Frame],
    out: Path,
    detector: Detector2D,
    recipe: Mapping[str, Any],
    *,
    rules: LabelRules | None = None,
    given: Path | None = None,
    copy: bool = False,
    total: int | None = None,
) -> Tally:
    """Write a KITTI tree with a detector's boxes as labels; an interrupted run resumes.

    Args:
        frames: the images, each name once, see :mod:`skd_core.supervision.autolabel_input`.
        out: the tree's root; see the module's text, and :func:`check_out`.
        detector: loaded with a low minimum score (:data:`MIN_DONT_CARE_SCORE`), so that doubtful boxes are kept.
        recipe: what decides the detector's boxes, as JSON: labels made by another recipe are made anew.
        rules: which boxes are labels and which DontCare.
        given: folder of label files, NAME.txt, whose lines stay as they are, see :func:`beside_given`.
        copy: copy images instead of linking them.
        total: number of frames, for the progress bar.

    Raises:
        UserError: an unreadable image, calibration or label file; labels in ``out`` that were corrected by hand for
            another image; an image that lies where it would be written; no frame has a given label file.
    """
    rules = rules or LabelRules()
    known = _classes_in(given)
    recipe = {**recipe, "rules": asdict(rules), "given_classes": sorted(known)}
    for folder in ("training/image_2", "training/calib", "training/label_2", "ImageSets"):
        make_folder(out / folder)
    write_atomic(out / NOTE, json.dumps(recipe, indent=2, sort_keys=True) + "\n")
    log = LabelLog(out / LOG)
    tally, given_files = Tally(), 0
    for frame in tqdm(frames, total=total, unit="image", disable=total is not None and total < 10):
        labels = out / "training" / "label_2" / f"{frame.name}.txt"
        lines = _given_lines(given, frame.name)
        given_files += lines is not None
        state = text_hash(json.dumps([frame.digest, recipe, lines], sort_keys=True))
        now = file_hash(labels)
        by_hand = now is not None and now not in log.own(frame.name)
        if by_hand and log.image(frame.name) not in (None, frame.image):
            raise UserError(f"{labels}: was corrected by hand for another image; choose another --out, or delete it")
        last_state, last_hash = log.last(frame.name) or ("", "")
        fresh = now == last_hash and state == last_state
        image: NDArray[np.uint8] | None = None
        if now is None or state != last_state or not _complete(out, frame, copy):
            image, camera = frame.read()
            _place(frame, image, camera, out, copy)
        if by_hand:
            tally.by_hand += 1
        elif fresh:
            tally.kept += 1
        else:
            try:
                boxes = detector.detect(frame.read()[0] if image is None else image, dont_care=True)
            except UserError as error:
                raise UserError(f"{frame.path or frame.name}: {error}") from None
            found = rules.apply(boxes)
            found = beside_given(found, lines, known)
            text = "".join([*(lines or []), *map(_line, found.labels, found.xyxy.tolist())])
            scores = [*[1.0] * len(lines or []), *found.scores.tolist()]
            log.add(frame.name, state, text_hash(text), scores, frame.image)  # first: what no line tells of is by hand
            write_atomic(labels, text)
            tally.made += 1
        for label in read_boxes2d(labels).labels:
            tally.classes[label] = tally.classes.get(label, 0) + 1
        tally.names.append(frame.name)
    log.close()
    if tally.names and given is not None and not given_files:
        raise UserError(f"{given}: no label file for any of the frames, such as {tally.names[0]}.txt")
    write_atomic(out / "ImageSets" / "all.txt", "".join(f"{name}\n" for name in tally.names))
    return tally


def check_out(out: Path, *inputs: Path | None) -> None:
    """Refuse a place for the tree where it would write over its input or over what autolabel did not write.

    Raises:
        UserError: ``out`` is an input or holds one, or holds labels or images but no note of autolabel's.
    """
    root = out.resolve()
    for path in inputs:
        if path is None:
            continue
        if path.resolve() == root or root in path.resolve().parents:
            raise UserError(f"{out}: would write over its input {path}; choose another folder for --out")
    if (out / NOTE).is_file():
        return
    for what, files in (("labels", "label_2/*.txt"), ("images", "image_2/*")):
        if any((out / "training").glob(files)):
            raise UserError(f"{out}: holds {what} that autolabel did not write; choose another folder for --out")


def beside_given(found: Boxes2D, lines: list[str] | None, known: set[str]) -> Boxes2D:
    """What a detector adds to labels that are there already.

    Args:
        found: labels and DontCare.
        lines: of the label file; None where there is none: then all that is found stays.
        known: classes that the label files name, in any case. What is found of these and not in the file is doubtful:
            DontCare.

    Returns:
        What no line's box explains: overlaps it by an IoU of .5, or lies in it by 90 %.
    """
    if lines is None:
        return found
    columns = [line.split() for line in lines]
    boxes = found.xyxy.new_tensor([[float(value) for value in words[4:8]] for words in columns]).reshape(-1, 4)
    there = Boxes2D(boxes, tuple(words[0] for words in columns))
    spelled = {name.lower() for name in known}
    names = tuple(DONT_CARE if label.lower() in spelled else label for label in found.labels)
    found = Boxes2D(found.xyxy, names, found.scores)
    part, back = covered(found.xyxy, boxes), covered(boxes, found.xyxy).T
    iou = 1 / (1 / part.clamp(min=1e-6) + 1 / back.clamp(min=1e-6) - 1)
    found = found[(iou <= 0.5).all(1)]
    sure = [label != DONT_CARE for label in found.labels]
    return join([found[sure], uncovered(found[[not s for s in sure]], join([there, found[sure]]))])


class LabelLog:
    """What autolabel wrote and when it wrote it anew; a line of JSON for each label file written.

    Args:
        path: of the log; where its last line is cut, that one is taken off.

    Raises:
        UserError: a line is damaged, or the file cannot be read or written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._records: dict[str, list[dict[str, Any]]] = {}
        self._open = ""  # the frame whose label file may not have been written any more
        try:
            text = path.read_text(encoding="utf-8") if path.exists() else ""
        except (OSError, UnicodeDecodeError):
            raise UserError(f"{path}: cannot read, or not a text file") from None
        whole = text[: text.rfind("\n") + 1]
        if whole != text:
            write_atomic(path, whole)
        for number, line in enumerate(whole.splitlines(), 1):
            try:
                record = json.loads(line)
                self._records.setdefault(record["name"], []).append(record)
                self._open = str(record["name"])
            except (json.JSONDecodeError, TypeError, KeyError):
                raise UserError(f"{path}:{number}: not a line of autolabel's log; restore it or start over") from None

    def own(self, name: str) -> set[str]:
        """Hashes of what a frame's label file can be, if autolabel wrote it last: of the last one written; of that
        before too where the run ended between log and file."""
        records = self._records.get(name, [])
        return {record["labels"] for record in records[-2 if name == self._open else -1 :]}

    def image(self, name: str) -> str | None:
        """Hash of the image that a frame's labels were written for; None where it is not on record."""
        records = self._records.get(name)
        return records[-1].get("image") if records else None

    def close(self) -> None:
        """Tell that all label files on record were written: a line that is no frame's."""
        if self._open:
            self.add("", "", "", [], "")

    def last(self, name: str) -> tuple[str, str] | None:
        """State and hash of the label file written last; None if there was none."""
        records = self._records.get(name)
        return (records[-1]["state"], records[-1]["labels"]) if records else None

    def scores(self, name: str, labels: str | None) -> list[float]:
        """Scores of a label file's lines; empty where the file of this hash was not written by autolabel."""
        for record in reversed(self._records.get(name, [])):
            if record["labels"] == labels:
                return list(record["scores"])
        return []

    def add(self, name: str, state: str, labels: str, scores: list[float], image: str) -> None:
        """Append a line.

        Args:
            name: of the frame.
            state: hash of all that decides its labels.
            labels: hash of the label file; scores: of its lines; image: hash of the image.
        """
        rounded = [round(s, 4) for s in scores]
        record = {"name": name, "state": state, "labels": labels, "scores": rounded, "image": image}
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
        except OSError as error:
            raise UserError(f"{self.path}: cannot write: {error.strerror}") from None
        self._records.setdefault(name, []).append(record)
        self._open = name


def text_hash(text: str) -> str:
    """SHA-256 of a text in UTF-8."""
    return hashlib.sha256(text.encode()).hexdigest()


def file_hash(path: Path) -> str | None:
    """SHA-256 of a file; None where there is none."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UserError(f"{path}: cannot read: {error.strerror}") from None


def _line(label: str, xyxy: list[float]) -> str:
    return f"{label} -1 -1 -10 {' '.join(f'{value:.2f}' for value in xyxy)} {UNKNOWN_3D}\n"


def _given_lines(given: Path | None, name: str) -> list[str] | None:
    path = None if given is None else given / f"{name}.txt"
    if path is None or not path.is_file():
        return None
    read_boxes2d(path)  # names what is malformed
    return [line.strip() + "\n" for line in read_text(path, kind="label file").splitlines() if line.strip()]


def _classes_in(given: Path | None) -> set[str]:
    """The classes of a folder's label files, but not DontCare."""
    if given is None:
        return set()
    files = sorted(given.glob("*.txt"))
    if not files:
        raise UserError(f"{given}: no label files NAME.txt")
    return {label for file in files for label in read_boxes2d(file).labels} - {DONT_CARE}


def _complete(out: Path, frame: Frame, copy: bool) -> bool:
    """Whether image and calibration are there, the image as a copy or a link as is wanted."""
    image = _image_path(out, frame)
    linked = frame.path is not None and not copy
    calib = out / "training" / "calib" / f"{frame.name}.txt"
    return image.exists() and image.is_symlink() == linked and calib.is_file()


def _image_path(out: Path, frame: Frame) -> Path:
    suffix = ".png" if frame.path is None else frame.path.suffix.lower()
    return out / "training" / "image_2" / f"{frame.name}{suffix}"


def _place(frame: Frame, image: NDArray[np.uint8], camera: Camera, out: Path, copy: bool) -> None:
    """The frame's image and calibration."""
    place = _image_path(out, frame)
    if frame.path is not None and frame.path.resolve().parent == place.parent.resolve():
        raise UserError(f"{out}: would write over its input {frame.path}; choose another folder for --out")
    for other in IMAGE_SUFFIXES:  # of an earlier run: a frame has one image
        if other != place.suffix:
            place.with_name(f"{frame.name}{other}").unlink(missing_ok=True)
    if frame.path is None:
        write_image(place, image)
    else:
        place.unlink(missing_ok=True)
        if copy:
            with replacing(place) as temporary:
                shutil.copyfile(frame.path, temporary)
        else:
            place.symlink_to(os.path.relpath(frame.path.resolve(), place.parent.resolve()))
    numbers = " ".join(map(repr, camera.P.double().flatten().tolist()))
    write_atomic(out / "training" / "calib" / f"{frame.name}.txt", f"P2: {numbers}\n")
