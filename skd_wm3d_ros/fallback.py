"""A detector that falls back to the CPU when its GPU fails."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

from skd_core.boxes import Boxes2D, Boxes3D
from skd_core.camera import Camera
from skd_core.inference.detector import Detector

Load = Callable[[str], Detector]


def is_device_failure(error: BaseException) -> bool:
    """Whether the GPU, and not the frame, is to blame."""
    kinds = tuple(getattr(torch, name) for name in ("OutOfMemoryError", "AcceleratorError") if hasattr(torch, name))
    return isinstance(error, kinds) or (isinstance(error, RuntimeError) and "CUDA" in str(error))


class RobustDetector:
    """A detector that falls back to the CPU when its GPU runs out of memory or is lost.

    Args:
        load: a device's name -> a warmed-up detector there.
        device: where to begin.
        cpu_fallback: whether to fall back to the CPU; else the error is raised.
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

    def predict(
        self, image: NDArray[np.uint8], camera: Camera, threshold: float, boxes2d: Boxes2D | None = None
    ) -> Boxes3D:
        """As :meth:`Detector.predict`; once more on the CPU where the device fails."""
        try:
            return self.detector.predict(image, camera, threshold, boxes2d=boxes2d)
        except RuntimeError as error:
            if not self._may_fall_back(error, self.detector.device.type):
                raise
            self._fall_back(error)
        return self.detector.predict(image, camera, threshold, boxes2d=boxes2d)

    def _may_fall_back(self, error: RuntimeError, device: str) -> bool:
        return self._cpu_fallback and not self.fallen_back and device != "cpu" and is_device_failure(error)

    def _fall_back(self, error: RuntimeError) -> None:
        self.fallen_back = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
        self._say(f"the GPU failed ({self.fallen_back}); falling back to the CPU until the node is configured again")
        self.detector = self._load("cpu")  # from the file: a lost GPU gives nothing back
