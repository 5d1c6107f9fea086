"""Pseudo-targets: where an estimated depth map and a 2D box put an object (METHOD 5 [ours]).

After ideas of OVM3D-Det, WeakM3D, GGA and MonoSOWA. Nothing here sees a 3D label.
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
from skd_core.supervision.priors import ClassPrior, prior_of

Floats = NDArray[np.float64]

POINTS = 128
"""Points kept per object for L_points."""

SURFACE_TO_CENTER = ((0.95, 0.97), (0.80, 0.86), (0.50, 0.68), (0.0, 0.75))
"""k(a): (least |sin a|, share of e between the median of the visible surface and the centre), real cars (METHOD 5.2)."""

DEPTH_ERROR = 0.05
"""Relative error of the surface depth where the estimator names none (METHOD 5.4)."""


@dataclass
class PseudoTargets:
    """One entry per 2D box of a sample; NaN where the depth map gave none.

    Attributes:
        z: shape (N,), fused depth of the volume centre, metres.
        alpha: shape (N,), observation angle modulo pi, radians.
        alpha_weight: shape (N,), q_yaw in [0, 1]; 0 where alpha is NaN.
        points: shape (N, POINTS, 2), (x, z) of the visible surface, camera frame, metres; NaN-padded.
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

    def flip(self) -> PseudoTargets:
        """In the mirrored world."""
        return PseudoTargets(self.z, -self.alpha, self.alpha_weight, self.points * self.points.new_tensor([-1.0, 1.0]))


def pseudo_targets(sample: Sample, center_offset: bool = True) -> PseudoTargets:
    """METHOD 5 for one sample.

    Args:
        sample: with its depth map; one without gives no targets.
        center_offset: False leaves z at the surface (an ablation; METHOD 2 (a)).
    """
    boxes = sample.boxes2d
    targets = PseudoTargets.none(len(boxes))
    if sample.depth is None or len(boxes) == 0:
        return targets
    depth = sample.depth.numpy().astype(np.float64)
    xyxy = boxes.xyxy.numpy().astype(np.float64)
    P = sample.camera.P.numpy()
    priors = [prior_of(name) for name in boxes.labels]
    points = depth_points(depth, P)  # (H, W, 3)
    ground = fit_ground(points, xyxy)

    surfaces = [surface_points(points, xyxy, i, priors, P, ground) for i in range(len(boxes))]
    geometric = np.array([geometric_depth(xyxy[i], priors[i], P) for i in range(len(boxes))])
    factor = scale_factor(surfaces, geometric, xyxy, depth.shape[0])
    for i, surface in enumerate(surfaces):
        if surface is None:
            continue
        surface = surface * factor
        prior = priors[i]
        yaw, weight = fit_yaw(surface[:, [0, 2]], prior, xyxy[i], P)
        ray = math.atan2(0.5 * (xyxy[i, 0] + xyxy[i, 2]) - P[0, 2], P[0, 0])
        alpha = (yaw - ray + 0.5 * math.pi) % math.pi - 0.5 * math.pi
        h, w, l = prior.size  # noqa: E741 (the field's name)
        e = 0.5 * (l * abs(math.sin(yaw)) + w * abs(math.cos(yaw)))
        k = next(k for least, k in SURFACE_TO_CENTER if abs(math.sin(alpha)) >= least)
        z_surface = float(np.median(surface[:, 2])) + (k * e if center_offset else 0.0)
        cut = touches_vertically(xyxy[i], depth.shape[0])
        z_geometric = P[1, 1] * h / (xyxy[i, 3] - xyxy[i, 1]) + (e if center_offset else 0.0)
        if not cut and abs(z_surface / z_geometric - 1) > 0.35:
            continue
        z = z_surface if cut else fuse(z_surface, DEPTH_ERROR, z_geometric, prior.geometric_error)
        targets.z[i] = z
        targets.alpha[i], targets.alpha_weight[i] = alpha, weight
        shifted = surface[:, [0, 2]] * (z / z_surface)  # onto the fused depth, along the rays
        chosen = np.linspace(0, len(shifted) - 1, min(POINTS, len(shifted))).astype(int)
        targets.points[i, : len(chosen)] = torch.from_numpy(shifted[chosen]).float()
    return targets


def depth_points(depth: Floats, P: Floats) -> Floats:
    """(H, W) metres -> (H, W, 3), camera frame; NaN where depth is 0."""
    H, W = depth.shape
    z = np.where(depth > 0, depth, np.nan)
    x = ((np.arange(W) + 0.5 - P[0, 2]) * z - P[0, 3]) / P[0, 0]
    y = ((np.arange(H)[:, None] + 0.5 - P[1, 2]) * z - P[1, 3]) / P[1, 1]
    return np.stack([x, y, z], -1)


def fit_ground(points: Floats, xyxy: Floats) -> Floats | None:
    """Ground plane ``y = a x + b z + c`` as (a, b, c) from the lower half of the image outside the boxes; None if unseen.

    Least squares, re-fitted five times to points within 0.3 m x (1 + z/20): estimated depth errs more when far.
    """
    H, W = points.shape[:2]
    free = np.ones((H, W), bool)
    free[: H // 2] = False
    for x1, y1, x2, y2 in xyxy.round().astype(int):
        free[max(y1, 0) : max(y2, 0), max(x1, 0) : max(x2, 0)] = False
    p = points[free]
    p = p[np.isfinite(p[:, 2]) & (p[:, 2] < 40)][::7]
    p = p[p[:, 1] > 0.5]  # below the camera
    if len(p) < 50:
        return None
    A = np.column_stack([p[:, 0], p[:, 2], np.ones(len(p))])
    plane = np.array([0.0, 0.0, np.median(p[:, 1])])
    for _ in range(5):
        near = np.abs(A @ plane - p[:, 1]) < 0.3 * (1 + p[:, 2] / 20)
        if near.sum() < 50:
            return None
        plane = np.linalg.lstsq(A[near], p[near, 1], rcond=None)[0]
    return plane


def surface_points(
    points: Floats, xyxy: Floats, index: int, priors: Sequence[ClassPrior], P: Floats, ground: Floats | None
) -> Floats | None:
    """METHOD 5.1: (n, 3) points of the object's visible surface, 30 <= n <= 500, or None.

    Pixels in the box shrunk by 10 %, minus those in nearer boxes, minus the ground; of these the nearest mode of log z.
    """
    H, W = points.shape[:2]
    x1, y1, x2, y2 = xyxy[index]
    dx, dy = 0.05 * (x2 - x1), 0.05 * (y2 - y1)
    left, top, right, bottom = (round(v) for v in (x1 + dx, y1 + dy, x2 - dx, y2 - dy))
    left, top, right, bottom = max(left, 0), max(top, 0), min(right, W), min(bottom, H)
    if right - left < 2 or bottom - top < 2:
        return None
    mask = np.ones((bottom - top, right - left), bool)
    for other, box in enumerate(xyxy):  # a nearer box is one whose bottom edge lies lower in the image
        if other != index and box[3] > y2 + 1:
            a, b, c, d = (round(v) for v in box)
            mask[max(b - top, 0) : max(d - top, 0), max(a - left, 0) : max(c - left, 0)] = False
    p = points[top:bottom, left:right][mask]
    p = p[np.isfinite(p[:, 2])]
    if ground is not None and len(p):
        height = ground[0] * p[:, 0] + ground[1] * p[:, 2] + ground[2] - p[:, 1]
        p = p[height > 0.2]
    if len(p) < 30:
        return None
    p = nearest_mode(p, max(1.0, priors[index].size[2]))
    if len(p) < 30:
        return None
    return p[np.linspace(0, len(p) - 1, min(500, len(p))).astype(int)]


def nearest_mode(points: Floats, reach: float, bandwidth: float = 0.04, least: float = 0.25) -> Floats:
    """The nearest mode of log z that holds at least a quarter of the points, with what lies within reach of it.

    Args:
        points: shape (n, 3); reach: metres along z; bandwidth: of log z; least: share of the points.
    """
    log_z = np.log(points[:, 2])
    order = np.sort(log_z)
    window = 4 * bandwidth
    count = np.searchsorted(order, order + window, side="right") - np.arange(len(order))
    enough = count >= least * len(order)
    start = int(np.argmax(enough)) if enough.any() else int(np.argmax(count))
    # the densest window that begins inside the first one that holds enough
    inside = slice(start, start + int(count[start]))
    best = start + int(np.argmax(count[inside]))
    center = np.exp(np.median(order[best : best + int(count[best])]))
    return points[np.abs(points[:, 2] - center) < reach]


def touches_vertically(box: Floats, height: int, border: float = 3.0) -> bool:
    """The box's top or bottom is cut by the image border, so its height means nothing."""
    return bool(box[1] < border or box[3] > height - border)


def geometric_depth(box: Floats, prior: ClassPrior, P: Floats) -> float:
    """``f_y H / h2d + e`` with e averaged over all yaws, metres."""
    h, w, l = prior.size  # noqa: E741
    return float(P[1, 1] * h / max(box[3] - box[1], 1.0) + (l + w) / math.pi)


def scale_factor(surfaces: Sequence[Floats | None], geometric: Floats, xyxy: Floats, height: int) -> float:
    """METHOD 5.5: per-image factor ``median(z_geo / z*)`` over at least 3 objects, in [.8, 1.25], blended by half."""
    ratios = [
        geometric[i] / (float(np.median(s[:, 2])) + 1.2)  # 1.2 m: an average way from the surface to the centre
        for i, s in enumerate(surfaces)
        if s is not None and not touches_vertically(xyxy[i], height)
    ]
    if len(ratios) < 3:
        return 1.0
    return 0.5 + 0.5 * float(np.clip(np.median(ratios), 0.8, 1.25))


def fuse(z_a: float, error_a: float, z_b: float, error_b: float) -> float:
    """Inverse-variance mean of two depths with relative errors."""
    a, b = 1 / (error_a * z_a) ** 2, 1 / (error_b * z_b) ** 2
    return (a * z_a + b * z_b) / (a + b)


def fit_yaw(points: Floats, prior: ClassPrior, box: Floats, P: Floats) -> tuple[float, float]:
    """METHOD 5.3: rectangle fit seen from above by the surface-closeness criterion.

    Args:
        points: shape (n, 2), (x, z), metres; box: shape (4,), pixels.

    Returns:
        yaw modulo pi, radians, and its confidence q_yaw in [0, 1].
    """
    h, w, l = prior.size  # noqa: E741
    angles = np.radians(np.arange(90.0))
    # a box of yaw t has forward (cos t, -sin t) and left (sin t, cos t) in (x, z)
    along = points[:, 0, None] * np.cos(angles) - points[:, 1, None] * np.sin(angles)  # (n, 90)
    across = points[:, 0, None] * np.sin(angles) + points[:, 1, None] * np.cos(angles)
    (a_low, a_high), (c_low, c_high) = np.percentile(along, (10, 90), 0), np.percentile(across, (10, 90), 0)
    d_along = np.minimum(np.abs(along - a_low), np.abs(a_high - along))
    d_across = np.minimum(np.abs(across - c_low), np.abs(c_high - across))
    score = (1 / np.maximum(np.minimum(d_along, d_across), 0.05)).mean(0)  # (90,)
    best = int(np.argmax(score))
    extent_along, extent_across = float(a_high[best] - a_low[best]), float(c_high[best] - c_low[best])
    candidates = [angles[best], angles[best] + 0.5 * math.pi]
    if max(extent_along, extent_across) >= 0.65 * l:
        yaw = candidates[0] if extent_along >= extent_across else candidates[1]
    else:
        center = points.mean(0)
        costs = [projection_cost(t, center, prior, box, P) for t in candidates]
        yaw = candidates[int(np.argmin(costs))]
    away = np.abs((np.arange(90) - best + 45) % 90 - 45) > 15
    margin = float((score[best] - score[away].max()) / score[best])
    distance = float(np.median(points[:, 1]))
    weight = float(np.clip(4 * margin, 0, 1)) if len(points) >= 50 and distance < 40 else 0.0
    return float((yaw + 0.5 * math.pi) % math.pi - 0.5 * math.pi), weight


def projection_cost(yaw: float, surface: Floats, prior: ClassPrior, box: Floats, P: Floats) -> float:
    """How far the width of an average box of this yaw, its surface at the points, is from the 2D box's (relative)."""
    h, w, l = prior.size  # noqa: E741
    direction = surface / max(float(np.linalg.norm(surface)), 1e-6)
    half = 0.5 * (l * abs(math.sin(yaw)) + w * abs(math.cos(yaw)))
    x, z = surface + direction * half
    corners = np.array([[l, w], [l, -w], [-l, -w], [-l, w]]) * 0.5
    cx = x + corners[:, 0] * math.cos(yaw) + corners[:, 1] * math.sin(yaw)
    cz = np.maximum(z - corners[:, 0] * math.sin(yaw) + corners[:, 1] * math.cos(yaw), 0.5)
    u = P[0, 0] * cx / cz
    return float(abs(u.max() - u.min() - (box[2] - box[0])) / max(box[2] - box[0], 1.0))
