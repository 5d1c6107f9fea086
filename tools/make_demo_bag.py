"""Render the demo's bag: `python tools/make_demo_bag.py`. The same frames on every machine."""

from __future__ import annotations

import argparse
from pathlib import Path

from skd_core.data.bag import Frame, write_frames
from skd_core.data.bag_make import FIRST_STAMP
from skd_core.synthetic import FRAME_RATE, parse_config, render_frame
from skd_wm3d_ros.tools.demo import DEMO_BAG

FRAME_ID = "camera_optical_frame"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=DEMO_BAG, help="folder to write, replaced if it is a bag")
    parser.add_argument("--frames", type=int, default=14)
    parser.add_argument("--seed", type=int, default=3, help="names the drive")
    parser.add_argument("--size", default="640x192", help="WIDTHxHEIGHT, pixels")
    arguments = parser.parse_args()
    config = parse_config(arguments.size, 0.06, "amodal", "heldout", None, sequence=True)
    period = round(1e9 / FRAME_RATE)  # nanoseconds
    rendered = (render_frame(config, arguments.seed, number) for number in range(arguments.frames))
    frames = (Frame(f.image, f.camera, FIRST_STAMP + i * period, FRAME_ID) for i, f in enumerate(rendered))
    write_frames(arguments.out, frames, overwrite=True)
    size = sum(file.stat().st_size for file in arguments.out.iterdir())
    print(f"{arguments.out}: {arguments.frames} frames, {size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
