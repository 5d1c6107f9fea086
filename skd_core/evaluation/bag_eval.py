"""Detections of a recording and their scores: ``skd_core bag-eval``, and the same for what the live node answered.

Frames go through one at a time; what is kept of them: :mod:`skd_core.evaluation.bag_scores`.
"""

from __future__ import annotations

import contextlib
import heapq
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from skd_core.boxes import Boxes3D
from skd_core.console import note_console, output_console
from skd_core.data.bag import BagWriter, Frame, find_camera, read_frames
from skd_core.data.kitti import KittiObjects, write_results
from skd_core.errors import UserError
from skd_core.evaluation.bag_boxes import OWN_BOXES, BoxOptions, frame_boxes
from skd_core.evaluation.bag_pairing import Images
from skd_core.evaluation.bag_scores import Evaluation
from skd_core.evaluation.bag_truth import Truth, TruthSource, find_truth
from skd_core.evaluation.errors import match
from skd_core.evaluation.kitti import objects_from_boxes
from skd_core.evaluation.overlaps import Table
from skd_core.files import check_outputs, files_of, fresh_folder, keep_inputs, lock_folder, make_folder, write_atomic
from skd_core.inference.bundled import resolve
from skd_core.inference.detector import DEFAULT_THRESHOLD, Detector
from skd_core.visualize import RGB, TRUTH_COLOR, draw_bev, draw_boxes3d, stack, view_size

DETECTIONS_TOPIC = "/detector/detections"
WORST_FRAMES = 6
WRITTEN = ("results", "labels", "detections", "scores.json", "report.html")
"""In the folder of results; the first three are replaced as a whole."""

Predict = Callable[[Frame], "tuple[Boxes3D, float] | None"]
"""A frame's boxes and the seconds they took; None where the frame was dropped."""


def evaluate_bag(
    bag: Path,
    predict: Predict,
    classes: tuple[str, ...],
    out: Path,
    truth_topic: str | None = None,
    labels: Path | None = None,
    *,
    image_topic: str | None = None,
    camera_info_topic: str | None = None,
    json_file: Path | None = None,
    rectified: bool = True,
    sure: float = DEFAULT_THRESHOLD,
    class_map: tuple[str, ...] = (),
    camera_file: Path | None = None,
    problems: list[str] | None = None,
) -> dict[str, Any]:
    """Run over a recording, score it and write everything to a folder, or nothing where that fails.

    ::

        out/detections    bag: Detection3DArray with the images' stamps and frames
        out/results/NAME.txt   KITTI result files; labels/NAME.txt where the bag holds label lines
        out/scores.json   all numbers
        out/report.html   tables, plots, the worst frames

    NAME is the label file's where there is one, else the frame's number.

    Args:
        bag: the recording; predict: what detects; classes: as the detector spells them.
        truth_topic, labels, class_map: see :class:`skd_core.evaluation.bag_truth.TruthSource`.
        image_topic, camera_info_topic: needed where the bag has several cameras.
        json_file: another place for the scores.
        rectified, camera_file: see :func:`skd_core.data.bag.read_frames`.
        sure: minimum score by default, see :class:`Evaluation`.
        problems: lines to report with what is found wrong with the bag; ``predict`` may add to them.

    Returns:
        what ``scores.json`` holds.

    Raises:
        UserError: a bag, topic, label or folder that cannot be used, or no frame that can; truth was asked for and no
            such frame has any.
    """
    from skd_core.evaluation.bag_report import write_report  # matplotlib takes a second to load

    camera = find_camera(bag, image_topic, camera_info_topic, camera_file is None)
    source = TruthSource(truth_topic, labels, class_map)
    check_outputs([json_file], files_of(bag, labels, camera_file))
    keep_inputs((out / name for name in WRITTEN), [bag, labels, camera_file])
    _check_out(out)
    evaluation = Evaluation(sure=sure, problems=[] if problems is None else problems)
    with contextlib.ExitStack() as stack:
        results, copies = (stack.enter_context(fresh_folder(out / name)) for name in ("results", "labels"))
        results.mkdir()
        truth = find_truth(bag, camera, source, classes, copies, evaluation.problems)
        doubt = Images.read(bag, camera.image).doubt()
        if doubt is not None:
            evaluation.problems.append(f"{bag}: {doubt}; nothing is linked over time between these (no jitter)")
        writer = stack.enter_context(BagWriter(out / "detections", overwrite=True))
        before = len(evaluation.problems)
        frames = read_frames(
            bag, camera.image, camera.camera_info or None, evaluation.problems, rectified, camera_file=camera_file
        )
        for frame in tqdm(frames, unit="frame", disable=None):
            answer = predict(frame)
            if answer is None:
                evaluation.dropped += 1
                continue
            published = answer[0].moved(frame.camera.offset)  # into the frame that the header names
            writer.write_detections(DETECTIONS_TOPIC, published, frame.stamp, frame.frame_id)
            _add(evaluation, frame, answer, truth, classes, results)
        if not evaluation.stamps:
            why = f"{evaluation.dropped} frames were dropped" if evaluation.dropped else "no frame that can be used"
            raise UserError(f"{bag}: {why}" + "".join(f"; {problem}" for problem in evaluation.problems[before:][:1]))
        if truth is not None:
            truth.note_absent_classes(evaluation.problems)
        if source.asked and not evaluation.labelled:
            raise UserError(f"{bag}: none of the {len(evaluation.stamps)} frames that were used has labels")
    about = {"bag": str(bag), "image_topic": camera.image, "truth": truth.source if truth else None}
    scores = about | evaluation.scores(classes)
    for path in (out / "scores.json", *([json_file] if json_file else [])):
        write_atomic(path, json.dumps(scores, indent=1, allow_nan=False) + "\n")
    write_report(out / "report.html", evaluation, scores, classes)
    return scores


@dataclass(frozen=True)
class BagEvalOptions:
    """How a recording is evaluated.

    Attributes:
        truth_topic, labels, class_map, image_topic, camera_info_topic, json_file, rectified, camera_file: see
            :func:`evaluate_bag`.
        threshold: minimum score; device: "auto", "cpu", "cuda" or "cuda:N".
        boxes: 2D boxes from outside.
    """

    truth_topic: str | None = None
    labels: Path | None = None
    image_topic: str | None = None
    camera_info_topic: str | None = None
    json_file: Path | None = None
    rectified: bool = True
    threshold: float = 0.2
    device: str = "auto"
    boxes: BoxOptions = OWN_BOXES
    class_map: tuple[str, ...] = ()
    camera_file: Path | None = None


def bag_eval(bag: Path, weights: str, out: Path, options: BagEvalOptions) -> None:
    """The command: run a detector over a recording, print what matters of its scores.

    Latency includes a 2D detector's time where 2D boxes come from one.
    """
    detector = Detector.load(weights, options.device)
    camera = find_camera(bag, options.image_topic, options.camera_info_topic, options.camera_file is None)
    keep_inputs((out / name for name in WRITTEN), [options.boxes.folder])
    check_outputs([options.json_file], files_of(resolve(weights), options.boxes.folder))
    if options.boxes.topic is not None and not options.rectified:
        raise UserError("--boxes-topic needs rectified images: its boxes are those of the image as it was recorded")
    problems: list[str] = []
    given = frame_boxes(bag, camera, options.boxes, detector.classes, problems)
    warm: set[tuple[int, int]] = set()

    def find(frame: Frame) -> Boxes3D | None:
        boxes2d = None if given is None else given(frame)
        if given is not None and boxes2d is None:
            return None
        return detector.predict(frame.image, frame.camera, options.threshold, boxes2d=boxes2d)

    def predict(frame: Frame) -> tuple[Boxes3D, float] | None:
        size = (frame.camera.width, frame.camera.height)
        if size not in warm and find(frame) is not None:  # the first run of a size is slow
            warm.add(size)
        start = time.perf_counter()
        found = find(frame)
        return None if found is None else (found, time.perf_counter() - start)

    with lock_folder(out):
        scores = evaluate_bag(
            bag,
            predict,
            detector.classes,
            out,
            options.truth_topic,
            options.labels,
            image_topic=options.image_topic,
            camera_info_topic=options.camera_info_topic,
            json_file=options.json_file,
            rectified=options.rectified,
            sure=detector.threshold,
            class_map=options.class_map,
            camera_file=options.camera_file,
            problems=problems,
        )
    print_scores(scores)
    print(f"wrote {out}/report.html, scores.json, results, detections")


def print_scores(scores: dict[str, Any]) -> None:
    """The summary on stdout; what is wrong with the bag on stderr."""
    from skd_core.evaluation.report import score_table

    console, notes = output_console(wrap=False), note_console()
    for problem in scores["problems"]:
        notes.print(problem)
    if scores["truth"] is None:
        notes.print("no ground truth: name it with --truth TOPIC or --labels DIR; detections, latency and jitter only")
    if "kitti" in scores:
        console.print(score_table(scores["kitti"]))
        for name, aps in scores["distance_ap"].items():
            if aps["mean"] is not None:
                parts = ", ".join(f"{key} m {value:.3f}" for key, value in aps.items() if key != "mean")
                console.print(f"{name}: AP by distance {aps['mean']:.3f} ({parts})")
    console.print(summary(scores))


def summary(scores: dict[str, Any]) -> str:
    """Frames, detections, latency and jitter in one line each."""
    latency, lines = scores["latency_ms"], []
    lines.append(
        f"{scores['frames']} frames ({scores['labelled']} with labels, {scores['dropped']} dropped), "
        f"{scores['detections']} detections"
    )
    if latency is not None:
        median, p90, p99 = (latency[name] for name in ("median", "p90", "p99"))
        lines.append(f"latency: median {median:.0f} ms, 90 % {p90:.0f}, 99 % {p99:.0f}")
    for group, row in scores["jitter"].items():
        if row["tracks"]:
            lines.append(
                f"jitter, {group} ({row['tracks']:.0f} tracks): depth {100 * row['depth']:.2f} %, lateral "
                f"{row['lateral']:.3f} m, length {100 * row['length']:.2f} %, yaw {row['yaw']:.2f} deg"
            )
    return "\n".join(lines)


def _add(
    evaluation: Evaluation,
    frame: Frame,
    answer: tuple[Boxes3D, float],
    truth: Truth | None,
    classes: Sequence[str],
    folder: Path,
) -> None:
    boxes, seconds = answer
    unknown = boxes.xyxy.isnan().any(-1)
    if bool(unknown.any()):  # from a message, which holds no 2D boxes
        projected = boxes.project(frame.camera).xyxy
        boxes = replace(boxes, xyxy=torch.where(unknown[:, None], projected, boxes.xyxy))
    number = len(evaluation.stamps)
    labels = None if truth is None else truth.at(frame)
    name = truth.names.get(frame.number) if truth is not None else None
    write_results(folder / f"{name or f'{number:06d}'}.txt", boxes)
    results = objects_from_boxes(boxes)
    evaluation.stamps.append(frame.stamp)
    evaluation.results.append(results)
    evaluation.seconds.append(seconds)
    evaluation.linker.add(frame.stamp, results)
    if labels is None:
        return
    evaluation.labelled.append(number)
    evaluation.labels.append(labels)
    badness = _error_score(labels, results, classes, evaluation.sure)
    if len(evaluation.worst) < WORST_FRAMES or badness > evaluation.worst[0][0]:
        shown = labels[labels.is_class(classes)].boxes3d()
        sure = boxes[boxes.scores >= evaluation.sure]  # AP wants faint ones too, a picture does not
        item = (badness, number, picture(frame, sure, shown))
        (heapq.heappush if len(evaluation.worst) < WORST_FRAMES else heapq.heapreplace)(evaluation.worst, item)


def picture(frame: Frame, boxes: Boxes3D, truth: Boxes3D | None) -> RGB:
    """The image with the detections and, thin and green, the truth; beside it both from above."""
    image = frame.image if truth is None else draw_boxes3d(frame.image, truth, frame.camera, TRUTH_COLOR, text=False)
    image = draw_boxes3d(image, boxes, frame.camera)
    return stack(image, draw_bev(boxes, truth, frame.camera, size=view_size(len(image))))


def _error_score(labels: KittiObjects, results: KittiObjects, classes: Sequence[str], sure: float) -> float:
    """Missed labels, sure detections without a label, and depth errors (5 m count as a miss). [ours]"""
    label_table, result_table = Table.of([labels]), Table.of([results])
    label, detection = match(label_table, result_table, classes)
    missed = int(labels.is_class(classes).sum()) - len(label)
    alone = np.ones(len(results), dtype=bool)
    alone[detection] = False
    depth = np.abs(labels.location[label, 2] - results.location[detection, 2])
    return float(missed + (alone & (results.score >= sure)).sum() + np.minimum(depth / 5, 1).sum())


def _check_out(out: Path) -> None:
    """Refuse to replace what is not from an earlier evaluation."""
    for name in ("results", "labels"):
        if any((out / name).glob("*")) and not (out / "scores.json").is_file():
            raise UserError(f"{out / name}: exists and is not from an evaluation; choose another --out")
    make_folder(out)
