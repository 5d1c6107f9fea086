"""Checks before a bag is opened: reading a pipe would block, a view in a database may never end."""

from __future__ import annotations

import contextlib
import sqlite3
import stat
from collections.abc import Iterator
from pathlib import Path

from skd_core.errors import UserError
from skd_core.yaml_files import read_yaml

FORMATS = {
    b"#ROSBAG V2.0": "a ROS 1 bag; convert it with rosbags-convert",
    b"\x28\xb5\x2f\xfd": "compressed with zstd; add .zstd to its name, or unpack it with unzstd",
    b"\x1f\x8b": "compressed with gzip; unpack it with gunzip",
    b"BZh": "compressed with bzip2; unpack it with bunzip2",
    b"\xfd7zXZ\0": "compressed with xz; unpack it with unxz",
    b"\x04\x22\x4d\x18": "compressed with lz4; unpack it with unlz4",
    b"PK\x03\x04": "a zip archive; unpack it",
    b"\x89MCAP0\r\n": "an MCAP file; name it .mcap",
    b"SQLite format 3\0": "an sqlite3 file; name it .db3",
}
"""How files begin that are taken for bags, and what they are."""
_OWN = {b"\x28\xb5\x2f\xfd": (".zstd", ".zst"), b"\x89MCAP0\r\n": (".mcap",), b"SQLite format 3\0": (".db3",)}
"""The suffixes of those that are read."""
DATABASE = ".db3"
METADATA = "metadata.yaml"


def check_storage(bag: Path) -> None:
    """Refuse a bag that could not be read in bounded time; what is merely damaged is left to its reader.

    Args:
        bag: a bag folder, or a single file.

    Raises:
        UserError: a pipe or device among its files, a ``metadata.yaml`` that is no bounded YAML, or a database in which
            views, triggers or virtual tables stand where rosbag2 has tables.
    """
    for file in _files(bag):
        try:
            mode = file.stat().st_mode
        except (OSError, ValueError):  # a missing one is the reader's business
            continue
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
            raise UserError(f"{file}: is a pipe or a device, not a file of a bag")
        if file.suffix == DATABASE and stat.S_ISREG(mode):
            _check_database(file)


def foreign(bag: Path) -> str | None:
    """What a bag is that cannot be read, or the first such file of its folder: another format, or compressed."""
    for file in sorted(bag.iterdir()) if bag.is_dir() else [bag]:
        with contextlib.suppress(OSError), file.open("rb") as content:
            start = content.read(max(map(len, FORMATS)))
            for magic, what in FORMATS.items():
                if start.startswith(magic) and file.suffix not in _OWN.get(magic, ()):
                    return f"{file.name} is {what}"
    return None


def _files(bag: Path) -> Iterator[Path]:
    """The bag's files, and those that its metadata name."""
    if not bag.is_dir():
        yield bag
        return
    yield from bag.iterdir()
    if (bag / METADATA).is_file():
        content = read_yaml(bag / METADATA)
        about = content.get("rosbag2_bagfile_information") if isinstance(content, dict) else None
        names = about.get("relative_file_paths") if isinstance(about, dict) else None
        for name in names if isinstance(names, list) else []:
            if isinstance(name, str):
                yield bag / name


def _check_database(file: Path) -> None:
    try:
        with contextlib.closing(
            sqlite3.connect(f"{file.resolve().as_uri()}?mode=ro&immutable=1", uri=True)
        ) as database:
            odd = database.execute(
                "SELECT type, name FROM sqlite_master WHERE type NOT IN ('table', 'index') OR sql LIKE '%VIRTUAL%'"
            ).fetchone()
    except (sqlite3.Error, OSError):  # damaged: the reader says how
        return
    if odd is not None:
        raise UserError(f"{file}: holds a {odd[0]} '{odd[1]}', which no recorder writes; it is not read")
