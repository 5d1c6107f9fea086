"""The z-buffered triangle rasteriser (numba, float64, no fast-math: the same bits everywhere).

Depth is z along the optical axis of the camera frame. With KITTI's P the homogeneous scale is ``w = z + P[2,3]``; 1/w
is what varies linearly over the image, so that is what is interpolated. Pixel (i, j) is sampled at (i + .5, j + .5).
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from skd_core.synthetic.world import Ground, ground_height

NEAR = 0.2
"""Triangles are clipped at this depth (metres)."""

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int32]


class Triangles(NamedTuple):
    """All triangles of a frame, object after object, in the camera frame."""

    points: FloatArray  # (T, 3, 3), metres
    normals: FloatArray  # (T, 3, 3), one per corner, any sign and length
    material: NDArray[np.int64]  # (T,)
    starts: NDArray[np.int64]  # (O + 1,), object o owns triangles starts[o]..starts[o + 1]


@njit(cache=True, error_model="numpy")
def place_mesh(local: FloatArray, centre: FloatArray, cos: float, sin: float, out: FloatArray) -> None:
    """Points (N, M, 3) from a box's own axes to the camera frame, as :func:`skd_core.boxes.rotation_matrix` turns."""
    for i in range(local.shape[0]):
        for j in range(local.shape[1]):
            x, y, z = local[i, j, 0], local[i, j, 1], local[i, j, 2]
            out[i, j, 0] = centre[0] + cos * x + sin * y
            out[i, j, 1] = centre[1] - z
            out[i, j, 2] = centre[2] - sin * x + cos * y


@njit(cache=True, error_model="numpy")
def clip_near(tri: FloatArray, poly: FloatArray) -> int:
    """Clip a (3, 3) triangle at z = NEAR into ``poly`` (4, 3); returns the number of corners (0, 3 or 4)."""
    n = 0
    for i in range(3):
        j = (i + 1) % 3
        zi, zj = tri[i, 2], tri[j, 2]
        if zi >= NEAR:
            poly[n] = tri[i]
            n += 1
        if (zi >= NEAR) != (zj >= NEAR):
            t = (NEAR - zi) / (zj - zi)
            for k in range(2):
                poly[n, k] = tri[i, k] + t * (tri[j, k] - tri[i, k])
            poly[n, 2] = NEAR
            n += 1
    return n


@njit(cache=True, error_model="numpy")
def project_point(P: FloatArray, p: FloatArray, out: FloatArray) -> None:
    """``out`` = (u, v, 1/w)."""
    w = p[2] + P[2, 3]
    out[0] = (P[0, 0] * p[0] + P[0, 2] * p[2] + P[0, 3]) / w
    out[1] = (P[1, 1] * p[1] + P[1, 2] * p[2] + P[1, 3]) / w
    out[2] = 1.0 / w


@njit(cache=True, error_model="numpy")
def span(edge: float, step: float, lo: int, hi: int) -> tuple[int, int]:
    """Columns ``lo <= i < hi`` where ``edge + step * i >= 0``."""
    if step > 0.0:
        first = math.ceil(-edge / step)
        if first > lo:
            lo = int(min(first, hi))
    elif step < 0.0:
        last = math.floor(-edge / step)
        if last < hi - 1:
            hi = int(max(last + 1, lo))
    elif edge < 0.0:
        hi = lo
    return lo, hi


@njit(cache=True, error_model="numpy")
def fill(
    a: FloatArray,
    b: FloatArray,
    c: FloatArray,
    P23: float,
    value: int,
    stamp: int,
    stamps: IntArray,
    depth: FloatArray,
    ids: IntArray,
    box: IntArray,
) -> None:
    """One projected triangle (u, v, 1/w) into the scratch buffers; ``box`` = (u0, v0, u1, v1) grows to hold it."""
    height, width = stamps.shape
    area = (b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0])
    if area == 0.0:
        return
    sign = 1.0 if area > 0.0 else -1.0
    v_low, v_high = min(a[1], b[1], c[1]), max(a[1], b[1], c[1])
    u_low, u_high = min(a[0], b[0], c[0]), max(a[0], b[0], c[0])
    if v_high < 0.0 or u_high < 0.0 or v_low > height or u_low > width:
        return
    v0, v1 = max(0, math.floor(v_low)), min(height, math.ceil(v_high))
    u0, u1 = max(0, math.floor(u_low)), min(width, math.ceil(u_high))
    # 1/w = q0 + qu (u - a_u) + qv (v - a_v)
    qu = ((b[2] - a[2]) * (c[1] - a[1]) - (c[2] - a[2]) * (b[1] - a[1])) / area
    qv = ((c[2] - a[2]) * (b[0] - a[0]) - (b[2] - a[2]) * (c[0] - a[0])) / area
    for v in range(v0, v1):
        y = v + 0.5
        lo, hi = u0, u1
        # Edge functions at u = .5, and their step per column.
        lo, hi = span(sign * ((b[0] - a[0]) * (y - a[1]) - (b[1] - a[1]) * (0.5 - a[0])), -sign * (b[1] - a[1]), lo, hi)
        lo, hi = span(sign * ((c[0] - b[0]) * (y - b[1]) - (c[1] - b[1]) * (0.5 - b[0])), -sign * (c[1] - b[1]), lo, hi)
        lo, hi = span(sign * ((a[0] - c[0]) * (y - c[1]) - (a[1] - c[1]) * (0.5 - c[0])), -sign * (a[1] - c[1]), lo, hi)
        if lo >= hi:
            continue
        row = a[2] + qv * (y - a[1]) + qu * (0.5 - a[0])
        for u in range(lo, hi):
            q = row + qu * u
            if q <= 0.0:
                continue
            z = 1.0 / q - P23
            if stamps[v, u] != stamp or z < depth[v, u]:
                stamps[v, u] = stamp
                depth[v, u] = z
                ids[v, u] = value
        box[0], box[1] = min(box[0], lo), min(box[1], v)
        box[2], box[3] = max(box[2], hi), max(box[3], v + 1)


@njit(cache=True, error_model="numpy")
def rasterise(
    triangles: FloatArray,
    starts: NDArray[np.int64],
    P: FloatArray,
    zbuffer: FloatArray,
    tri_ids: IntArray,
    object_ids: IntArray,
) -> tuple[NDArray[np.int64], NDArray[np.int64], IntArray]:
    """Draw objects one by one: each alone into a scratch buffer, then into the picture.

    Args:
        triangles: shape (T, 3, 3), camera frame, metres.
        starts: shape (O + 1,), object o owns triangles starts[o]..starts[o + 1].
        P: shape (3, 4).
        zbuffer: shape (H, W), metres; read and lowered.
        tri_ids, object_ids: shape (H, W); written where an object is nearest.

    Returns:
        solo (O,): pixels each object would show alone; shown (O,): pixels it shows; boxes (O, 4): tight box
        (u0, v0, u1, v1) of the solo pixels, u1 <= u0 where there are none.
    """
    height, width = zbuffer.shape
    n = len(starts) - 1
    solo, shown = np.zeros(n, np.int64), np.zeros(n, np.int64)
    boxes = np.empty((n, 4), np.int32)
    stamps = np.full((height, width), -1, np.int32)
    depth, ids = np.empty((height, width)), np.empty((height, width), np.int32)
    poly, uv = np.empty((4, 3)), np.empty((4, 3))
    for o in range(n):
        box = boxes[o]
        box[0], box[1], box[2], box[3] = width, height, 0, 0
        for t in range(starts[o], starts[o + 1]):
            corners = clip_near(triangles[t], poly)
            for i in range(corners):
                project_point(P, poly[i], uv[i])
            for i in range(2, corners):
                fill(uv[0], uv[i - 1], uv[i], P[2, 3], t, o, stamps, depth, ids, box)
        for v in range(box[1], box[3]):
            for u in range(box[0], box[2]):
                if stamps[v, u] == o:
                    solo[o] += 1
                    if depth[v, u] < zbuffer[v, u]:
                        zbuffer[v, u] = depth[v, u]
                        tri_ids[v, u] = ids[v, u]
                        object_ids[v, u] = o
    for v in range(height):
        for u in range(width):
            if object_ids[v, u] >= 0:
                shown[object_ids[v, u]] += 1
    return solo, shown, boxes


@njit(cache=True, error_model="numpy")
def rasterise_shadows(
    triangles: FloatArray, sun: tuple[float, float, float], g: Ground, P: FloatArray, shape: tuple[int, int]
) -> Any:
    """Mask, shape (H, W): ground pixels that the triangles shade, thrown along ``sun`` (towards the sun, y < 0)."""
    stamps = np.full(shape, -1, np.int32)
    depth, ids = np.empty(shape), np.empty(shape, np.int32)
    poly, uv, thrown = np.empty((4, 3)), np.empty((4, 3)), np.empty((3, 3))
    box = np.zeros(4, np.int32)
    for t in range(len(triangles)):
        for i in range(3):
            x, y, z = triangles[t, i, 0], triangles[t, i, 1], triangles[t, i, 2]
            k = 0.0
            for _ in range(2):
                k = max(0.0, (ground_height(g, x - k * sun[0], z - k * sun[2]) - y) / -sun[1])
            thrown[i, 0], thrown[i, 2] = x - k * sun[0], z - k * sun[2]
            thrown[i, 1] = ground_height(g, thrown[i, 0], thrown[i, 2])
        corners = clip_near(thrown, poly)
        for i in range(corners):
            project_point(P, poly[i], uv[i])
        for i in range(2, corners):
            fill(uv[0], uv[i - 1], uv[i], P[2, 3], t, 0, stamps, depth, ids, box)
    return stamps
