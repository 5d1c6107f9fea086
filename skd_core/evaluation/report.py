"""Scores as tables for the terminal and as JSON."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.table import Table

from skd_core.console import note_console, output_console
from skd_core.data.kitti import KittiObjects
from skd_core.evaluation.errors import PairErrors, error_budget, is_placed, pair_errors
from skd_core.evaluation.kitti import (
    CLASSES,
    DIFFICULTIES,
    METRICS,
    MIN_OVERLAPS,
    Scores,
    evaluate,
    label_counts,
    read_folders,
)
from skd_core.files import check_outputs, finite, write_atomic

FEW_LABELS = 100
"""One label more or less found moves AP by a point and more."""


def report_kitti(
    labels: Path,
    results: Path,
    json_file: Path | None = None,
    with_budget: bool = False,
    plots: Path | None = None,
    *,
    full: bool = False,
) -> None:
    """Evaluate two folders and print tables; what was left out, missing or too little for AP is said on stderr.

    The first table holds what is quoted: AP R40 at the strict overlap. With ``full`` the second holds everything.

    With a budget the JSON file holds two more keys, ``error_budget`` (what was corrected -> scores) and ``errors``
    (class -> statistics).

    Raises:
        UserError: see :func:`skd_core.evaluation.kitti.read_folders`; or the JSON file cannot be written.
    """
    if plots is not None:  # first, since it needs an extra
        from skd_core.evaluation.plots import plot_kitti  # matplotlib takes a second to load
    check_outputs([json_file], [*labels.glob("*.txt"), *results.glob("*.txt")])
    folders = read_folders(labels, results)
    console, notes = output_console(), note_console()
    if folders.missing:
        count = f"{len(folders.missing)} of {len(folders.names)} frames have no result file"
        notes.print(f"{count} and count as frames without detections, first {folders.missing[0]}")
    if folders.unknown:
        count = f"{len(folders.unknown)} result files have no label file"
        notes.print(f"{count} and are left out, first {folders.unknown[0]}")
    found = {name.lower() for frame in folders.results for name in frame.type}
    absent = [name for name in CLASSES if name.lower() not in found]
    if absent:
        notes.print(f"no detections of {', '.join(absent)}")
    counts = label_counts(folders.labels)
    for name, (_, moderate, _) in counts.items():
        if 0 < moderate < FEW_LABELS:
            notes.print(f"{name}: {moderate} labels count at moderate difficulty, too few for an AP to compare by")
        elif not moderate:
            notes.print(f"{name}: no label counts at moderate difficulty; its AP has no meaning")
    for doubt in (
        *label_warnings(str(labels), folders.labels),
        *missing_2d_boxes(f"{results}: results", folders.results, True),
    ):
        notes.print(doubt, markup=False)
    data: dict[str, object] = {}
    if with_budget:
        budget, errors = error_budget(folders.labels, folders.results), pair_errors(folders.labels, folders.results)
        scores = budget["baseline"]
        tables = [budget_table(budget), error_table(errors, CLASSES)]
        data = {"error_budget": budget, "errors": {name: finite(errors.statistics(name)) for name in CLASSES}}
    else:
        scores = evaluate(folders.labels, folders.results)
        tables = []
    tables = [headline_table(scores, counts), *([score_table(scores)] if full else []), *tables]
    if json_file is not None:
        write_atomic(json_file, json.dumps({**scores, **data}, indent=1, allow_nan=False) + "\n")
    for table in tables:
        console.print(table)
    if not full:
        console.print("AOS, other overlaps and R11: --full, or --json FILE")
    if plots is not None:
        for path in plot_kitti(folders.labels, folders.results, plots):
            console.print(f"wrote {path}", soft_wrap=True)


def headline_table(scores: Scores, counts: dict[str, list[int]]) -> Table:
    """AP R40 at the strict overlap: what is quoted, 3D and moderate first of all."""
    table = plain_table("KITTI AP (R40), percent; the figure usually quoted: 3D, moderate")
    for column in ("class", "IoU"):
        table.add_column(column)
    for column in ("3D\nmoderate", "3D\neasy", "3D\nhard", "BEV\nmoderate", "2D\nmoderate", "labels\nmoderate"):
        table.add_column(column, justify="right")
    for name, metrics in scores.items():
        iou = f"{MIN_OVERLAPS[name][0]:.2f}"
        easy, moderate, hard = metrics["3d"]["R40"][iou]
        others = [metrics[metric]["R40"][iou][1] for metric in ("bev", "2d")]
        cells = [_number(value) for value in (moderate, easy, hard, *others)]
        table.add_row(name, iou, *cells, str(counts[name][1]))
    return table


def label_warnings(source: str, labels: Sequence[KittiObjects]) -> list[str]:
    """What makes all scores empty that KITTI's AP gives with these labels, a line each."""
    kinds = Counter(name for frame in labels for name in frame.type if name != "DontCare")
    known = {name.lower() for name in CLASSES}
    if kinds and not any(name.lower() in known for name in kinds):
        there = ", ".join(f"'{name}' ({count})" for name, count in kinds.most_common(6))
        return [f"{source}: no labels of {', '.join(CLASSES)}; the classes there are {there}"]
    return [*missing_2d_boxes(f"{source}: labels", labels), *_missing_3d_boxes(source, labels)]


def _missing_3d_boxes(source: str, labels: Sequence[KittiObjects]) -> list[str]:
    """Whether objects have no 3D box: nothing can be found of these, so that 3D and BEV AP would only be low."""
    known = {name.lower() for name in CLASSES}
    boxes = [frame[np.array([name.lower() in known for name in frame.type], dtype=bool)] for frame in labels]
    count, hollow = sum(map(len, boxes)), sum(int((~is_placed(frame)).sum()) for frame in boxes)
    if not hollow:
        return []
    which = "no object has" if hollow == count else f"{hollow} of {count} objects do not have"
    return [f"{source}: labels: {which} a 3D box (sides of -1, place of -1000); 3D and BEV AP miss these"]


def missing_2d_boxes(source: str, frames: Sequence[KittiObjects], only_all: bool = False) -> list[str]:
    """Whether objects have no 2D box: KITTI's AP judges by the height of it, and nothing else would tell.

    Args:
        only_all: say so only where none has one: of detections outside the image nothing is left when they are clipped.
    """
    known = {name.lower() for name in CLASSES}
    count, flat = 0, 0
    for frame in frames:
        boxes = frame.xyxy[np.array([name.lower() in known for name in frame.type], dtype=bool)]
        count += len(boxes)
        flat += int((boxes[:, 2:] <= boxes[:, :2]).any(-1).sum())
    if not flat or (only_all and flat < count):
        return []
    which = "every 2D box has" if flat == count else f"{flat} of {count} 2D boxes have"
    return [
        f"{source}: {which} no area (such as 0 0 0 0); KITTI's AP judges by a 2D box's height, so these do not count"
    ]


def score_table(scores: Scores) -> Table:
    """AP of all classes, metrics and overlaps."""
    table = plain_table("KITTI average precision, percent")
    for column in ("class", "metric", "IoU"):
        table.add_column(column)
    for kind in ("R40", "R11"):
        for difficulty in DIFFICULTIES:
            table.add_column(f"{kind}\n{difficulty}", justify="right")
    for name, metrics in scores.items():
        for metric in METRICS:
            for iou in metrics[metric]["R40"]:
                values = metrics[metric]["R40"][iou] + metrics[metric]["R11"][iou]
                table.add_row(name, metric.upper(), iou, *(_number(value) for value in values))
        table.add_section()
    return table


def budget_table(budget: dict[str, Scores]) -> Table:
    """AP (R40, moderate) as it is, and what it gains when one thing is corrected."""
    table = plain_table("Error budget: AP (R40, moderate), and its gain if matched detections had the true ...")
    table.add_column("class")
    table.add_column("true")
    metrics = ("3d", "bev", "2d")
    for metric in metrics:
        for strictness in ("strict", "loose"):
            table.add_column(f"{metric.upper()}\n{strictness}", justify="right")
    for name in budget["baseline"]:
        for what, scores in budget.items():
            cells = []
            for metric in metrics:
                for iou in MIN_OVERLAPS[name]:
                    now, before = (s[name][metric]["R40"][f"{iou:.2f}"][1] for s in (scores, budget["baseline"]))
                    if what == "baseline" or now is None or before is None:
                        cells.append(_number(now))
                    else:
                        cells.append(f"{now - before:+.2f}")
            table.add_row(name, what, *cells)
        table.add_section()
    return table


def error_table(errors: PairErrors, classes: Sequence[str]) -> Table:
    """Errors of matched pairs by axis."""
    table = plain_table("Errors of matched detections: median / 90th percentile (bias)")
    statistics = {name: errors.statistics(name) for name in classes}
    table.add_column("axis")
    for name in classes:
        table.add_column(f"{name}\n{int(statistics[name]['count'])} pairs", justify="right")
    axes = [("depth", "%"), ("lateral", "m"), ("vertical", "m"), ("length", "%"), ("width", "%"), ("height", "%")]
    axes += [("yaw", "deg"), ("yaw_mod_pi", "deg"), ("yaw_folded", "deg")]
    for axis, unit in axes:
        factor = 100 if unit == "%" else 1
        cells = []
        for name in classes:
            of = statistics[name]
            bias = f" ({_number(factor * of[f'{axis}_bias'])})" if f"{axis}_bias" in of else ""
            cells.append(f"{_number(factor * of[f'{axis}_median'])} / {_number(factor * of[f'{axis}_p90'])}{bias}")
        table.add_row(f"{axis.replace('_', ' ')}, {unit}", *cells)
    return table


def plain_table(title: str) -> Table:
    """Narrow enough for 80 columns, and plain text when written to a file."""
    return Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))


def _number(value: float | None) -> str:
    return "-" if value is None or math.isnan(value) else f"{value:.2f}"
