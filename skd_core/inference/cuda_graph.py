"""PyTorch's network on a CUDA device without Python in between: one CUDA graph for each size of image [ours].

The image goes up from pinned memory; resize, network and decoding of every peak are one launch; one table comes back.
Weak and doubled peaks are sorted out on the CPU: for 50 of them that takes microseconds and needs no fixed shapes.
"""

from __future__ import annotations

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
WARM_UP = 3
"""Runs before a graph is recorded, in which libraries choose their kernels."""
TOLERANCE = 0.02
"""By how much a graph's heat may differ from the same network's without one: half precision, other kernels."""


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
    parts = dict(zip(COLUMNS, torch.split(table, list(COLUMNS.values()), 1), strict=True))
    flat = {name: part[:, 0] if COLUMNS[name] == 1 and name != "boxes" else part for name, part in parts.items()}
    boxes, scores, heat = flat.pop("boxes"), flat.pop("scores"), flat.pop("heat")
    classes = flat.pop("classes").long()
    found = Detections(boxes, scores, classes, Prediction3D(**flat))
    found = found[distinct(boxes, heat, classes, min_heat)]
    return found[found.scores.argsort(descending=True)]


@dataclass
class Recording:
    """A graph with its memory on both sides."""

    graph: torch.cuda.CUDAGraph
    image: Tensor
    P: Tensor
    table: Tensor
    image_up: Tensor
    P_up: Tensor
    table_down: Tensor

    def __call__(self, image: NDArray[np.uint8], P: Tensor) -> Tensor:
        """Upload, one launch, download; the table on the CPU, valid until the next call."""
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
    """The graphs of a network, recorded as sizes of images come.

    Args:
        student: in evaluation mode, on the device.
        computing: gives the context that the network runs in.
        record: what records a graph; for tests.
    """

    def __init__(
        self,
        student: Student,
        computing: Callable[[], AbstractContextManager[None]],
        record: Callable[..., Callable[[NDArray[np.uint8], Tensor], Tensor]] | None = None,
    ) -> None:
        self.student = student
        self.computing = computing
        self.record = record or self._record
        self.recordings: OrderedDict[tuple[int, ...], Callable[[NDArray[np.uint8], Tensor], Tensor] | None]
        self.recordings = OrderedDict()

    def __call__(self, image: NDArray[np.uint8], target: Camera, min_heat: float) -> Detections | None:
        """Detections on the CPU, in pixels of the network's input; None where no graph can be recorded, which is said.

        Args:
            image: shape (H, W, 3), uint8; target: camera of the network's input; min_heat: as of ``Student.detect``.
        """
        P = target.P.float()
        weights = next(self.student.parameters()).data_ptr()  # a graph reads them where they were when it was recorded
        key = (*image.shape[:2], target.width, target.height, weights)
        if key not in self.recordings:
            self.recordings[key] = self._try(image, P, target)
            while len(self.recordings) > SIZES:
                self.recordings.popitem(last=False)
        self.recordings.move_to_end(key)
        recording = self.recordings[key]
        return None if recording is None else detections_of(recording(image, P), min_heat)

    def _try(
        self, image: NDArray[np.uint8], P: Tensor, target: Camera
    ) -> Callable[[NDArray[np.uint8], Tensor], Tensor] | None:
        """Record, and compare with the network as it runs without a graph."""
        try:
            recording = self.record(image.shape, target)
            device = next(self.student.parameters()).device
            with self.computing():
                plain = table_of(
                    self.student, torch.from_numpy(image.copy()).to(device), P.to(device), target.width, target.height
                ).cpu()
            apart = _heat(recording(image, P)) - _heat(plain)
            if not bool((apart.abs() <= TOLERANCE).all()):
                raise RuntimeError(f"its heat differs by {apart.abs().max():.2g}")
        except torch.cuda.OutOfMemoryError:
            raise
        except RuntimeError as error:
            why = " ".join(str(error).split())[:200]
            warn_once(("graph", why), f"the network runs without a CUDA graph, which is slower: {why}")
            return None
        return recording

    def _record(self, shape: tuple[int, ...], target: Camera) -> Recording:
        device = next(self.student.parameters()).device
        image = torch.zeros(shape, dtype=torch.uint8, device=device)
        P = target.P.to(device, torch.float32)
        stream = torch.cuda.current_stream(device)
        side = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        graph = torch.cuda.CUDAGraph()
        cudnn = torch.backends.cudnn.flags(
            enabled=True, benchmark=True, deterministic=False, allow_tf32=torch.backends.cudnn.allow_tf32
        )
        with torch.cuda.device(device), cudnn, self.computing():
            side.wait_stream(stream)
            with torch.cuda.stream(side):
                for _ in range(WARM_UP):
                    table_of(self.student, image, P, target.width, target.height)
            stream.wait_stream(side)
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):  # other threads may use the device too
                table = table_of(self.student, image, P, target.width, target.height)
        pinned = [torch.zeros(part.shape, dtype=part.dtype, pin_memory=True) for part in (image, P, table)]
        return Recording(graph, image, P, table, *pinned)


def _heat(table: Tensor) -> Tensor:
    """shape (N,), the heat, best first: equal peaks may come in another order."""
    at = list(COLUMNS).index("heat")
    return table[:, sum(list(COLUMNS.values())[:at])].sort(descending=True).values
