"""`skd_core export`: weights in, one ONNX file out, compared with PyTorch before it is written."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from skd_core.boxes import Boxes3D
from skd_core.camera import Camera
from skd_core.data.folder import ImageFolder
from skd_core.errors import UserError
from skd_core.export.graph import build, write
from skd_core.export.precision import body_changer, body_inputs
from skd_core.files import check_outputs
from skd_core.inference.bundled import resolve
from skd_core.inference.detector import Detector, OnnxDetector
from skd_core.inference.onnx_file import OnnxNetwork
from skd_core.inference.weights import load_weights
from skd_core.visualize import RGB

TOLERANCE = {"fp32": 1e-3, "fp16": 2e-2, "int8": None}
"""Largest difference to PyTorch: of the centre as a share of its distance, of size as a share, of yaw in radians, of
the score. int8 has none: what it costs is measured as AP."""
RANDOM_IMAGES = 2
FEW = 5
"""Boxes of an image that are compared at least with fp32, whatever their scores: noise shows no objects."""


@dataclass(frozen=True)
class Difference:
    """Between two detectors on some images.

    Attributes:
        images, boxes: how many were compared; missing: boxes that only one of the two has.
        worst: the largest difference, as in TOLERANCE.
    """

    images: int
    boxes: int
    missing: int
    worst: float

    def __str__(self) -> str:
        return f"differs from PyTorch by at most {self.worst:.2g} on {self.images} images with {self.boxes} boxes" + (
            f"; {self.missing} boxes only in one of them" if self.missing else ""
        )


@dataclass(frozen=True)
class ExportOptions:
    """What to export.

    Attributes:
        weights: a file, or the name of bundled weights.
        precision: "fp32", "fp16" or "int8".
        size: (width, height) of the images, for engines that want constant sizes; None: any.
        images: to compare on, and to calibrate int8 by; camera: their calibration, a file or a folder.
    """

    weights: str
    precision: str = "fp32"
    size: tuple[int, int] | None = None
    images: tuple[Path, ...] = ()
    camera: Path | None = None


def target(weights: str, out: Path | None, precision: str) -> Path:
    """The file to write: as asked for, or beside the weights, where fp32 is found by itself."""
    if out is not None:
        if out.suffix.lower() != ".onnx":
            raise UserError(f"--out '{out}': name a file NAME.onnx")
        return out.expanduser()
    file = resolve(weights)
    return file.with_suffix(".onnx") if precision == "fp32" else file.with_name(f"{file.stem}.{precision}.onnx")


def export_weights(options: ExportOptions, out: Path) -> Difference:
    """Write an ONNX file, unless it differs from PyTorch by more than :data:`TOLERANCE`.

    Raises:
        UserError: weights or images that cannot be used; an export that differs.
    """
    check_outputs([out], [resolve(options.weights), *options.images, options.camera])
    student, metadata = load_weights(options.weights)
    if options.images and options.camera is None:
        raise UserError("export: --check needs the images' --camera")
    if options.precision == "int8" and not options.images:
        raise UserError("export: int8 needs typical images: --check IMAGES --camera FILE")
    found_images = ImageFolder(options.images, options.camera) if options.images and options.camera else None
    frames = [found_images[index] for index in range(len(found_images))] if found_images else []
    reference = Detector(student, metadata, "cpu")
    pairs = [(sample.image.permute(1, 2, 0).numpy(), sample.camera) for sample in frames]
    change = body_changer(options.precision, body_inputs(reference, pairs))
    model = build(student, metadata | {"precision": options.precision}, options.size, change)
    with tempfile.TemporaryDirectory() as folder:
        trial = Path(folder) / "trial.onnx"
        write(model, trial)
        exported = OnnxDetector(OnnxNetwork(trial))
        few = FEW if options.precision == "fp32" else 0
        found = compare(reference, exported, [*random_images(reference, options.size), *pairs], few)
    most = TOLERANCE[options.precision]
    if most is not None and (found.worst > most or found.missing):
        raise UserError(
            f"export: the ONNX graph differs from PyTorch by {found.worst:.2g} (at most {most:g}) and in "
            f"{found.missing} of {found.boxes} boxes; nothing was written"
        )
    write(model, out)
    return found


def compare(a: Detector, b: Detector, images: Sequence[tuple[RGB, Camera]], few: int = 0) -> Difference:
    """How far two detectors are apart at the threshold of the first, or at that of its ``few`` best boxes, if lower.

    Boxes whose score lies within .001 of the threshold may be on either side of it and are not counted as missing.
    """
    slack = 1e-3
    boxes, missing, worst = 0, 0, 0.0
    for image, camera in images:
        threshold = a.threshold
        if few and len(scores := a.predict(image, camera, 0.0).scores[:few]):
            threshold = min(threshold, float(scores[-1]) - slack)
        first, second = (detector.predict(image, camera, max(threshold - slack, 0.0)) for detector in (a, b))
        overlap = _distances(first, second)
        rows, columns = linear_sum_assignment(np.minimum(overlap, 1.0))
        near = overlap[rows, columns] < 0.05
        i, j = rows[near], columns[near]
        boxes += len(first)
        for one, matched in ((first, i), (second, j)):
            alone = np.setdiff1d(np.arange(len(one)), matched)
            missing += int((one.scores.numpy()[alone] > threshold + slack).sum())
        if len(i):
            worst = max(worst, _worst(first[i.tolist()], second[j.tolist()]))
    return Difference(len(images), boxes, missing, worst)


def _distances(a: Boxes3D, b: Boxes3D) -> NDArray[np.float64]:
    """shape (N, M): largest difference of two 2D boxes' edges, as a share of the first one's larger side; 9 between
    classes."""
    edges = np.abs(a.xyxy.numpy()[:, None] - b.xyxy.numpy()[None]).max(-1)
    sides = (a.xyxy[:, 2:] - a.xyxy[:, :2]).amax(-1).clamp(min=1).numpy()
    other = np.array([[x != y for y in b.labels] for x in a.labels], bool).reshape(edges.shape)
    return np.where(other, 9.0, edges / sides[:, None])


def _worst(a: Boxes3D, b: Boxes3D) -> float:
    far = a.center.norm(dim=-1, keepdim=True).clamp(min=1e-3)
    turn = (a.yaw - b.yaw + np.pi / 2) % np.pi - np.pi / 2  # a direction that is not known may flip
    parts = ((a.center - b.center) / far, a.size / b.size - 1, turn, a.scores - b.scores)
    return max(float(part.abs().max()) for part in parts)


def random_images(detector: Detector, size: tuple[int, int] | None) -> Iterator[tuple[RGB, Camera]]:
    """Noise at some scales, of the given size or of a few."""
    rng = np.random.default_rng(0)
    sizes = [size] * RANDOM_IMAGES if size else [(1242, 375), (640, 360)]
    fx, fy = detector.metadata["focal"]
    for width, height in sizes:
        coarse = rng.integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), dtype=np.uint8)
        image = np.kron(coarse, np.ones((8, 8, 1), np.uint8))[:height, :width]
        P = [[1.3 * fx, 0, width / 2, 0], [0, 1.3 * fy, height / 2, 0], [0, 0, 1, 0]]
        yield np.ascontiguousarray(image), Camera(torch.tensor(P, dtype=torch.float64), width, height)
