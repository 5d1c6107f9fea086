"""Where 2D boxes from outside come from, on the command line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from skd_core.boxes import Boxes2D
from skd_core.data.box_files import BoxFolder

Source = Callable[[str, NDArray[np.uint8]], Boxes2D]
"""A frame's name and its image, (H, W, 3) uint8 RGB -> 2D boxes in its pixels."""


def open_source(boxes: Path) -> Source:
    """A source of 2D boxes.

    Args:
        boxes: a folder of KITTI label or result files, one for each frame's name.

    Raises:
        UserError: no such folder.
    """
    folder = BoxFolder(boxes)
    return lambda name, image: folder.read(name)
