"""A detector that outlives its GPU, and what to say of a camera unlike the one it was trained with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from skd_core.boxes import Boxes3D
from skd_core.camera import Camera
from skd_core.inference.detector import Detector

Load = Callable[[str], Detector]

LEAST_SCALE, MOST_SCALE = 0.2, 2.0
"""Of the image on its way to the network. Above, objects are more blurred than in training. To make a finer image
smaller costs nothing but time (KITTI's is scaled by 0.39 for the bundled weights), within reason."""
LEAST_VIEW, MOST_VIEW = 0.5, 1.6
"""Width and height of what the network sees, in units of the training images'."""
LEAST_HORIZON, MOST_HORIZON = 0.25, 0.75
"""Height of the principal point, which is the horizon of a level camera, in units of the image's height."""


def is_device_failure(error: BaseException) -> bool:
    """Whether the GPU, and not the frame, is to blame."""
    kinds = tuple(getattr(torch, name) for name in ("OutOfMemoryError", "AcceleratorError") if hasattr(torch, name))
    return isinstance(error, kinds) or (isinstance(error, RuntimeError) and "CUDA" in str(error))


class RobustDetector:
    """A detector that goes on on the CPU where its GPU runs out of memory or is lost.

    Args:
        load: a device's name -> a warmed-up detector there.
        device: where to begin.
        cpu_fallback: whether to go on on the CPU; else the error is raised.
        say: called with one line when that happens.

    Attributes:
        detector: the one at work.
        fallen_back: the reason, where it runs on the CPU for that; else "".

    Raises:
        UserError: from ``load``.
        RuntimeError: the device failed while loading, and there is no fallback.
    """

    def __init__(self, load: Load, device: str, cpu_fallback: bool, say: Callable[[str], None]) -> None:
        self._load, self._cpu_fallback, self._say = load, cpu_fallback, say
        self.fallen_back = ""
        try:
            self.detector = load(device)
        except RuntimeError as error:
            if not self._may_fall_back(error, device):
                raise
            self._fall_back(error)

    def predict(self, image: NDArray[np.uint8], camera: Camera, threshold: float) -> Boxes3D:
        """As :meth:`Detector.predict`; once more on the CPU where the device fails."""
        try:
            return self.detector.predict(image, camera, threshold)
        except RuntimeError as error:
            if not self._may_fall_back(error, self.detector.device.type):
                raise
            self._fall_back(error)
        return self.detector.predict(image, camera, threshold)

    def _may_fall_back(self, error: RuntimeError, device: str) -> bool:
        return self._cpu_fallback and not self.fallen_back and device != "cpu" and is_device_failure(error)

    def _fall_back(self, error: RuntimeError) -> None:
        self.fallen_back = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
        self._say(f"the GPU failed ({self.fallen_back}); going on on the CPU until the node is configured again")
        self.detector = self._load("cpu")  # from the file: a lost GPU gives nothing back


def unlike_training(metadata: dict[str, Any], input_size: tuple[int, int], camera: Camera) -> list[str]:
    """In what the camera is outside what the weights have seen; [] where it is like the training camera.

    Args:
        metadata: of the weights, with "focal" (fx, fy) of the network's input.
        input_size: (width, height) of the training images at the network's input.
        camera: of the image.
    """
    findings = []
    (fx, fy), (width, height) = metadata["focal"], input_size
    scale = max(fx / camera.fx, fy / camera.fy), min(fx / camera.fx, fy / camera.fy)
    if scale[0] > MOST_SCALE or scale[1] < LEAST_SCALE:
        findings.append(
            f"focal length {camera.fx:.0f}x{camera.fy:.0f} px: the image is scaled by {fx / camera.fx:.2f} to the "
            f"training focal length of {fx:.0f}x{fy:.0f} px"
        )
    seen = camera.width * fx / camera.fx / width, camera.height * fy / camera.fy / height
    if min(seen) < LEAST_VIEW or max(seen) > MOST_VIEW:
        findings.append(
            f"size {camera.width}x{camera.height} px: the field of view is {seen[0]:.1f} times as wide and "
            f"{seen[1]:.1f} times as high as in training"
        )
    if not LEAST_HORIZON <= camera.cy / camera.height <= MOST_HORIZON:
        findings.append(f"horizon: the principal point is at {camera.cy / camera.height:.0%} of the image's height")
    return findings
