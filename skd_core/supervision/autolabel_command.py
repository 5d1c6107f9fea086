"""`skd_core autolabel`: from images or a bag to a tree of labels, review pages, and a report of their quality."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from skd_core.boxes import Boxes2D
from skd_core.data.kitti import read_boxes2d, read_objects
from skd_core.errors import UserError
from skd_core.files import check_outputs, files_of, finite, lock_folder, write_atomic
from skd_core.supervision.autolabel import (
    LOG,
    MIN_DONT_CARE_SCORE,
    NOTE,
    LabelLog,
    Tally,
    autolabel,
    check_out,
    file_hash,
)
from skd_core.supervision.autolabel_input import open_source
from skd_core.supervision.class_map import COCO_MAP
from skd_core.supervision.detector_2d import TORCHVISION, load_detector_2d
from skd_core.supervision.label_report import Agreement, compare
from skd_core.supervision.label_rules import DEFAULT_KEEP, LabelRules
from skd_core.supervision.review_page import reject, write_review

MIN_DOUBTFUL = 0.01
"""Below it a detector's boxes are all of its cells."""


@dataclass(frozen=True)
class Options:
    """What the command line may say.

    Attributes:
        camera, split, image_topic, rectified: see :func:`skd_core.supervision.autolabel_input.open_source`.
        class_map, tiles, threads, device: see :func:`skd_core.supervision.detector_2d.load_detector_2d`.
        doubtful: minimum score of DontCare.
        keep: minimum score of a label, "0.4" or "Car=0.4,Pedestrian=0.5"; None for :data:`DEFAULT_KEEP`.
        given: see :func:`skd_core.supervision.autolabel.autolabel`.
        labels: folder of true labels to compare with; None for those of a KITTI tree that is labelled.
        rejected: see :func:`skd_core.supervision.review_page.reject`.
        copy: copies of images; review: write the pages; json: file for all numbers.
    """

    camera: Path | None = None
    split: str | None = None
    image_topic: str | None = None
    rectified: bool = True
    class_map: tuple[str, ...] | None = None
    tiles: int = 4
    threads: int = 0
    device: str = "cpu"
    doubtful: float = MIN_DONT_CARE_SCORE
    keep: str | None = None
    given: Path | None = None
    labels: Path | None = None
    rejected: Path | None = None
    copy: bool = False
    review: bool = True
    json: Path | None = None


def run_autolabel(source: Path, detector: str, out: Path, options: Options | None = None) -> str:
    """Label the source's frames into ``out``.

    Args:
        source: see :func:`skd_core.supervision.autolabel_input.open_source`.
        detector: see :func:`skd_core.supervision.detector_2d.load_detector_2d`.
        out: root of the tree to write or to resume.

    Returns:
        What was done, as lines of text.

    Raises:
        UserError: wrong input of any kind; the message names it.
    """
    options = options or Options()
    keep = parse_keep(options.keep)
    low = min(keep.values())
    if not MIN_DOUBTFUL <= options.doubtful <= low:
        raise UserError(
            f"--doubtful {options.doubtful:g}: must be between {MIN_DOUBTFUL:g} and the minimum score of a label, "
            f"{low:g}"
        )
    check_out(out, source, options.given, options.camera, options.labels)
    if options.json is not None and out.resolve() in options.json.resolve().parents and _is_own(out, options.json):
        raise UserError(f"--json {options.json}: is a file of autolabel's own tree; choose another place")
    file = Path(detector.partition("@")[2] if detector.startswith(TORCHVISION) else detector)
    check_outputs(
        [options.json], files_of(source, options.given, options.labels, options.camera, options.rejected, file)
    )
    opened = open_source(source, options.camera, options.split, options.image_topic, options.rectified)
    found = load_detector_2d(
        detector, class_map=options.class_map, tiles=options.tiles, score=options.doubtful,
        threads=options.threads, device=options.device,
    )  # fmt: skip
    if unknown := sorted(keep.keys() - DEFAULT_KEEP.keys() - set(found.classes)):
        raise UserError(f"--keep: no class '{unknown[0]}'; the detector gives {', '.join(found.classes)}")
    recipe = {
        "detector": detector.replace(str(file), file.name),
        "sha256": file_hash(file),
        "class_map": list(options.class_map or COCO_MAP),
        "tiles": options.tiles,
        "doubtful": options.doubtful,
    }
    rules = LabelRules(keep=keep)
    with lock_folder(out):
        tally = autolabel(
            opened.frames, out, found, recipe, rules=rules, given=options.given, copy=options.copy, total=opened.total
        )
        if not tally.names:
            raise UserError(f"{source}: no frames")
        turned = 0 if options.rejected is None else reject(out, options.rejected)
        if turned:
            tally.classes = count_classes(out, tally.names)
        text = [_done(out, tally, turned)]
        scores = {"frames": len(tally.names), "boxes": dict(tally.classes)}
        truth = options.labels or (None if options.given is not None else opened.labels)
        if truth is not None:
            agreement = agreement_with(out, truth, tally.names, found.classes)
            text.append(table(agreement))
            scores["agreement"] = {name: part.row() for name, part in agreement.items()}
        if options.review:
            log = LabelLog(out / LOG)
            page = write_review(out, tally.names, lambda name: log.scores(name, file_hash(_label_file(out, name))))
            text.append(f"check the boxes on {page}")
        if options.json is not None:
            write_atomic(options.json, json.dumps(finite(scores), indent=2) + "\n")
    return "\n".join(text)


def _is_own(out: Path, file: Path) -> bool:
    """Whether a file within the tree is one that autolabel writes."""
    first = file.resolve().relative_to(out.resolve()).parts[0]
    return first in (NOTE, LOG, "training", "ImageSets", "review")


def agreement_with(out: Path, truth: Path, names: Sequence[str], classes: Sequence[str]) -> dict[str, Agreement]:
    """How the labels of a tree agree with true ones, for the frames that have any.

    Raises:
        UserError: none of the frames has a true label file, or one is malformed.
    """
    log = LabelLog(out / LOG)
    frames = []
    for name in names:
        if (truth / f"{name}.txt").is_file():
            boxes = read_boxes2d(_label_file(out, name))
            scores = log.scores(name, file_hash(_label_file(out, name)))
            if len(scores) == len(boxes):
                boxes = Boxes2D(boxes.xyxy, boxes.labels, torch.tensor(scores))
            frames.append((boxes, read_objects(truth / f"{name}.txt", with_3d=False)))
    if not frames:
        raise UserError(f"{truth}: no label file for any of the {len(names)} frames, such as {names[0]}.txt")
    return compare(frames, classes)


def table(agreement: dict[str, Agreement]) -> str:
    """Agreement as text, a line for each class."""
    lines = [f"{'':12} objects  recall .5    .7  DontCare   found  precision   (boxes of at least 25 px)"]
    for name, part in agreement.items():
        row = {key: " -" if np.isnan(value) else f"{value:.3f}" for key, value in part.row().items()}
        lines.append(
            f"{name:12} {part.objects:7} {row['recall_50']:>10} {row['recall_70']:>5} {row['dont_care']:>9} "
            f"{part.right + part.wrong:7} {row['precision']:>10}"
        )
    return "\n".join(lines)


def parse_keep(text: str | None) -> dict[str, float]:
    """Minimum scores by class from "0.4" (all classes) or "Car=0.4,Pedestrian=0.5" (others as by default).

    Raises:
        UserError: neither of the two, or a score outside [0, 1].
    """
    keep = dict(DEFAULT_KEEP)
    for part in [] if text is None else text.split(","):
        name, equals, number = (word.strip() for word in part.rpartition("="))
        try:
            score = float(number)
        except ValueError:
            score = -1.0
        name = next((known for known in DEFAULT_KEEP if known.lower() == name.lower()), name)
        if not 0 <= score <= 1 or bool(equals) != bool(name):
            raise UserError(f"--keep {text}: write a score in [0, 1], or Car=0.4,Pedestrian=0.5")
        keep.update({name: score} if name else dict.fromkeys(keep, score))
    return keep


def count_classes(out: Path, names: Sequence[str]) -> dict[str, int]:
    """Boxes of each class in the label files of a tree."""
    counts: dict[str, int] = {}
    for name in names:
        for label in read_boxes2d(_label_file(out, name)).labels:
            counts[label] = counts.get(label, 0) + 1
    return counts


def _label_file(out: Path, name: str) -> Path:
    return out / "training" / "label_2" / f"{name}.txt"


def _done(out: Path, tally: Tally, turned: int) -> str:
    what = [f"{tally.made} labelled", f"{tally.kept} as they were", f"{tally.by_hand} corrected by hand"]
    boxes = ", ".join(f"{name} {count}" for name, count in sorted(tally.classes.items())) or "no boxes"
    rejected = f", {turned} boxes rejected" if turned else ""
    return f"{out}: {len(tally.names)} frames ({', '.join(what)}{rejected}): {boxes}"
