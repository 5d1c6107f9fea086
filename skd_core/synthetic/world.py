"""A scene as the renderer takes it: the street, the ground, the light, the lens, and the things on it.

Street coordinates: s along the road, t to its right, both on the ground, metres; headings turn right. The ground seen
from the camera is ``y = h + a x + b z + c z^2``: camera height, roll, pitch plus slope, and the road's vertical curve.
The tuples are what the numba kernels read.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from numba import njit

from skd_core.synthetic.objects import Thing

NOWHERE = 1e6
"""Place of a crossing that is not there (metres along the street)."""


class Road(NamedTuple):
    """The street, and where the camera is on it. Metres; a symmetric street about t = 0."""

    half: float  # half width between the kerbs
    walk: float  # pavement's width
    kerb: float  # its height
    lane: float  # width of a marked lane, 0 = no markings
    parking: float  # strip for parked cars along each kerb
    cross: float  # s of a crossing street, NOWHERE = none
    cross_half: float  # its half width
    zebra: bool  # a pedestrian crossing before it
    grass: bool  # beside the pavement; else paved
    seed: int  # of the textures
    s: float = 0.0  # the camera's place and the cosine and sine of its heading
    t: float = 0.0
    cos: float = 1.0
    sin: float = 0.0


class Ground(NamedTuple):
    """y = height + roll x + slope z + curve z^2 in the camera frame."""

    height: float
    roll: float
    slope: float
    curve: float
    sink: float
    """Objects are hidden only by ground this much above them (metres): boxes have yaw only, real ground does not."""


class Light(NamedTuple):
    """Sun, sky and air. Colours are linear RGB."""

    sun: tuple[float, float, float]  # unit vector towards it, camera frame
    strength: float  # of the sun; below OVERCAST there are no shadows
    ambient: float
    haze: float  # metres at which half the light comes from the air
    clouds: float  # cover, 0..1
    horizon: tuple[float, float, float]
    zenith: tuple[float, float, float]


OVERCAST = 0.5


class Lens(NamedTuple):
    """Exposure per channel, blur (share of each neighbour, 0..1/3) and sensor noise (grey levels, sd)."""

    exposure: tuple[float, float, float]
    blur: float
    noise: float


@dataclass
class Scene:
    """Everything the renderer needs.

    Attributes:
        things: road users and furniture.
        ego: (s, t, heading) of the camera at time 0.
        speed: of the ego along the street, metres per second.
    """

    things: list[Thing]
    road: Road
    ground: Ground
    light: Light
    lens: Lens
    ego: tuple[float, float, float] = (0.0, 0.0, 0.0)
    speed: float = 0.0


@njit(cache=True, error_model="numpy")
def ground_height(g: Ground, x: float, z: float) -> float:
    """y of the road below (x, z) in the camera frame."""
    return g.height + g.roll * x + g.slope * z + g.curve * z * z
