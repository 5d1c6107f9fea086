"""Sources of external 2D boxes: files of a folder, or a 2D detector that runs in this process."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from skd_core.boxes import Boxes2D
from skd_core.data.box_files import BoxFolder
from skd_core.errors import UserError


@dataclass(frozen=True)
class Source:
    """2D boxes frame by frame.

    Attributes:
        find: a frame's name and its image, (H, W, 3) uint8 RGB -> 2D boxes in its pixels.
        folder: of the files that they are read from; None for those of a detector.
    """

    find: Callable[[str, NDArray[np.uint8]], Boxes2D]
    folder: BoxFolder | None = None

    def files(self, names: Sequence[str], check: Callable[[Boxes2D], object]) -> list[Path]:
        """The files of these frames, each of which is read once to see whether it can be.

        Args:
            check: raises a UserError where boxes cannot be placed.

        Raises:
            UserError: that of the check, with the file; see :meth:`skd_core.data.box_files.BoxFolder.read`.
        """
        if self.folder is None:
            return []
        for name in names:
            boxes = self.folder.read(name)
            try:
                check(boxes)
            except UserError as error:
                raise UserError(f"{self.folder.path(name)}: {error}") from None
        return [self.folder.path(name) for name in names]


def open_source(
    boxes: Path | None = None, detector: str | None = None, tiles: int = 0, classes: Sequence[str] = ()
) -> Source | None:
    """A source of 2D boxes; None where neither is given.

    Args:
        boxes: folder of KITTI label or result files, one for each frame's name.
        detector: file of a 2D detector, see :func:`skd_core.supervision.detector_2d.load_detector_2d`.
        tiles: crops that it sees besides the whole image.
        classes: what is wanted of its boxes, names without case; all of them without.

    Raises:
        UserError: both are given; no such folder; an unsuitable file.
    """
    if boxes is not None and detector is not None:
        raise UserError("give --boxes or --detector, not both")
    if boxes is not None:
        folder = BoxFolder(boxes)
        return Source(lambda name, image: folder.read(name), folder)
    if detector is None:
        return None
    network = detector_source(detector, tiles, classes)
    return Source(lambda name, image: network(image))


def detector_source(
    detector: str, tiles: int = 0, classes: Sequence[str] = ()
) -> Callable[[NDArray[np.uint8]], Boxes2D]:
    """An image -> 2D boxes of a 2D detector; arguments as of :func:`open_source`."""
    from skd_core.supervision.detector_2d import load_detector_2d

    network, wanted = load_detector_2d(detector, tiles=tiles), {name.lower() for name in classes}

    def detect(image: NDArray[np.uint8]) -> Boxes2D:
        found = network.detect(image)
        return found[[not wanted or label.lower() in wanted for label in found.labels]]

    return detect
