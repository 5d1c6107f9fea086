"""One frame: from a configuration, a seed and a number to a picture with exact labels.

Everything about frame n of seed s comes from ``Generator(PCG64([s, n]))``, so it depends neither on how many frames are
made nor on who makes them.

**Boxes have yaw only.** KITTI's boxes turn about the camera's y axis alone, while a pitched camera sees upright things
tilted. Objects are drawn in their label's box, upright in the *camera* frame, the middle of their bottom on the ground.
Pitch (with the road's slope) and roll are small (sd about 0.8 and 0.2 degrees), so wheels miss the ground by a few
centimetres at most, and the labels are exact.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from skd_core.camera import Camera
from skd_core.errors import UserError
from skd_core.synthetic import background, layout, raster, shading
from skd_core.synthetic.config import SynthConfig
from skd_core.synthetic.depth_noise import estimate_depth
from skd_core.synthetic.labels import RenderedFrame, Seen, label_frame
from skd_core.synthetic.layout_files import read_layout
from skd_core.synthetic.materials import ITEM
from skd_core.synthetic.mesh import Array
from skd_core.synthetic.objects import Thing
from skd_core.synthetic.raster import Triangles
from skd_core.synthetic.world import OVERCAST, Road, Scene, ground_height

FRAME_RATE = 10.0
"""Of sequences, Hz."""
DRIVE_SECONDS = 60.0
_SCENE, _SENSOR, _DRIVE = range(3)
"""What random numbers are for."""
_ORIGIN = np.zeros(3)


@dataclass(eq=False)
class _Placed:
    """A thing in the camera frame: its volume centre, metres, and yaw."""

    thing: Thing
    centre: Array
    yaw: float


def generator(seed: int, *path: int) -> np.random.Generator:
    """Random numbers for one purpose; what other frames and purposes draw does not disturb them."""
    return np.random.Generator(np.random.PCG64([seed, *path]))


def render_frame(config: SynthConfig, seed: int, frame: int) -> RenderedFrame:
    """Render frame ``frame`` (from 0) of the set that ``seed`` names.

    Raises:
        UserError: negative seed or frame, unusable label files in ``config.layouts``, a frame past the end of a drive.
    """
    if seed < 0 or frame < 0:
        raise UserError(f"seed and frame must not be negative, got {seed} and {frame}")
    time = frame / FRAME_RATE if config.sequence else 0.0
    if time >= DRIVE_SECONDS:
        last = DRIVE_SECONDS * FRAME_RATE
        raise UserError(f"frame {frame}: a drive has {last:.0f} frames; start another with a new seed")
    scene = _drive(config, seed) if config.sequence else still(config, seed, frame)
    return render_scene(config, scene, generator(seed, _SENSOR, frame), time)


def still(config: SynthConfig, seed: int, frame: int) -> Scene:
    """The scene of a frame on its own, from the same random numbers as :func:`render_frame`."""
    rng = generator(seed, _SCENE, frame)
    height = config.camera_height + config.height_sd * rng.standard_normal()
    if config.layouts is not None:
        return layout.around(read_layout(config.layouts, seed, frame), rng, config.shapes, height)
    pitch, roll = (math.radians(sd) * rng.standard_normal() for sd in (config.pitch_sd, config.roll_sd))
    return layout.invent(rng, config.shapes, height, pitch, roll)


@lru_cache(maxsize=2)
def _drive(config: SynthConfig, seed: int) -> Scene:
    """The one scene of a sequence, long enough for the fastest ego."""
    rng = generator(seed, _DRIVE)
    return layout.invent(rng, config.shapes, config.camera_height, 0.0, 0.0, length=11 * DRIVE_SECONDS)


def _place(scene: Scene, time: float) -> tuple[Road, list[_Placed]]:
    """The road with the ego's pose, and the things near the view in the camera frame, those with labels first."""
    s0, t0, psi = scene.ego
    s0 += scene.speed * time
    c, sn = math.cos(psi), math.sin(psi)
    # Things beside the view matter only for the shadows they throw into it.
    aside = 25.0 if scene.light.strength > OVERCAST else 1.0
    placed = []
    for thing in scene.things:
        s, t, heading = thing.at(time)
        ds, dt = s - s0, t - t0
        x, z = c * dt - sn * ds, sn * dt + c * ds
        radius = 0.5 * math.hypot(float(thing.size[0]), float(thing.size[1]))
        if z + radius < raster.NEAR or z - radius > background.GROUND_END or abs(x) > z + radius + aside:
            continue
        yaw = (heading - psi + 0.5 * math.pi) % (2 * math.pi) - math.pi
        bottom = ground_height(scene.ground, x, z) - thing.lift if thing.y is None else thing.y
        placed.append(_Placed(thing, np.array([x, bottom - 0.5 * thing.size[2], z]), yaw))
    placed.sort(key=lambda p: not p.thing.label)
    return scene.road._replace(s=s0, t=t0, cos=c, sin=sn), placed


def _triangles(placed: list[_Placed]) -> Triangles:
    shapes = [p.thing.template for p in placed]
    starts = np.cumsum([0, *(len(shape.faces) for shape in shapes)]).astype(np.int64)
    points, normals = np.empty((starts[-1], 3, 3)), np.empty((starts[-1], 3, 3))
    for p, shape, start in zip(placed, shapes, starts, strict=False):
        size, cos, sin = p.thing.size, math.cos(p.yaw), math.sin(p.yaw)
        raster.place_mesh(shape.fit(size)[shape.faces], p.centre, cos, sin, points[start:])
        raster.place_mesh(shape.fit_normals(size), _ORIGIN, cos, sin, normals[start:])
    material = np.concatenate([np.zeros(0, np.int64), *(shape.material for shape in shapes)])
    return Triangles(points, normals, material, starts)


def _items(placed: list[_Placed]) -> Array:
    """What the materials need to know of each thing, shape (O, ITEM)."""
    things = [p.thing for p in placed]
    rows = [np.concatenate([t.size, t.template.paint, t.palette.ravel()]) for t in things]
    return np.array(rows).reshape(-1, ITEM)


def _footprints(placed: list[_Placed]) -> Array:
    """Two triangles (2 N, 3, 3) over the ground under each road user, for the darkness beneath it."""
    corners = np.array([[1, 1, -0.8], [1, -1, -0.8], [-1, -1, -0.8], [-1, 1, -0.8]])
    users = [p for p in placed if p.thing.label]
    quads = np.empty((len(users), 4, 3))
    for quad, p in zip(quads, users, strict=True):
        raster.place_mesh((0.5 * p.thing.size * corners)[None], p.centre, math.cos(p.yaw), math.sin(p.yaw), quad[None])
    return quads[:, [[0, 1, 2], [0, 2, 3]]].reshape(-1, 3, 3)


def render_scene(config: SynthConfig, scene: Scene, rng: np.random.Generator, time: float = 0.0) -> RenderedFrame:
    """Render a scene ``time`` seconds into it; ``rng`` feeds the sensor's noise and the depth estimator's."""
    camera: Camera = config.camera
    P, shape = camera.P.numpy(), (config.height, config.width)
    road, placed = _place(scene, time)
    triangles = _triangles(placed)

    depth, zbuffer, kind = np.zeros(shape), np.zeros(shape), np.zeros(shape, np.int8)
    background.trace_ground(P, scene.ground, road, zbuffer, depth, kind)
    tri_ids, object_ids = np.full(shape, -1, np.int32), np.full(shape, -1, np.int32)
    solo, shown, tight = raster.rasterise(triangles.points, triangles.starts, P, zbuffer, tri_ids, object_ids)
    depth = np.where(object_ids >= 0, zbuffer, depth)

    thrown = triangles.points if scene.light.strength > OVERCAST else np.zeros((0, 3, 3))
    shadow = raster.rasterise_shadows(thrown, scene.light.sun, scene.ground, P, shape)
    contact = raster.rasterise_shadows(_footprints(placed), (0.0, -1.0, 0.0), scene.ground, P, shape)
    radiance, image = np.empty((*shape, 3)), np.empty((*shape, 3), np.uint8)
    centres = np.array([p.centre for p in placed]).reshape(-1, 3)
    turns = np.array([(math.cos(p.yaw), math.sin(p.yaw)) for p in placed]).reshape(-1, 2)
    seeds = np.array([p.thing.seed for p in placed], np.int64)
    shading.shade(
        P, road, scene.light, depth, kind, tri_ids, object_ids, triangles,
        centres, turns, _items(placed), seeds, shadow, contact, radiance,
    )  # fmt: skip
    shading.develop(radiance, scene.lens, int(rng.integers(1 << 30)), image)

    visible = shown / np.maximum(solo, 1)
    estimate = estimate_depth(depth, object_ids, visible, config.depth_noise, rng)
    seen = [
        Seen(p.thing.label, p.centre, p.thing.size, p.yaw, int(solo[o]), int(shown[o]), tight[o])
        for o, p in enumerate(placed)
    ]
    return label_frame(config, camera, seen, image, object_ids, depth, estimate)
