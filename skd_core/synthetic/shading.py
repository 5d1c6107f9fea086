"""Light on surfaces, and the camera's sensor (numba kernels).

Deferred shading: the rasteriser says which triangle a pixel shows and how deep; the point, its place in the object's
box and the normal follow from that. Only + - * / sqrt and integer hashes are used per pixel, which IEEE 754 fixes to
the bit, so pictures do not depend on the machine's maths library. Colours are linear; :func:`develop` makes them 8 bit.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from skd_core.synthetic.background import BACKDROP, KERB, SKY, sky_colour, street_colour
from skd_core.synthetic.materials import object_colour
from skd_core.synthetic.noise import clamp01, hash32, value_noise
from skd_core.synthetic.raster import Triangles
from skd_core.synthetic.world import Lens, Light, Road

FloatArray = NDArray[np.float64]


@njit(cache=True, error_model="numpy")
def normal_at(triangles: Triangles, t: int, x: float, y: float, z: float, out: FloatArray) -> None:
    """Normal of triangle t at a point in its plane: the corners' normals, blended and normalised."""
    a, normals = triangles.points, triangles.normals
    ux, uy, uz = a[t, 1, 0] - a[t, 0, 0], a[t, 1, 1] - a[t, 0, 1], a[t, 1, 2] - a[t, 0, 2]
    vx, vy, vz = a[t, 2, 0] - a[t, 0, 0], a[t, 2, 1] - a[t, 0, 1], a[t, 2, 2] - a[t, 0, 2]
    px, py, pz = x - a[t, 0, 0], y - a[t, 0, 1], z - a[t, 0, 2]
    uu, uv, vv = ux * ux + uy * uy + uz * uz, ux * vx + uy * vy + uz * vz, vx * vx + vy * vy + vz * vz
    pu, pv = px * ux + py * uy + pz * uz, px * vx + py * vy + pz * vz
    det = uu * vv - uv * uv
    if det > 0.0:
        b, c = clamp01((vv * pu - uv * pv) / det), clamp01((uu * pv - uv * pu) / det)
    else:
        b, c = 0.0, 0.0
    length = 0.0
    for k in range(3):
        out[k] = normals[t, 0, k] * (1 - b - c) + normals[t, 1, k] * b + normals[t, 2, k] * c
        length += out[k] * out[k]
    scale = 1.0 / math.sqrt(max(length, 1e-30))
    for k in range(3):
        out[k] *= scale


@njit(cache=True, error_model="numpy")
def illuminate(rgb: FloatArray, n: FloatArray, lit: float, dim: float, light: Light) -> None:
    """Albedo to radiance: sun, and skylight from above and light from the ground below."""
    sun = max(0.0, n[0] * light.sun[0] + n[1] * light.sun[1] + n[2] * light.sun[2]) * light.strength * lit
    up = 0.5 - 0.5 * n[1]
    for k in range(3):
        around = light.ambient * (up * (0.4 + 0.6 * light.zenith[k] / light.zenith[1]) + (1 - up) * 0.35)
        rgb[k] *= dim * (around + sun * (1.0 if k == 0 else 0.96 if k == 1 else 0.88))


@njit(cache=True, error_model="numpy")
def polish(
    rgb: FloatArray, n: FloatArray, dx: float, dy: float, gloss: float, light: Light, seed: int, sky: FloatArray
) -> None:
    """Add the mirrored sky (stronger at grazing angles) and the sun's glint; (dx, dy, 1) is the viewing ray."""
    norm = math.sqrt(dx * dx + dy * dy + 1.0)
    facing = clamp01(-(n[0] * dx + n[1] * dy + n[2]) / norm)
    rx, ry, rz = dx / norm + 2 * facing * n[0], dy / norm + 2 * facing * n[1], 1 / norm + 2 * facing * n[2]
    graze = (1 - facing) * (1 - facing) * (1 - facing)
    mirror = min(0.6, gloss * (0.04 + 0.35 * graze))
    sky_colour(rx + 3.0, max(0.0, -ry), light, seed, sky)
    glint = max(0.0, rx * light.sun[0] + ry * light.sun[1] + rz * light.sun[2])
    for _ in range(5):
        glint *= glint
    for k in range(3):
        rgb[k] += mirror * ((sky[k] if ry < 0.03 else 0.08) - rgb[k]) + min(gloss, 1.0) * 0.7 * glint * light.strength


@njit(cache=True, error_model="numpy")
def shade(
    P: FloatArray,
    road: Road,
    light: Light,
    depth: FloatArray,
    kind: Any,
    tri_ids: Any,
    object_ids: Any,
    triangles: Triangles,
    centres: FloatArray,
    turns: FloatArray,
    items: FloatArray,
    seeds: Any,
    shadow: Any,
    contact: Any,
    image: FloatArray,
) -> None:
    """Radiance of every pixel into ``image`` (H, W, 3).

    ``depth``, ``kind`` (of background), ``tri_ids``, ``object_ids`` (-1 = background), ``shadow`` and ``contact``
    (>= 0 = in the shade; beneath a road user) have shape (H, W). Of each object: ``centres`` (O, 3) in the camera
    frame, ``turns`` (O, 2) cosine and sine of yaw, ``items`` (O, ITEM) as in materials.py, ``seeds`` (O,).
    """
    height, width = depth.shape
    rgb, sky, n, p, local = np.empty(3), np.empty(3), np.empty(3), np.empty(3), np.empty(3)
    for v in range(height):
        oy, dy = ((v + 0.5) * P[2, 3] - P[1, 3]) / P[1, 1], (v + 0.5 - P[1, 2]) / P[1, 1]
        for u in range(width):
            ox, dx = ((u + 0.5) * P[2, 3] - P[0, 3]) / P[0, 0], (u + 0.5 - P[0, 2]) / P[0, 0]
            z, o = depth[v, u], object_ids[v, u]
            fp = z / P[0, 0]  # metres per pixel
            if o < 0 and kind[v, u] == SKY:
                sky_colour(dx, -dy, light, road.seed, rgb)
                image[v, u, 0], image[v, u, 1], image[v, u, 2] = rgb[0], rgb[1], rgb[2]
                continue
            gloss, lit, dim = 0.0, 1.0, 1.0
            n[0], n[1], n[2] = 0.0, -1.0, 0.0
            x, y = ox + dx * z, oy + dy * z
            if o >= 0:
                t = tri_ids[v, u]
                c, s = turns[o, 0], turns[o, 1]
                qx, qz = x - centres[o, 0], z - centres[o, 2]
                p[0], p[1] = c * qx - s * qz, s * qx + c * qz
                p[2] = centres[o, 1] - y + 0.5 * items[o, 2]
                normal_at(triangles, t, x, y, z, n)
                if n[0] * dx + n[1] * dy + n[2] > 0:  # faces are two-sided: turn the normal to the viewer
                    n[0], n[1], n[2] = -n[0], -n[1], -n[2]
                local[0], local[1], local[2] = c * n[0] - s * n[2], s * n[0] + c * n[2], -n[1]
                gloss = object_colour(triangles.material[t], p, local, items[o], seeds[o], fp, rgb)
                dim = 0.62 + 0.38 * clamp01(p[2] / 0.9)  # near the ground less of the sky is in view
            elif kind[v, u] == BACKDROP:
                a = 0.5 + 0.6 * value_noise(dx * 60, dy * 60, road.seed + 9)
                rgb[0], rgb[1], rgb[2] = 0.07 * a, 0.09 * a, 0.05 * a
            else:
                along, across = road.s - road.sin * x + road.cos * z, road.t + road.cos * x + road.sin * z
                street_colour(along, across, z, kind[v, u], road, fp, rgb)
                if kind[v, u] == KERB:
                    n[0], n[1] = -0.95 if x > 0 else 0.95, -0.3
                lit = 0.0 if shadow[v, u] >= 0 else 1.0
                dim = 0.45 if contact[v, u] >= 0 else 1.0
            illuminate(rgb, n, lit, dim, light)
            if gloss > 0.0:
                polish(rgb, n, dx, dy, gloss, light, road.seed, sky)
            fog = z / (z + light.haze)
            for k in range(3):
                image[v, u, k] = rgb[k] + fog * (light.horizon[k] - rgb[k])


@njit(cache=True, error_model="numpy")
def develop(image: FloatArray, lens: Lens, seed: int, out: Any) -> None:
    """Lens and sensor: 3x3 blur, exposure, gamma 2, noise, 8 bit into ``out`` (H, W, 3)."""
    height, width, _ = image.shape
    rows = np.empty((3, width, 3))  # row v, blurred along u, is rows[v % 3]
    side, mid = lens.blur, 1 - 2 * lens.blur
    for below in range(height + 1):
        v = below - 1
        if below < height:
            for u in range(width):
                left, right = max(u - 1, 0), min(u + 1, width - 1)
                for k in range(3):
                    rows[below % 3, u, k] = (
                        side * (image[below, left, k] + image[below, right, k]) + mid * image[below, u, k]
                    )
        if v < 0:
            continue
        above, here, under = max(v - 1, 0) % 3, v % 3, min(below, height - 1) % 3
        for u in range(width):
            for k in range(3):
                a = lens.exposure[k] * (side * (rows[above, u, k] + rows[under, u, k]) + mid * rows[here, u, k])
                a = a / (1 + 0.18 * a)  # highlights roll off
                bits = hash32(u * 3 + k, v, seed)
                grain = (bits & 255) + (bits >> 8 & 255) + (bits >> 16 & 255) + (bits >> 24)  # nearly normal
                level = 255.0 * math.sqrt(max(0.0, a)) + lens.noise * (grain - 510.0) / 147.8
                out[v, u, k] = int(min(255.0, max(0.0, level + 0.5)))
