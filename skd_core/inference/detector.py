"""The detector as users run it; the CLI, the bag evaluator and the ROS node all call this one `predict`."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from skd_core.boxes import Boxes2D, Boxes3D
from skd_core.camera import Camera
from skd_core.config import ModelConfig
from skd_core.data.transforms import network_camera, resize_image
from skd_core.devices import PRECISIONS, pick_device, pick_precision
from skd_core.errors import UserError
from skd_core.inference.calibration import Calibration
from skd_core.inference.weights import load_weights, save_weights
from skd_core.models.student import LEAST_SIDE, Detections, Student, to_boxes3d

DEFAULT_THRESHOLD = 0.4
"""Minimum score where the weights store none: about the best F1 of the bundled weights on held-out synthetic frames
(docs/benchmarks.md)."""


class Detector:
    """An MDN with its weights, ready to predict.

    Attributes:
        classes: class names, as in the training labels.
        device: where it runs.
        precision: "fp32", "fp16" or "bf16".
        metadata: what the weights file says about itself; its ``network`` is "mdn", the student, or "dsn", the
            depth-guided teacher.
        calibration: what was measured of it, which its boxes carry: depth_std, across_std, yaw_std, flip_odds.
    """

    def __init__(
        self, student: Student, metadata: dict[str, Any], device: str = "auto", precision: str = "fp32"
    ) -> None:
        self.device = pick_device(device)
        self.precision = pick_precision(precision, self.device)
        self.student = student.eval().to(self.device).to(memory_format=torch.channels_last)
        self.metadata = metadata
        self.classes: tuple[str, ...] = student.config.classes
        measured = metadata.get("calibration", {})
        self.calibration = Calibration.of(self.classes, measured, student.config.direction)

    @staticmethod
    def load(path: str | Path = "default", device: str = "auto", precision: str = "fp32") -> Detector:
        """Load weights written by training.

        Args:
            path: a file, or the name of bundled weights ("default").
            device: "auto", "cpu", "cuda" or "cuda:N".
            precision: "auto", "fp32", "fp16" or "bf16".

        Raises:
            UserError: no such file or device, damaged or foreign file.
        """
        return Detector(*load_weights(path), device, precision)

    def uncalibrated(self) -> Detector:
        """The same network with its own depth_std and no other spread: what a calibration is measured on."""
        bare = {key: value for key, value in self.metadata.items() if key != "calibration"}
        return Detector(self.student, bare, str(self.device), self.precision)

    @staticmethod
    def random(seed: int = 0, device: str = "cpu") -> Detector:
        """A small untrained detector, for tests and measurements."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            config = ModelConfig(
                backbone="mobilenetv3_small_100", neck_channels=16, head_channels=16, input_size=(320, 96)
            )
            return Detector(Student(config), {"focal": [186.0, 186.0], "training": "none: random weights"}, device)

    def save(self, path: str | Path) -> None:
        """Write the weights file that :meth:`load` reads."""
        kept = {k: v for k, v in self.metadata.items() if k not in ("format", "network", "model", "focal", "sha256")}
        for derived in ("normalisation", "heading_known", "camera_convention"):
            kept.pop(derived, None)
        fx, fy = self.metadata["focal"]
        save_weights(path, self.student, (fx, fy), **kept)

    def network_camera(self, camera: Camera) -> Camera:
        """The camera of the network's input, see :func:`skd_core.data.transforms.network_camera`."""
        fx, fy = self.metadata["focal"]
        return network_camera(camera, (fx, fy), self.student.config.snap_size)

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
        least = self.threshold if score_threshold is None else score_threshold
        if boxes2d is not None:
            boxes = self.place(image, camera, boxes2d)[0]
            boxes = boxes[boxes.scores.argsort(descending=True, stable=True)]
            return boxes[boxes.scores >= least]
        pixels, target, P = self._input(image, camera)
        with self._computing():
            heat = least**2  # a score is at most the root of the heat
            found = self.student.detect(pixels, P, least_heat=heat)[0]
        boxes = self._boxes(found, camera.width / target.width, camera.height / target.height)
        return boxes[boxes.scores >= least]

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
        classes = self._class_numbers(boxes2d)
        pixels, target, P = self._input(image, camera)
        sx, sy = camera.width / target.width, camera.height / target.height
        given = boxes2d.to(self.device, torch.float32).scale(1 / sx, 1 / sy).clip(target.width, target.height)
        sides = given.xyxy[:, 2:] - given.xyxy[:, :2]
        kept = (sides > LEAST_SIDE).all(-1).nonzero()[:, 0]
        with self._computing():
            found = self.student.place(
                pixels, P, torch.zeros_like(kept), given.xyxy[kept], classes.to(self.device)[kept], given.scores[kept]
            )
        return self._boxes(found, sx, sy), kept.cpu()

    def _boxes(self, found: Detections, sx: float, sy: float) -> Boxes3D:
        """Detections in the image's pixels, with the spreads that were measured of their classes."""
        return self.calibration(to_boxes3d(found, self.classes, sx, sy), found.classes)

    def _class_numbers(self, boxes: Boxes2D) -> Tensor:
        """shape (N,), long, the classes of 2D boxes from outside, which are checked."""
        numbers = {name.lower(): number for number, name in enumerate(self.classes)}
        unknown = [name for name in dict.fromkeys(boxes.labels) if name.lower() not in numbers]
        if unknown:
            raise UserError(f"2D boxes: unknown class '{unknown[0]}'; the weights know {', '.join(self.classes)}")
        boxes.check()
        return torch.tensor([numbers[name.lower()] for name in boxes.labels], dtype=torch.long)

    def _input(self, image: NDArray[np.uint8], camera: Camera) -> tuple[Tensor, Camera, Tensor]:
        """The network's input (1, 3, H, W), its camera, and that one's P (1, 3, 4), on the device."""
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
            raise UserError(f"image must be (H, W, 3) uint8 RGB, got {image.shape} {image.dtype}")
        if image.shape[:2] != (camera.height, camera.width):
            raise UserError(
                f"image is {image.shape[1]}x{image.shape[0]}, but its camera says {camera.width}x{camera.height}"
            )
        target = self.network_camera(camera)
        own = np.require(image, requirements=["C", "W"])  # torch takes neither mirrored nor read-only memory
        pixels = torch.from_numpy(own).to(self.device).permute(2, 0, 1)
        pixels = resize_image(pixels, target.width, target.height)
        return pixels[None], target, target.P.to(self.device, torch.float32)[None]

    @contextlib.contextmanager
    def _computing(self) -> Iterator[None]:
        """No gradients, and the precision of this detector."""
        dtype = PRECISIONS[self.precision]
        with torch.inference_mode(), torch.autocast(self.device.type, dtype, enabled=dtype is not None):
            yield

    def warmup(self, width: int | None = None, height: int | None = None) -> None:
        """One prediction on an empty image, so that the first real one is not slow."""
        w, h = self.student.config.input_size
        fx, fy = self.metadata["focal"]
        P = torch.tensor([[fx, 0, w / 2, 0], [0, fy, h / 2, 0], [0, 0, 1, 0]], dtype=torch.float64)
        camera = Camera(P, w, h)
        if width and height:
            camera = camera.resize(width, height)
        self.predict(np.zeros((camera.height, camera.width, 3), np.uint8), camera)
