"""Rendered street scenes with exact labels, in the KITTI layout (`skd_core synth`).

What there is: meshes (mesh, meshes), road users (objects), streets (street, furniture, layout). What it looks like:
background, raster, materials, shading. What comes out: labels, depth_noise, render (one frame), writer (a data set).
"""

from skd_core.synthetic.config import SynthConfig, parse_config
from skd_core.synthetic.depth_noise import DepthNoise, estimate_depth
from skd_core.synthetic.labels import RenderedFrame
from skd_core.synthetic.render import FRAME_RATE, render_frame
from skd_core.synthetic.writer import kitti_label_lines, write_dataset

__all__ = [
    "FRAME_RATE",
    "DepthNoise",
    "RenderedFrame",
    "SynthConfig",
    "estimate_depth",
    "kitti_label_lines",
    "parse_config",
    "render_frame",
    "write_dataset",
]
