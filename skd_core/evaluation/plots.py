"""Figures of evaluations and training runs, drawn without a display."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from skd_core.data.kitti import KittiObjects
from skd_core.errors import UserError
from skd_core.evaluation.errors import PairErrors, pair_errors
from skd_core.evaluation.kitti import CLASSES, DIFFICULTIES, MIN_OVERLAPS, precision_recall
from skd_core.evaluation.overlaps import Table
from skd_core.evaluation.range_metrics import DISTANCES, RANGES, distance_curve, range_name, recall_by_range
from skd_core.files import lock_folder, write_atomic

Recalls = Mapping[str, Mapping[str, Mapping[str, float | None]]]
MAX_PANELS = 48
MAX_VALUE = 1e30
METRIC_TITLES = {"2d": "2D boxes", "bev": "bird's-eye view", "3d": "3D boxes"}


def png_bytes(figure: Figure) -> bytes:
    """The figure as a PNG file's content."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()


def write_figure(path: Path, figure: Figure) -> None:
    """Write a figure as a PNG file, atomically."""
    write_atomic(path, png_bytes(figure))


def plot_distance_curves(labels: Table, results: Table, classes: Sequence[str]) -> Figure:
    """Precision over recall by centre distance, one panel per class with labels."""
    shown = [name for name in classes if labels.is_any_of([name]).any()] or list(classes[:1])
    figure, panels = _panels(len(shown))
    for axes, name in zip(panels, shown, strict=True):
        for distance in DISTANCES:
            curve = distance_curve(labels, results, name, distance)
            if curve is not None:
                axes.plot(curve.recall, curve.precision, label=f"{distance:g} m: AP {curve.ap:.2f}")
        _precision_recall_axes(axes, name)
    figure.suptitle("Precision and recall, found = centre within ... of the label")
    return figure


def plot_kitti_curves(labels: Sequence[KittiObjects], results: Sequence[KittiObjects]) -> Figure:
    """KITTI's precision over recall: a row per metric, a column per class, a line per difficulty, strict overlap."""
    figure, panels = _panels(3 * len(CLASSES), len(CLASSES))
    for k, axes in enumerate(panels):
        metric, name = ("2d", "bev", "3d")[k // len(CLASSES)], CLASSES[k % len(CLASSES)]
        iou = MIN_OVERLAPS[name][0]
        for difficulty, curve in zip(DIFFICULTIES, precision_recall(labels, results, name, metric, iou), strict=True):
            ap = 100 * curve[1:].mean()
            axes.plot(np.linspace(0, 1, len(curve)), curve, label=f"{difficulty}: AP {ap:.1f}")
        _precision_recall_axes(axes, f"{name}, {METRIC_TITLES[metric]}, IoU {iou:g}")
    return figure


def plot_depth_errors(errors: PairErrors) -> Figure:
    """Relative depth error of matched pairs against distance, with the median and the middle 80 % of each range."""
    figure = Figure(figsize=(9, 4.5), layout="constrained")
    axes = figure.subplots()
    for name in sorted(set(errors.kind)):
        chosen = np.array([kind == name for kind in errors.kind])
        axes.scatter(errors.z[chosen], 100 * errors.depth[chosen], s=8, alpha=0.45, label=f"{name} ({chosen.sum()})")
    farthest = max(float(errors.z.max()), 10.0) if len(errors) else 60.0
    for low, high in RANGES:
        chosen = (errors.z >= low) & (errors.z < high)
        if not chosen.any():
            continue
        relative, ends = 100 * errors.depth[chosen], (low, min(high, farthest * 1.02))
        axes.hlines(float(np.median(relative)), *ends, color="black", linewidth=2)
        p10, p90 = np.percentile(relative, [10, 90])
        axes.fill_between(ends, p10, p90, color="black", alpha=0.12, linewidth=0)
    axes.axhline(0, color="grey", linewidth=0.8)
    reach = 150 * max(float(np.percentile(np.abs(errors.depth), 90)), 0.01) if len(errors) else 10.0
    axes.set(
        xlabel="distance of the label, m", ylabel="depth error, %", xlim=(0, farthest * 1.02), ylim=(-reach, reach),
        title="Depth error (+ = too far); black: median, grey: middle 80 % of each range",
    )  # fmt: skip
    _legend(axes)
    return figure


def plot_recall(recalls: Recalls) -> Figure:
    """Share of labels found, by range, a group of bars per range; the number of labels above each bar."""
    figure = Figure(figsize=(9, 4), layout="constrained")
    axes = figure.subplots()
    names = [name for name, rows in recalls.items() if rows["all"]["labels"]]
    width = 0.8 / max(len(names), 1)
    for k, name in enumerate(names):
        for i, limits in enumerate(RANGES):
            row = recalls[name][range_name(limits)]
            x = i + (k - 0.5 * (len(names) - 1)) * width
            axes.bar(x, row["recall"] or 0, 0.92 * width, color=f"C{k}", label=name if i == 0 else None)
            if row["labels"]:
                axes.text(x, (row["recall"] or 0) + 0.01, f"{row['labels']:.0f}", ha="center", fontsize=8)
    axes.set_xticks(range(len(RANGES)), [f"{range_name(limits)} m" for limits in RANGES])
    axes.set(ylim=(0, 1.1), ylabel="recall", title="Labels found, by distance; numbers: labels")
    _legend(axes)
    return figure


def plot_latency(seconds: Sequence[float]) -> Figure:
    """Time of each frame."""
    figure = Figure(figsize=(9, 3), layout="constrained")
    axes = figure.subplots()
    values = 1000 * np.asarray(seconds)
    axes.plot(values, linewidth=0.8)
    axes.axhline(float(np.median(values)), color="black", linewidth=1)
    axes.set(xlabel="frame", ylabel="ms", ylim=(0, None), title=f"Latency, median {np.median(values):.0f} ms")
    return figure


def plot_kitti(labels: Sequence[KittiObjects], results: Sequence[KittiObjects], folder: Path) -> list[Path]:
    """Write all figures of a KITTI evaluation.

    Raises:
        UserError: the folder cannot be made or written to.
    """
    label_table, result_table = Table.of(labels), Table.of(results)
    figures = {
        "precision_recall.png": plot_kitti_curves(labels, results),
        "distance_precision_recall.png": plot_distance_curves(label_table, result_table, CLASSES),
        "depth_error.png": plot_depth_errors(pair_errors(labels, results)),
        "recall_by_range.png": plot_recall(recall_by_range(label_table, result_table, CLASSES)),
    }
    with lock_folder(folder):
        for name, figure in figures.items():
            write_figure(folder / name, figure)
    return [folder / name for name in figures]


def plot_runs(runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> Figure:
    """Training runs over each other: AP of the validation set, the loss and rho first, then losses and GTM factors.

    At most :data:`MAX_PANELS` are drawn, and no value beyond :data:`MAX_VALUE`; what is left out is said in the title.

    Args:
        runs: name -> records of its metrics.jsonl.

    Raises:
        UserError: no runs, or nothing in them that can be drawn.
    """
    if not runs:
        raise UserError("plot: no runs")
    series = {name: [_flatten(record) for record in records] for name, records in runs.items()}
    keys = list(dict.fromkeys(key for records in series.values() for record in records for key in record))
    keys = [key for key in keys if key not in ("step", "epoch", "lr", "images_per_second")]
    keys.sort(key=lambda key: (not key.startswith("AP"), key != "loss", key != "gtm/rho", not key.startswith("gtm")))
    if not keys:
        raise UserError("plot: the runs hold no losses and no scores")
    left_out = [f"{len(keys) - MAX_PANELS} more curves"] if len(keys) > MAX_PANELS else []
    beyond = sum(_beyond(record) for records in runs.values() for record in records)
    left_out += [f"{beyond} values that are not finite or beyond {MAX_VALUE:g}"] if beyond else []
    keys = keys[:MAX_PANELS]
    figure, panels = _panels(len(keys), 4, (3.4, 2.5))
    for axes, key in zip(panels, keys, strict=True):
        for k, (name, records) in enumerate(series.items()):
            points = [(record["step"], record[key]) for record in records if key in record]
            if points:
                marker = "." if len(points) < 30 else None
                axes.plot(*zip(*points, strict=True), color=f"C{k}", label=_plain(name), marker=marker, linewidth=1.2)
        axes.set_title(_plain(key), fontsize=9)
        axes.tick_params(labelsize=7)
        axes.grid(alpha=0.3)
        if key.startswith("AP"):
            axes.set_ylim(0, max(axes.get_ylim()[1], 1))
    handles = {str(line.get_label()): line for axes in panels for line in axes.get_lines()}
    figure.legend(
        list(handles.values()), list(handles), loc="outside lower center", ncols=min(4, len(handles)), fontsize=8
    )
    without = f"; not drawn: {', '.join(left_out)}" if left_out else ""
    figure.suptitle(f"Over training steps; AP: R40, moderate, percent{without}", fontsize=10)
    return figure


def _flatten(record: Mapping[str, Any]) -> dict[str, float]:
    """Numbers by what the panel is called; of the validation the AP (R40, moderate) of each class and network."""
    flat = {key: value for key, value in record.items() if _is_number(value)}
    for network, scores in _items(record.get("val")):
        for name, metrics in _items(dict(_items(scores)).get("ap")):
            for metric in ("3d", "bev"):
                for iou, values in _items(dict(_items(dict(_items(metrics)).get(metric))).get("R40")):
                    if isinstance(values, list) and len(values) > 1 and _is_number(values[1]):
                        flat[f"AP {metric.upper()} {name} {iou}, {network}"] = values[1]
    return {key: float(value) for key, value in flat.items() if _is_drawn(value)}


def _beyond(record: Mapping[str, Any]) -> int:
    """How many of a record's numbers cannot be drawn."""
    return sum(_is_number(value) and not _is_drawn(value) for value in record.values())


def _items(value: object) -> list[tuple[Any, Any]]:
    """Of a mapping; none of anything else, since a record may come from another program."""
    return list(value.items()) if isinstance(value, Mapping) else []


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_drawn(value: float) -> bool:
    return abs(value) <= MAX_VALUE  # false for NaN; of integers of any length


def _plain(name: str) -> str:
    """A name of a readable length in which no dollar sign begins a formula and no underscore hides a label."""
    short = name if len(name) <= 60 else f"{name[:28]}...{name[-28:]}"
    return f" {short}".replace("$", r"\$") if short.startswith("_") else short.replace("$", r"\$")


def _panels(count: int, columns: int = 3, size: tuple[float, float] = (4.0, 3.4)) -> tuple[Figure, list[Axes]]:
    columns = min(columns, count)
    rows = -(-count // columns)
    figure = Figure(figsize=(max(size[0] * columns, 6), size[1] * rows + 0.4), layout="constrained")
    panels: list[Axes] = list(np.atleast_1d(figure.subplots(rows, columns)).flat)
    for unused in panels[count:]:
        unused.set_visible(False)
    return figure, panels[:count]


def _precision_recall_axes(axes: Axes, title: str) -> None:
    axes.set(xlim=(0, 1), ylim=(0, 1.02), xlabel="recall", ylabel="precision")
    axes.set_title(title, fontsize=10)
    axes.grid(alpha=0.3)
    _legend(axes)


def _legend(axes: Axes) -> None:
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=8)
