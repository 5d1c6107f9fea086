"""A YOLOX-format network whose boxes are known by hand, for the tests of all that uses a 2D detector.

It finds squares of one cell of its middle grid, 16 pixels at its own scale, filled with one pure colour: red is COCO's
class 2 (car), green 1 (bicycle), blue 0 (person). The score is how pure the cell is: 1 for a whole square.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

COLORS = {"car": (255, 0, 0), "bicycle": (0, 255, 0), "person": (0, 0, 255)}


class SquareFinder(nn.Module):
    """``decoded``: whether the graph adds the grid itself, as some exports do."""

    def __init__(self, side: int = 64, classes: int = 80, decoded: bool = False) -> None:
        super().__init__()
        self.side, self.classes, self.decoded = side, classes, decoded

    def forward(self, image: Tensor) -> Tensor:
        rows = []
        for stride in (8, 16, 32):
            mean = nn.functional.avg_pool2d(image, stride) / 255  # (1, 3, h, w), B G R
            others = torch.stack([mean[:, [1, 2]].amax(1), mean[:, [0, 2]].amax(1), mean[:, [0, 1]].amax(1)], 1)
            score = (mean - others).clamp(min=0).flatten(2).transpose(1, 2)  # (1, cells, 3)
            n = self.side // stride
            y, x = torch.meshgrid(torch.arange(n), torch.arange(n), indexing="ij")
            center = torch.full((1, n * n, 2), 0.5)
            size = torch.zeros(1, n * n, 2)
            if self.decoded:
                center = (center + torch.stack([x, y], -1).reshape(1, -1, 2)) * stride
                size = size.exp() * stride
            objectness = torch.full((1, n * n, 1), float(stride == 16))
            rest = torch.zeros(1, n * n, self.classes - 3)
            rows.append(torch.cat([center, size, objectness, score, rest], -1))
        return torch.cat(rows, 1)


def export(module: nn.Module, path: Path, image: Tensor) -> Path:
    """The module as an ONNX file that takes an image of this shape."""
    torch.onnx.export(module, (image,), str(path), input_names=["images"], dynamo=False)
    return path


def square_finder(path: Path, side: int = 64, classes: int = 80, decoded: bool = False) -> Path:
    """The network as an ONNX file."""
    return export(SquareFinder(side, classes, decoded), path, torch.zeros(1, 3, side, side))


def street(width: int, height: int, squares: Sequence[tuple[str, int, int, int]] = ()) -> NDArray[np.uint8]:
    """A black image with squares: (what, left, top, side)."""
    image = np.zeros((height, width, 3), np.uint8)
    for what, left, top, side in squares:
        image[top : top + side, left : left + side] = COLORS[what]
    return image
