"""Exact IoU and GIoU of oriented boxes, seen from above (BEV) and in 3D. [peer]

Boxes are in the camera frame with the axes and the sign of yaw of :mod:`skd_core.boxes`:

    BEV: shape (N, 5), (x, z, l, w, yaw), metres and radians, as ``Boxes3D.bev``
    3D:  shape (N, 7), (x, y, z, l, w, h, yaw), (x, y, z) the volume centre

Two rectangles have no corner cases here, because nothing is sorted by angle and no corner is tested for being inside:
the area common to A and B is, in B's own axes and in units of its half size,

    area = sum over A's edges of the integral of clamp(y(x), -1, 1) dx, x running over the edge clamped to [-1, 1]

(a vertical line cuts A from its lower to its upper edge, and what B leaves of that cut is the difference of the clamped
ends). The sum is continuous in all ten numbers, so identical, touching, contained and nearly parallel boxes are
ordinary input, and all coordinates are relative to one of the two boxes, so distance from the origin costs no digits.
Gradients are exact where the IoU has one and finite everywhere. Everything runs in the dtype and on the device of its
input, for float32 and float64.

Nothing here trains with GIoU: it is offered to those who have 3D labels, as torchvision's is for upright boxes only and
other oriented ones need CUDA or take the box around both for the hull.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import repeat

import torch
from torch import Tensor

from skd_core.errors import UserError

PAIRS_AT_ONCE = 16_384
"""Of :func:`bev_iou` and its like on a CPU, without gradients: the numbers between stay in its caches."""


def bev_iou(a: Tensor, b: Tensor, aligned: bool = False, validate: bool = True) -> Tensor:
    """Intersection over union of footprints.

    Args:
        a: shape (N, 5), (x, z, l, w, yaw).
        b: shape (M, 5); (N, 5) if ``aligned``.
        aligned: compare ``a[i]`` with ``b[i]`` only.
        validate: check values; costs a synchronisation on a GPU.

    Returns:
        shape (N, M), or (N,) if ``aligned``, in [0, 1].

    Raises:
        UserError: wrong shape or dtype, NaN, infinity, a size that is not positive, or values too large or small for
            products of the dtype (float32: sizes from 1e-9, all up to 1e9).
    """
    a, b = _pairs(a, b, 5, aligned, validate)
    inter = _intersection(a, b)
    return inter / (_area(a) + _area(b) - inter)


def bev_giou(a: Tensor, b: Tensor, aligned: bool = False, validate: bool = True) -> Tensor:
    """Generalised IoU of footprints, ``IoU - (hull - union) / hull``, with the area of the exact convex hull of the
    eight corners (not of an axis-aligned box around them).

    Arguments and errors as :func:`bev_iou`. Returns shape (N, M) or (N,), in (-1, 1].
    """
    a, b = _pairs(a, b, 5, aligned, validate)
    inter = _intersection(a, b)
    union = _area(a) + _area(b) - inter
    return inter / union - 1 + union / torch.maximum(_hull_area(a, b), union)


def iou_3d(a: Tensor, b: Tensor, aligned: bool = False, validate: bool = True) -> Tensor:
    """Intersection over union of volumes.

    Args:
        a: shape (N, 7), (x, y, z, l, w, h, yaw), volume centre.
        b: shape (M, 7); (N, 7) if ``aligned``.
        aligned, validate: as in :func:`bev_iou`.

    Returns:
        shape (N, M), or (N,) if ``aligned``, in [0, 1].

    Raises:
        UserError: as :func:`bev_iou`.
    """
    a, b = _pairs(a, b, 7, aligned, validate)
    inter = _intersection(_footprint(a), _footprint(b)) * _common_height(a, b)
    return inter / (_volume(a) + _volume(b) - inter)


def giou_3d(a: Tensor, b: Tensor, aligned: bool = False, validate: bool = True) -> Tensor:
    """Generalised IoU of volumes; the hull is the exact convex hull of both footprints times the joint height (the
    upright prism around both boxes, not the 3D convex hull of their corners).

    Arguments and errors as :func:`iou_3d`. Returns shape (N, M) or (N,), in (-1, 1].
    """
    a, b = _pairs(a, b, 7, aligned, validate)
    bev_a, bev_b = _footprint(a), _footprint(b)
    inter = _intersection(bev_a, bev_b) * _common_height(a, b)
    union = _volume(a) + _volume(b) - inter
    hull = _hull_area(bev_a, bev_b) * _joint_height(a, b)
    return inter / union - 1 + union / torch.maximum(hull, union)


def bev_intersection(a: Tensor, b: Tensor, aligned: bool = False, validate: bool = True) -> Tensor:
    """Common area of footprints, square metres. Arguments, shapes and errors as :func:`bev_iou`."""
    return _intersection(*_pairs(a, b, 5, aligned, validate))


def _pairs(a: Tensor, b: Tensor, width: int, aligned: bool, validate: bool) -> tuple[Tensor, Tensor]:
    """The two sets shaped to broadcast against each other."""
    for name, boxes in (("a", a), ("b", b)):
        if boxes.dtype not in (torch.float32, torch.float64):
            raise UserError(f"iou: boxes {name} are {boxes.dtype}; convert them to float32 or float64")
        if boxes.ndim != 2 or boxes.shape[1] != width:
            raise UserError(f"iou: boxes {name} have shape {tuple(boxes.shape)}; needed is (N, {width})")
        if validate:
            _check_values(name, boxes)
    if a.dtype != b.dtype or a.device != b.device:
        raise UserError(f"iou: boxes a are {a.dtype} on {a.device}, b {b.dtype} on {b.device}; make them alike")
    if not aligned:
        return a[:, None], b[None, :]
    if len(a) != len(b):
        raise UserError(f"iou: aligned boxes must be equally many, got {len(a)} and {len(b)}")
    return a, b


def _check_values(name: str, boxes: Tensor) -> None:
    size = boxes[:, 2:4] if boxes.shape[1] == 5 else boxes[:, 3:6]
    smallest = _smallest(boxes.dtype)
    good = (boxes.abs() <= 1 / smallest).all(-1) & (size >= smallest).all(-1)  # of NaN both are false
    if not bool(good.all()):
        index = int((~good).nonzero()[0])
        values = ", ".join(f"{value:g}" for value in boxes[index].tolist())
        limits = f"in {str(boxes.dtype).removeprefix('torch.')} at least {smallest:.0e}, all at most {1 / smallest:.0e}"
        raise UserError(f"iou: box {index} of {name} needs finite values and sizes above 0 ({limits}), got ({values})")


def _smallest(dtype: torch.dtype) -> float:
    """The power of ten whose fourth power the dtype can tell from 0, as it can the inverse of that from infinity."""
    return 10.0 ** math.ceil(math.log10(torch.finfo(dtype).tiny) / 4)


def _footprint(boxes: Tensor) -> Tensor:
    """shape (..., 7) -> (..., 5)"""
    return boxes[..., [0, 2, 3, 4, 6]]


def _area(boxes: Tensor) -> Tensor:
    return boxes[..., 2] * boxes[..., 3]


def _volume(boxes: Tensor) -> Tensor:
    return boxes[..., 3] * boxes[..., 4] * boxes[..., 5]


def _common_height(a: Tensor, b: Tensor) -> Tensor:
    """Overlap of the vertical extents, from the centres' difference so that it keeps its digits far from the origin."""
    dy, half_a, half_b = a[..., 1] - b[..., 1], 0.5 * a[..., 5], 0.5 * b[..., 5]
    return (torch.minimum(dy + half_a, half_b) - torch.maximum(dy - half_a, -half_b)).clamp(min=0)


def _joint_height(a: Tensor, b: Tensor) -> Tensor:
    dy, half_a, half_b = a[..., 1] - b[..., 1], 0.5 * a[..., 5], 0.5 * b[..., 5]
    return torch.maximum(dy + half_a, half_b) - torch.minimum(dy - half_a, -half_b)


def _corners_in_other(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """A's corners in B's own axes (forward, left), counter-clockwise: two of shape (..., 4), metres."""
    dx, dz, relative_yaw = a[..., 0] - b[..., 0], a[..., 1] - b[..., 1], a[..., 4] - b[..., 4]
    c, s = torch.cos(b[..., 4]), torch.sin(b[..., 4])
    forward = 0.5 * a[..., 2:3] * a.new_tensor([1, -1, -1, 1])  # (..., 4)
    left = 0.5 * a[..., 3:4] * a.new_tensor([1, 1, -1, -1])
    c_rel, s_rel = torch.cos(relative_yaw)[..., None], torch.sin(relative_yaw)[..., None]
    x = (dx * c - dz * s)[..., None] + forward * c_rel + left * s_rel
    y = (dx * s + dz * c)[..., None] - forward * s_rel + left * c_rel
    return x, y


def _intersection(a: Tensor, b: Tensor) -> Tensor:
    """Common area of footprints of shapes (..., 5) that broadcast: shape (...); in pieces where they are many."""
    count, *others, _ = map(max, a.shape, b.shape)
    rows = max(PAIRS_AT_ONCE // max(math.prod(others), 1), 1)
    if count <= rows or a.device.type != "cpu" or a.requires_grad or b.requires_grad:
        return _common_area(a, b)
    pieces = (torch.split(boxes, rows) if len(boxes) == count else repeat(boxes) for boxes in (a, b))
    return torch.cat([_common_area(*pair) for pair in zip(*pieces, strict=False)])


def _common_area(a: Tensor, b: Tensor) -> Tensor:
    """:func:`_intersection` of all pairs at once; see the module's docstring."""
    x0, y0 = _corners_in_other(a, b)
    x0, y0 = x0 / (0.5 * b[..., 2:3]), y0 / (0.5 * b[..., 3:4])  # B is now the square [-1, 1] x [-1, 1]
    x1, y1 = x0.roll(-1, -1), y0.roll(-1, -1)
    start, x_start, end, x_end = _clamped_part(x0, x1)
    y_start, y_end = y0 + start * (y1 - y0), y0 + end * (y1 - y0)
    low, y_low, high, y_high = _clamped_part(y_start, y_end)
    middle = 0.5 * (low + high)
    mean_y = middle * y_low + (1 - middle) * y_high  # of clamp(y) over the edge: two flat ends and a slope
    area = ((x_start - x_end) * mean_y).sum(-1) * 0.25 * _area(b)
    return torch.minimum(area.clamp(min=0), torch.minimum(_area(a), _area(b)))  # rounding only


def _clamped_part(start: Tensor, end: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Where the segment start -> end enters and leaves [-1, 1].

    Returns the two parameters in [0, 1], each followed by the clamped value there. Of a segment that is outside, or of
    length zero, the parameters mean nothing, and nothing depends on them.
    """
    length = end - start
    length = torch.where(length.abs() > torch.finfo(length.dtype).eps, length, 1)
    first, last = start.clamp(-1, 1), end.clamp(-1, 1)
    return ((first - start) / length).clamp(0, 1), first, (1 + (last - end) / length).clamp(0, 1), last


def _hull_area(a: Tensor, b: Tensor) -> Tensor:
    """Area of the convex hull of two footprints, shapes (..., 5) that broadcast -> (...).

    In B's axes the hull lies between the concave envelope of the upper points and the convex one of the lower points.
    At a point's x an envelope is the point itself or the highest chord over it, and between points it is straight.
    """
    x, y = _corners_in_other(a, b)
    half_l, half_w = (0.5 * b[..., i : i + 1].expand_as(y[..., :1]) for i in (2, 3))
    x, order = torch.cat([x, -half_l, half_l], -1).sort(-1)  # (..., 6): A's corners and one side of B
    upper = torch.cat([y, half_w, half_w], -1).gather(-1, order)
    lower = torch.cat([-y, half_w, half_w], -1).gather(-1, order)  # mirrored: highest is lowest
    height = _concave_envelope(x, upper) + _concave_envelope(x, lower)
    return 0.5 * (x.diff(dim=-1) * (height[..., 1:] + height[..., :-1])).sum(-1)


def _concave_envelope(x: Tensor, y: Tensor) -> Tensor:
    """The envelope of points with sorted x, at those x: shapes (..., K) -> (..., K)."""
    columns = [y[..., 0]]
    for k in range(1, x.shape[-1] - 1):
        x_left, y_left = x[..., :k, None], y[..., :k, None]
        x_right, y_right = x[..., None, k + 1 :], y[..., None, k + 1 :]
        gap = x_right - x_left
        share = ((x[..., k, None, None] - x_left) / torch.where(gap > 0, gap, 1)).clamp(0, 1)
        chords = y_left + share * (y_right - y_left)  # (..., left, right)
        columns.append(torch.maximum(y[..., k], chords.amax((-2, -1))))
    return torch.stack([*columns, y[..., -1]], -1)


def covered(boxes: Tensor, by: Tensor) -> Tensor:
    """Which share of each upright box's area lies in each other one: shapes (N, 4), (M, 4), pixels -> (N, M)."""
    low = torch.maximum(boxes[:, None, :2], by[None, :, :2])
    high = torch.minimum(boxes[:, None, 2:], by[None, :, 2:])
    area = (boxes[:, 2:] - boxes[:, :2]).prod(-1).clamp(min=1e-6)
    return (high - low).clamp(min=0).prod(-1) / area[:, None]


def take_best(overlap: Tensor, labels: Sequence[int], min_overlap: float) -> dict[int, int]:
    """Detections, best score first, each take the free label that they overlap most, if by more than ``min_overlap``.

    Args:
        overlap: shape (detections, labels), IoU; labels: those that may be taken.

    Returns:
        label -> detection.
    """
    taken: dict[int, int] = {}
    for detection, row in enumerate(overlap.tolist()):
        best = max((label for label in labels if label not in taken), key=row.__getitem__, default=None)
        if best is not None and row[best] > min_overlap:
            taken[best] = detection
    return taken
