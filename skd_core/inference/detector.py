"""The detector as users run it; the CLI, the bag evaluator and the ROS node all call this one `predict`."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from skd_core.boxes import MIN_SIDE, Boxes2D, Boxes3D
from skd_core.camera import Camera
from skd_core.config import ModelConfig, parse_config
from skd_core.data.transforms import network_camera, scale_pixels
from skd_core.devices import PRECISIONS, pick_device, pick_precision
from skd_core.errors import UserError
from skd_core.inference.bundled import resolve, weights_metadata
from skd_core.inference.calibration import Calibration
from skd_core.inference.onnx_file import OnnxNetwork, has_provider
from skd_core.notes import warn_once

if TYPE_CHECKING:  # imported when used: onnxruntime needs none of it, and timm and torchvision take seconds
    from skd_core.inference.cuda_graph import CudaGraphs
    from skd_core.models.student import Detections, Student

BACKENDS = ("auto", "torch", "onnx")
NO_BOXES_THRESHOLD = 2.0
"""A threshold that no score reaches: the network then finds no boxes of its own."""

DEFAULT_THRESHOLD = 0.4
"""Minimum score where the weights store none: about the best F1 of the bundled weights on held-out synthetic frames
(docs/benchmarks.md)."""


def untrained(config: ModelConfig, focal: float, seed: int = 0) -> tuple[Student, dict[str, Any]]:
    """A network with random weights, the same for a seed, and its metadata; the global random stream stays as it is.

    Args:
        focal: focal length of the network's input, pixels.
    """
    from skd_core.models.student import Student

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        student = Student(config)
    return student, {"focal": [focal, focal], "training": "none: random weights"}


class Detector:
    """An MDN with its weights, ready to predict.

    Attributes:
        classes: class names, as in the training labels.
        backend: "torch" or "onnx".
        device: where it runs.
        precision: "fp32", "fp16", "bf16", or of an ONNX file "int8".
        config: of the network.
        metadata: what the weights file says about itself; its ``network`` is "mdn", the student, or "dsn", the
            depth-guided teacher.
        calibration: what was measured of it, which its boxes carry: depth_std, across_std, yaw_std, flip_odds.
        graphs: on a CUDA device, see :mod:`skd_core.inference.cuda_graph`; None: the network runs without.
        slow_because: why PyTorch runs it on a CPU although onnxruntime is faster there; "" otherwise.
    """

    backend = "torch"
    slow_because = ""
    graphs: CudaGraphs | None = None

    def __init__(
        self, student: Student, metadata: dict[str, Any], device: str = "auto", precision: str = "fp32"
    ) -> None:
        self.device = pick_device(device)
        self.precision = pick_precision(precision, self.device)
        self.student = student.eval().to(self.device).to(memory_format=torch.channels_last)
        self.metadata = metadata
        self.config: ModelConfig = student.config
        self.classes: tuple[str, ...] = student.config.classes
        measured = metadata.get("calibration", {})
        self.calibration = Calibration.of(self.classes, measured, student.config.direction)
        if self.device.type == "cuda":
            from skd_core.inference.cuda_graph import CudaGraphs

            self.graphs = CudaGraphs(self.student, self._computing)

    @staticmethod
    def load(
        path: str | Path = "default", device: str = "auto", precision: str = "fp32", backend: str = "auto"
    ) -> Detector:
        """Load weights written by training, or a file of `skd_core export`.

        Args:
            path: a file, or the name of bundled weights ("default").
            device: "auto", "cpu", "cuda", "cuda:N", or "tensorrt" for an ONNX file.
            precision: "auto", "fp32", "fp16" or "bf16"; of an ONNX file it was chosen at its export.
            backend: "torch", "onnx" or "auto", see :func:`open_detector`.

        Raises:
            UserError: no such file, device or backend, damaged or foreign file.
        """
        return open_detector(path, device, precision, backend)

    def uncalibrated(self) -> Detector:
        """The same network with its own depth_std and no other spread: what a calibration is measured on."""
        bare = {key: value for key, value in self.metadata.items() if key != "calibration"}
        return Detector(self.student, bare, str(self.device), self.precision)

    @staticmethod
    def random(seed: int = 0, device: str = "cpu") -> Detector:
        """A small untrained detector, for tests and measurements."""
        config = ModelConfig(backbone="mobilenetv3_small_100", neck_channels=16, head_channels=16, input_size=(320, 96))
        return Detector(*untrained(config, 186.0, seed), device)

    def save(self, path: str | Path) -> None:
        """Write the weights file that :meth:`load` reads."""
        from skd_core.inference.weights import describe, save_weights

        fx, fy = self.metadata["focal"]
        derived = describe(self.student, (fx, fy))
        save_weights(path, self.student, (fx, fy), **{k: v for k, v in self.metadata.items() if k not in derived})

    def network_camera(self, camera: Camera) -> Camera:
        """The camera of the network's input, see :func:`skd_core.data.transforms.network_camera`."""
        fx, fy = self.metadata["focal"]
        return network_camera(camera, (fx, fy), self.config.snap_size)

    @property
    def threshold(self) -> float:
        """Minimum score of a detection by default: what the weights' metadata say, else :data:`DEFAULT_THRESHOLD`."""
        return float(self.metadata.get("threshold", DEFAULT_THRESHOLD))

    def predict(
        self,
        image: NDArray[np.uint8],
        camera: Camera,
        score_threshold: float | None = None,
        *,
        boxes2d: Boxes2D | None = None,
    ) -> Boxes3D:
        """Detect in one image.

        Args:
            image: shape (H, W, 3), uint8, RGB, rectified.
            camera: of this image, at this size.
            score_threshold: minimum score of a box that is returned, in [0, 1]; None takes :attr:`threshold`.
            boxes2d: place these 2D boxes in space instead of detecting any, see :meth:`place`.

        Returns:
            Boxes on the CPU, best first, in the camera frame, with scores, 2D boxes and how far off they may be.

        Raises:
            UserError: the image is not (H, W, 3) uint8 or not of the camera's size; boxes2d as in :meth:`place`.
        """
        min_score = self.threshold if score_threshold is None else score_threshold
        if boxes2d is not None:
            boxes = self.place(image, camera, boxes2d)[0]
            boxes = boxes[boxes.scores.argsort(descending=True, stable=True)]
            return boxes[boxes.scores >= min_score]
        boxes = self._find(image, camera, min_score)
        return boxes[boxes.scores >= min_score]

    def _find(self, image: NDArray[np.uint8], camera: Camera, min_score: float) -> Boxes3D:
        """The network's own boxes, best first; some may score below ``min_score``."""
        check_image(image, camera)
        target = self.network_camera(camera)
        heat = min_score**2  # a score is at most the root of the heat
        found = None if self.graphs is None else self.graphs(image, target, heat)
        if found is None:
            pixels, P = self._input(image, target)
            with self._computing():
                found = self.student.detect(pixels, P, min_heat=heat)[0]
        return self._boxes(found, camera.width / target.width, camera.height / target.height)

    def place(self, image: NDArray[np.uint8], camera: Camera, boxes2d: Boxes2D) -> tuple[Boxes3D, Tensor]:
        """The 3D head on 2D boxes from outside: those of another detector, of labels, of a tracker.

        Boxes are clipped to the image. What then has a side of no more than one pixel of the network's input (a box
        outside of the image, or an empty one) is left out. There is no NMS, no limit and no minimum score.

        Args:
            image, camera: as in :meth:`predict`.
            boxes2d: in pixels of this image; class names are compared without case.

        Returns:
            One 3D box for each 2D box that is not left out, in the given order, and shape (M,), long, which they are.
            The score is the root of 2D score x certainty, as for own boxes
            (:func:`skd_core.models.student.joint_score`).

        Raises:
            UserError: a class that the weights do not know, a box that is not finite or has x2 < x1 or y2 < y1, a score
                outside [0, 1]; the image as in :meth:`predict`.
        """
        classes = self.class_numbers(boxes2d)
        check_image(image, camera)
        target = self.network_camera(camera)
        pixels, P = self._input(image, target)
        sx, sy = camera.width / target.width, camera.height / target.height
        given = boxes2d.to(self.device, torch.float32).scale(1 / sx, 1 / sy).clip(target.width, target.height)
        sides = given.xyxy[:, 2:] - given.xyxy[:, :2]
        kept = (sides > MIN_SIDE).all(-1).nonzero()[:, 0]
        with self._computing():
            found = self.student.place(
                pixels, P, torch.zeros_like(kept), given.xyxy[kept], classes.to(self.device)[kept], given.scores[kept]
            )
        return self._boxes(found, sx, sy), kept.cpu()

    def _boxes(self, found: Detections, sx: float, sy: float) -> Boxes3D:
        """Detections in the image's pixels, with the spreads that were measured of their classes."""
        from skd_core.models.student import to_boxes3d

        return self.calibration(to_boxes3d(found, self.classes, sx, sy), found.classes)

    def class_numbers(self, boxes: Boxes2D) -> Tensor:
        """shape (N,), long, the classes of 2D boxes from outside, which are checked.

        Raises:
            UserError: a class that the weights do not know; see :meth:`skd_core.boxes.Boxes2D.check`.
        """
        numbers = {name.lower(): number for number, name in enumerate(self.classes)}
        unknown = [name for name in dict.fromkeys(boxes.labels) if name.lower() not in numbers]
        if unknown:
            raise UserError(f"2D boxes: unknown class '{unknown[0]}'; the weights know {', '.join(self.classes)}")
        boxes.check()
        return torch.tensor([numbers[name.lower()] for name in boxes.labels], dtype=torch.long)

    def _input(self, image: NDArray[np.uint8], target: Camera) -> tuple[Tensor, Tensor]:
        """The network's input (1, 3, H, W) for its camera, and that one's P (1, 3, 4), on the device."""
        own = np.require(image, requirements=["C", "W"])  # torch takes neither mirrored nor read-only memory
        pixels = torch.from_numpy(own).to(self.device).permute(2, 0, 1)
        pixels = scale_pixels(pixels, target.width, target.height)
        return pixels[None], target.P.to(self.device, torch.float32)[None]

    @contextlib.contextmanager
    def _computing(self) -> Iterator[None]:
        """No gradients, and the precision of this detector."""
        dtype = PRECISIONS[self.precision]
        kind, used = self.device.type, dtype is not None
        with torch.inference_mode(), torch.autocast(kind, dtype, enabled=used, cache_enabled=False):
            yield  # without a cache: a CUDA graph would read converted weights that are gone when the cache is

    def warmup(self, width: int | None = None, height: int | None = None) -> None:
        """Predict on an empty image, so that the first real one is not slow; on a GPU until a graph is recorded."""
        w, h = self.config.input_size
        fx, fy = self.metadata["focal"]
        P = torch.tensor([[fx, 0, w / 2, 0], [0, fy, h / 2, 0], [0, 0, 1, 0]], dtype=torch.float64)
        camera = Camera(P, w, h)
        if width and height:
            camera = camera.resize(width, height)
        for _ in range(1 if self.graphs is None else self.graphs.patience):
            self.predict(np.zeros((camera.height, camera.width, 3), np.uint8), camera)


def check_image(image: NDArray[np.uint8], camera: Camera) -> None:
    """Raise UserError unless the image is (H, W, 3) uint8 and of the camera's size."""
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise UserError(f"image must be (H, W, 3) uint8 RGB, got {image.shape} {image.dtype}")
    if image.shape[:2] != (camera.height, camera.width):
        raise UserError(
            f"image is {image.shape[1]}x{image.shape[0]}, but its camera says {camera.width}x{camera.height}"
        )


def open_detector(path: str | Path, device: str, precision: str, backend: str) -> Detector:
    """What :meth:`Detector.load` does.

    A file of `skd_core export` runs in onnxruntime. Weights run in PyTorch, unless an exported file of just these
    weights lies beside them under the same name (``NAME.onnx``), as it does beside the bundled ones, onnxruntime is
    installed, and the device is a CPU, where it is the faster of the two ("auto"), or it is asked for ("onnx").

    Args:
        path, device, precision: as of :meth:`Detector.load`; backend: one of BACKENDS.

    Raises:
        UserError: an unknown backend, or one that cannot run this file; as of :meth:`Detector.load`.
    """
    if backend not in BACKENDS:
        raise UserError(f"backend '{backend}': use {', '.join(BACKENDS)}")
    if Path(path).suffix.lower() == ".onnx":
        if backend == "torch":
            raise UserError(
                f"{path}: is an exported network, which PyTorch cannot run; use its weights or backend onnx"
            )
        if not Path(path).expanduser().is_file():
            raise UserError(f"{path}: no such file; `skd_core export` writes one")
        return OnnxDetector(OnnxNetwork(Path(path).expanduser(), _onnx_device(device)))
    weights = resolve(path)
    beside = weights.with_suffix(".onnx")
    if backend == "onnx":
        if not beside.is_file():
            raise UserError(f"weights '{path}': no {beside.name} beside them; `skd_core export {path}` writes it")
        return OnnxDetector(OnnxNetwork(beside, _onnx_device(device)), weights_metadata(weights))
    on_cpu = device == "cpu" or (device == "auto" and not torch.cuda.is_available())
    why = ""
    if backend == "auto" and on_cpu and precision in ("auto", "fp32"):
        why = _obstacle(beside)
        if not why:
            network, metadata = OnnxNetwork(beside, "cpu"), weights_metadata(weights)
            if network.metadata["sha256"] == metadata["sha256"]:
                return OnnxDetector(network, metadata)
            why = f"{beside.name} is of other weights; `skd_core export {path}` writes it anew"
            warn_once(beside, f"{beside}: is of other weights than those beside it and is not used; export them again")
    from skd_core.inference.weights import flush_tiny, load_weights

    student, metadata = load_weights(path)
    flush_tiny(student)
    detector = Detector(student, metadata, device, precision)
    detector.slow_because = why
    return detector


def _obstacle(exported: Path) -> str:
    """Why onnxruntime cannot run the file that should lie beside the weights; "" where it can."""
    if not exported.is_file():
        return f"there is no {exported.name} beside the weights; `skd_core export` writes it"
    return "" if has_provider("cpu") else "onnxruntime is not installed"


def _onnx_device(device: str) -> str:
    kind = device.partition(":")[0]
    if kind == "auto":
        return "cuda" if has_provider("cuda") else "cpu"
    if kind not in ("cpu", "cuda", "tensorrt"):
        raise UserError(f"device '{device}': use auto, cpu, cuda or tensorrt")
    return kind


class OnnxDetector(Detector):
    """A detector whose network onnxruntime runs; see :class:`Detector` for what its methods do.

    Args:
        network: the file.
        metadata: of the weights that it was exported from; None: what the file holds of them.

    Raises:
        UserError: the file is of other weights.
    """

    backend = "onnx"

    def __init__(self, network: OnnxNetwork, metadata: dict[str, Any] | None = None) -> None:
        self.network = network
        if metadata is not None and metadata["sha256"] != network.metadata["sha256"]:
            raise UserError(f"{network.path}: is of other weights than those beside it; export them again")
        self.metadata = network.metadata if metadata is None else metadata
        self.device = torch.device("cpu" if network.provider == "CPUExecutionProvider" else "cuda")
        self.precision = str(network.metadata["precision"])
        self.config = parse_config(ModelConfig, network.metadata["model"], str(network.path))
        self.classes = self.config.classes
        self.calibration = Calibration.of(self.classes, self.metadata.get("calibration", {}), self.config.direction)

    def uncalibrated(self) -> OnnxDetector:
        """See :meth:`Detector.uncalibrated`."""
        return OnnxDetector(self.network, {key: value for key, value in self.metadata.items() if key != "calibration"})

    def _find(self, image: NDArray[np.uint8], camera: Camera, min_score: float) -> Boxes3D:
        check_image(image, camera)
        self.network_camera(camera)  # refuses absurd focal lengths
        boxes = self._to_boxes(self.network(image, camera.P.double().numpy(), min_score))
        return boxes[boxes.scores.argsort(descending=True, stable=True)]

    def place(self, image: NDArray[np.uint8], camera: Camera, boxes2d: Boxes2D) -> tuple[Boxes3D, Tensor]:
        """See :meth:`Detector.place`."""
        classes = self.class_numbers(boxes2d)
        check_image(image, camera)
        target = self.network_camera(camera)
        small = boxes2d.scale(target.width / camera.width, target.height / camera.height)
        sides = small.clip(target.width, target.height).xyxy
        kept = (sides[:, 2:] - sides[:, :2] > MIN_SIDE).all(-1).nonzero()[:, 0]
        given = (
            boxes2d.xyxy[kept].float().numpy(),
            classes[kept].numpy(),
            boxes2d.scores[kept].float().numpy(),
        )
        return self._to_boxes(self.network(image, camera.P.double().numpy(), NO_BOXES_THRESHOLD, given)), kept

    def save(self, path: str | Path) -> None:
        """There are no weights to write.

        Raises:
            UserError: always.
        """
        raise UserError(f"{path}: an exported network cannot be written as weights; use the file that it came from")

    def _to_boxes(self, found: dict[str, NDArray[Any]]) -> Boxes3D:
        tensors = {name: torch.from_numpy(value) for name, value in found.items() if name != "labels"}
        boxes = Boxes3D(labels=tuple(self.classes[c] for c in found["labels"].tolist()), **tensors)
        return self.calibration(boxes, torch.from_numpy(found["labels"]))
