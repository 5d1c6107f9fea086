"""Networks that `skd_core export` has written, run by onnxruntime."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skd_core.errors import UserError
from skd_core.inference.metadata import read_metadata

FORMAT = "skd_core.onnx.v1"
INPUTS = ("image", "P", "score_threshold", "boxes2d", "classes2d", "scores2d")
OUTPUTS = ("center", "size", "yaw", "scores", "depth_std", "xyxy", "labels")
"""center (N, 3), volume centre, metres, camera frame; size (N, 3), (l, w, h); yaw (N,), radians; scores (N,), 0..1;
depth_std (N,), metres; xyxy (N, 4), 2D boxes, pixels of the image; labels (N,), numbers of classes."""
NO_BOXES = (np.zeros((0, 4), np.float32), np.zeros(0, np.int64), np.zeros(0, np.float32))
PROVIDERS = {"cuda": "CUDAExecutionProvider", "tensorrt": "TensorrtExecutionProvider", "cpu": "CPUExecutionProvider"}


class OnnxNetwork:
    """A session with the metadata of the weights that it was made from.

    Attributes:
        path: the file.
        metadata: what the weights file said about itself, with ``precision``.
        provider: what runs it, such as "CPUExecutionProvider".
    """

    def __init__(self, path: Path, device: str = "cpu", threads: int = 0) -> None:
        """Open a file.

        Args:
            device: "cpu", "cuda" or "tensorrt"; threads: on the CPU, 0 leaves it to onnxruntime.

        Raises:
            UserError: onnxruntime or the device is missing; not a file of `skd_core export`.
        """
        try:
            import onnxruntime
        except ImportError:
            raise UserError(f"{path}: needs onnxruntime: pip install onnxruntime") from None
        self.path = path
        wanted = PROVIDERS[device]
        if wanted not in onnxruntime.get_available_providers():
            raise UserError(f"{path}: this onnxruntime has no {wanted}; install onnxruntime-gpu, or use device cpu")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        providers = list(dict.fromkeys([wanted, PROVIDERS["cpu"]]))
        try:
            self.session = onnxruntime.InferenceSession(str(path), options, providers=providers)
        except Exception as error:  # onnxruntime's kinds of error for a damaged file have no common base
            raise UserError(f"{path}: onnxruntime cannot load it: {' '.join(str(error).split())[:200]}") from None
        self.metadata = _metadata(path, self.session.get_modelmeta().custom_metadata_map)
        self.provider: str = self.session.get_providers()[0]
        height, width = self.session.get_inputs()[0].shape[:2]
        self.fixed = (width, height) if isinstance(width, int) and isinstance(height, int) else None

    def __call__(
        self,
        image: NDArray[np.uint8],
        P: NDArray[np.float64],
        score_threshold: float,
        boxes2d: Sequence[NDArray[Any]] = NO_BOXES,
    ) -> dict[str, NDArray[Any]]:
        """One image.

        Args:
            image: shape (H, W, 3), RGB; P: shape (3, 4), its camera; score_threshold: above 1 for no boxes of its own.
            boxes2d: from outside: (M, 4) pixels of the image, (M,) class numbers, (M,) scores.

        Returns:
            :data:`OUTPUTS`, see there.

        Raises:
            UserError: not the size that the file was made for.
        """
        if self.fixed and image.shape[:2] != self.fixed[::-1]:
            raise UserError(
                f"this ONNX file is for images of {self.fixed[0]}x{self.fixed[1]}, got "
                f"{image.shape[1]}x{image.shape[0]}; export it without --size"
            )
        values = (np.ascontiguousarray(image), P, np.array(score_threshold, np.float32), *boxes2d)
        found = self.session.run(list(OUTPUTS), dict(zip(INPUTS, values, strict=True)))
        return dict(zip(OUTPUTS, found, strict=True))


def has_provider(device: str) -> bool:
    """Whether onnxruntime is installed and can run on a device: "cpu", "cuda" or "tensorrt"."""
    try:
        import onnxruntime
    except ImportError:
        return False
    return PROVIDERS[device] in onnxruntime.get_available_providers()


def _metadata(path: Path, properties: Mapping[str, str]) -> dict[str, Any]:
    text = properties.get("skd_core", "")
    if f'"{FORMAT}"' not in text:
        raise UserError(f"{path}: not written by `skd_core export`; export the weights again")
    metadata = read_metadata(text, str(path))
    if metadata.get("onnx_format") != FORMAT or not isinstance(metadata.get("precision"), str):
        raise UserError(f"{path}: not written by `skd_core export` of this version; export the weights again")
    return metadata
