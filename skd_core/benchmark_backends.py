"""Backends and precisions of one detector side by side: from a uint8 image to boxes, one thread and all of them [ours].

Every round runs each of them once, in an order that turns, so a busy or throttling machine slows all alike; the ratio
to eager PyTorch is taken round by round.
"""

from __future__ import annotations

import copy
import statistics
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import numpy as np
import torch

from skd_core.boxes import Boxes3D
from skd_core.camera import Camera
from skd_core.export.command import compare
from skd_core.export.graph import build, write
from skd_core.export.precision import PRECISIONS, body_changer, body_inputs
from skd_core.inference.detector import Detector, OnnxDetector
from skd_core.inference.onnx_file import OnnxNetwork, has_provider
from skd_core.inference.weights import describe, flush_tiny
from skd_core.visualize import RGB

Images = Sequence[tuple[RGB, Camera]]
Predict = Callable[[RGB, Camera], Boxes3D]
EAGER = "torch fp32"


@dataclass(frozen=True)
class Row:
    """One backend with one number of threads.

    Attributes:
        threads: of the CPU; 0 on a GPU.
        detector: what predicts.
        before: called before each prediction.
    """

    threads: int
    detector: Detector
    before: Callable[[], None]


def measure_backends(detector: Detector, images: Images, rounds: int) -> dict[str, dict[str, float]]:
    """Latency of each backend.

    Args:
        detector: of PyTorch, with the weights to be measured as their file has them; of another precision than fp32 it
            is one row more.
        images: with their cameras; the last one's are random pixels.
        rounds: how often each backend sees each image, after two that do not count.

    Returns:
        Name, such as "onnx fp32, 1 thread" -> median_ms, p95_ms, speedup_vs_eager_fp32 (median of the rounds' ratios),
        max_box_difference (as :data:`skd_core.export.command.TOLERANCE` measures it) and missing_boxes. "torch fp32" is
        PyTorch with the weights as they are, "torch fp32 without denormals" what :meth:`Detector.load` makes of them;
        on a GPU "torch fp32, CUDA graph".
    """
    most = torch.get_num_threads()
    with tempfile.TemporaryDirectory() as folder:
        files = _export_all(detector, images, Path(folder))
        rows: dict[str, Row] = {}
        on_gpu = detector.device.type == "cuda"
        for threads in [0] if on_gpu else sorted({1, most}):
            label = "" if on_gpu else f", {threads} thread{'s' if threads > 1 else ''}"
            eager = Detector(detector.student, detector.metadata, str(detector.device))
            eager.graphs = None
            rows[EAGER + label] = Row(threads, eager, _threads(threads))
            flushed = Detector(copy.deepcopy(detector.student), detector.metadata, str(detector.device))
            flush_tiny(flushed.student)
            rows[("torch fp32, CUDA graph" if on_gpu else "torch fp32 without denormals") + label] = Row(
                threads, flushed, _threads(threads)
            )
            if detector.precision != "fp32":
                rows[f"torch {detector.precision}{label}"] = Row(threads, detector, _threads(threads))
            for precision, file in files.items():
                network = OnnxNetwork(file, "cuda" if on_gpu else "cpu", threads)
                rows[f"onnx {precision}{label}"] = Row(threads, OnnxDetector(network), lambda: None)
        try:
            times = _interleaved(rows, images, rounds)
        finally:
            torch.set_num_threads(most)
        return {name: _numbers(name, row, rows, times, images) for name, row in rows.items()}


def _export_all(detector: Detector, images: Images, folder: Path) -> dict[str, Path]:
    if not has_provider("cuda" if detector.device.type == "cuda" else "cpu"):
        return {}
    files = {}
    student = detector.student.cpu()
    fx, fy = detector.metadata["focal"]
    metadata = describe(student, (fx, fy)) | detector.metadata
    for precision in PRECISIONS:
        change = body_changer(precision, body_inputs(detector, images))
        files[precision] = folder / f"{precision}.onnx"
        write(build(student, metadata | {"precision": precision}, None, change), files[precision])
    detector.student.to(detector.device)
    return files


def _threads(count: int) -> Callable[[], None]:
    return lambda: torch.set_num_threads(count) if count else None


def _interleaved(rows: dict[str, Row], images: Images, rounds: int) -> dict[str, list[float]]:
    """Milliseconds of each row, one a round: the mean over the images."""
    times: dict[str, list[float]] = {name: [] for name in rows}
    names = list(rows)
    for turn in range(-2, rounds):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            row = rows[name]
            row.before()
            start = perf_counter()
            for image, camera in images:
                row.detector.predict(image, camera)  # its boxes are on the CPU when it returns
            if turn >= 0:
                times[name].append(1e3 * (perf_counter() - start) / len(images))
    return times


def _numbers(
    name: str, row: Row, rows: dict[str, Row], times: dict[str, list[float]], images: Images
) -> dict[str, float]:
    eager = next(n for n in rows if n.partition(",")[0] == EAGER and rows[n].threads == row.threads)
    ratios = [slow / fast for slow, fast in zip(times[eager], times[name], strict=True)]
    apart = compare(rows[eager].detector, row.detector, images)
    return {
        "median_ms": statistics.median(times[name]),
        "p95_ms": float(np.percentile(times[name], 95)),
        "speedup_vs_eager_fp32": statistics.median(ratios),
        "max_box_difference": apart.worst,
        "missing_boxes": float(apart.missing),
    }


def lines(backends: dict[str, dict[str, float]]) -> list[str]:
    """The table for people."""
    width = max(map(len, backends), default=0)
    head = f"{'backend':{width}}  median ms  p95 ms  speed-up  box difference"
    return [
        head,
        *(
            f"{name:{width}}  {n['median_ms']:9.1f}  {n['p95_ms']:6.1f}  {n['speedup_vs_eager_fp32']:8.2f}  "
            f"{n['max_box_difference']:.1e}" + (f", {n['missing_boxes']:.0f} missing" if n["missing_boxes"] else "")
            for name, n in backends.items()
        ),
    ]
