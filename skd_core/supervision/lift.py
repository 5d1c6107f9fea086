"""3D boxes from 2D boxes without a network: the baseline for trained models [ours].

An object is taken for an average one of its class. Its depth follows from the height of the 2D box, ``f H / h2d + e``,
its yaw from the width: the yaw at which the projected box is as wide. Several yaws are (a car and its mirror image
about the viewing ray; most widths twice): of those within 2 % the one nearest to the optical axis is taken, since most
traffic moves along it. The centre is where the projected box lies on the 2D box.

Where the image border cuts the box, what it leaves is used:

- top or bottom cut: the height says nothing; the object stands along the axis, at the depth where its projected box is
  as wide as the 2D box;
- left or right cut: the width is at least what is seen, and the box is placed by its other side;
- both: each of the two depths is at most too large, and the smaller one counts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from skd_core.boxes import Boxes2D, Boxes3D, at_border, box_corners
from skd_core.camera import Camera, project, unproject
from skd_core.geometry import geometric_depth, half_extent
from skd_core.priors import KITTI_CLASSES, PRIORS, ClassPrior, prior_of

YAWS = torch.arange(0, 180, dtype=torch.float64).deg2rad()
"""What is tried, radians; modulo pi, since a 2D box does not tell front from back."""
YAW_ALONG_AXIS = 0.5 * math.pi
"""Yaw of an object along the optical axis."""
WIDTH_TOLERANCE = 0.02
"""Relative deviation of a projected box's width that says nothing."""
MIN_SIDE = 1.0
"""Pixels: a 2D box with a side of no more is left out."""
MIN_DEPTH = 0.5
STEPS = 8
"""Of laying the projected box on the 2D box."""


def lift(boxes2d: Boxes2D, camera: Camera) -> Boxes3D:
    """Place average objects so that they fill their 2D boxes.

    Boxes are clipped to the image; what then has a side of no more than a pixel is left out.

    Args:
        boxes2d: in pixels of the camera's image, class names of :data:`skd_core.priors.PRIORS` in any case; "car" is
            KITTI's Car, whose size differs from nuScenes'.

    Returns:
        In the given order, on the CPU, float32, with the 2D boxes, their scores, and depth_std by the class's spread in
        height. Yaw is in [0, pi) and known modulo pi: front and back look alike.

    Raises:
        UserError: an unknown class, a box that is not finite or inside out, a score outside [0, 1].
    """
    boxes2d.check()
    priors = priors_of(boxes2d.labels)
    inside = boxes2d.to("cpu", torch.float64).clip(camera.width, camera.height)
    given = inside[((inside.xyxy[:, 2:] - inside.xyxy[:, :2]) > MIN_SIDE).all(-1)]
    if not len(given):
        return Boxes3D.empty()
    size = torch.tensor([priors[label].size[::-1] for label in given.labels], dtype=torch.float64)  # (N, 3)
    cut = at_border(given.xyxy, camera.width, camera.height)  # (N, 4)

    yaw = YAWS.expand(len(given), -1)  # (N, Y)
    each = size[:, None].expand(-1, len(YAWS), 3)
    center, projected = _fit(given.xyxy, each, yaw, cut, camera.centred())
    best = _cost(given.xyxy, projected, yaw, cut).argmin(1)  # (N,)
    chosen = center[torch.arange(len(given)), best]  # (N, 3)
    error = torch.tensor([priors[label].geometric_error for label in given.labels], dtype=torch.float64)
    return Boxes3D(
        chosen - camera.offset,
        size,
        YAWS[best],
        given.labels,
        given.scores,
        given.xyxy,
        error * chosen[:, 2],
        flip_odds=torch.full_like(error, 0.5),
    ).to(torch.float32)


def priors_of(labels: Sequence[str]) -> dict[str, ClassPrior]:
    """The prior of each class name in :func:`lift`'s sense.

    Raises:
        UserError: an unknown class.
    """
    known = {name.lower(): name for name in (*PRIORS, *KITTI_CLASSES)}  # KITTI's last, which then count
    return {label: prior_of(known.get(label.lower(), label)) for label in labels}


def _fit(xyxy: Tensor, size: Tensor, yaw: Tensor, cut: Tensor, camera: Camera) -> tuple[Tensor, Tensor]:
    """Centres (N, Y, 3), metres, and projected boxes (N, Y, 4), pixels, of an object of each yaw in each 2D box.

    Both boxes are laid on each other by their middles, or by the edge that the border leaves. The camera's P must
    project from its own frame (:meth:`Camera.centred`).
    """
    width, height = (xyxy[:, 2:] - xyxy[:, :2])[:, None].unbind(-1)  # (N, 1)
    extent = half_extent(size, yaw)  # (N, Y)
    by_height = geometric_depth(camera.P[1, 1], size[..., 2], height, extent)
    sideways, upright = cut[:, [0, 2]].any(-1)[:, None], cut[:, [1, 3]].any(-1)[:, None]
    low = torch.where(cut[:, :2] ^ cut[:, 2:], cut[:, 2:].double(), 0.5)  # (N, 2), weight of the left and the top edge
    weight = torch.cat([low, 1 - low], -1)[:, None]  # (N, 1, 4)

    def anchor(boxes: Tensor) -> Tensor:
        weighted = boxes * weight
        return weighted[..., :2] + weighted[..., 2:]

    target = anchor(xyxy[:, None]).expand(-1, yaw.shape[1], -1)  # (N, Y, 2)
    z, uv = by_height, target
    for step in range(STEPS):
        center = unproject(camera.P, uv, z)
        corners = box_corners(center, size, yaw)
        points = project(camera.P, torch.cat([corners[..., :2], corners[..., 2:].clamp(min=MIN_DEPTH)], -1))
        projected = torch.cat([points.amin(-2), points.amax(-2)], -1)
        if step < STEPS - 1:
            uv = uv + target - anchor(projected)
            by_width = extent + (z - extent) * (projected[..., 2] - projected[..., 0]) / width
            cut_off = torch.where(sideways, torch.minimum(by_height, by_width), by_width)
            z = torch.where(upright, cut_off, by_height).clamp(min=MIN_DEPTH)
    return center, projected


def _cost(xyxy: Tensor, projected: Tensor, yaw: Tensor, cut: Tensor) -> Tensor:
    """shape (N, Y): radians from the optical axis, and far more for a width that another yaw explains better."""
    ratio = torch.log((projected[..., 2] - projected[..., 0]) / (xyxy[:, 2] - xyxy[:, 0])[:, None])
    sideways, upright = cut[:, [0, 2]].any(-1)[:, None], cut[:, [1, 3]].any(-1)[:, None]
    ratio = torch.where(sideways, ratio.clamp(max=0), ratio)  # the border may hide any width
    miss = torch.where(upright, 0.0, ratio).abs()  # depth has been chosen for the width
    excess = (miss - miss.amin(1, keepdim=True) - WIDTH_TOLERANCE).clamp(min=0)
    return 1e3 * excess + (yaw - YAW_ALONG_AXIS).abs()
