"""What to render."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, cast, get_args

import torch

from skd_core.camera import Camera
from skd_core.errors import UserError
from skd_core.synthetic.depth_noise import DepthNoise
from skd_core.synthetic.objects import Shapes

BoxStyle = Literal["amodal", "tight"]

KITTI_SIZE = (1242, 375)
KITTI_P2 = ((721.5377, 0.0, 609.5593, 44.85728), (0.0, 721.5377, 172.854, 0.2163791), (0.0, 0.0, 1.0, 0.002745884))
"""The calibration of 2011_09_26, the commonest in KITTI."""


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
    match = re.fullmatch(r"(\d{1,9})x(\d{1,9})", size)
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
