"""Rendered frames as a KITTI data set on disk."""

from __future__ import annotations

import json
import multiprocessing
import signal
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from skd_core.data.sample import NOTE
from skd_core.errors import UserError
from skd_core.files import fresh_folder, keep_inputs
from skd_core.synthetic.config import SynthConfig
from skd_core.synthetic.labels import RenderedFrame
from skd_core.synthetic.render import render_frame

FOLDERS = (
    "training/image_2",
    "training/calib",
    "training/label_2",
    "training/depth",
    "training/depth_true",
    "ImageSets",
)


MAX_FRAMES = 1_000_000
"""The most that names of six digits tell apart."""


def kitti_label_lines(frame: RenderedFrame) -> list[str]:
    """The rows of a KITTI label file, in full precision; hidden and tiny objects as DontCare."""
    b, rows = frame.boxes3d, []
    for i in range(len(b)):
        numbers = [b.alpha[i], *frame.boxes2d.xyxy[i], *b.dimensions_hwl[i], *b.bottom[i], b.yaw[i]]
        text = " ".join(repr(float(v)) for v in numbers)
        rows.append(f"{b.labels[i]} {float(frame.truncation[i]):.4f} {int(frame.occlusion[i])} {text}")
    for box in frame.dont_care.xyxy:
        rows.append("DontCare -1 -1 -10 " + " ".join(repr(float(v)) for v in box) + " -1 -1 -1 -1000 -1000 -1000 -10")
    return rows


def _calibration(frame: RenderedFrame) -> str:
    numbers = " ".join(repr(float(v)) for v in frame.camera.P.flatten())
    identity = "1 0 0 0 1 0 0 0 1"
    rows = [f"P{k}: {numbers}" for k in range(4)]
    return (
        "\n".join(
            [
                *rows,
                f"R0_rect: {identity}",
                "Tr_velo_to_cam: 0 -1 0 0 0 0 -1 0 1 0 0 0",
                "Tr_imu_to_velo: 1 0 0 0 0 1 0 0 0 0 1 0",
            ]
        )
        + "\n"
    )


def _write(path: Path, content: bytes) -> None:
    try:
        path.write_bytes(content)
    except OSError as error:  # of a full disk, which does not say of which file
        raise OSError(error.errno, error.strerror, str(path)) from None


def _save_png(path: Path, picture: NDArray[np.uint8] | NDArray[np.uint16]) -> None:
    _write(path, cv2.imencode(".png", picture)[1].tobytes())  # any explicit level takes twice as long


def _depth_png(depth: NDArray[np.float64]) -> NDArray[np.uint16]:
    return (depth * 256 + 0.5).astype(np.uint16)


def _write_frame(root: Path, config: SynthConfig, seed: int, number: int) -> None:
    frame, name = render_frame(config, seed, number), f"{number:06d}"
    training = root / "training"
    _save_png(training / "image_2" / f"{name}.png", np.ascontiguousarray(frame.image[..., ::-1]))
    _save_png(training / "depth" / f"{name}.png", _depth_png(frame.depth))
    _save_png(training / "depth_true" / f"{name}.png", _depth_png(frame.depth_true))
    _write(training / "calib" / f"{name}.txt", _calibration(frame).encode())
    _write(training / "label_2" / f"{name}.txt", "".join(row + "\n" for row in kitti_label_lines(frame)).encode())


def _check_out(out: Path, overwrite: bool) -> None:
    """Refuse to replace anything but an earlier data set."""
    if out.exists() and not out.is_dir():
        raise UserError(f"{out}: is a file; give a folder")
    there = {path.name for path in out.iterdir()} if out.is_dir() else set()
    if there and not overwrite:
        raise UserError(f"{out}: exists and is not empty; give another folder or --overwrite")
    if foreign := sorted(there - {Path(folder).parts[0] for folder in FOLDERS}):
        raise UserError(f"{out}: holds more than a data set of this command ({foreign[0]}); give another folder")


def _only_the_parent_stops() -> None:
    """Ctrl-C goes to every process of a terminal."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def write_dataset(
    out: str | Path, config: SynthConfig, frames: int, seed: int, workers: int = 1, overwrite: bool = False
) -> float:
    """Render ``frames`` frames into a KITTI tree at ``out``, with ``training/depth`` and ``training/depth_true``.

    Depth maps are uint16 PNGs, metres x 256, 0 = sky. The folder appears under its name only when complete. Contents
    depend on ``config`` and ``seed`` alone, not on ``frames`` or ``workers``.

    Returns:
        Frames per second.

    Raises:
        UserError: bad numbers, ``out`` not empty without ``overwrite``, unusable layouts; or the disk is full.
    """
    out = Path(out).absolute()
    for option, value, least, most in (
        ("--frames", frames, 1, MAX_FRAMES),
        ("--seed", seed, 0, (1 << 63) - 1),
        ("--workers", workers, 1, 256),
    ):
        if not least <= value <= most:
            raise UserError(f"{option} {value}: must be {least} to {most}")
    _check_out(out, overwrite)
    keep_inputs([out], [config.layouts])
    with fresh_folder(out) as root:
        _check_out(out, overwrite)  # again, now that no other process can make it
        for folder in FOLDERS:
            (root / folder).mkdir(parents=True)
        note = {"model": "skd_core synth", "kind": "metric"}
        (root / "training" / "depth" / NOTE).write_text(json.dumps(note, indent=1) + "\n", encoding="utf-8")
        with tqdm(total=frames, unit="frame", desc="compiling (first use)") as bar:
            render_frame(config, seed, 0)  # numba compiles here, once per installation, and not in every worker
            bar.set_description(f"synth {out.name}")
            bar.reset()
            start = time.perf_counter()
            if workers == 1:
                for number in range(frames):
                    _write_frame(root, config, seed, number)
                    bar.update()
            else:
                context = multiprocessing.get_context("spawn")  # fork is unsafe once torch's threads run
                with ProcessPoolExecutor(workers, context, _only_the_parent_stops) as pool:
                    for _ in pool.map(partial(_write_frame, root, config, seed), range(frames), chunksize=8):
                        bar.update()
        (root / "ImageSets" / "all.txt").write_text("".join(f"{n:06d}\n" for n in range(frames)), encoding="utf-8")
        return frames / (time.perf_counter() - start)
