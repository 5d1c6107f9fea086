"""The shapes: cars, vans, trucks, people on foot and on bicycles, trees, houses and street furniture."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from functools import cache

import numpy as np

from skd_core.synthetic.mesh import (
    BARK,
    CARGO,
    DARK,
    FOLIAGE,
    GLASS,
    HAIR,
    HEDGE,
    METAL,
    PAINT,
    PALETTE,
    ROOF,
    SHIRT,
    SHOES,
    SIGN,
    SKIN,
    TRAM,
    TROUSERS,
    WALL,
    Array,
    Builder,
    Template,
)


@dataclass(frozen=True)
class Profile:
    """Side view of a car-like body. x is a share of the length (front = .5), z a share of the height (roof = 1)."""

    nose: float  # z of the bonnet's front edge
    cowl: tuple[float, float]  # (x, z), foot of the windscreen
    roof_front: float  # x
    roof_rear: float  # x
    roof_rear_z: float
    deck: tuple[float, float]  # (x, z), foot of the rear window
    tail: float  # z of the rear edge
    axles: tuple[float, float] = (0.32, -0.31)
    wheel: float = 0.31  # radius, metres
    clearance: float = 0.14
    pillars: tuple[float, float, float] = (0.0, -0.22, 9.0)
    glass_to: float = -0.45  # side windows reach back to this x
    lamps: tuple[float, float] = (0.47, 0.56)  # z of head and tail lamps


CAR_NOMINAL, TRUCK_NOMINAL = np.array([3.9, 1.63, 1.53]), np.array([9.3, 2.6, 3.4])

CAR_PROFILES = {
    # the training shapes
    "sedan": Profile(0.50, (0.20, 0.62), 0.03, -0.22, 0.96, (-0.36, 0.68), 0.64, pillars=(-0.03, -0.22, 9.0)),
    "hatchback": Profile(
        0.52, (0.25, 0.62), 0.08, -0.36, 0.94, (-0.47, 0.60), 0.56, (0.33, -0.32), 0.30, pillars=(-0.02, -0.27, 9.0)
    ),
    "estate": Profile(0.50, (0.22, 0.62), 0.05, -0.42, 0.93, (-0.48, 0.60), 0.55, pillars=(-0.02, -0.20, -0.35)),
    "suv": Profile(
        0.58, (0.22, 0.65), 0.08, -0.41, 0.96, (-0.485, 0.62), 0.58, (0.32, -0.31), 0.36, 0.18, (0.0, -0.20, -0.36)
    ),
    # the held-out shapes
    "coupe": Profile(
        0.48, (0.16, 0.62), -0.03, -0.14, 0.97, (-0.40, 0.70), 0.66, (0.32, -0.30), 0.32, 0.12, (-0.12, 9.0, 9.0), -0.30
    ),
    "mpv": Profile(
        0.48, (0.33, 0.58), 0.12, -0.43, 0.95, (-0.49, 0.58), 0.54, (0.34, -0.30), 0.31, 0.13, (0.05, -0.17, -0.36)
    ),
    "city": Profile(
        0.54, (0.33, 0.62), 0.18, -0.43, 0.97, (-0.485, 0.58), 0.54, (0.36, -0.37), 0.28, 0.14, (0.02, -0.24, 9.0)
    ),
    "liftback": Profile(0.50, (0.20, 0.61), 0.04, -0.13, 0.98, (-0.45, 0.68), 0.66, pillars=(-0.03, -0.20, 9.0)),
}
VAN_PROFILES = {
    "panel van": Profile(
        0.46, (0.40, 0.52), 0.28, -0.485, 0.985, (-0.495, 0.55), 0.50, (0.33, -0.30), 0.33, 0.12, (0.12, 9.0, 9.0), 0.10
    ),
    "minibus": Profile(
        0.44, (0.40, 0.52), 0.26, -0.47, 0.97, (-0.49, 0.52), 0.48, (0.32, -0.29), 0.33, 0.12, (0.10, -0.12, -0.32)
    ),
}


def _loft(b: Builder, p: Profile) -> None:
    """The body shell: cross-sections at stations along x, joined by strips."""
    outline_x = [
        0.5,
        0.485,
        p.cowl[0],
        p.roof_front,
        0.5 * (p.roof_front + p.roof_rear),
        p.roof_rear,
        p.deck[0],
        -0.492,
        -0.5,
    ]
    outline_z = [p.nose - 0.06, p.nose, p.cowl[1], 0.97, 1.0, p.roof_rear_z, p.deck[1], p.tail, p.tail - 0.06]
    stations = sorted(
        {*outline_x, 0.43, 0.5 * (p.cowl[0] + p.roof_front), 0.5 * (p.roof_rear + p.deck[0]), -0.45}, reverse=True
    )

    def top_of(x: float) -> float:
        return float(np.interp(-x, [-v for v in outline_x], outline_z))

    rows = []
    for x in stations:
        top = top_of(x)
        belt = min(top, float(np.interp(x, [p.deck[0], p.cowl[0]], [p.deck[1], p.cowl[1]])))
        if not p.deck[0] <= x <= p.cowl[0]:
            belt = top
        glazed = min(1.0, (top - belt) / 0.30)
        wide = float(np.interp(abs(x), [0.0, 0.36, 0.46, 0.5], [1.0, 1.0, 0.94, 0.82]))
        low = p.clearance + float(np.interp(abs(x), [0.40, 0.5], [0.0, 0.05]))
        shoulder = belt - 0.06 * (1 - glazed)
        roof = (0.43 - 0.065 * glazed) * wide
        half = [
            (0.42 * wide, low),
            (0.485 * wide, low + 0.05),
            (0.5 * wide, low + 0.55 * (shoulder - low)),
            (0.475 * wide, shoulder),
            (roof, top - 0.02 - 0.035 * glazed),
            (0.74 * roof, top - 0.008),
            (0.0, top),
        ]
        ring = half + [(-y, z) for y, z in half[-2::-1]]
        rows.append(b.vertices(np.array([[x, y, z] for y, z in ring])))
    n = 13
    strip = [DARK, PAINT, PAINT, GLASS, PAINT, GLASS, GLASS, PAINT, GLASS, PAINT, PAINT, DARK]
    for (x0, r0), (x1, r1) in zip(
        zip(stations, rows, strict=False), zip(stations[1:], rows[1:], strict=False), strict=False
    ):
        middle = 0.5 * (x0 + x1)
        in_screen = p.roof_front < middle < p.cowl[0] or p.deck[0] < middle < p.roof_rear
        for k in range(n - 1):
            material = strip[k]
            if k in (3, 8) and not max(p.deck[0], p.glass_to) < middle < p.cowl[0]:
                material = PAINT
            if k in (5, 6) and not in_screen:
                material = PAINT
            if k in (5, 6) and p.glass_to > 0 and middle < 0:
                material = PAINT  # a panel van has no rear window
            b.quad(r0 + k, r0 + k + 1, r1 + k + 1, r1 + k, material)
        b.quad(r0, r1, r1 + n - 1, r0 + n - 1, DARK)
    b.fan([rows[0] + k for k in range(n)], PAINT)
    b.fan([rows[-1] + k for k in range(n)], PAINT)


@cache
def car(family: str) -> Template:
    """A car or van of a body family in CAR_PROFILES or VAN_PROFILES."""
    p = CAR_PROFILES.get(family) or VAN_PROFILES[family]
    b = Builder()
    _loft(b, p)
    for x in p.axles:
        for side in (0.485, -0.485):
            b.wheel(x, side, p.wheel, 0.20)
    return b.build((*p.axles, p.wheel, *p.pillars, *p.lamps), CAR_NOMINAL)


@cache
def truck(family: str) -> Template:
    """``box truck``, ``flatbed``, ``tram`` (a long windowed box) or ``trailer``."""
    b = Builder()
    if family == "tram":
        b.box((-0.5, -0.5, 0.1), (0.5, 0.5, 0.95), TRAM)
        b.box((-0.4, -0.25, 0.95), (0.4, 0.25, 1.0), DARK)
        b.box((-0.48, -0.4, 0.0), (0.48, 0.4, 0.1), DARK)
        return b.build(nominal=TRUCK_NOMINAL)
    if family == "trailer":
        b.box((-0.5, -0.46, 0.18), (0.42, 0.46, 1.0), CARGO)
        b.box((0.42, -0.03, 0.2), (0.5, 0.03, 0.26), DARK)
        for side in (0.5, -0.5):
            b.wheel(-0.08, side, 0.28, 0.18)
        return b.build((-0.08, 9.0, 0.28, 9.0, 9.0, 9.0, 0.0, 0.25), CAR_NOMINAL)
    b.box((0.27, -0.47, 0.12), (0.4975, 0.47, 0.82), PAINT)
    b.box((0.4975, -0.42, 0.42), (0.5, 0.42, 0.74), GLASS)
    for side in (0.471, -0.471):
        b.box((0.36, side - 0.001, 0.44), (0.47, side + 0.001, 0.72), GLASS)
    b.box((-0.5, -0.3, 0.14), (0.3, 0.3, 0.24), DARK)
    if family == "box truck":
        b.box((-0.5, -0.5, 0.24), (0.25, 0.5, 1.0), CARGO)
    else:
        b.box((-0.5, -0.5, 0.24), (0.25, 0.5, 0.42), CARGO)
        b.box((-0.3, -0.35, 0.42), (0.1, 0.35, 0.75), BARK)
        b.box((0.2, -0.4, 0.4), (0.26, 0.4, 1.0), PAINT)
    for x in (0.36, -0.29):
        for side in (0.49, -0.49):
            b.wheel(x, side, 0.48, 0.28)
    return b.build((0.36, -0.29, 0.48, 9.0, 9.0, 9.0, 0.27, 0.2), TRUCK_NOMINAL)


def _at(x: float, y: float, z: float) -> Array:
    return np.array([x, y, z], dtype=float)


@cache
def pedestrian(phase: int, skirt: bool) -> Template:
    """A walking (phase 1..3) or standing (0) person, built in metres of a 0.84 x 0.66 x 1.76 box."""
    b = Builder()
    step = (0.04, 0.22, 0.34, -0.30)[phase]
    for side, swing in ((1.0, step), (-1.0, -step)):
        hip, foot = _at(0.0, 0.09 * side, 0.90), _at(swing, 0.10 * side, 0.07)
        knee = 0.5 * (hip + foot) + _at(0.05 + 0.1 * abs(step), 0, 0)
        b.tube(hip, knee, 0.095, 0.07, SKIN if skirt else TROUSERS)
        b.tube(knee, foot, 0.07, 0.05, SKIN if skirt else TROUSERS)
        b.box((swing - 0.08, 0.10 * side - 0.045, 0.0), (swing + 0.17, 0.10 * side + 0.045, 0.09), SHOES)
        shoulder, hand = _at(0.0, 0.21 * side, 1.42), _at(-0.9 * swing + 0.05, 0.29 * side, 0.84)
        elbow = 0.5 * (shoulder + hand) + _at(-0.06, 0.03 * side, 0)
        b.tube(shoulder, elbow, 0.065, 0.05, SHIRT)
        b.tube(elbow, hand, 0.05, 0.035, SHIRT)
        b.ellipsoid(hand, _at(0.045, 0.04, 0.07), SKIN, 3, 5)
    if skirt:
        b.tube(_at(0, 0, 1.0), _at(0, 0, 0.55), 0.13, 0.22, TROUSERS, 8, 1.2)
    b.tube(_at(0.0, 0, 0.86), _at(0.0, 0, 1.12), 0.115, 0.115, TROUSERS, 8, 1.35)
    b.tube(_at(0.0, 0, 1.08), _at(0.01, 0, 1.40), 0.115, 0.13, SHIRT, 8, 1.55)
    b.tube(_at(0.01, 0, 1.40), _at(0.01, 0, 1.48), 0.13, 0.06, SHIRT, 8, 1.5)
    b.tube(_at(0.01, 0, 1.45), _at(0.02, 0, 1.58), 0.05, 0.05, SKIN)
    b.ellipsoid(_at(0.03, 0, 1.645), _at(0.105, 0.085, 0.125), SKIN, 6, 8)
    b.ellipsoid(_at(0.0, 0, 1.675), _at(0.11, 0.09, 0.115), HAIR, 6, 8)
    return b.build(nominal=np.array([0.84, 0.66, 1.76]), metres=True)


@cache
def cyclist(phase: int) -> Template:
    """A rider on a bicycle, built in metres of a 1.76 x 0.60 x 1.74 box."""
    b = Builder()
    radius = 0.34
    for x in (0.54, -0.54):
        ring = [
            _at(x + radius * math.cos(t), 0, radius + radius * math.sin(t)) for t in np.linspace(0, 2 * math.pi, 15)
        ]
        for p, q in itertools.pairwise(ring):
            b.tube(p, q, 0.022, 0.022, DARK, 4)
        for k in range(4):
            t = math.pi * k / 4 + 0.2
            d = _at(radius * math.cos(t), 0, radius * math.sin(t))
            b.tube(_at(x, 0, radius) - d, _at(x, 0, radius) + d, 0.006, 0.006, METAL, 3)
    frame = PALETTE + 5
    for p, q in (
        (_at(-0.54, 0, 0.34), _at(-0.05, 0, 0.30)),
        (_at(-0.05, 0, 0.30), _at(0.42, 0, 0.78)),
        (_at(-0.22, 0, 0.82), _at(0.40, 0, 0.84)),
        (_at(-0.54, 0, 0.34), _at(-0.22, 0, 0.82)),
        (_at(-0.05, 0, 0.30), _at(-0.25, 0, 0.92)),
        (_at(0.54, 0, 0.34), _at(0.38, 0, 1.0)),
    ):
        b.tube(p, q, 0.022, 0.022, frame, 5)
    b.tube(_at(0.40, 0.29, 1.02), _at(0.40, -0.29, 1.02), 0.018, 0.018, DARK, 5)
    b.box((-0.38, -0.08, 0.92), (-0.12, 0.08, 0.97), DARK)
    for side in (1.0, -1.0):
        turn = math.pi * phase / 4 + (0 if side > 0 else math.pi)
        pedal = _at(-0.05 + 0.17 * math.cos(turn), 0.12 * side, 0.30 + 0.17 * math.sin(turn))
        hip = _at(-0.24, 0.09 * side, 1.0)
        reach = pedal - hip
        forward = _at(-reach[2], 0, reach[0])
        knee: Array = hip + 0.5 * reach + 0.26 / float(np.linalg.norm(forward)) * forward
        b.tube(hip, knee, 0.09, 0.065, TROUSERS)
        b.tube(knee, pedal + _at(-0.04, 0, 0.08), 0.065, 0.045, TROUSERS)
        b.box((pedal[0] - 0.1, pedal[1] - 0.045, pedal[2]), (pedal[0] + 0.16, pedal[1] + 0.045, pedal[2] + 0.08), SHOES)
        shoulder, hand = _at(0.12, 0.19 * side, 1.43), _at(0.40, 0.26 * side, 1.05)
        elbow = 0.5 * (shoulder + hand) + _at(-0.04, 0.05 * side, -0.05)
        b.tube(shoulder, elbow, 0.06, 0.05, SHIRT)
        b.tube(elbow, hand, 0.05, 0.035, SKIN)
    b.tube(_at(-0.25, 0, 0.96), _at(-0.10, 0, 1.15), 0.12, 0.115, TROUSERS, 8, 1.3)
    b.tube(_at(-0.12, 0, 1.12), _at(0.12, 0, 1.45), 0.115, 0.12, SHIRT, 8, 1.5)
    b.tube(_at(0.12, 0, 1.42), _at(0.2, 0, 1.57), 0.05, 0.05, SKIN)
    b.ellipsoid(_at(0.22, 0, 1.615), _at(0.10, 0.085, 0.12), SKIN, 6, 8)
    b.ellipsoid(_at(0.19, 0, 1.655), _at(0.12, 0.095, 0.10), HAIR, 6, 8)
    return b.build(nominal=np.array([1.76, 0.60, 1.74]), metres=True)


@cache
def tree(variant: int) -> Template:
    """A trunk and a lumpy crown, or (variant 3) a conifer."""
    b = Builder()
    rng = np.random.Generator(np.random.PCG64([variant, 77]))
    b.tube(_at(0, 0, -0.5), _at(0, 0, 0.0), 0.035, 0.025, BARK, 6)
    if variant == 3:
        for z, r in ((-0.3, 0.5), (-0.1, 0.4), (0.1, 0.3), (0.28, 0.2)):
            b.tube(_at(0, 0, z), _at(0, 0, z + 0.24), r, 0.02, FOLIAGE, 9)
    else:
        b.ellipsoid(_at(0, 0, 0.16), np.array([0.40, 0.40, 0.33]), FOLIAGE, 6, 10, 0.16, rng)
        for _ in range(3):
            centre = np.array([*rng.uniform(-0.26, 0.26, 2), rng.uniform(0.0, 0.28)])
            b.ellipsoid(centre, rng.uniform(0.16, 0.24, 3), FOLIAGE, 5, 8, 0.18, rng)
    return b.build()


@cache
def prop(kind: str) -> Template:
    """``building`` (flat roof), ``house`` (gable), ``pole``, ``sign``, ``lamp``, ``hedge`` or ``wall``."""
    b = Builder()
    if kind == "building":
        b.box((-0.5, -0.5, -0.5), (0.5, 0.5, 0.5), WALL, ROOF)
    elif kind == "house":
        b.box((-0.5, -0.5, -0.5), (0.5, 0.5, 0.2), WALL, ROOF)
        s = b.vertices(
            np.array(
                [[0.5, 0.5, 0.2], [0.5, -0.5, 0.2], [-0.5, -0.5, 0.2], [-0.5, 0.5, 0.2], [0.5, 0, 0.5], [-0.5, 0, 0.5]]
            )
        )
        b.quad(s, s + 3, s + 5, s + 4, ROOF)
        b.quad(s + 1, s + 2, s + 5, s + 4, ROOF)
        b.fan([s, s + 1, s + 4], WALL)
        b.fan([s + 2, s + 3, s + 5], WALL)
    elif kind == "pole":
        b.tube(_at(0, 0, -0.5), _at(0, 0, 0.5), 0.5, 0.4, METAL, 6)
    elif kind == "sign":
        b.tube(_at(0, 0, -0.5), _at(0, 0, 0.5), 0.05, 0.05, METAL, 5)
        b.box((-0.04, -0.5, 0.2), (0.04, 0.5, 0.5), SIGN)
    elif kind == "lamp":
        b.tube(np.array([0, -0.45, -0.5]), np.array([0, -0.45, 0.48]), 0.04, 0.025, METAL, 6)
        b.tube(np.array([0, -0.45, 0.48]), np.array([0, 0.4, 0.5]), 0.02, 0.02, METAL, 5)
        b.box((-0.08, 0.2, 0.48), (0.08, 0.5, 0.5), DARK)
    else:
        b.box(
            (-0.5, -0.5, -0.5), (0.5, 0.5, 0.5), HEDGE if kind == "hedge" else WALL, HEDGE if kind == "hedge" else ROOF
        )
    return b.build()
