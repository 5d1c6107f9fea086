"""What is looked at before a bag is opened: a pipe would be waited for, a view in a database may never end."""

from __future__ import annotations

import contextlib
import sqlite3
import stat
from collections.abc import Iterator
from pathlib import Path

from skd_core.errors import UserError
from skd_core.yaml_files import read_yaml

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
