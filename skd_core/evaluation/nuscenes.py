"""The nuScenes detection task: submissions in the global frame, scored by the devkit's own evaluation.

One image says nothing of velocity and little of attributes, both of which a submission must state. Every box gets zero
velocity and its class's most frequent attribute, so AVE and AAE, and with them a fifth of NDS, are those of a guess.
"""

from __future__ import annotations

import json
import math
import tempfile
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.box import SIMPLE_HEAD
from rich.table import Table
from tqdm import tqdm

from skd_core.boxes import Boxes3D
from skd_core.console import note_console, output_console
from skd_core.data.nuscenes import (
    CLASSES,
    Frame,
    NuScenesDataset,
    multiply,
    rotation_matrices,
)
from skd_core.data.nuscenes_schema import read_results
from skd_core.data.nuscenes_tables import find_version, load_tables, samples_of
from skd_core.data.sample import read_image
from skd_core.errors import UserError
from skd_core.evaluation.nuscenes_cameras import CameraFilter
from skd_core.files import check_outputs, finite, lock_folder, make_folder, write_atomic
from skd_core.inference.detector import Detector

PROTOCOL = "detection_cvpr_2019"
MAX_BOXES = 500
"""Of one key frame, over its six cameras: more is an error of the task."""

DEPTH_SPREAD = 0.1
"""How far apart two cameras may place one object, as a share of its distance.

On a real key frame (84 boxes of 69 objects, depth errors of 5 to 8 % simulated) it merges three quarters of the pairs
and loses one object; the footprint alone merges less than half of them.
"""

ATTRIBUTES = {
    "car": "vehicle.parked",
    "truck": "vehicle.parked",
    "bus": "vehicle.moving",
    "trailer": "vehicle.parked",
    "construction_vehicle": "vehicle.parked",
    "pedestrian": "pedestrian.moving",
    "motorcycle": "cycle.without_rider",
    "bicycle": "cycle.without_rider",
    "traffic_cone": "",
    "barrier": "",
}
"""The attribute that each class has most often."""

META = {"use_camera": True, "use_lidar": False, "use_radar": False, "use_map": False, "use_external": True}
"""What a submission says of its input; external are the depth estimator's and the backbone's training data."""

FEW_LABELS = 100
"""One label more or less found moves AP by a point and more."""

ERRORS = {"trans_err": "ATE", "scale_err": "ASE", "orient_err": "AOE", "vel_err": "AVE", "attr_err": "AAE"}
UNITS = {"ATE": "m", "ASE": "1-IoU", "AOE": "rad", "AVE": "m/s", "AAE": "1-acc"}

Record = dict[str, Any]


def to_records(boxes: Boxes3D, frame: Frame) -> list[Record]:
    """Boxes of one image as a submission's entries, in the global frame, in float64.

    The whole rotation is written, camera's tilt included, so that nothing is lost; the metric takes the yaw of it.

    Raises:
        UserError: a class is none of the task's, or a value is not finite.
    """
    if not len(boxes):
        return []
    exact = boxes.to("cpu", torch.float64)
    translation = exact.center @ rotation_matrices(frame.rotation).T + frame.translation
    rotation = multiply(frame.rotation, exact.quaternion.roll(1, -1))  # ours is (x, y, z, w)
    table = torch.cat([translation, exact.size[:, [1, 0, 2]], rotation, exact.scores[:, None]], -1).detach()
    if not bool(table.isfinite().all()):
        raise UserError(f"{frame.name}: a detection holds NaN or infinity")
    records = []
    for label, row in zip(boxes.labels, table.tolist(), strict=True):
        if label not in ATTRIBUTES:
            raise UserError(f"{frame.name}: '{label}' is not a nuScenes class; they are {', '.join(CLASSES)}")
        records.append(
            {
                "sample_token": frame.sample_token,
                "translation": row[:3],
                "size": row[3:6],
                "rotation": row[6:10],
                "velocity": [0.0, 0.0],
                "detection_name": label,
                "detection_score": row[10],
                "attribute_name": ATTRIBUTES[label],
            }
        )
    return records


def merge_cameras(parts: Sequence[tuple[Frame, Sequence[Record]]]) -> list[Record]:
    """One key frame's entries, best first, with each object once though two cameras may see it.

    From the best box on: a box that stays stands for the nearest box of its class in every other camera, if that one
    is within half the diagonal of its footprint or :data:`DEPTH_SPREAD` of its distance, whichever is more [ours]. Only
    for the nearest, since no camera detects an object twice: so neighbours in a queue or a row of barriers survive.

    Args:
        parts: by camera, its place and its entries.

    Returns:
        at most :data:`MAX_BOXES`.
    """
    entries = [(camera, record) for camera, (_, records) in enumerate(parts) for record in records]
    entries.sort(key=lambda entry: entry[1]["detection_score"], reverse=True)
    places = [frame.translation[:2].tolist() for frame, _ in parts]
    gone: set[int] = set()
    kept = []
    for i, (camera, record) in enumerate(entries):
        if i in gone:
            continue
        kept.append(record)
        center = record["translation"][:2]
        reach = max(0.5 * math.hypot(*record["size"][:2]), DEPTH_SPREAD * math.dist(center, places[camera]))
        nearest: dict[int, tuple[float, int]] = {}  # by camera: distance, entry
        for j, (other, candidate) in enumerate(entries[i + 1 :], i + 1):
            if other != camera and candidate["detection_name"] == record["detection_name"] and j not in gone:
                distance = math.dist(center, candidate["translation"][:2])
                if distance < reach and distance < nearest.get(other, (math.inf, 0))[0]:
                    nearest[other] = distance, j
        gone.update(j for _, j in nearest.values())
    return kept[:MAX_BOXES]


def write_submission(path: str | Path, dataset: NuScenesDataset, boxes: Iterable[Boxes3D]) -> int:
    """Write the detections of all images of a split as one submission; key frames without any are in it too.

    Args:
        dataset: the split.
        boxes: of its images, in its order.

    Returns:
        the number of boxes written.

    Raises:
        UserError: see :func:`to_records`; or the file cannot be written.
    """
    parts: dict[str, list[tuple[Frame, list[Record]]]] = {token: [] for token in dataset.sample_tokens}
    for index, found in zip(range(len(dataset)), boxes, strict=True):
        frame = dataset.frame(index)
        parts[frame.sample_token].append((frame, to_records(found, frame)))
    results = {token: merge_cameras(cameras) for token, cameras in parts.items()}
    write_atomic(path, json.dumps({"meta": META, "results": results}, allow_nan=False) + "\n")
    return sum(map(len, results.values()))


def predict_split(dataset: NuScenesDataset, detector: Detector, out: Path, threshold: float) -> int:
    """Detect in every image of a split and write the submission.

    Weights that were trained on other data take part with the classes that have the same name but for capitals ("Car").

    Returns:
        the number of boxes written.

    Raises:
        UserError: the weights know none of the classes; an image is malformed; ``out`` cannot be written.
    """
    own = {name: name.lower() for name in detector.classes if name.lower() in CLASSES}
    if not own:
        raise UserError(f"the weights know {', '.join(detector.classes)}, but none of nuScenes' {', '.join(CLASSES)}")
    make_folder(out.parent)
    check_outputs([out], dataset.root.glob("*/*.json"))

    def detect(index: int) -> Boxes3D:
        frame = dataset.frame(index)
        found = detector.predict(read_image(frame.image).permute(1, 2, 0).numpy(), frame.camera, threshold)
        found = found[[label in own for label in found.labels]]
        found.labels = tuple(own[label] for label in found.labels)
        return found

    images = tqdm(range(len(dataset)), unit="image", disable=len(dataset) < 10)
    return write_submission(out, dataset, map(detect, images))


@dataclass(frozen=True)
class NuScenesScores:
    """What the devkit says.

    Attributes:
        summary: its ``metrics_summary``: mean_ap, nd_score, tp_errors, mean_dist_aps and label_tp_errors by class, ...
        labels: by class, the labels that count: near enough, with a LiDAR or radar point, not in a bicycle rack.
        detections: by class, those near enough and not in a bicycle rack.
    """

    summary: dict[str, Any]
    labels: dict[str, int]
    detections: dict[str, int]

    @property
    def present(self) -> list[str]:
        """The classes that have labels; the others count in the means, with AP 0 and errors 1."""
        return [name for name in CLASSES if self.labels[name]]


def evaluate(
    results: Path,
    root: Path,
    split: str = "val",
    version: str | None = None,
    plots: Path | None = None,
    cameras: Sequence[str] | None = None,
) -> NuScenesScores:
    """Score a submission with the devkit's ``DetectionEval`` and its configuration of the task.

    Args:
        results: the submission.
        root: nuScenes' folder.
        split: see :class:`skd_core.data.nuscenes.NuScenesDataset`.
        version: may be left out where there is only one.
        plots: folder that gets the devkit's curves, see :func:`draw_curves`.
        cameras: count only labels and detections whose centre lies in one of these cameras' images, as a detector that
            sees no others must be judged; all of them without. [ours]

    Raises:
        UserError: none of the labels is in the cameras' images; see :func:`skd_core.data.nuscenes.load_tables`; or the
            file is no submission for the split.
    """
    listed = read_submission(results)
    tables = load_tables(root, version or find_version(root))
    samples = samples_of(tables, split)
    _check_key_frames(results, listed, {sample["token"] for sample in samples}, split)
    if not any(sample["anns"] for sample in samples):
        raise UserError(f"{root}: split '{split}' has no labels here; test is scored by nuScenes' own server")
    from nuscenes.eval.common.config import config_factory
    from nuscenes.eval.detection.evaluate import DetectionEval

    with tempfile.TemporaryDirectory() as scratch:
        try:
            run = DetectionEval(tables, config_factory(PROTOCOL), str(results), split, scratch, verbose=False)
        except (AssertionError, KeyError, TypeError, ValueError) as error:
            said = f"an entry has no {error}" if isinstance(error, KeyError) else str(error).removeprefix("Error: ")
            raise UserError(f"{results}: cannot be scored on split '{split}' of {tables.version}: {said}") from None
        if cameras is not None:
            visible = NuScenesDataset(root, split, version=tables.version, cameras=cameras, needs_images=False)
            camera_filter = CameraFilter(visible)
            camera_filter.keep(run.gt_boxes.boxes)
            camera_filter.keep(run.pred_boxes.boxes)
            if not run.gt_boxes.all:
                raise UserError(f"{root}: no label of split '{split}' is in the images of {', '.join(cameras)}")
        metrics, curves = run.evaluate()
    if plots is not None:
        draw_curves(plots, metrics, curves)
    counts = [Counter(box.detection_name for box in boxes.all) for boxes in (run.gt_boxes, run.pred_boxes)]
    return NuScenesScores(metrics.serialize(), *({name: count[name] for name in CLASSES} for count in counts))


def draw_curves(folder: Path, metrics: Any, curves: Any) -> None:
    """The devkit's summary of precision and error against recall, by class, as ``nuscenes_summary.png``.

    Raises:
        UserError: the folder cannot be made.
    """
    from nuscenes.eval.detection.render import summary_plot

    limits, name = metrics.cfg, "nuscenes_summary.png"
    with lock_folder(folder), tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / name
        summary_plot(curves, metrics, limits.min_precision, limits.min_recall, limits.dist_th_tp, str(path))
        write_atomic(folder / name, path.read_bytes())


def score(dataset: NuScenesDataset, boxes: Sequence[Boxes3D]) -> dict[str, Any]:
    """The main numbers of detections in a whole split; where there is not one, AP is 0 and no error is known.

    Args:
        dataset: made with a split; boxes: of its images, in its order.

    Returns:
        {"mAP", "NDS", "mATE", ...: number or None, "AP": {class: number}}.
    """
    assert dataset.split is not None
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "submission.json"
        if not write_submission(path, dataset, boxes):
            nothing: dict[str, Any] = {"mAP": 0.0, "NDS": 0.0, **{f"m{name}": None for name in ERRORS.values()}}
            return nothing | {"AP": dict.fromkeys(CLASSES, 0.0)}
        summary = evaluate(path, dataset.root, dataset.split, dataset.version).summary
    means = {f"m{name}": summary["tp_errors"][key] for key, name in ERRORS.items()}
    aps = {name: float(value) for name, value in summary["mean_dist_aps"].items()}
    return {"mAP": summary["mean_ap"], "NDS": summary["nd_score"], **means, "AP": aps}


def read_submission(path: Path) -> dict[str, list[Record]]:
    """The entries by sample token, checked field by field.

    Raises:
        UserError: unreadable, not JSON, not a submission, or without a single box.
    """
    results = read_results(path)
    if not any(results.values()):
        raise UserError(
            f"{path}: holds no detection at all, which the devkit cannot score; predict with a lower threshold"
        )
    return results


def _check_key_frames(path: Path, listed: Iterable[str], wanted: set[str], split: str) -> None:
    missing, foreign = sorted(wanted - set(listed)), sorted(set(listed) - wanted)
    if missing:
        count = f"{len(missing)} of {len(wanted)} key frames of split '{split}'"
        raise UserError(f"{path}: has no entry for {count}, first {missing[0]}; an empty list means nothing was found")
    if foreign:
        raise UserError(f"{path}: {len(foreign)} entries are not key frames of split '{split}', first {foreign[0]}")


def report_nuscenes(
    results: Path,
    root: Path,
    split: str = "val",
    version: str | None = None,
    json_file: Path | None = None,
    plots: Path | None = None,
    *,
    cameras: Sequence[str] | None = None,
) -> None:
    """Evaluate and print tables; what needs a word is said on stderr.

    Args:
        cameras: see :func:`evaluate`; the other arguments too.

    Raises:
        UserError: see :func:`evaluate`; or the JSON file cannot be written.
    """
    check_outputs([json_file], [results, *root.glob("*/*.json")])
    scores = evaluate(results, root, split, version, plots, cameras)
    console, notes = output_console(), note_console()
    if cameras is not None:
        notes.print(f"only what {', '.join(cameras)} can see counts: not the benchmark's numbers")
    absent = [name for name in CLASSES if name not in scores.present]
    if absent:
        mean = sum(scores.summary["mean_dist_aps"][name] for name in scores.present) / max(len(scores.present), 1)
        notes.print(f"no labels of {', '.join(absent)}: the devkit counts them as AP 0; mAP of the others {mean:.4f}")
    notes.print(
        "AVE, AAE: velocity and attributes are not seen in one image; 0 m/s and each class's usual attribute are used"
    )
    if json_file is not None:
        data = {"split": split, "labels": scores.labels, "detections": scores.detections, **scores.summary}
        write_atomic(json_file, json.dumps(finite(data), indent=1, allow_nan=False) + "\n")
    summary = scores.summary
    console.print(f"mAP {summary['mean_ap']:.4f}, NDS {summary['nd_score']:.4f}")
    few = [f"{name} ({scores.labels[name]})" for name in scores.present if scores.labels[name] < FEW_LABELS]
    if few:
        notes.print(f"too few labels for an AP to compare by: {', '.join(few)}")
    console.print(score_table(scores))
    means = (f"m{name} {summary['tp_errors'][key]:.4f}" for key, name in ERRORS.items())
    console.print(", ".join(means))


def score_table(scores: NuScenesScores) -> Table:
    """AP and true-positive errors by class."""
    table = Table(
        title="nuScenes detection: AP over 0.5, 1, 2 and 4 m, errors of matches within 2 m", title_justify="left",
        box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0),
    )  # fmt: skip
    table.add_column("class", no_wrap=True)
    for column in ("AP", *(f"{name}\n{UNITS[name]}" for name in ERRORS.values()), "labels", "found"):
        table.add_column(column, justify="right")
    for name in CLASSES:
        values = [scores.summary["mean_dist_aps"][name]]
        values += [scores.summary["label_tp_errors"][name][key] for key in ERRORS]
        cells = ["-" if math.isnan(value) or not scores.labels[name] else f"{value:.3f}" for value in values]
        table.add_row(name, *cells, str(scores.labels[name]), str(scores.detections[name]))
    return table
