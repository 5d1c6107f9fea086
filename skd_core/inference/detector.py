"""The detector as users run it; the CLI, the bag evaluator and the ROS node all call this one `predict`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from skd_core.boxes import Boxes3D
from skd_core.camera import Camera
from skd_core.config import ModelConfig
from skd_core.data.transforms import network_camera, resize_image
from skd_core.devices import PRECISIONS, pick_device, pick_precision
from skd_core.errors import UserError
from skd_core.inference.weights import load_weights, save_weights
from skd_core.models.student import Student, to_boxes3d

DEFAULT_THRESHOLD = 0.4
"""Least score: about the best F1 of the bundled weights on held-out synthetic frames (docs/benchmarks.md)."""


class Detector:
    """An MDN with its weights, ready to predict.

    Attributes:
        classes: class names, as in the training labels.
        device: where it runs.
        precision: "fp32", "fp16" or "bf16".
        metadata: what the weights file says about itself.
    """

    def __init__(
        self, student: Student, metadata: dict[str, Any], device: str = "auto", precision: str = "fp32"
    ) -> None:
        self.device = pick_device(device)
        self.precision = pick_precision(precision, self.device)
        self.student = student.eval().to(self.device).to(memory_format=torch.channels_last)
        self.metadata = metadata
        self.classes: tuple[str, ...] = student.config.classes

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
        kept = {k: v for k, v in self.metadata.items() if k not in ("format", "model", "focal", "sha256")}
        for derived in ("normalisation", "camera_convention"):
            kept.pop(derived, None)
        fx, fy = self.metadata["focal"]
        save_weights(path, self.student, (fx, fy), **kept)

    def network_camera(self, camera: Camera) -> Camera:
        """The camera of the network's input, see :func:`skd_core.data.transforms.network_camera`."""
        fx, fy = self.metadata["focal"]
        return network_camera(camera, (fx, fy), self.student.config.snap_size)

    def predict(self, image: NDArray[np.uint8], camera: Camera, score_threshold: float = DEFAULT_THRESHOLD) -> Boxes3D:
        """Detect in one image.

        Args:
            image: shape (H, W, 3), uint8, RGB, rectified.
            camera: of this image, at this size.
            score_threshold: least score of a box that is returned, in [0, 1].

        Returns:
            Boxes on the CPU, best first, in the camera frame, with scores, 2D boxes and depth_std.

        Raises:
            UserError: the image is not (H, W, 3) uint8 or not of the camera's size.
        """
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
        dtype = PRECISIONS[self.precision]
        with torch.inference_mode(), torch.autocast(self.device.type, dtype, enabled=dtype is not None):
            P = target.P.to(self.device, torch.float32)[None]
            heat = score_threshold**2  # a score is at most the root of the heat
            found = self.student.detect(pixels[None], P, threshold=heat)[0]
        boxes = to_boxes3d(found, self.classes, camera.width / target.width, camera.height / target.height)
        return boxes[boxes.scores >= score_threshold]

    def warmup(self, width: int | None = None, height: int | None = None) -> None:
        """One prediction on an empty image, so that the first real one is not slow."""
        w, h = self.student.config.input_size
        fx, fy = self.metadata["focal"]
        P = torch.tensor([[fx, 0, w / 2, 0], [0, fy, h / 2, 0], [0, 0, 1, 0]], dtype=torch.float64)
        camera = Camera(P, w, h)
        if width and height:
            camera = camera.resize(width, height)
        self.predict(np.zeros((camera.height, camera.width, 3), np.uint8), camera)
