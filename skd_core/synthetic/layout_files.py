"""Object layouts from real KITTI label files: only type, size, place and rotation_y are taken."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np

from skd_core.errors import UserError
from skd_core.files import read_text
from skd_core.synthetic.mesh import Array


@lru_cache(maxsize=4)
def _label_files(folder: Path) -> tuple[Path, ...]:
    if not folder.is_dir():
        raise UserError(f"--layouts {folder}: no such folder; give a folder of KITTI label files (label_2)")
    files = tuple(sorted(folder.glob("*.txt")))
    if not files:
        raise UserError(f"--layouts {folder}: holds no label files (*.txt)")
    return files


def read_layout(folder: Path, seed: int, frame: int) -> list[tuple[str, Array, Array, float]]:
    """The rows of the frame's label file; the folder is gone through in an order shuffled by the seed in each round."""
    files = _label_files(folder)
    order = np.random.Generator(np.random.PCG64([seed, frame // len(files)])).permutation(len(files))
    path = files[int(order[frame % len(files)])]
    rows = []
    for number, line in enumerate(read_text(path, kind="label file").splitlines(), 1):
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
