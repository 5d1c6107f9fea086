"""Pairing of labels or files with the images of a recording: by stamp where possible, else in order."""

from __future__ import annotations

import bisect
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from skd_core.data.bag import read_headers
from skd_core.errors import UserError

MIN_STAMP = 10**15
"""A file's name that is this number or more is a stamp in nanoseconds, not the number of a frame."""


@dataclass(frozen=True)
class Images:
    """The images of a topic, in the order of recording.

    Attributes:
        topic: their topic.
        stamps: nanoseconds; None where a header cannot be read.
        frames: the names of their frames.
        recorded: times of recording, nanoseconds.
    """

    topic: str
    stamps: tuple[int | None, ...]
    frames: tuple[str, ...]
    recorded: tuple[int, ...]

    @staticmethod
    def read(bag: Path, topic: str) -> Images:
        """Of a bag."""
        headers = read_headers(bag, topic)
        return Images(
            topic,
            tuple(header.stamp for header in headers),
            tuple(header.frame_id for header in headers),
            tuple(header.recorded for header in headers),
        )

    def __len__(self) -> int:
        return len(self.stamps)

    def by_stamp(self) -> dict[int, int]:
        """stamp -> number of the image, of stamps that are one image's alone."""
        counts = Counter(self.stamps)
        return {stamp: i for i, stamp in enumerate(self.stamps) if stamp is not None and counts[stamp] == 1}

    def doubt(self) -> str | None:
        """What is wrong with the stamps: several images have the same one; None if nothing is."""
        shared = {stamp: count for stamp, count in Counter(self.stamps).items() if stamp is not None and count > 1}
        if not shared:
            return None
        first = next(iter(shared))
        return f"{sum(shared.values())} of {len(self)} images on {self.topic} share a stamp (first {first})"

    def nearest(self, stamps: Sequence[int]) -> int | None:
        """Smallest difference between any of these stamps and that of an image, nanoseconds; None without either."""
        own = sorted(stamp for stamp in self.stamps if stamp is not None)
        return min((abs(_nearest(own, stamp) - stamp) for stamp in stamps), default=None) if own else None

    def nearest_recorded(self, moment: int) -> int:
        """The time of recording of the image recorded nearest to a moment, nanoseconds."""
        return _nearest(self.recorded, moment)

    def unmatched(self, what: str, total: int, stamps: Sequence[int]) -> str:
        """That some of ``total`` things are at no image's stamp: how many, and how far the nearest one is."""
        count = "none" if len(stamps) == total else f"only {total - len(stamps)}"
        near = self.nearest(stamps)
        far = "" if near is None else f"; the nearest is {duration(near)} off"
        return f"{total} {what}, {count} with the stamp of an image on {self.topic} ({len(self)} images){far}"


def files_of_images(images: Images, folder: Path, names: Sequence[str], notes: list[str]) -> dict[int, str]:
    """Which file of a folder belongs to which image of a recording.

    Args:
        names: of the files: each the stamp of an image in nanoseconds, or as many as there are images, in the order of
            recording.
        notes: gets a line where only some of the stamps are those of images.

    Returns:
        number of the image -> name.

    Raises:
        UserError: neither.
    """
    by_stamp = images.by_stamp()
    stamps = {int(name): name for name in names if name.isascii() and name.isdecimal()}
    matched = {by_stamp[stamp]: name for stamp, name in stamps.items() if stamp in by_stamp}
    named_by_stamp = len(stamps) == len(names) > 0 and (len(matched) == len(names) or min(stamps) >= MIN_STAMP)
    if named_by_stamp and images.doubt() is None:
        lost = [stamp for stamp in stamps if stamp not in by_stamp]
        if lost:
            said = f"{folder}: {images.unmatched('files', len(names), lost)}"
            if not matched:
                raise UserError(f"{said}; name them by the images' stamps, or 000000.txt and so on in their order")
            notes.append(said)
        return matched
    if len(names) == len(images):
        return dict(enumerate(names))
    doubt = images.doubt()
    raise UserError(
        f"{folder}: {len(names)} files for {len(images)} frames on {images.topic}; there must be as many, in the order "
        "of their names, or they must be named by the frames' stamps in nanoseconds"
        + ("" if doubt is None else f", which cannot be here: {doubt}")
    )


def _nearest(times: Sequence[int], moment: int) -> int:
    """Of times in order, at least one."""
    at = bisect.bisect(times, moment)
    return min(times[max(at - 1, 0) : at + 1], key=lambda time: abs(time - moment))


def duration(nanoseconds: int) -> str:
    """A time span to read: 20 ms, 86400 s."""
    for unit, size in (("s", 10**9), ("ms", 10**6), ("us", 10**3)):
        if nanoseconds >= size:
            return f"{nanoseconds / size:.6g} {unit}"
    return f"{nanoseconds} ns"
