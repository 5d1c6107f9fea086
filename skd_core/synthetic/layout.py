"""Whole scenes: invented ones, and streets around the objects of real KITTI labels."""

from __future__ import annotations

import math

import numpy as np

from skd_core.synthetic.furniture import Furniture
from skd_core.synthetic.mesh import Array
from skd_core.synthetic.objects import Shapes, Thing, Wardrobe
from skd_core.synthetic.street import Plan, Street, draw_road
from skd_core.synthetic.world import Ground, Lens, Light, Scene

SINK = 0.10
"""Ground.sink of invented scenes, metres; label files stand on rougher ground than the renderer's."""


def draw_light(rng: np.random.Generator) -> Light:
    """A sunny or overcast sky."""
    elevation, azimuth = math.radians(rng.uniform(18, 65)), rng.uniform(0, 2 * math.pi)
    sun = (math.cos(elevation) * math.sin(azimuth), -math.sin(elevation), math.cos(elevation) * math.cos(azimuth))
    haze = rng.uniform(250, 900)
    if rng.random() < 0.35:
        grey = rng.uniform(0.55, 0.9)
        horizon, zenith = (grey, grey, 1.02 * grey), (0.75 * grey, 0.78 * grey, 0.84 * grey)
        return Light(sun, 0.12, 1.05, haze, rng.uniform(0.6, 1.0), horizon, zenith)
    warm, blue = rng.uniform(0.9, 1.0), rng.uniform(0.6, 1.0)
    horizon, zenith = (0.75, 0.80 * warm, 0.88 * warm), (0.16 * blue, 0.34 * blue, 0.72 * blue)
    return Light(sun, rng.uniform(1.3, 2.0), rng.uniform(0.55, 0.8), haze, rng.uniform(0.0, 0.7), horizon, zenith)


def draw_lens(rng: np.random.Generator) -> Lens:
    """Exposure, white balance, blur and noise of a camera on the day."""
    red, green, blue = (1.05 + 0.25 * np.clip(rng.standard_normal(), -2, 2)) * (1 + 0.03 * rng.standard_normal(3))
    return Lens((float(red), float(green), float(blue)), rng.uniform(0.02, 0.16), rng.uniform(1.0, 5.0))


def invent(
    rng: np.random.Generator, shapes: Shapes, height: float, pitch: float, roll: float, length: float = 0.0
) -> Scene:
    """A street from nothing.

    Args:
        rng: the frame's generator.
        shapes: body shapes to draw from.
        height: of the camera, metres.
        pitch: radians; roll: radians; of the ground as the camera sees it.
        length: how far the ego will drive, metres; a drive is straight and level.
    """
    street = Street(rng, shapes, length)
    street.populate()
    furniture = Furniture(rng, street.road, street.plan, length, street.style)
    slope, curve = 0.012 * rng.standard_normal(), 1.2e-4 * rng.standard_normal()
    heading = math.radians(1.5 if rng.random() < 0.85 else 12) * rng.standard_normal()
    if length:
        slope, curve, heading = 0.0, 0.0, 0.0
    return Scene(
        things=street.things + furniture.build(),
        road=street.road,
        ground=Ground(height, roll, pitch + slope, curve, SINK),
        light=draw_light(rng),
        lens=draw_lens(rng),
        ego=(*street.ego, heading),
        speed=street.speed,
    )


def around(
    rows: list[tuple[str, Array, Array, float]], rng: np.random.Generator, shapes: Shapes, height: float
) -> Scene:
    """A street around the objects of a real label file.

    Args:
        rows: (type, (h, w, l), bottom centre (x, y, z), rotation_y) in the camera frame.
        rng: the frame's generator.
        shapes: body shapes to draw from.
        height: of the camera, metres, where no object tells.

    Objects stay exactly where the labels have them. The ground is the smooth surface nearest to their bottoms, without
    kerbs and crossings, and houses stand where they hide nothing.
    """
    wardrobe, plan = Wardrobe(rng, shapes), Plan()
    style, lanes, road = draw_road(rng, crossing=False)
    road = road._replace(kerb=0.0)
    ego_t = 0.5 * (road.half - road.parking) / lanes
    plan.take(-0.5, ego_t, 0.0, 4.0, 1.8)
    things = []
    for label, hwl, (x, y, z), yaw in rows:
        template, size, palette = wardrobe.road_user(label, hwl[::-1].copy())
        s, t, heading = float(z), float(x) + ego_t, yaw + math.pi / 2
        things.append(Thing(label, template, size, s, t, heading, palette, int(rng.integers(1 << 30)), y=float(y)))
        plan.take(s, t, heading, size[0], size[1])
    furniture = Furniture(rng, road, plan, 0.0, style)
    furniture.sights = [(0.0, ego_t, thing.s, thing.t) for thing in things]
    return Scene(
        things=things + furniture.build(),
        road=road,
        ground=_fit_ground(np.array([row[2] for row in rows]).reshape(-1, 3), height),
        light=draw_light(rng),
        lens=draw_lens(rng),
        ego=(0.0, ego_t, 0.0),
    )


def _fit_ground(bottoms: Array, height: float) -> Ground:
    """Least squares through the objects' bottoms (sd 8 cm) with a prior around level ground."""
    near = bottoms[bottoms[:, 2] > 0.5]
    prior = np.array([0.05, 0.02, 0.02, 2e-4])  # sd of height, roll, slope, curve
    A = np.column_stack([np.ones(len(near)), near[:, 0], near[:, 2], near[:, 2] ** 2]) * prior / 0.08
    solution = prior * np.linalg.solve(A.T @ A + np.eye(4), A.T @ ((near[:, 1] - height) / 0.08))
    rise, roll, slope, curve = solution.tolist()
    return Ground(height + rise, roll, slope, curve, sink=1.0)
