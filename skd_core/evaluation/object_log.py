"""Compact storage of the objects of many frames."""

from __future__ import annotations

from array import array
from collections.abc import Iterator

import numpy as np

from skd_core.data.kitti import KittiObjects


class ObjectLog:
    """Objects frame by frame, packed: 122 bytes an object and 8 a frame; taken apart only when asked for.

    A list of KittiObjects takes kilobytes more for each frame, and scatters them among the images, so that the memory
    of those cannot be given back.
    """

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}  # of class names
        self._kind, self._values, self._ends = array("H"), array("d"), array("q", [0])

    def append(self, objects: KittiObjects) -> None:
        """Keep the objects of the next frame."""
        self._kind.extend(self._numbers.setdefault(name, len(self._numbers)) for name in objects.type)
        columns = [objects.truncated, objects.occluded, objects.alpha, objects.xyxy, objects.dimensions]
        columns += [objects.location, objects.rotation_y, objects.score]
        self._values.frombytes(np.column_stack(columns).astype(np.float64, copy=False).tobytes())
        self._ends.append(len(self._kind))

    def __len__(self) -> int:
        """Number of frames."""
        return len(self._ends) - 1

    def __getitem__(self, frame: int) -> KittiObjects:
        """The objects of one frame."""
        if not 0 <= frame < len(self):
            raise IndexError(frame)
        first, last = self._ends[frame : frame + 2]
        names = list(self._numbers)
        values = np.array(self._values[15 * first : 15 * last]).reshape(-1, 15)
        truncated, occluded, alpha, rotation_y, score = values[:, [0, 1, 2, 13, 14]].T
        kinds = [names[number] for number in self._kind[first:last]]
        boxes = values[:, 3:7], values[:, 7:10], values[:, 10:13]
        return KittiObjects(kinds, truncated, occluded, alpha, *boxes, rotation_y, score)

    def __iter__(self) -> Iterator[KittiObjects]:
        return (self[frame] for frame in range(len(self)))

    def count(self) -> int:
        """Number of objects in all frames."""
        return len(self._kind)
