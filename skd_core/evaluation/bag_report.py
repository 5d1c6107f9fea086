"""The report of a recording's evaluation: one HTML file that holds its pictures."""

from __future__ import annotations

import base64
import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from matplotlib.figure import Figure

from skd_core.evaluation import plots
from skd_core.evaluation.bag_scores import Evaluation
from skd_core.evaluation.errors import pair_errors
from skd_core.evaluation.overlaps import Table
from skd_core.evaluation.range_metrics import recall_by_range
from skd_core.files import write_atomic
from skd_core.visualize import RGB, strip

STYLE = """body{font:15px sans-serif;max-width:1100px;margin:2em auto;padding:0 1em;color:#222}
table{border-collapse:collapse;margin:1em 0}td,th{padding:.2em .8em;text-align:right;border-bottom:1px solid #ddd}
td:first-child,th:first-child{text-align:left}img{max-width:100%;height:auto;margin:.5em 0}.note{color:#a40}
.wide{overflow-x:auto}td,th{white-space:nowrap}h1,.note{overflow-wrap:anywhere}
@media(max-width:600px){body{margin:.5em auto;font-size:14px}td,th{padding:.2em .4em}}"""


def write_report(path: Path, evaluation: Evaluation, scores: Mapping[str, Any], classes: Sequence[str]) -> None:
    """Write the report, atomically.

    Args:
        scores: as :func:`skd_core.evaluation.bag_eval.evaluate_bag` returns them; classes: what the detector knows.
    """
    parts = [f"<h1>{html.escape(Path(scores['bag']).name)}</h1>", _about(scores)]
    parts += [f'<p class="note">{html.escape(problem)}</p>' for problem in scores["problems"]]
    if evaluation.labelled:
        labels, results = evaluation.labelled_frames()
        label_table, result_table = Table.of(labels), Table.of(results)
        parts += ["<h2>Average precision</h2>", _kitti(scores["kitti"]), _distance(scores["distance_ap"])]
        parts.append(_figure(plots.plot_distance_curves(label_table, result_table, classes)))
        if scores["kitti"]:
            parts.append(_figure(plots.plot_kitti_curves(labels, results)))
        recalls = recall_by_range(label_table, result_table, classes)
        parts += ["<h2>By distance</h2>", _figure(plots.plot_recall(recalls))]
        parts.append(_figure(plots.plot_depth_errors(pair_errors(labels, results, classes))))
        parts.append(_depth(scores["depth_error"]))
    parts += ["<h2>Over time</h2>", _jitter(scores["jitter"]), _figure(plots.plot_latency(evaluation.seconds))]
    if evaluation.worst:
        worst = sorted(evaluation.worst, key=lambda item: -item[0])
        numbers = ", ".join(f"{number} ({badness:.1f})" for badness, number, _ in worst)
        parts += ["<h2>Worst frames</h2>", "<p>Green: truth. Worst first (misses + false ones + depth errors / 5 m): "]
        parts += [f"{numbers}</p>", _picture(strip([picture for _, _, picture in worst]))]
    body = "\n".join(parts)
    head = "<!doctype html><meta charset=utf-8><meta name=viewport content='width=device-width'>"
    head += f"<title>{html.escape(scores['bag'])}</title><style>{STYLE}</style>"
    write_atomic(path, f"{head}\n{body}\n")


def _about(scores: Mapping[str, Any]) -> str:
    latency = scores["latency_ms"]
    rows = [
        ["bag", scores["bag"]], ["images", scores["image_topic"]], ["truth", scores["truth"] or "none"],
        ["frames", f"{scores['frames']}, {scores['labelled']} with labels, {scores['dropped']} dropped"],
        ["detections", str(scores["detections"])],
    ]  # fmt: skip
    if latency is not None:
        times = f"median {latency['median']:.0f} ms, 90 % {latency['p90']:.0f}, 99 % {latency['p99']:.0f} ms"
        rows.append(["latency", times])
    return _table(None, rows)


def _kitti(kitti: Mapping[str, Any]) -> str:
    rows = []
    for name, metrics in kitti.items():
        for metric, kinds in metrics.items():
            for iou, values in kinds["R40"].items():
                rows.append([name, metric.upper(), iou, *(_number(value, 2) for value in values)])
    return _table(["KITTI R40, %", "metric", "IoU", "easy", "moderate", "hard"], rows)


def _distance(aps: Mapping[str, Mapping[str, float | None]]) -> str:
    rows = [[name, *(_number(value, 3) for value in row.values())] for name, row in aps.items()]
    head = ["AP by centre distance", *(key if key == "mean" else f"{key} m" for key in next(iter(aps.values())))]
    return _table(head, rows)


def _depth(errors: Mapping[str, Mapping[str, Mapping[str, float | None]]]) -> str:
    rows = []
    for name, ranges in errors.items():
        for limits, row in ranges.items():
            if row["count"]:
                percent = [_number(row[key], 1, 100) for key in ("relative_median", "relative_p90", "bias")]
                rows.append([name, f"{limits} m", _number(row["count"], 0), *percent, _number(row["metres_median"], 2)])
    return _table(["Depth error", "range", "pairs", "median, %", "90 %, %", "bias, %", "median, m"], rows)


def _jitter(groups: Mapping[str, Mapping[str, float | None]]) -> str:
    rows = [
        [group, _number(row["tracks"], 0), _number(row["depth"], 2, 100), _number(row["lateral"], 3),
         _number(row["length"], 2, 100), _number(row["yaw"], 2)]
        for group, row in groups.items()
    ]  # fmt: skip
    return _table(["Jitter (standard deviation)", "tracks", "depth, %", "lateral, m", "length, %", "yaw, deg"], rows)


def _table(head: Sequence[str] | None, rows: Sequence[Sequence[str]]) -> str:
    top = "" if head is None else "<tr>" + "".join(f"<th>{html.escape(cell)}</th>" for cell in head) + "</tr>"
    lines = ("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="wide"><table>{top}{"".join(lines)}</table></div>'


def _number(value: float | None, digits: int, factor: float = 1) -> str:
    return "-" if value is None else f"{factor * value:.{digits}f}"


def _figure(figure: Figure) -> str:
    return _embed(plots.png_bytes(figure), "png")


def _picture(image: RGB) -> str:
    encoded = cv2.imencode(".jpg", np.ascontiguousarray(image[..., ::-1]), [cv2.IMWRITE_JPEG_QUALITY, 88])[1]
    return _embed(encoded.tobytes(), "jpeg")


def _embed(content: bytes, kind: str) -> str:
    return f'<img src="data:image/{kind};base64,{base64.b64encode(content).decode()}">'
