"""``skd_core eval real``: frames with 3D labels in, a table for each kind out; and the threshold that weights store."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.table import Table
from tqdm import tqdm

from skd_core.boxes import Boxes2D, Boxes3D
from skd_core.camera import Camera
from skd_core.console import output_console
from skd_core.data.box_files import BoxFolder
from skd_core.data.kitti import KittiDataset, KittiObjects, read_objects
from skd_core.data.sample import read_image
from skd_core.errors import UserError
from skd_core.evaluation.calibrate import calibrate, calibration_notes, calibration_tables, held_out, stored
from skd_core.evaluation.real import EMPTY_TALLY, PARTS, Tally, join, tally_frame
from skd_core.evaluation.report import plain_table
from skd_core.files import check_outputs, files_of, finite, write_atomic
from skd_core.inference.bundled import resolve
from skd_core.inference.detector import Detector
from skd_core.inference.outside import detector_source
from skd_core.inference.weights import load_weights
from skd_core.inference.weights import store as store_weights
from skd_core.supervision.lift import lift
from skd_core.visualize import RGB

KINDS = ("Car", "Pedestrian", "Cyclist")
MAX_ON_NOTHING = 0.3
"""Detections on nothing a frame that a stored threshold may allow."""
MIN_THRESHOLD = 0.05
"""Lowest threshold that is considered."""
HEADS = ("labels", "recall\n.5", "recall\n.7", "BEV\n> .5", "3D\n> .5", "depth\nerror", "depth\nbias", "yaw\nmod pi")


@dataclass(frozen=True)
class Frame:
    """One frame of a labelled tree: its name, image, camera and the lines of its label file."""

    name: str
    image: RGB
    camera: Camera
    objects: KittiObjects


Find = Callable[[Frame], Boxes3D]
Tallies = dict[str, Tally]
"""Kind -> what became of it."""
Frames = dict[str, list[Tally]]
"""Kind -> what became of it, frame by frame."""


NO_LABELS = (
    "no label was counted: labels need occlusion 0 or 1, at least 25 px and less than half truncation; "
    "those drawn by autolabel have neither occlusion nor 3D boxes"
)
"""What is printed below tables without a label."""


@dataclass(frozen=True)
class EvalOptions:
    """What to measure.

    Attributes:
        weights: a file, or the name of bundled weights.
        boxes: "own", "labels", a folder of KITTI files by the frames' names, or a 2D detector's ``FILE.onnx``.
        threshold: minimum score; None or "stored": the weights' own for own boxes, 0 for other boxes. All boxes of
            the labels count.
        lift: place the 2D boxes without a network, see :mod:`skd_core.supervision.lift`.
        kinds: what to look at; none: those of KINDS that the weights know.
        tiles: crops that a 2D detector processes besides the whole image.
        device: of the network.
    """

    weights: str = "default"
    boxes: str = "own"
    threshold: str | None = None
    lift: bool = False
    kinds: tuple[str, ...] = ()
    tiles: int = 4
    device: str = "auto"


@dataclass(frozen=True)
class CalibrationOptions:
    """What is measured on these frames and kept in the weights.

    Attributes:
        threshold: take the threshold from :func:`choose_threshold` on these frames.
        calibration: measure the spread of errors, see :mod:`skd_core.evaluation.calibrate`.
        store: write them into the weights.
    """

    threshold: bool = False
    calibration: bool = False
    store: bool = False


def report_real(
    trees: Sequence[str],
    split: str | None,
    options: EvalOptions,
    json_file: Path | None = None,
    wanted: CalibrationOptions = CalibrationOptions(),
) -> None:
    """Measure, print a table for each set and kind, and for all sets together where there are several.

    Args:
        trees: roots of KITTI trees, each with ``:SPLIT`` or without.
        split: of the trees that name none; None takes all frames.
        json_file: gets all numbers.
        wanted: a threshold or a calibration from these frames.

    Raises:
        UserError: a tree, weights or boxes that cannot be used, or options that do not go together.
    """
    _check(options, wanted)
    read = [resolve(options.weights), Path(options.boxes), *(Path(split_of(tree)[0]) for tree in trees)]
    check_outputs([json_file], files_of(*read))
    detector = Detector.load(options.weights, options.device)
    kinds = _kinds(options.kinds, detector)
    left = [name for name in detector.classes if name not in kinds]
    if wanted.threshold and wanted.store and left:
        raise UserError(
            f"eval real: --store writes one threshold for all classes, and {', '.join(left)} would not be looked at; "
            "name every class of the weights with --kind, or leave out --store"
        )
    if wanted.calibration:
        detector = detector.uncalibrated()
    threshold = MIN_THRESHOLD if wanted.threshold else _threshold(options, detector)
    find = _finder(options, detector, kinds, threshold)
    frames: dict[str, Frames] = {}
    for tree in trees:
        root, own = split_of(tree, split)
        frames[f"{root}:{own}" if own else root] = measure(labelled_frames(root, own), find, kinds)
    sets = {tree: _joined([by_kind]) for tree, by_kind in frames.items()}
    if wanted.threshold:
        if not any(len(tally.rows) for tally in _together(sets).values()):
            raise UserError(f"eval real: no threshold can be chosen: {NO_LABELS}")
        threshold = choose_threshold(_together(sets))
        sets = {tree: _at(by_kind, threshold) for tree, by_kind in sets.items()}
    together = _together(sets)
    console = output_console()
    for tree, by_kind in [*sets.items(), *([("together", together)] if len(sets) > 1 else [])]:
        for kind, tally in by_kind.items():
            console.print(real_table(tally, f"{Path(tree).name} {kind}"))
    if not any(len(tally.rows) for tally in together.values()):
        console.print(NO_LABELS, soft_wrap=True)
    placed = "lifted" if options.lift else f"placed by {options.weights}"
    console.print(f"2D boxes: {options.boxes}, {placed}; minimum score {threshold:g}", soft_wrap=True)
    about, changes = {**vars(options), "threshold": threshold}, {}
    if wanted.threshold:
        changes["threshold"] = threshold
    if wanted.calibration:
        known, measured = detector.calibration.heading_known, calibrate(together, detector.calibration.heading_known)
        notes = calibration_notes(together, measured)
        halves = [_at(_joined([_half(by_kind, part) for by_kind in frames.values()]), threshold) for part in (0, 1)]
        shares = held_out(halves, known)
        for table in calibration_tables(measured, shares, known):
            console.print(table)
        for note in notes:
            console.print(note, soft_wrap=True)
        names = [Path(tree).name for tree in sets]
        changes |= stored(load_weights(options.weights)[1], measured, names, threshold)
        about |= {"calibration": {kind: row.model_dump() for kind, row in measured.items()}, "held_out": shares}
    if json_file is not None:
        numbers = {"sets": {tree: _numbers(by_kind) for tree, by_kind in sets.items()}, "together": _numbers(together)}
        write_atomic(json_file, json.dumps(about | finite(numbers), indent=1, allow_nan=False) + "\n")
    if wanted.store:
        file = store_weights(options.weights, **changes)
        what = [f"threshold {threshold:g}"] * wanted.threshold + ["calibration"] * wanted.calibration
        console.print(f"wrote {' and '.join(what)} into {file}", soft_wrap=True)
        exported = file.with_suffix(".onnx")
        if exported.is_file():
            console.print(f"{exported.name} has them beside these weights only; export it again to use it alone")


def _check(options: EvalOptions, wanted: CalibrationOptions) -> None:
    """Options that go together."""
    if wanted.store and not (wanted.threshold or wanted.calibration):
        raise UserError("eval real: --store goes with --choose-threshold or --calibrate")
    if wanted.threshold and (options.boxes != "own" or options.lift or options.threshold is not None):
        raise UserError("eval real: --choose-threshold is for own boxes, without --lift and --threshold")
    if (wanted.store or wanted.calibration) and resolve(options.weights).suffix == ".onnx":
        raise UserError(
            f"eval real: {options.weights}: an exported file takes no threshold or calibration; give the weights that "
            "it was exported from, and export them again"
        )
    if wanted.calibration and (options.boxes != "own" or options.lift):
        raise UserError("eval real: --calibrate is for own boxes, without --lift")


def split_of(tree: str, split: str | None = None) -> tuple[str, str | None]:
    """Root and split of "ROOT" or "ROOT:SPLIT"; split: that of a root without one."""
    root, colon, own = tree.rpartition(":")
    return (tree, split) if not colon or Path(tree).is_dir() else (root, own)


def labelled_frames(root: str, split: str | None) -> Iterator[Frame]:
    """The frames of a KITTI tree, read one at a time.

    Raises:
        UserError: see :class:`skd_core.data.kitti.KittiDataset`.
    """
    dataset = KittiDataset(root, split)
    for index, name in enumerate(tqdm(dataset.names, desc=Path(root).name, unit="frame", disable=None, leave=False)):
        files = dataset.files(index)
        image = read_image(files["image"]).permute(1, 2, 0).numpy()
        camera = Camera.from_kitti(files["calib"], image.shape[1], image.shape[0])
        yield Frame(name, image, camera, read_objects(files["label"]))


def measure(frames: Iterator[Frame], find: Find, kinds: Sequence[str]) -> Frames:
    """What became of the labels and detections of each kind in each frame."""
    tallies: Frames = {kind: [] for kind in kinds}
    for frame in frames:
        found = find(frame)
        for kind, parts in tallies.items():
            parts.append(tally_frame(found, frame.objects, kind, frame.camera.width, frame.camera.height))
    return tallies


def choose_threshold(tallies: Mapping[str, Tally], max_on_nothing: float = MAX_ON_NOTHING) -> float:
    """The lowest score threshold, in steps of .001, with at most ``max_on_nothing`` detections on nothing a frame.

    Args:
        tallies: kind -> all frames, measured at MIN_THRESHOLD, below which it does not go.
    """
    frames = max(tally.frames for tally in tallies.values())
    scores = np.sort(np.concatenate([tally.nothing for tally in tallies.values()]))[::-1]
    allowed = math.floor(max_on_nothing * frames + 1e-9)
    if len(scores) <= allowed:
        return MIN_THRESHOLD
    return min(max(MIN_THRESHOLD, (math.floor(1000 * float(scores[allowed])) + 1) / 1000), 1.0)


def real_table(tally: Tally, title: str) -> Table:
    """The parts of a kind that have labels, row by row."""
    alone = f"on nothing {tally.on_nothing:.2f}, ill-fitting {tally.ill_fitting:.2f} a frame"
    table = plain_table(f"{title} ({tally.frames} frames): {alone}")
    table.add_column("")
    for head in HEADS:
        table.add_column(head, justify="right")
    for part in PARTS:
        of = tally.part(part).statistics()
        if not of["labels"] and part != "all":
            continue
        shares = (_text(of[name], "{:.3f}") for name in ("recall_50", "recall_70", "bev_50", "iou_3d_50"))
        depth = (_text(100 * of["depth_error"], "{:.1f} %"), _text(100 * of["depth_bias"], "{:+.1f} %"))
        table.add_row(part, f"{of['labels']:.0f}", *shares, *depth, _text(of["yaw_error"], "{:.0f} deg"))
    return table


def _joined(sets: Sequence[Frames]) -> Tallies:
    """All frames of all sets in one."""
    return {kind: join([EMPTY_TALLY, *(tally for by_kind in sets for tally in by_kind[kind])]) for kind in sets[0]}


def _half(frames: Frames, part: int) -> Frames:
    """The first half of the frames (part 0), or the second."""
    middle = len(next(iter(frames.values()))) // 2
    return {kind: tallies[middle:] if part else tallies[:middle] for kind, tallies in frames.items()}


def _at(tallies: Tallies, threshold: float) -> Tallies:
    return {kind: tally.at(threshold) for kind, tally in tallies.items()}


def _together(sets: Mapping[str, Tallies]) -> Tallies:
    kinds = next(iter(sets.values()))
    return {kind: join([by_kind[kind] for by_kind in sets.values()]) for kind in kinds}


def _kinds(wanted: Sequence[str], detector: Detector) -> tuple[str, ...]:
    """The kinds to look at as the weights spell them, which must know them."""
    known = {name.lower(): name for name in detector.classes}
    unknown = [kind for kind in wanted if kind.lower() not in known]
    if unknown:
        raise UserError(f"--kind {unknown[0]}: unknown; the weights know {', '.join(detector.classes)}")
    kinds = tuple(dict.fromkeys(known[kind.lower()] for kind in wanted or KINDS if kind.lower() in known))
    if not kinds:
        raise UserError(f"the weights know none of {', '.join(KINDS)}; name classes with --kind")
    return kinds


def _threshold(options: EvalOptions, detector: Detector) -> float:
    """See :class:`EvalOptions`."""
    text = options.threshold
    if text is None and options.boxes != "own":
        return 0.0
    if text is None or text == "stored":
        return 0.0 if options.boxes == "labels" else detector.threshold
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= 1:
        raise UserError(f"--threshold {text}: use 'stored' or a number from 0 to 1")
    return 0.0 if options.boxes == "labels" else value


def _finder(options: EvalOptions, detector: Detector, kinds: Sequence[str], threshold: float) -> Find:
    """What detects in a frame."""
    if options.boxes == "own" and not options.lift:
        return lambda frame: detector.predict(frame.image, frame.camera, threshold)
    given = _given(options, detector, threshold)
    wanted = {kind.lower() for kind in kinds}

    def find(frame: Frame) -> Boxes3D:
        boxes = given(frame)
        boxes = boxes[[label.lower() in wanted for label in boxes.labels]]
        if options.lift:
            found = lift(boxes, frame.camera)
            return found[found.scores >= threshold]
        return detector.predict(frame.image, frame.camera, threshold, boxes2d=boxes)

    return find


def _given(options: EvalOptions, detector: Detector, threshold: float) -> Callable[[Frame], Boxes2D]:
    """The 2D boxes of a frame."""
    if options.boxes == "own":

        def own(frame: Frame) -> Boxes2D:
            found = detector.predict(frame.image, frame.camera, threshold)
            return Boxes2D(found.xyxy, found.labels, found.scores)

        return own
    if options.boxes == "labels":
        return lambda frame: frame.objects.boxes2d().to(torch.float32)
    path = Path(options.boxes)
    if path.is_dir():
        folder = BoxFolder(path)
        return lambda frame: folder.read(frame.name)
    network = detector_source(options.boxes, options.tiles)
    return lambda frame: network(frame.image)


def _numbers(tallies: Tallies) -> dict[str, Any]:
    """Everything that is known of each kind, for JSON."""
    return {
        kind: {
            "frames": tally.frames,
            "on_nothing": tally.on_nothing,
            "ill_fitting": tally.ill_fitting,
            "parts": {part: tally.part(part).statistics() for part in PARTS},
        }
        for kind, tally in tallies.items()
    }


def _text(value: float, form: str) -> str:
    return "-" if math.isnan(value) else form.format(value)
