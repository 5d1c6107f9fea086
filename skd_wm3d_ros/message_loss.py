"""The share of a camera's images that were lost in transport, estimated from their stamps."""

from __future__ import annotations

import itertools
from collections import deque
from dataclasses import dataclass, field

WINDOW = 10_000_000_000  # nanoseconds of the stamps looked back on
MIN_IMAGES = 20  # before a share is given


@dataclass
class LossMeter:
    """Estimates message loss from the stamps of the messages that arrive.

    camera_info messages are small and seldom lost: if they carry the images' stamps, one without an image marks a lost
    image. Otherwise gaps between images that are multiples of the frame period do.
    """

    _images: deque[int] = field(default_factory=deque)
    _infos: deque[int] = field(default_factory=deque)

    def image(self, stamp: int) -> None:
        """An image arrived, stamped in nanoseconds."""
        self._add(self._images, stamp)

    def info(self, stamp: int) -> None:
        """A camera_info arrived."""
        self._add(self._infos, stamp)

    def rate(self) -> float:
        """Images per second of the stamps' time; 0 where that is unknown."""
        if len(self._images) < 2:
            return 0.0
        return (len(self._images) - 1) / (self._images[-1] - self._images[0]) * 1e9

    def lost(self) -> float:
        """Share of the images that are missing, 0 to 1; 0 until enough have arrived."""
        images = list(self._images)
        if len(images) < MIN_IMAGES:
            return 0.0
        infos = set(self._infos)
        together = sum(stamp in infos for stamp in images) > 0.5 * len(images)
        known = sorted({*images, *(s for s in infos if together and images[0] < s < images[-1])})
        gaps = sorted(b - a for a, b in itertools.pairwise(known))
        period = gaps[len(gaps) // 4]  # not the median: with two of three lost, most gaps are long ones
        missing = sum(max(round((b - a) / period) - 1, 0) for a, b in itertools.pairwise(images))
        return missing / (missing + len(images))

    @staticmethod
    def _add(stamps: deque[int], stamp: int) -> None:
        if stamps and stamp <= stamps[-1]:
            if stamp > stamps[-1] - WINDOW // 10:
                return  # twice, or two in the wrong order
            stamps.clear()  # time went back
        stamps.append(stamp)
        while stamps[0] < stamp - WINDOW:
            stamps.popleft()
