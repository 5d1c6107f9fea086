"""2D detectors from a file: YOLOX-format ONNX models and torchvision's. Nothing is downloaded.

::

    detector = load_detector_2d("yolox_nano.onnx", tiles=4)
    boxes = detector.detect(image)   # (H, W, 3) uint8 RGB -> Boxes2D: "Car", "Pedestrian", "Cyclist", scores

A YOLOX file takes one image, shape (1, 3, H, W), BGR 0..255, scaled to fit in the top left corner, 114 around it, and
gives shape (1, N, 5 + classes): centre, size, objectness, class probabilities; N = the cells of grids with strides
8, 16, 32 (and 64) [YOLOX].
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from skd_core.boxes import Boxes2D
from skd_core.data.transforms import resize_image
from skd_core.errors import UserError
from skd_core.priors import KITTI_CLASSES, PRIORS
from skd_core.supervision.class_map import (
    COCO_MAP,
    COCO_NAMES,
    CYCLE,
    DONT_CARE,
    join_riders,
    map_classes,
    parse_class_map,
)
from skd_core.supervision.tiles import NMS_IOU, merge, windows
from skd_core.supervision.torchvision_2d import Network, load_torchvision

DEFAULT_SCORE = 0.3
"""Minimum score of a box. [ours]"""
TORCHVISION = "torchvision:"
STRIDES = (8, 16, 32, 64)
FILL = 114


@dataclass(eq=False)
class Detector2D:
    """A 2D network with its class map, looking at the whole image and at windows of it.

    Attributes:
        network: see :data:`skd_core.supervision.torchvision_2d.Network`.
        names: of its classes, in the order of their ids.
        mapping: from them to the project's classes, see :func:`skd_core.supervision.class_map.parse_class_map`.
        tiles: windows besides the whole image; 0 for the whole image alone.
        score: minimum score of a box.
        aspect: width / height of the network's input.
        iou: of two boxes of one class that overlap more, the better one stays.
    """

    network: Network
    names: tuple[str, ...]
    mapping: dict[str, str]
    tiles: int = 0
    score: float = DEFAULT_SCORE
    aspect: float = 1.0
    iou: float = NMS_IOU
    _wanted: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self._wanted = torch.tensor([name.lower() in self.mapping for name in self.names], dtype=torch.bool)

    @property
    def classes(self) -> tuple[str, ...]:
        """The project's classes that it can find."""
        found = {"Cyclist" if target == CYCLE else target for target in self.mapping.values()} - {DONT_CARE}
        return tuple(sorted(found))

    def detect(self, image: NDArray[np.uint8], dont_care: bool = False) -> Boxes2D:
        """The objects in one image.

        Args:
            image: shape (H, W, 3), uint8, RGB.
            dont_care: also what the class map calls DontCare, and cycles without a rider.

        Returns:
            Boxes on the CPU, best first, clipped to the image, under the project's class names.

        Raises:
            UserError: not (H, W, 3) uint8, or too small for this many tiles.
        """
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
            raise UserError(f"image must be (H, W, 3) uint8 RGB, got {image.shape} {image.dtype}")
        height, width = image.shape[:2]
        pixels = torch.from_numpy(np.require(image, requirements=["C", "W"])).permute(2, 0, 1)
        parts = []
        for window in windows(width, height, self.tiles, self.aspect):
            x0, y0, x1, y1 = window
            boxes, scores, classes = self.network(pixels[:, y0:y1, x0:x1], self.score)
            wanted = self._wanted[classes]
            labels = tuple(self.names[c] for c in classes[wanted].tolist())
            parts.append((window, map_classes(Boxes2D(boxes[wanted], labels, scores[wanted]), self.mapping)))
        found = join_riders(merge(parts, width, height, self.iou))
        found = found[found.scores.argsort(descending=True, stable=True)]
        return found if dont_care else found[[label != DONT_CARE for label in found.labels]]


def load_detector_2d(
    model: str | Path,
    *,
    class_map: Sequence[str] | None = None,
    tiles: int = 0,
    score: float = DEFAULT_SCORE,
    threads: int = 0,
    device: str = "cpu",
) -> Detector2D:
    """A 2D detector from a file.

    Args:
        model: ``FILE.onnx`` in YOLOX's format, or ``torchvision:MODEL@FILE``: a detection model of torchvision
            ("fasterrcnn_resnet50_fpn") and its weights, a state dict or safetensors.
        class_map: entries "SOURCE:TARGET"; COCO's default for detectors of COCO's classes.
        tiles: windows besides the whole image.
        score: minimum score of a box, in [0, 1].
        threads: of an ONNX file on the CPU; 0 leaves it to onnxruntime.
        device: "cpu" or "cuda"; an ONNX file runs on the CPU where onnxruntime has no CUDA.

    Raises:
        UserError: missing or unsuitable file, a bad class map, or none given for classes other than COCO's.
    """
    if not 0 <= score <= 1:
        raise UserError(f"2D detector: minimum score must be in [0, 1], got {score:g}")
    if str(model).startswith(TORCHVISION):
        network, names = load_torchvision(str(model).removeprefix(TORCHVISION), device)
        aspect = 1.0
    else:
        network = YoloxNetwork(model, threads, device)
        names = COCO_NAMES if network.classes == len(COCO_NAMES) else tuple(map(str, range(network.classes)))
        aspect = network.width / network.height
    if class_map is None and "person" not in names:
        raise UserError(f"{model}: has {len(names)} classes that are not COCO's; give a class map, such as 0:car")
    mapping = parse_class_map(COCO_MAP if class_map is None else class_map, names)
    if unknown := [target for target in mapping.values() if target not in (*PRIORS, DONT_CARE, CYCLE)]:
        known = ", ".join((*KITTI_CLASSES, DONT_CARE.lower(), CYCLE.lower()))
        raise UserError(f"class map: no class '{unknown[0]}'; there are {known}, and nuScenes' names")
    return Detector2D(network, names, mapping, tiles, score, aspect)


class YoloxNetwork:
    """A YOLOX-format ONNX file; see the module's text.

    Attributes:
        width: of its input, pixels; height likewise.
        classes: how many it knows.

    Args:
        path: the file; its input size is read from it.
        threads: 0 leaves it to onnxruntime.
        device: "cpu" or "cuda".

    Raises:
        UserError: no such file, not a usable ONNX model, or none in this format; onnxruntime is missing.
    """

    def __init__(self, path: str | Path, threads: int = 0, device: str = "cpu") -> None:
        self._session = _open_session(path, threads, device)
        inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
        shape = inputs[0].shape if len(inputs) == 1 and inputs[0].type == "tensor(float)" else []
        sides = [s for s in shape[2:] if isinstance(s, int) and s % 32 == 0]
        one = len(shape) == 4 and (shape[0] == 1 or not isinstance(shape[0], int))  # of any number, one will do
        if not one or shape[1] != 3 or len(sides) != 2:
            raise UserError(f"{path}: needs one float32 image input (1, 3, H, W) with H and W multiples of 32")
        self.height, self.width = int(shape[2]), int(shape[3])
        self._name = inputs[0].name
        grey = np.full((1, 3, self.height, self.width), FILL, np.float32)
        raw = self._run(grey)
        grid = _grid(self.width, self.height, raw.shape[1]) if raw.ndim == 3 and len(outputs) == 1 else None
        if grid is None or raw.shape[2] < 6:
            raise UserError(
                f"{path}: not YOLOX's output format (1, cells, 5 + classes), got {tuple(raw.shape)}; "
                "export without post-processing"
            )
        self.classes = raw.shape[2] - 5
        self._cells, self._strides = grid
        # whether the graph adds the grid itself: then centres lie near their cells, not near 0
        centers = raw[0, :, :2]
        as_pixels = (centers / self._strides - self._cells).abs().median()
        self._decoded = bool(as_pixels < centers.abs().median())

    def __call__(self, image: Tensor, score: float) -> tuple[Tensor, Tensor, Tensor]:
        """See :data:`~skd_core.supervision.torchvision_2d.Network`; a box for each cell and class above the score."""
        letterboxed, scale = letterbox(image, self.width, self.height)
        raw = self._run(letterboxed.flip(0)[None].float().numpy())[0]
        scores = raw[:, 4:5] * raw[:, 5:]
        rows, classes = (scores >= score).nonzero(as_tuple=True)
        center, size = raw[rows, :2], raw[rows, 2:4]
        if not self._decoded:
            strides = self._strides[rows]
            center, size = (center + self._cells[rows]) * strides, size.exp() * strides
        boxes = torch.cat([center - 0.5 * size, center + 0.5 * size], -1) / scale
        return boxes, scores[rows, classes], classes

    def _run(self, batch: NDArray[np.float32]) -> Tensor:
        return torch.from_numpy(np.asarray(self._session.run(None, {self._name: batch})[0], np.float32))


def letterbox(image: Tensor, width: int, height: int) -> tuple[Tensor, float]:
    """Scale an image to fit, in the top left corner, grey around it.

    Args:
        image: shape (3, H, W), uint8.

    Returns:
        shape (3, height, width), uint8, and the factor by which the image was scaled.
    """
    scale = min(width / image.shape[2], height / image.shape[1])
    inner = max(int(image.shape[2] * scale), 1), max(int(image.shape[1] * scale), 1)
    canvas = torch.full((3, height, width), FILL, dtype=torch.uint8)
    canvas[:, : inner[1], : inner[0]] = resize_image(image, *inner)
    return canvas, scale


def _grid(width: int, height: int, cells: int) -> tuple[Tensor, Tensor] | None:
    """Columns and rows of all cells, shape (cells, 2), and their strides, shape (cells, 1); None if none fits."""
    for count in (3, 4):
        grids, strides = [], []
        for stride in STRIDES[:count]:
            y, x = torch.meshgrid(torch.arange(height // stride), torch.arange(width // stride), indexing="ij")
            grids.append(torch.stack([x, y], -1).reshape(-1, 2).float())
            strides.append(torch.full((len(grids[-1]), 1), float(stride)))
        if sum(map(len, grids)) == cells:
            return torch.cat(grids), torch.cat(strides)
    return None


def _open_session(path: str | Path, threads: int, device: str) -> Any:
    try:
        import onnxruntime
    except ImportError:
        raise UserError("a 2D detector from an ONNX file needs onnxruntime: pip install onnxruntime") from None
    if not Path(path).is_file():
        raise UserError(f"{path}: no such file")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    wanted = [*(["CUDAExecutionProvider"] if device.startswith("cuda") else []), "CPUExecutionProvider"]
    providers = [name for name in wanted if name in onnxruntime.get_available_providers()]
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=providers)
    except Exception as error:  # onnxruntime's kinds of error for a damaged file have no common base
        raise UserError(f"{path}: not a usable ONNX model ({type(error).__name__})") from None
