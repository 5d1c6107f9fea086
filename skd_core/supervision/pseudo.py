"""Pseudo-targets: depth and yaw of an object from a depth map and its 2D box (method: Pseudo-targets) [ours].

After ideas of OVM3D-Det, WeakM3D, GGA and MonoSOWA. Nothing here sees a 3D label. The constants were set on rendered
scenes; `skd_core pseudo` shows what they give.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from skd_core.data.sample import Sample
from skd_core.geometry import geometric_depth, half_extent, mean_half_extent
from skd_core.priors import ClassPrior, prior_of

Floats = NDArray[np.float64]

VERSION = 3
"""Of the formulas below: cached targets of another version are made anew."""

POINTS = 128
"""Points kept per object for L_points."""

MIN_POINTS = 15
"""Pixels that an object's surface must have."""

SURFACE_TO_CENTER = ((0.95, 0.97), (0.80, 0.86), (0.50, 0.68), (0.0, 0.75))
"""k(a): (minimum |sin a|, share of e between the surface's median and the centre) (method: Pseudo-targets, Depth)."""

THIN = 1.0
"""Metres of width below which k is 0: estimators blur thin things into what is behind them, by about as much as their
surface is in front of their centre."""

DEPTH_ERROR = 0.05
"""Relative error of the surface depth where the estimator names none (method: Pseudo-targets, Fusion)."""

YAWS = np.radians(np.arange(-90.0, 90.0, 2.0))
"""The grid that yaw is fitted on, radians."""


@dataclass
class PseudoTargets:
    """One entry per 2D box of a sample; NaN where the depth map gave none.

    Attributes:
        z: shape (N,), fused depth of the volume centre as seen from the optical centre, metres.
        alpha: shape (N,), observation angle at the optical centre modulo pi, radians.
        alpha_weight: shape (N,), q_yaw in [0, 1], what cos 2(alpha - truth) is expected to be; 0 where alpha is NaN.
        points: shape (N, POINTS, 2), (x, z) of the visible surface, metres, NaN-padded; in the frame from which P
            projects, as boxes are.
    """

    z: Tensor
    alpha: Tensor
    alpha_weight: Tensor
    points: Tensor

    @staticmethod
    def none(count: int) -> PseudoTargets:
        """No target for any of the boxes: training without depth."""
        nan = torch.full((count,), math.nan)
        return PseudoTargets(nan, nan.clone(), torch.zeros(count), torch.full((count, POINTS, 2), math.nan))

    def __getitem__(self, index: Tensor) -> PseudoTargets:
        """Those of some of the boxes, by a boolean mask or indices."""
        return PseudoTargets(**{name: value[index] for name, value in vars(self).items()})

    def flip(self) -> PseudoTargets:
        """In the mirrored world."""
        return PseudoTargets(self.z, -self.alpha, self.alpha_weight, self.points * self.points.new_tensor([-1.0, 1.0]))


@dataclass
class _Object:
    """One 2D box, and what is made of it.

    Attributes:
        box: shape (4,), pixels; prior: of its class.
        cut, side: whether the box's top or bottom, its left or right edge is hidden: not the object's own.
        surface: shape (n, 3), visible points, metres, None if too few.
        alpha, weight: see :class:`PseudoTargets`.
        e: half the extent along the optical axis, metres.
    """

    box: Floats
    prior: ClassPrior
    cut: bool
    side: bool
    surface: Floats | None
    alpha: float
    weight: float
    e: float

    def geometric(self, P: Floats) -> float:
        """z_geo = f H / h2d + e, metres."""
        return box_depth(self.box, self.prior, P, self.e)

    def surface_depth(self, factor: float = 1.0) -> float | None:
        """z* (method: Pseudo-targets, Depth), surface scaled by ``factor``; None where the border hides too much."""
        if self.surface is None or (self.cut and self.side):
            return None
        if self.side:  # the median of what the border leaves says little; the nearest part is the nearest part
            return float(np.percentile(self.surface[:, 2], 5)) * factor + self.e
        table = ((0.0, 0.0),) if self.prior.size[1] < THIN else SURFACE_TO_CENTER
        k = next(k for min_sine, k in table if abs(math.sin(self.alpha)) >= min_sine)
        return float(np.median(self.surface[:, 2])) * factor + k * self.e


def pseudo_targets(sample: Sample, center_offset: bool = True) -> PseudoTargets:
    """The targets of one sample (method: Pseudo-targets), in metres and radians, whatever the size of the image.

    Args:
        sample: with its metric depth map; one without gives no targets.
        center_offset: False leaves z at the surface (a row of the ablation).
    """
    targets = PseudoTargets.none(len(sample.boxes2d))
    if sample.depth is None or len(targets.z) == 0:
        return targets
    P = sample.camera.centred().P.numpy()  # depth maps and angles are as the camera sees them
    origin = sample.camera.offset.numpy()[[0, 2]]
    objects = _objects(sample, P)
    factor = scale_factor([o.geometric(P) / z for o in objects if not o.cut and (z := o.surface_depth())])
    for i, each in enumerate(objects):
        if each.weight > 0:
            targets.alpha[i], targets.alpha_weight[i] = each.alpha, each.weight
        if each.surface is None:
            continue
        shift = factor
        z_surface = each.surface_depth(factor)
        if z_surface is not None:
            z_geometric = each.geometric(P)
            if not each.cut and abs(z_surface / z_geometric - 1) > 0.35:
                continue
            z = z_surface if each.cut else fuse(z_surface, DEPTH_ERROR, z_geometric, each.prior.geometric_error)
            targets.z[i] = z if center_offset else z - each.e
            shift *= z / z_surface  # onto the fused depth, along the rays
        chosen = np.linspace(0, len(each.surface) - 1, min(POINTS, len(each.surface))).astype(int)
        targets.points[i, : len(chosen)] = torch.from_numpy(each.surface[chosen][:, [0, 2]] * shift - origin).float()
    return targets


def _objects(sample: Sample, P: Floats) -> list[_Object]:
    assert sample.depth is not None
    depth = sample.depth.numpy().astype(np.float64)
    xyxy = sample.boxes2d.xyxy.numpy().astype(np.float64)
    ground = fit_ground(depth, xyxy, P)
    objects = []
    for i, label in enumerate(sample.boxes2d.labels):
        box, prior = xyxy[i], prior_of(label)
        side, cut = (bool(sample.hidden[i, edges].any()) for edges in ([0, 2], [1, 3]))
        surface = surface_points(depth, xyxy, i, prior, P, ground)
        seen = None if surface is None else surface[:, [0, 2]]
        alpha, weight = fit_alpha(seen, prior, box, P, whole=not (cut or side))
        yaw = alpha + ray_angle(box, P)
        size = torch.tensor(prior.size[::-1], dtype=torch.float64)
        e = float(half_extent(size, torch.tensor(yaw, dtype=torch.float64)))
        objects.append(_Object(box, prior, cut, side, surface, alpha, weight, e))
    return objects


def back_project(depth: Floats, P: Floats, columns: NDArray[np.int64], rows: NDArray[np.int64]) -> Floats:
    """(n, m) metres at the given pixel columns (m,) and rows (n,) -> (n, m, 3), camera frame; NaN where depth is 0."""
    z = np.where(depth > 0, depth, np.nan)
    x = ((columns + 0.5 - P[0, 2]) * z - P[0, 3]) / P[0, 0]
    y = ((rows[:, None] + 0.5 - P[1, 2]) * z - P[1, 3]) / P[1, 1]
    return np.stack([x, y, z], -1)


def fit_ground(depth: Floats, xyxy: Floats, P: Floats) -> Floats | None:
    """Ground plane ``y = a x + b z + c`` as (a, b, c) from the image's lower half outside the boxes; None if unseen.

    Least squares, re-fitted five times to points within 0.3 m x (1 + z/20): estimated depth errs more when far.

    Args:
        depth: shape (H, W), metres, 0 = unknown; xyxy: shape (N, 4), pixels.
    """
    H, W = depth.shape
    free = depth > 0
    for x1, y1, x2, y2 in xyxy.round().astype(int):
        free[max(y1, 0) : max(y2, 0), max(x1, 0) : max(x2, 0)] = False
    step = max(1, round(W / 400))
    rows, columns = np.arange(H // 2, H, step), np.arange(0, W, 2 * step)
    p = back_project(depth[np.ix_(rows, columns)], P, columns, rows)[free[np.ix_(rows, columns)]]
    p = p[(p[:, 2] < 40) & (p[:, 1] > 0.5)]  # below the camera
    if len(p) < 50:
        return None
    A = np.column_stack([p[:, 0], p[:, 2], np.ones(len(p))])
    plane: Floats = np.array([0.0, 0.0, np.median(p[:, 1])])
    for _ in range(5):
        near = np.abs(A @ plane - p[:, 1]) < 0.3 * (1 + p[:, 2] / 20)
        if near.sum() < 50:
            return None
        plane = np.linalg.solve(A[near].T @ A[near] + 1e-9 * np.eye(3), A[near].T @ p[near, 1])
    return plane


def surface_points(
    depth: Floats,
    xyxy: Floats,
    index: int,
    prior: ClassPrior,
    P: Floats,
    ground: Floats | None,
    *,
    min_points: int = MIN_POINTS,
) -> Floats | None:
    """(n, 3) points of the visible surface (method: Pseudo-targets, Surface), ``min_points`` <= n <= 500, or None.

    Pixels in the box shrunk by 10 %, minus those in nearer boxes, minus the ground; of these the nearest mode of log z.
    """
    H, W = depth.shape
    x1, y1, x2, y2 = xyxy[index]
    dx, dy = 0.05 * (x2 - x1), 0.05 * (y2 - y1)
    left, top, right, bottom = (round(v) for v in (x1 + dx, y1 + dy, x2 - dx, y2 - dy))
    left, top, right, bottom = max(left, 0), max(top, 0), min(right, W), min(bottom, H)
    if right - left < 2 or bottom - top < 2:
        return None
    patch = depth[top:bottom, left:right]
    mask = patch > 0
    for other, box in enumerate(xyxy):  # a nearer box is one whose bottom edge lies lower in the image
        if other != index and box[3] > y2 + 1:
            a, b, c, d = (round(v) for v in box)
            mask[max(b - top, 0) : max(d - top, 0), max(a - left, 0) : max(c - left, 0)] = False
    p = back_project(patch, P, np.arange(left, right), np.arange(top, bottom))[mask]
    if ground is not None:
        height = ground[0] * p[:, 0] + ground[1] * p[:, 2] + ground[2] - p[:, 1]
        p = p[height > 0.2]
    if len(p) < min_points:
        return None
    p = nearest_mode(p, max(1.0, prior.size[2]))
    chosen: Floats = p[np.linspace(0, len(p) - 1, min(500, len(p))).astype(int)]
    return chosen if len(p) >= min_points else None


def nearest_mode(points: Floats, reach: float, bandwidth: float = 0.04, min_share: float = 0.25) -> Floats:
    """The nearest mode of log z that holds at least a quarter of the points, with what lies within reach of it.

    Args:
        points: shape (n, 3); reach: metres along z; bandwidth: of log z; min_share: of the points.
    """
    log_z = np.log(points[:, 2])
    order = np.sort(log_z)
    window = 4 * bandwidth
    count = np.searchsorted(order, order + window, side="right") - np.arange(len(order))
    enough = count >= min_share * len(order)
    start = int(np.argmax(enough)) if enough.any() else int(np.argmax(count))
    # the densest window that begins inside the first one that holds enough
    inside = slice(start, start + int(count[start]))
    best = start + int(np.argmax(count[inside]))
    center = np.exp(np.median(order[best : best + int(count[best])]))
    near: Floats = points[np.abs(points[:, 2] - center) < reach]
    return near


def box_depth(box: Floats, prior: ClassPrior, P: Floats, e: float | None = None) -> float:
    """z_geo of a 2D box, metres; without ``e`` its average over all yaws."""
    extent = mean_half_extent(prior.size[::-1]) if e is None else e
    return geometric_depth(float(P[1, 1]), prior.size[0], max(float(box[3] - box[1]), 1.0), extent)


def ray_angle(box: Floats, P: Floats) -> float:
    """Angle from the optical axis to the box's centre, seen from above: yaw - alpha, radians."""
    return math.atan2(0.5 * (box[0] + box[2]) - P[0, 2], P[0, 0])


def scale_factor(ratios: Sequence[float]) -> float:
    """An image's scale (method: Pseudo-targets, Scale): the median of z_geo / z* in [.8, 1.25], blended by half.

    Args:
        ratios: z_geo / z* of the objects that have both; fewer than 3 give 1.
    """
    return 0.5 + 0.5 * float(np.clip(np.median(ratios), 0.8, 1.25)) if len(ratios) >= 3 else 1.0


def fuse(z_a: float, error_a: float, z_b: float, error_b: float) -> float:
    """Inverse-variance mean of two depths with relative errors."""
    a, b = 1 / (error_a * z_a) ** 2, 1 / (error_b * z_b) ** 2
    return (a * z_a + b * z_b) / (a + b)


def fit_alpha(points: Floats | None, prior: ClassPrior, box: Floats, P: Floats, whole: bool) -> tuple[float, float]:
    """Observation angle modulo pi from the 2D box's width and the points (method: Pseudo-targets, Yaw).

    Every yaw of a grid gets a cost: that of the box's width, which an average box at z_geo should have (15 % error; it
    tells |alpha| and never its sign), and that of the points, which should lie on the two faces turned to the camera
    and reach no farther than an average box. exp(-cost) is read as a distribution; alpha is its circular mean modulo
    pi, and q_yaw the length of the mean vector: 1 for a sharp peak, near 0 where two yaws explain the same picture.

    Args:
        points: shape (n, 2), (x, z), metres, or None.
        box: shape (4,), pixels.
        whole: the image border does not cut the box, so that its width and height mean something.

    Returns:
        alpha in [-pi/2, pi/2), radians, and q_yaw in [0, 1]; 0 for a footprint too square to have a direction.
    """
    l, w = prior.size[2], prior.size[1]  # noqa: E741
    if abs(l - w) < 0.5:
        return 0.0, 0.0
    cost = np.zeros(len(YAWS))
    if whole:
        cost += width_cost(prior, box, P)
    if points is not None:
        cost += surface_cost(points[:: max(1, len(points) // 150)], prior) * min(len(points) / 100, 1)
    likelihood = np.exp(cost.min() - cost)
    mean = (likelihood * np.exp(2j * (YAWS - ray_angle(box, P)))).sum() / likelihood.sum()
    return float((0.5 * np.angle(mean) + 0.5 * math.pi) % math.pi - 0.5 * math.pi), float(min(abs(mean), 1.0))


def width_cost(prior: ClassPrior, box: Floats, P: Floats, error: float = 0.15) -> Floats:
    """shape (YAWS,): how far the width of an average box at z_geo is from the 2D box's, in units of half a variance."""
    l, w = prior.size[2], prior.size[1]  # noqa: E741
    z = box_depth(box, prior, P)
    x = z * math.tan(ray_angle(box, P))
    forward, left = 0.5 * np.array([[l, l, -l, -l], [w, -w, -w, w]])[..., None]
    corner_z = np.maximum(z - forward * np.sin(YAWS) + left * np.cos(YAWS), 0.5)
    u = P[0, 0] * (x + forward * np.cos(YAWS) + left * np.sin(YAWS)) / corner_z  # (4, YAWS)
    deviation = np.log((u.max(0) - u.min(0)) / max(box[2] - box[0], 1.0)) / error
    cost: Floats = np.minimum(0.5 * deviation**2, 4.5)
    return cost


def surface_cost(points: Floats, prior: ClassPrior) -> Floats:
    """shape (YAWS,): how far the points are from the near faces of a box of each yaw, and how much they stick out.

    Depth maps get worse with range, and the cost with them weaker.

    Args:
        points: shape (n, 2), (x, z), metres.
    """
    l, w = prior.size[2], prior.size[1]  # noqa: E741
    # a box of yaw t has forward (cos t, -sin t) and left (sin t, cos t) in (x, z)
    axes = np.stack([[np.cos(YAWS), -np.sin(YAWS)], [np.sin(YAWS), np.cos(YAWS)]])  # (2 axes, 2, YAWS)
    along = points @ axes  # (2, n, YAWS)
    low, high = np.sort(along, 1)[:, [int(0.07 * len(points)), int(0.93 * (len(points) - 1))]].transpose(1, 0, 2)
    away = np.median(points, 0) @ axes > 0  # the face turned to the camera is the one with the smallest coordinate
    distance = np.abs(along - np.where(away, low, high)[:, None]).min(0)  # (n, YAWS)
    beyond = np.maximum((high - low) / np.array([[l], [w]]) - 1, 0).sum(0)
    cost: Floats = 40 * (distance / (distance + 0.1)).mean(0) + 5 * beyond
    return cost / (1 + (float(np.median(points[:, 1])) / 20) ** 2)
