"""PyTorch's network on a CUDA device without Python in between: one CUDA graph for each size of image [ours].

The image goes up from pinned memory; resize, network and decoding of every peak are one launch; one table comes back.
Weak and doubled peaks are sorted out on the CPU: for 50 of them that takes microseconds and needs no fixed shapes.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from skd_core.camera import Camera
from skd_core.data.transforms import scale_pixels
from skd_core.models.decode import Prediction3D
from skd_core.models.student import Detections, Student, distinct
from skd_core.notes import warn_once

COLUMNS = {
    "boxes": 4, "scores": 1, "classes": 1, "heat": 1,
    "center": 3, "size": 3, "yaw": 1, "log_z": 1, "log_sigma": 1, "center_uv": 2, "yaw_vector": 2, "alpha": 1,
    "direction": 2,
}  # fmt: skip
"""Of the table: of :class:`Detections`, the heat, and of :class:`Prediction3D`."""
SIZES = 4
"""Graphs that are kept: each holds memory of the device."""
PATIENCE = 3
"""Images of a size in a row before its graph is recorded, which takes about as long as many predictions."""
WARM_UP = 3
"""Runs before a graph is recorded, in which libraries choose their kernels."""
HEAT_TOLERANCE, BOX_TOLERANCE, DEPTH_TOLERANCE = 0.02, 1.0, 0.05
"""By how much a graph's heat, its best box (pixels) and that one's log depth may differ from those of the same network
without a graph: half precision, other kernels."""

Run = Callable[[NDArray[np.uint8], Tensor], Tensor]
"""Image (H, W, 3) and P (3, 4) of the network's input -> the table, on the CPU."""

_one_records = threading.Lock()
"""What another thread does to the device while a graph is recorded can spoil it, above all another recording."""


def table_of(student: Student, image: Tensor, P: Tensor, width: int, height: int) -> Tensor:
    """All peaks of an image, with nothing that waits for the device.

    Args:
        image: shape (H, W, 3), uint8; P: shape (3, 4), camera of the network's input; width, height: of that input.

    Returns:
        shape (N, sum of :data:`COLUMNS`), float32.
    """
    pixels = scale_pixels(image.permute(2, 0, 1), width, height)[None]
    found, heat = student.detect_all(pixels, P[None])
    parts = {"boxes": found.boxes, "scores": found.scores, "classes": found.classes, "heat": heat}
    parts |= vars(found.boxes3d)
    return torch.cat([parts[name].reshape(len(heat), count).float() for name, count in COLUMNS.items()], 1)


def detections_of(table: Tensor, min_heat: float) -> Detections:
    """What :meth:`skd_core.models.student.Student.detect` finds, from a table on the CPU."""
    parts = _columns(table)
    boxes, scores, heat = parts.pop("boxes"), parts.pop("scores"), parts.pop("heat")
    classes = parts.pop("classes").long()
    found = Detections(boxes, scores, classes, Prediction3D(**parts))
    found = found[distinct(boxes, heat, classes, min_heat)]
    return found[found.scores.argsort(descending=True)]


@dataclass
class Recording:
    """A graph with its memory on both sides, and the weights that it reads."""

    graph: torch.cuda.CUDAGraph
    image: Tensor
    P: Tensor
    table: Tensor
    image_up: Tensor
    P_up: Tensor
    table_down: Tensor
    weights: list[Tensor]

    @torch.inference_mode()
    def __call__(self, image: NDArray[np.uint8], P: Tensor) -> Tensor:
        """Upload, one launch, download; the table is valid until the next call."""
        np.copyto(self.image_up.numpy(), image)
        self.P_up.copy_(P)
        with torch.cuda.device(self.image.device):
            self.image.copy_(self.image_up, non_blocking=True)
            self.P.copy_(self.P_up, non_blocking=True)
            self.graph.replay()
            self.table_down.copy_(self.table, non_blocking=True)
            torch.cuda.current_stream().synchronize()
        return self.table_down


class CudaGraphs:
    """The graphs of a network, recorded as sizes of images come. After one that fails no other is tried.

    Args:
        student: in evaluation mode, on the device.
        computing: gives the context that the network runs in.
        patience: see :data:`PATIENCE`.
        record: what records a graph for a shape of image and a camera of the network's input; for tests.
    """

    def __init__(
        self,
        student: Student,
        computing: Callable[[], AbstractContextManager[None]],
        patience: int = PATIENCE,
        record: Callable[[tuple[int, ...], Camera], Run] | None = None,
    ) -> None:
        self.student = student
        self.computing = computing
        self.patience = patience
        self.record = record or self._record
        self.recordings: OrderedDict[tuple[int, ...], Run] = OrderedDict()
        self.stream: torch.cuda.Stream | None = None
        self.failed = False
        self.in_a_row: tuple[tuple[int, ...], int] = ((), 0)
        self.lock = threading.Lock()

    def __call__(self, image: NDArray[np.uint8], target: Camera, min_heat: float) -> Detections | None:
        """Detections on the CPU, in pixels of the network's input; None where there is no graph for this size.

        Args:
            image: shape (H, W, 3), uint8; target: camera of the network's input; min_heat: as of ``Student.detect``.
        """
        with self.lock:
            run = self._run_for(image.shape, target)
            return None if run is None else detections_of(run(image, target.P.float()), min_heat)

    def _run_for(self, shape: tuple[int, ...], target: Camera) -> Run | None:
        weights = next(self.student.parameters()).data_ptr()  # a graph reads them where they were when it was recorded
        key = (*shape[:2], target.width, target.height, weights)
        if key not in self.recordings:
            before, count = self.in_a_row
            self.in_a_row = (key, count + 1 if key == before else 1)
            if self.failed or self.in_a_row[1] < self.patience:
                return None
            while len(self.recordings) >= SIZES:
                self.recordings.popitem(last=False)
            run = self._try(shape, target)
            if run is None:
                self.failed = True
                return None
            self.recordings[key] = run
        self.recordings.move_to_end(key)
        return self.recordings[key]

    def _try(self, shape: tuple[int, ...], target: Camera) -> Run | None:
        """Record a graph, and compare it with the network as it runs without."""
        try:
            with _one_records:
                run = self.record(shape, target)
            why = self._difference(run, shape, target)
        except torch.cuda.OutOfMemoryError:
            self.recordings.clear()
            torch.cuda.empty_cache()
            why = "there is no memory for it"
        except RuntimeError as error:
            why = " ".join(str(error).split())[:200]
        if why:
            warn_once(("graph", why), f"the network runs without a CUDA graph, which is slower: {why}")
            return None
        return run

    def _difference(self, run: Run, shape: tuple[int, ...], target: Camera) -> str:
        """What a graph makes of another image and camera than it was recorded with is wrong; "" where nothing is."""
        image = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
        P = target.P.float().clone()
        P[:2, :2] *= 1.3  # by which depths scale
        device = next(self.student.parameters()).device
        with self.computing():
            pixels = torch.from_numpy(image).to(device)
            plain = _by_heat(table_of(self.student, pixels, P.to(device), target.width, target.height).cpu())
        found = _by_heat(run(image, P))
        apart = (found["heat"] - plain["heat"]).abs().max()
        if not bool(apart <= HEAT_TOLERANCE):
            return f"its heat differs by {apart:.2g}"
        distance = (found["boxes"] - plain["boxes"][:1]).abs().amax(-1)  # to the best box: equal peaks may be swapped
        nearest = distance.argmin()
        if not bool(distance[nearest] <= BOX_TOLERANCE):
            return f"its best box differs by {distance[nearest]:.2g} pixels"
        apart = (found["log_z"][nearest] - plain["log_z"][0]).abs()
        return "" if bool(apart <= DEPTH_TOLERANCE) else f"its log depth differs by {float(apart):.2g}"

    def _record(self, shape: tuple[int, ...], target: Camera) -> Recording:
        device = next(self.student.parameters()).device
        image = torch.zeros(shape, dtype=torch.uint8, device=device)
        P = target.P.to(device, torch.float32)
        graph = torch.cuda.CUDAGraph()
        stream = self._stream(device)
        stream.wait_stream(torch.cuda.current_stream(device))
        cudnn = torch.backends.cudnn.flags(
            enabled=True, benchmark=True, deterministic=False, allow_tf32=torch.backends.cudnn.allow_tf32
        )
        with torch.cuda.device(device), torch.cuda.stream(stream), cudnn, self.computing():
            for _ in range(WARM_UP):
                table_of(self.student, image, P, target.width, target.height)
            # by thread: others may use the device; on the stream in use, which is restored if recording fails
            with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
                table = table_of(self.student, image, P, target.width, target.height)
        torch.cuda.current_stream(device).wait_stream(stream)
        up, P_up, down = (torch.zeros(part.shape, dtype=part.dtype, pin_memory=True) for part in (image, P, table))
        weights = [part.detach() for part in (*self.student.parameters(), *self.student.buffers())]
        return Recording(graph, image, P, table, up, P_up, down, weights)

    def _stream(self, device: torch.device) -> torch.cuda.Stream:
        if self.stream is None or self.stream.device != device:
            self.stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        return self.stream


def _columns(table: Tensor) -> dict[str, Tensor]:
    """The parts of a table by name, (N,) where they have one column; they share its memory."""
    parts = zip(COLUMNS, torch.split(table, list(COLUMNS.values()), 1), strict=True)
    return {name: part[:, 0] if COLUMNS[name] == 1 else part for name, part in parts}


def _by_heat(table: Tensor) -> dict[str, Tensor]:
    """Copies of the parts of a table, the highest heat first."""
    parts = _columns(table)
    order = parts["heat"].argsort(descending=True)
    return {name: part[order] for name, part in parts.items()}
