r"""2D and 3D boxes. This is the one place where the project's axes are defined.

::

        camera frame (REP 103 optical)            seen from above                     the box's own axes
                                                                                      (ROS, REP 103)
              z forward                              z ^
             /                                         |      heading at yaw 0            z up (h)
            /                                          |     o----------> x               |   x forward (l)
           o------> x right                            |     yaw > 0 turns right,         |  /
           |                                           |     clockwise from above,        | /
           |                                           |     from +x towards -z           |/
           v y down                                    +----------> x          y left ----o
                                                                               (w)

    yaw    = KITTI's rotation_y: rotation about the camera's y axis; heading = (cos yaw, 0, -sin yaw)
    alpha  = yaw - atan2(x, z): the angle at which the camera sees the box
    center = volume centre of the box (KITTI's location is the centre of the bottom face: y + h/2)
    size   = (l, w, h) along the box's own x, y, z
    corners: 0..3 bottom, 4..7 top; each front-left, front-right, rear-right, rear-left

          7 ---------- 4            "front" is +x of the box, "left" is +y of the box
         /|           /|
        6 ---------- 5 |   -> front
        | 3 ---------|-0
        |/           |/
        2 ---------- 1
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from skd_core.camera import Camera, project
from skd_core.errors import UserError

CORNER_SIGNS = torch.tensor(
    [[1, 1, -1], [1, -1, -1], [-1, -1, -1], [-1, 1, -1], [1, 1, 1], [1, -1, 1], [-1, -1, 1], [-1, 1, 1]],
    dtype=torch.float64,
)
"""shape (8, 3), the corners in units of half the size, in the box's own axes."""

EDGES = ((0, 1), (1, 2), (2, 3), (3, 0), (4, 5), (5, 6), (6, 7), (7, 4), (0, 4), (1, 5), (2, 6), (3, 7))
"""The 12 edges as pairs of corners."""

BORDER = 3.0
"""Pixels from the image border within which an edge of a 2D box counts as cut off."""

MIN_SIDE = 1.0
"""Pixels of the network's input: a 2D box with a side of no more is no object."""


def at_border(xyxy: Tensor, width: Tensor | float, height: Tensor | float) -> Tensor:
    """Which edges of 2D boxes the image border cuts.

    Args:
        xyxy: shape (N, 4), pixels; width, height: of the image, or shape (N,), of each box's image.

    Returns:
        shape (N, 4), bool: left, top, right, bottom.
    """
    x1, y1, x2, y2 = xyxy.unbind(-1)
    return torch.stack([x1 < BORDER, y1 < BORDER, x2 > width - BORDER, y2 > height - BORDER], -1)


def wrap_angle(angle: Tensor) -> Tensor:
    """Angles in radians brought to [-pi, pi)."""
    return torch.remainder(angle + math.pi, 2 * math.pi) - math.pi


def yaw_to_alpha(yaw: Tensor, center: Tensor) -> Tensor:
    """Observation angle: shapes (N,), (N, 3) -> (N,), radians in [-pi, pi)."""
    return wrap_angle(yaw - torch.atan2(center[..., 0], center[..., 2]))


def rotation_matrix(yaw: Tensor) -> Tensor:
    """Rotations from the box's own axes to the camera frame: shape (N,) -> (N, 3, 3), columns forward, left, up."""
    c, s, zero, one = torch.cos(yaw), torch.sin(yaw), torch.zeros_like(yaw), torch.ones_like(yaw)
    return torch.stack(
        [torch.stack([c, s, zero], -1), torch.stack([zero, zero, -one], -1), torch.stack([-s, c, zero], -1)], -2
    )


def box_corners(center: Tensor, size: Tensor, yaw: Tensor) -> Tensor:
    """Corners in the camera frame, in the fixed order of the module's diagram.

    Args:
        center: shape (..., 3), volume centre, metres.
        size: shape (..., 3), (l, w, h), metres.
        yaw: shape (...), radians.

    Returns:
        shape (..., 8, 3), metres. Differentiable in all three.
    """
    local = 0.5 * size[..., None, :] * CORNER_SIGNS.to(size)  # (..., 8, 3)
    return local @ rotation_matrix(yaw).transpose(-1, -2) + center[..., None, :]


def project_boxes(P: Tensor, center: Tensor, size: Tensor, yaw: Tensor, min_depth: float = 0.1) -> Tensor:
    """The 2D boxes around the projected corners, not clipped to the image.

    Corners behind the camera are brought to ``min_depth`` metres before projection, so that the result stays finite
    and keeps a gradient for those in front.

    Args:
        P: shape (3, 4) or (N, 3, 4).
        center: shape (N, 3); size: shape (N, 3); yaw: shape (N,).

    Returns:
        shape (N, 4), x1, y1, x2, y2, pixels.
    """
    corners = box_corners(center, size, yaw)
    corners = torch.cat([corners[..., :2], corners[..., 2:].clamp(min=min_depth)], -1)
    uv = project(P, corners)  # (N, 8, 2)
    return torch.cat([uv.amin(-2), uv.amax(-2)], -1)


@dataclass(eq=False)
class Boxes2D:
    """Boxes in an image.

    Attributes:
        xyxy: shape (N, 4), x1, y1, x2, y2, pixels.
        labels: N class names as the data set spells them ("Car").
        scores: shape (N,), in [0, 1]; ones where nothing else is known.
    """

    xyxy: Tensor
    labels: tuple[str, ...]
    scores: Tensor = field(default=None)  # type: ignore[assignment]

    def __post_init__(self) -> None:
        self.xyxy = _floats(self.xyxy, -1, 4)
        self.labels = tuple(self.labels)
        self.scores = self.xyxy.new_ones(len(self.xyxy)) if self.scores is None else _floats(self.scores, -1)
        _check_lengths(self, ("xyxy", "labels", "scores"))

    @staticmethod
    def empty() -> Boxes2D:
        """No boxes."""
        return Boxes2D(torch.zeros(0, 4), ())

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: Tensor | Sequence[int] | Sequence[bool] | slice) -> Boxes2D:
        """Boxes by a boolean mask, indices or a slice."""
        picked = _pick(len(self), index)
        at = picked.to(self.xyxy.device)
        return Boxes2D(self.xyxy[at], tuple(self.labels[i] for i in picked.tolist()), self.scores[at])

    def crop(self, x0: float, y0: float) -> Boxes2D:
        """In the window whose top left corner is (x0, y0); not clipped."""
        return replace(self, xyxy=self.xyxy - self.xyxy.new_tensor([x0, y0, x0, y0]))

    def scale(self, sx: float, sy: float) -> Boxes2D:
        """In the image scaled by (sx, sy)."""
        return replace(self, xyxy=self.xyxy * self.xyxy.new_tensor([sx, sy, sx, sy]))

    def flip(self, width: float) -> Boxes2D:
        """In the mirrored image of the given width."""
        x1, y1, x2, y2 = self.xyxy.unbind(-1)
        return replace(self, xyxy=torch.stack([width - x2, y1, width - x1, y2], -1))

    def clip(self, width: float, height: float) -> Boxes2D:
        """Clipped to the image."""
        limit = self.xyxy.new_tensor([width, height, width, height])
        return replace(self, xyxy=torch.minimum(self.xyxy.clamp(min=0), limit))

    def check(self) -> None:
        """Refuse what no detector may say.

        Raises:
            UserError: a box that is not finite or has x2 < x1 or y2 < y1, a score outside [0, 1]; with its number.
        """
        good = self.xyxy.isfinite().all(-1) & (self.xyxy[:, 2:] >= self.xyxy[:, :2]).all(-1)
        if not bool(good.all()):
            index = int((~good).nonzero()[0])
            values = " ".join(f"{value:g}" for value in self.xyxy[index].tolist())
            raise UserError(f"2D boxes: box {index} needs finite x1 <= x2 and y1 <= y2, got {values}")
        good = (self.scores >= 0) & (self.scores <= 1)
        if not bool(good.all()):
            index = int((~good).nonzero()[0])
            raise UserError(f"2D boxes: score {float(self.scores[index]):g} of box {index} is not in [0, 1]")

    def to(self, *args: object, **kwargs: object) -> Boxes2D:
        """As :meth:`torch.Tensor.to`, for every tensor."""
        return replace(self, xyxy=self.xyxy.to(*args, **kwargs), scores=self.scores.to(*args, **kwargs))  # type: ignore[call-overload]


TENSORS = ("center", "size", "yaw", "scores", "xyxy", "depth_std", "across_std", "yaw_std", "flip_odds")
"""Of :class:`Boxes3D`."""


@dataclass(eq=False)
class Boxes3D:
    """Boxes in the camera frame; see the module's diagram for axes, origin and the sign of yaw.

    Attributes:
        center: shape (N, 3), volume centres, metres.
        size: shape (N, 3), (l, w, h), metres.
        yaw: shape (N,), radians.
        labels: N class names as the data set spells them ("Car").
        scores: shape (N,), in [0, 1]; ones where nothing else is known.
        xyxy: shape (N, 4), the 2D boxes they were found with, pixels of the full image; NaN where unknown.
        depth_std: shape (N,), standard deviation of the centre's depth, metres; NaN where unknown.
        across_std: shape (N, 2), of the centre across the viewing ray, sideways and upwards, metres; NaN where unknown.
        yaw_std: shape (N,), of the yaw modulo pi, radians; NaN where unknown.
        flip_odds: shape (N,), probability that front and rear are taken for each other: 0 where nothing else is said,
            .5 where yaw is known modulo pi.
    """

    center: Tensor
    size: Tensor
    yaw: Tensor
    labels: tuple[str, ...]
    scores: Tensor = field(default=None)  # type: ignore[assignment]
    xyxy: Tensor = field(default=None)  # type: ignore[assignment]
    depth_std: Tensor = field(default=None)  # type: ignore[assignment]
    across_std: Tensor = field(default=None)  # type: ignore[assignment]
    yaw_std: Tensor = field(default=None)  # type: ignore[assignment]
    flip_odds: Tensor = field(default=None)  # type: ignore[assignment]

    def __post_init__(self) -> None:
        self.center = _floats(self.center, -1, 3)
        self.size = _floats(self.size, -1, 3)
        self.yaw = _floats(self.yaw, -1)
        self.labels = tuple(self.labels)
        unknown = self.center.new_full((len(self.center), 4), math.nan)
        self.scores = torch.ones_like(unknown[:, 0]) if self.scores is None else _floats(self.scores, -1)
        self.xyxy = unknown if self.xyxy is None else _floats(self.xyxy, -1, 4)
        self.depth_std = unknown[:, 0] if self.depth_std is None else _floats(self.depth_std, -1)
        self.across_std = unknown[:, :2] if self.across_std is None else _floats(self.across_std, -1, 2)
        self.yaw_std = unknown[:, 0] if self.yaw_std is None else _floats(self.yaw_std, -1)
        self.flip_odds = torch.zeros_like(unknown[:, 0]) if self.flip_odds is None else _floats(self.flip_odds, -1)
        _check_lengths(self, (*TENSORS, "labels"))

    @staticmethod
    def empty() -> Boxes3D:
        """No boxes."""
        return Boxes3D(torch.zeros(0, 3), torch.zeros(0, 3), torch.zeros(0), ())

    @staticmethod
    def from_kitti(
        location: Tensor, dimensions: Tensor, rotation_y: Tensor, labels: Sequence[str], **more: Tensor
    ) -> Boxes3D:
        """From KITTI's columns: location = bottom centre (x, y, z), dimensions = (h, w, l)."""
        location, dimensions = _floats(location, -1, 3), _floats(dimensions, -1, 3)
        half_height = torch.zeros_like(location)
        half_height[:, 1] = 0.5 * dimensions[:, 0]
        return Boxes3D(location - half_height, dimensions.flip(-1), rotation_y, tuple(labels), **more)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: Tensor | Sequence[int] | Sequence[bool] | slice) -> Boxes3D:
        """Boxes by a boolean mask, indices or a slice."""
        picked = _pick(len(self), index)
        at = picked.to(self.center.device)
        labels = tuple(self.labels[i] for i in picked.tolist())
        return Boxes3D(labels=labels, **{name: getattr(self, name)[at] for name in TENSORS})

    @property
    def heading_known(self) -> Tensor:
        """shape (N,), bool: whether yaw is a heading, and not only known modulo pi."""
        return self.flip_odds < 0.5

    @property
    def bottom(self) -> Tensor:
        """shape (N, 3), centres of the bottom faces: KITTI's location."""
        offset = torch.zeros_like(self.center)
        offset[:, 1] = 0.5 * self.size[:, 2]
        return self.center + offset

    @property
    def dimensions_hwl(self) -> Tensor:
        """shape (N, 3), KITTI's order (h, w, l)."""
        return self.size.flip(-1)

    @property
    def alpha(self) -> Tensor:
        """shape (N,), observation angles, radians."""
        return yaw_to_alpha(self.yaw, self.center)

    @property
    def corners(self) -> Tensor:
        """shape (N, 8, 3), camera frame, metres, in the fixed order of the diagram."""
        return box_corners(self.center, self.size, self.yaw)

    @property
    def bev(self) -> Tensor:
        """shape (N, 5), (x, z, l, w, yaw): the footprint seen from above, what :mod:`skd_core.iou` takes."""
        return torch.cat([self.center[:, [0, 2]], self.size[:, :2], self.yaw[:, None]], -1)

    @property
    def quaternion(self) -> Tensor:
        """shape (N, 4), (x, y, z, w), from the box's own axes to the camera frame, w >= 0."""
        return self.quaternion_from_yaw(self.yaw)

    @staticmethod
    def quaternion_from_yaw(yaw: Tensor) -> Tensor:
        """shape (N,) -> (N, 4), as :attr:`quaternion`, in the precision of ``yaw``.

        The rotation is ``Ry(yaw) Rx(pi/2)``: first the box's z up is laid on the camera's -y, then yaw about y.
        """
        c, s = torch.cos(0.5 * yaw), torch.sin(0.5 * yaw)
        q = math.sqrt(0.5) * torch.stack([c, s, -s, c], -1)
        return torch.where(q[:, 3:] < 0, -q, q)

    @staticmethod
    def yaw_from_quaternion(quaternion: Tensor) -> Tensor:
        """shape (N, 4) (x, y, z, w) -> (N,): yaw of the box's forward axis projected on the camera's x-z plane."""
        x, y, z, w = torch.as_tensor(quaternion).unbind(-1)
        forward_x, forward_z = 1 - 2 * (y * y + z * z), 2 * (x * z - w * y)
        return torch.atan2(-forward_z, forward_x)

    def project(self, camera: Camera) -> Boxes2D:
        """The 2D boxes around the projected corners, clipped to the image (KITTI's "amodal" 2D boxes)."""
        boxes = Boxes2D(project_boxes(camera.P, self.center, self.size, self.yaw), self.labels, self.scores)
        return boxes.clip(camera.width, camera.height)

    def moved(self, offset: Tensor) -> Boxes3D:
        """The same boxes in a frame of the same orientation: ``center + offset``, shape (3,), metres."""
        return replace(self, center=self.center + offset.to(self.center))

    def flip(self, width: float | None = None) -> Boxes3D:
        """In the world mirrored with :meth:`Camera.flip`; the 2D boxes follow if the image's width is given."""
        mirror = self.center.new_tensor([-1, 1, 1])
        unknown = torch.full_like(self.xyxy, math.nan)
        mirrored = unknown if width is None else Boxes2D(self.xyxy, self.labels).flip(width).xyxy
        return replace(self, center=self.center * mirror, yaw=wrap_angle(math.pi - self.yaw), xyxy=mirrored)

    def to(self, *args: object, **kwargs: object) -> Boxes3D:
        """As :meth:`torch.Tensor.to`, for every tensor."""
        return replace(self, **{name: getattr(self, name).to(*args, **kwargs) for name in TENSORS})


def _floats(values: object, *shape: int) -> Tensor:
    """A floating tensor of the shape: whole numbers would be truncated by every later change."""
    tensor = torch.as_tensor(values).reshape(shape)
    return tensor if tensor.is_floating_point() else tensor.to(torch.get_default_dtype())


def _pick(n: int, index: Tensor | Sequence[int] | Sequence[bool] | slice) -> Tensor:
    """Indices (on the CPU) into n boxes, of a mask, indices or a slice."""
    if isinstance(index, slice):
        return torch.arange(n)[index]
    at = torch.as_tensor(index).cpu()
    return torch.arange(n)[at if at.numel() else at.long()].reshape(-1)


def _check_lengths(boxes: object, names: Sequence[str]) -> None:
    lengths = {name: len(getattr(boxes, name)) for name in names}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"{type(boxes).__name__}: lengths differ: {lengths}")
