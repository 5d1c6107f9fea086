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
import re
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Literal, cast, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from skd_core.boxes import Boxes2D, Boxes3D, project_boxes
from skd_core.camera import Camera
from skd_core.data.synthetic import layout, raster, shading
from skd_core.data.synthetic.depth_noise import DepthNoise, estimate_depth
from skd_core.data.synthetic.objects import Shapes, Thing
from skd_core.errors import UserError

Array = NDArray[np.float64]
BoxStyle = Literal["amodal", "tight"]

KITTI_SIZE = (1242, 375)
KITTI_P2 = ((721.5377, 0.0, 609.5593, 44.85728), (0.0, 721.5377, 172.854, 0.2163791), (0.0, 0.0, 1.0, 0.002745884))
"""The calibration of 2011_09_26, the commonest in KITTI."""
FRAME_RATE = 10.0
"""Of sequences, Hz."""
MAX_SEQUENCE_SECONDS = 60.0
MIN_VISIBLE, MIN_PIXELS = 0.10, 12
"""Objects that show less (share of their own pixels in the image; pixels of a 640x192 picture) become DontCare."""


@dataclass(frozen=True)
class SynthConfig:
    """What to render.

    Attributes:
        width, height: of the pictures. The camera is KITTI's, centrally cropped to the aspect and scaled.
        depth_noise: the simulated estimator, see depth_noise.py.
        boxes: 2D boxes ``amodal`` (projected 3D box clipped to the image, as KITTI's) or ``tight`` (around the pixels
            the object would show alone).
        shapes: body shapes, see objects.py.
        layouts: folder of KITTI label files to place objects by, None to invent streets.
        sequence: frames are consecutive, 10 Hz, of one drive.
        camera_height: metres; height_sd, pitch_sd, roll_sd: its jitter (metres, degrees, degrees).
    """

    width: int = 640
    height: int = 192
    depth_noise: DepthNoise = field(default_factory=DepthNoise)
    boxes: BoxStyle = "amodal"
    shapes: Shapes = "train"
    layouts: Path | None = None
    sequence: bool = False
    camera_height: float = 1.65
    height_sd: float = 0.05
    pitch_sd: float = 0.4
    roll_sd: float = 0.2

    def __post_init__(self) -> None:
        if not (64 <= self.width <= 4096 and 32 <= self.height <= 4096):
            raise UserError(f"--size {self.width}x{self.height}: width must be 64..4096 and height 32..4096")
        if not 0 <= self.depth_noise.level <= 0.5:
            raise UserError(
                f"--depth-noise {self.depth_noise.level:g}: must be 0..0.5 (relative error; .06 is a good estimator)"
            )
        if self.layouts is not None and self.sequence:
            raise UserError("--layouts and --sequence exclude each other: label files are single frames")

    @property
    def camera(self) -> Camera:
        """KITTI's camera for this size."""
        camera = Camera(torch.tensor(KITTI_P2, dtype=torch.float64), *KITTI_SIZE)
        width = min(KITTI_SIZE[0], round(KITTI_SIZE[1] * self.width / self.height))
        height = min(KITTI_SIZE[1], round(KITTI_SIZE[0] * self.height / self.width))
        x0, y0 = (KITTI_SIZE[0] - width) // 2, (KITTI_SIZE[1] - height) // 2
        return camera.crop(x0, y0, width, height).resize(self.width, self.height)


def parse_config(
    size: str, depth_noise: float, boxes: str, shapes: str, layouts: Path | None, sequence: bool
) -> SynthConfig:
    """A configuration from the command line's words.

    Raises:
        UserError: names the option and what it takes.
    """
    match = re.fullmatch(r"(\d+)x(\d+)", size)
    if match is None:
        raise UserError(f"--size {size}: must be WIDTHxHEIGHT, e.g. 640x192")
    if boxes not in get_args(BoxStyle):
        raise UserError(f"--boxes {boxes}: must be one of {', '.join(get_args(BoxStyle))}")
    if shapes not in get_args(Shapes):
        raise UserError(f"--shapes {shapes}: must be one of {', '.join(get_args(Shapes))}")
    return SynthConfig(
        int(match[1]),
        int(match[2]),
        DepthNoise(depth_noise),
        cast(BoxStyle, boxes),
        cast(Shapes, shapes),
        layouts,
        sequence,
    )


@dataclass(eq=False)
class RenderedFrame:
    """A picture and all that is known about it. The N labelled objects come first in every per-object field.

    Attributes:
        image: shape (H, W, 3), uint8, RGB.
        camera: its camera.
        boxes3d: N boxes, float64; ``xyxy`` holds boxes2d's.
        boxes2d: N boxes, pixels, clipped to the image.
        truncation: shape (N,), 0..1, share of the amodal 2D box outside the image.
        occlusion: shape (N,), KITTI's level: 0 visible share >= .8, 1 >= .4, 2 below.
        visible: shape (N,), pixels shown / pixels the object would show alone in this image.
        dont_care: boxes of objects too hidden or too small to be labelled.
        object_ids: shape (H, W), int32: 0..N-1 labelled object, -1 background, -2 any other object.
        depth_true: shape (H, W), metres along the optical axis, 0 = sky.
        depth: the simulated estimator's map, 0 = sky.
    """

    image: NDArray[np.uint8]
    camera: Camera
    boxes3d: Boxes3D
    boxes2d: Boxes2D
    truncation: Array
    occlusion: NDArray[np.int64]
    visible: Array
    dont_care: Boxes2D
    object_ids: NDArray[np.int32]
    depth_true: Array
    depth: Array


@dataclass(eq=False)
class _Placed:
    """A thing in the camera frame."""

    thing: Thing
    centre: Array
    yaw: float


def generator(seed: int, *path: int) -> np.random.Generator:
    """The random numbers of one frame (or of a whole drive)."""
    return np.random.Generator(np.random.PCG64([seed, *path]))


def render_frame(config: SynthConfig, seed: int, frame: int) -> RenderedFrame:
    """Render frame ``frame`` (from 0) of the set that ``seed`` names.

    Raises:
        UserError: negative seed or frame, unusable label files in ``config.layouts``, a frame past the end of a drive.
    """
    if seed < 0 or frame < 0:
        raise UserError(f"seed and frame must not be negative, got {seed} and {frame}")
    rng = generator(seed, 1, frame)
    scene = _scene(config, seed, frame)
    time = frame / FRAME_RATE if config.sequence else 0.0
    return render_scene(config, scene, rng, time)


def _scene(config: SynthConfig, seed: int, frame: int) -> layout.Scene:
    if config.sequence:
        if frame >= MAX_SEQUENCE_SECONDS * FRAME_RATE:
            last = MAX_SEQUENCE_SECONDS * FRAME_RATE
            raise UserError(f"frame {frame}: a drive has {last:.0f} frames; start another with a new seed")
        return _drive(config, seed)
    rng = generator(seed, 0, frame)
    height = config.camera_height + config.height_sd * rng.standard_normal()
    if config.layouts is not None:
        return layout.around(_read_layout(config.layouts, seed, frame), rng, config.shapes, height)
    pitch, roll = np.radians([config.pitch_sd, config.roll_sd]) * rng.standard_normal(2)
    return layout.invent(rng, config.shapes, height, pitch, roll)


@lru_cache(maxsize=2)
def _drive(config: SynthConfig, seed: int) -> layout.Scene:
    """The one scene of a sequence."""
    rng = generator(seed, 2)
    return layout.invent(rng, config.shapes, config.camera_height, 0.0, 0.0, length=MAX_SEQUENCE_SECONDS * 11)


@lru_cache(maxsize=4)
def _layout_files(folder: Path) -> tuple[Path, ...]:
    if not folder.is_dir():
        raise UserError(f"--layouts {folder}: no such folder; give a folder of KITTI label files (label_2)")
    files = tuple(sorted(folder.glob("*.txt")))
    if not files:
        raise UserError(f"--layouts {folder}: holds no label files (*.txt)")
    return files


def _read_layout(folder: Path, seed: int, frame: int) -> list[tuple[str, Array, Array, float]]:
    """The rows of the frame's label file; the folder is gone through in an order shuffled by the seed in each round."""
    files = _layout_files(folder)
    order = generator(seed, 3, frame // len(files)).permutation(len(files))
    path = files[int(order[frame % len(files)])]
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        words = line.split()
        if not words or words[0] == "DontCare":
            continue
        try:
            values = np.array([float(w) for w in words[8:15]])
        except ValueError:
            values = np.zeros(0)
        if len(values) != 7 or not (values[:3] > 0).all() or not np.isfinite(values).all():
            raise UserError(f"{path}:{number}: not a KITTI label (needs 15 columns, sizes above 0, no NaN)")
        rows.append((words[0], values[:3], values[3:6], float(values[6])))
    return rows


def _place(scene: layout.Scene, time: float) -> tuple[Array, list[_Placed]]:
    """The road array with the ego's pose, and the things near the view in the camera frame (label carriers first)."""
    s0, t0, psi = scene.ego
    s0 += scene.speed * time
    c, sn = math.cos(psi), math.sin(psi)
    road = scene.road.copy()
    road[[shading.S0, shading.T0, shading.COS, shading.SIN]] = s0, t0, c, sn
    placed = []
    for thing in scene.things:
        s, t, heading = thing.at(time)
        ds, dt = s - s0, t - t0
        x, z = c * dt - sn * ds, sn * dt + c * ds
        reach = 0.5 * math.hypot(float(thing.size[0]), float(thing.size[1]))
        if z + reach < raster.NEAR or z - reach > shading.GROUND_END or abs(x) > z + reach + 30:
            continue
        yaw = heading - psi - 0.5 * math.pi
        yaw = (yaw + math.pi) % (2 * math.pi) - math.pi
        bottom = thing.y
        if bottom is None:
            bottom = raster.ground_height(scene.ground, x, z) - thing.lift
        placed.append(_Placed(thing, np.array([x, bottom - 0.5 * thing.size[2], z]), yaw))
    placed.sort(key=lambda p: not p.thing.label)
    return road, placed


def _triangles(placed: list[_Placed]) -> tuple[Array, NDArray[np.int64], NDArray[np.int64]]:
    """All triangles (T, 3, 3) in the camera frame, where each thing's begin (O + 1,), and their materials (T,)."""
    parts, materials, starts = [np.zeros((0, 3, 3))], [np.zeros(0, np.int64)], [0]
    for p in placed:
        local = p.thing.template.fit(p.thing.size)
        c, s = math.cos(p.yaw), math.sin(p.yaw)
        vertices = np.empty_like(local)
        vertices[:, 0] = p.centre[0] + c * local[:, 0] + s * local[:, 1]
        vertices[:, 1] = p.centre[1] - local[:, 2]
        vertices[:, 2] = p.centre[2] - s * local[:, 0] + c * local[:, 1]
        parts.append(vertices[p.thing.template.faces])
        materials.append(p.thing.template.material)
        starts.append(starts[-1] + len(parts[-1]))
    return np.ascontiguousarray(np.concatenate(parts)), np.array(starts, np.int64), np.concatenate(materials)


def _normals(triangles: Array) -> Array:
    normals = np.cross(triangles[:, 1] - triangles[:, 0], triangles[:, 2] - triangles[:, 0])
    length: Array = np.sqrt((normals * normals).sum(-1, keepdims=True))
    return np.where(length > 0, normals / np.where(length > 0, length, 1), [0.0, -1.0, 0.0])


def _footprints(placed: list[_Placed]) -> Array:
    """Two triangles under each road user, for the dark ground beneath it."""
    quads = [np.zeros((0, 3, 3))]
    for p in placed:
        if not p.thing.label:
            continue
        c, s, a, b = math.cos(p.yaw), math.sin(p.yaw), 0.5 * p.thing.size[0], 0.52 * p.thing.size[1]
        y = p.centre[1] + 0.5 * p.thing.size[2] - 0.3
        corner = [
            np.array([p.centre[0] + c * i * a + s * j * b, y, p.centre[2] - s * i * a + c * j * b])
            for i, j in ((1, 1), (1, -1), (-1, -1), (-1, 1))
        ]
        quads.append(np.array([[corner[0], corner[1], corner[2]], [corner[0], corner[2], corner[3]]]))
    return np.concatenate(quads)


def render_scene(
    config: SynthConfig, scene: layout.Scene, rng: np.random.Generator, time: float = 0.0
) -> RenderedFrame:
    """Render a scene ``time`` seconds into it; ``rng`` feeds sensor and depth noise."""
    camera = config.camera
    P = camera.P.numpy()
    shape = (config.height, config.width)
    road, placed = _place(scene, time)
    triangles, starts, materials = _triangles(placed)

    ground_depth, kind, zbuffer = np.zeros(shape), np.zeros(shape, np.int8), np.zeros(shape)
    shading.trace_ground(P, scene.ground, road, zbuffer, ground_depth, kind)
    tri_ids, object_ids = np.full(shape, -1, np.int32), np.full(shape, -1, np.int32)
    solo, shown, solo_boxes = raster.rasterise(triangles, starts, P, zbuffer, tri_ids, object_ids)
    depth = np.where(object_ids >= 0, zbuffer, ground_depth)

    if scene.light[shading.SUN] > 0.5:
        shadow = raster.rasterise_shadows(triangles, scene.light[:3], scene.ground, P, shape)
    else:
        shadow = np.full(shape, -1, np.int32)
    contact = raster.rasterise_shadows(_footprints(placed), np.array([0.0, -1.0, 0.0]), scene.ground, P, shape)
    things = [p.thing for p in placed]
    linear = np.empty((*shape, 3))
    shading.shade(
        P,
        road,
        scene.light,
        depth,
        kind,
        tri_ids,
        object_ids,
        _normals(triangles),
        materials,
        np.array([p.centre for p in placed]).reshape(-1, 3),
        np.array([t.size for t in things]).reshape(-1, 3),
        np.array([(math.cos(p.yaw), math.sin(p.yaw)) for p in placed]).reshape(-1, 2),
        np.array([t.template.paint for t in things]).reshape(-1, 8),
        np.array([t.palette for t in things]).reshape(-1, 8, 3),
        np.array([t.seed for t in things], np.int64),
        shadow,
        contact,
        linear,
    )
    image = np.empty((*shape, 3), np.uint8)
    exposure = (1.05 + 0.25 * np.clip(rng.standard_normal(), -2, 2)) * (1 + 0.03 * rng.standard_normal(3))
    shading.develop(linear, exposure, rng.uniform(0.02, 0.16), rng.uniform(1.0, 5.0), int(rng.integers(1 << 30)), image)

    visible = shown / np.maximum(solo, 1)
    estimate = estimate_depth(depth, object_ids, visible, config.depth_noise, rng)
    return _label(config, camera, placed, image, solo, shown, solo_boxes, object_ids, depth, estimate)


def _area(boxes: Boxes2D) -> Array:
    x1, y1, x2, y2 = boxes.xyxy.numpy().T
    area: Array = (x2 - x1) * (y2 - y1)
    return area


def _label(
    config: SynthConfig,
    camera: Camera,
    placed: list[_Placed],
    image: NDArray[np.uint8],
    solo: NDArray[np.int64],
    shown: NDArray[np.int64],
    solo_boxes: NDArray[np.int32],
    object_ids: NDArray[np.int32],
    depth: Array,
    estimate: Array,
) -> RenderedFrame:
    """Choose what is labelled, and how."""
    inside = [o for o, p in enumerate(placed) if p.thing.label and solo[o] > 0]
    boxes = Boxes3D(
        torch.tensor(np.array([placed[o].centre for o in inside]).reshape(-1, 3)),
        torch.tensor(np.array([placed[o].thing.size for o in inside]).reshape(-1, 3)),
        torch.tensor([placed[o].yaw for o in inside], dtype=torch.float64),
        tuple(placed[o].thing.label for o in inside),
    )
    whole = Boxes2D(project_boxes(camera.P, boxes.center, boxes.size, boxes.yaw), boxes.labels)
    amodal = whole.clip(camera.width, camera.height)
    truncation = np.clip(1 - _area(amodal) / np.maximum(_area(whole), 1e-9), 0, 1)
    if config.boxes == "tight":
        amodal = Boxes2D(torch.tensor(solo_boxes[inside], dtype=torch.float64), boxes.labels)
    visible = shown[inside] / np.maximum(solo[inside], 1)
    least = MIN_PIXELS * config.width * config.height / (640 * 192)
    keep = (visible >= MIN_VISIBLE) & (shown[inside] >= least)
    kept = np.flatnonzero(keep)

    new_ids = np.full(len(placed) + 1, -2, np.int32)
    new_ids[-1] = -1
    new_ids[np.array(inside, np.int64)[kept]] = np.arange(len(kept))
    labels = tuple(boxes.labels[i] for i in kept)
    labelled = boxes[torch.as_tensor(kept)]
    labelled.xyxy = amodal.xyxy[torch.as_tensor(kept)]
    dropped = np.flatnonzero(~keep)
    return RenderedFrame(
        image=image,
        camera=camera,
        boxes3d=labelled,
        boxes2d=Boxes2D(labelled.xyxy, labels),
        truncation=truncation[kept],
        occlusion=np.where(visible[kept] >= 0.8, 0, np.where(visible[kept] >= 0.4, 1, 2)),
        visible=visible[kept],
        dont_care=Boxes2D(amodal.xyxy[torch.as_tensor(dropped)], ("DontCare",) * len(dropped)),
        object_ids=new_ids[object_ids],
        depth_true=depth,
        depth=estimate,
    )
