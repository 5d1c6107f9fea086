"""Rendered street scenes with exact labels, in the KITTI layout (`skd_core synth`).

objects.py draws road users, layout.py puts them on a street, meshes.py gives them shape, raster.py finds what each
pixel shows, shading.py paints it, depth_noise.py plays the depth estimator, render.py makes a labelled frame of it all
and writer.py a data set.
"""

from skd_core.data.synthetic.depth_noise import DepthNoise, estimate_depth
from skd_core.data.synthetic.render import FRAME_RATE, RenderedFrame, SynthConfig, parse_config, render_frame
from skd_core.data.synthetic.writer import kitti_label_lines, write_dataset

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
