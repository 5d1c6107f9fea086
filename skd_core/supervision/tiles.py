"""An image cut into overlapping windows for a 2D detector, and the windows' boxes put together again [ours].

A detector that sees the whole image scaled to its input loses what is small. In windows it sees more, but cuts what
lies across their edges. So it looks at the whole image and at the windows; boxes that end at an inner edge of a window
are dropped (the whole image or the neighbour has them complete), and non-maximum suppression per class joins the rest.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from skd_core.boxes import Boxes2D
from skd_core.errors import UserError

Window = tuple[int, int, int, int]
"""x0, y0, x1, y1: the pixels x0 <= x < x1, y0 <= y < y1 of the image."""

OVERLAP = 0.25
"""Share of a window that its neighbour sees too."""
EDGE = 0.015
"""A box ends at an edge where it comes as near as this share of the window's side: detectors stop a little short."""
NMS_IOU = 0.6
"""Of two boxes of a class that overlap more, the one with the lower score goes."""


def windows(width: int, height: int, tiles: int, aspect: float = 1.0, overlap: float = OVERLAP) -> list[Window]:
    """The whole image, then ``tiles`` overlapping windows that cover it, row by row.

    Rows and columns are chosen so that a window has to be scaled down least for the detector's input.

    Args:
        width: of the image, pixels; height likewise.
        tiles: number of windows besides the whole image; 0 or 1 for the whole image alone.
        aspect: width / height of the detector's input.
        overlap: share of a window's side that its neighbour sees too, in [0, 1).

    Raises:
        UserError: a negative number of tiles, or more than the image has pixels for (32 a side).
    """
    if tiles < 0:
        raise UserError(f"tiles: {tiles}; give 0 for the whole image alone, or a number of windows")
    whole = (0, 0, width, height)
    if tiles < 2:
        return [whole]
    grids = [(rows, tiles // rows) for rows in range(1, tiles + 1) if tiles % rows == 0]

    def scale_down(grid: tuple[int, int]) -> float:
        return max(_side(width, grid[1], overlap) / aspect, _side(height, grid[0], overlap))

    rows, columns = min(grids, key=scale_down)
    if min(_side(width, columns, overlap), _side(height, rows, overlap)) < 32:
        raise UserError(f"tiles: {tiles} windows of a {width}x{height} image are less than 32 pixels wide; use fewer")
    return [
        whole,
        *((x0, y0, x1, y1) for y0, y1 in _spans(height, rows, overlap) for x0, x1 in _spans(width, columns, overlap)),
    ]


def _side(length: int, count: int, overlap: float) -> int:
    """Of ``count`` windows along ``length`` pixels, rounded up so that nothing stays uncovered."""
    return min(length, math.ceil(length / (count - (count - 1) * overlap)))


def _spans(length: int, count: int, overlap: float) -> list[tuple[int, int]]:
    side = _side(length, count, overlap)
    starts = [(length - side) * i // max(count - 1, 1) for i in range(count)]
    return [(start, start + side) for start in starts]


def drop_cut(boxes: Boxes2D, window: Window, width: int, height: int, edge: float = EDGE) -> Boxes2D:
    """Without the boxes that end at an edge of the window which is not one of the image.

    Args:
        boxes: pixels of the image; window: they were found in it; width, height: of the image.
        edge: how near is "at the edge", a share of the window's side.
    """
    x0, y0, x1, y1 = window
    near_x, near_y = edge * (x1 - x0), edge * (y1 - y0)
    left, top, right, bottom = boxes.xyxy.unbind(-1)
    cut = torch.zeros(len(boxes), dtype=torch.bool)
    for inner, ends in (
        (x0 > 0, left < x0 + near_x),
        (y0 > 0, top < y0 + near_y),
        (x1 < width, right > x1 - near_x),
        (y1 < height, bottom > y1 - near_y),
    ):
        if inner:
            cut |= ends
    return boxes[~cut]


def join(parts: Sequence[Boxes2D]) -> Boxes2D:
    """Lists of boxes as one."""
    return Boxes2D(
        torch.cat([part.xyxy for part in parts]) if parts else torch.zeros(0, 4),
        tuple(label for part in parts for label in part.labels),
        torch.cat([part.scores for part in parts]) if parts else torch.zeros(0),
    )


def suppress(boxes: Boxes2D, iou: float = NMS_IOU) -> Boxes2D:
    """Non-maximum suppression among boxes of the same label, best score first."""
    from torchvision.ops import batched_nms  # here: whoever has boxes already need not wait for it

    numbers = {label: number for number, label in enumerate(dict.fromkeys(boxes.labels))}
    groups = torch.tensor([numbers[label] for label in boxes.labels], dtype=torch.long)
    return boxes[batched_nms(boxes.xyxy.float(), boxes.scores.float(), groups, iou)]


def merge(parts: Sequence[tuple[Window, Boxes2D]], width: int, height: int, iou: float = NMS_IOU) -> Boxes2D:
    """The boxes of all windows, in pixels of the image and clipped to it, each object once.

    Args:
        parts: windows and the boxes found in each, in pixels of the window.
        width: of the image; height likewise.
        iou: see :func:`suppress`.
    """
    moved = []
    for window, boxes in parts:
        boxes = boxes.clip(window[2] - window[0], window[3] - window[1]).crop(-window[0], -window[1])
        moved.append(drop_cut(boxes, window, width, height))
    joined = join(moved)
    solid = (joined.xyxy[:, 2:] > joined.xyxy[:, :2]).all(-1)
    return suppress(joined[solid], iou)
