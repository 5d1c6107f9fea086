"""Files and folders: written whole or not at all, and in which order they are read."""

from __future__ import annotations

import math
import os
import re
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from skd_core.errors import UserError

TEXT_LIMIT = 64 << 20
"""Bytes of the longest text that is read at once: labels, calibrations, settings, tables."""


def check_regular(path: str | Path, limit: int, kind: str = "file") -> None:
    """Check, without opening it, that a file can be read whole: a pipe would block, a huge sparse file fill the memory.

    Args:
        path: the file.
        limit: most bytes that it may have.
        kind: what to call it in an error: "camera file", "image".

    Raises:
        UserError: missing, a folder, a pipe or a device, or longer than ``limit``.
    """
    try:
        status = os.stat(path)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise UserError(f"{path}: cannot read {kind}: {getattr(error, 'strerror', None) or error}") from None
    if stat.S_ISDIR(status.st_mode):
        raise UserError(f"{path}: cannot read {kind}: Is a directory")
    if not stat.S_ISREG(status.st_mode):
        raise UserError(f"{path}: cannot read {kind}: not a regular file (a pipe, a device or a socket)")
    if status.st_size > limit:
        raise UserError(f"{path}: cannot read {kind}: {status.st_size} bytes, more than the {limit} that one may have")


def read_bytes(path: str | Path, limit: int = TEXT_LIMIT, kind: str = "file") -> bytes:
    """The content of a regular file of at most ``limit`` bytes.

    Raises:
        UserError: see :func:`check_regular`; or the file cannot be read.
    """
    check_regular(path, limit, kind)
    try:
        with open(path, "rb") as file:
            content = file.read(limit + 1)
    except OSError as error:
        raise UserError(f"{path}: cannot read {kind}: {error.strerror}") from None
    if len(content) > limit:
        raise UserError(f"{path}: cannot read {kind}: grows while it is read, beyond {limit} bytes")
    return content


def read_text(path: str | Path, limit: int = TEXT_LIMIT, kind: str = "file") -> str:
    """The text of a regular UTF-8 file of at most ``limit`` bytes, without a byte order mark; line ends become ``\\n``.

    Raises:
        UserError: see :func:`read_bytes`; or not text in UTF-8.
    """
    try:
        text = read_bytes(path, limit, kind).decode("utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(f"{path}: cannot read {kind}: not a text file") from None
    return text.replace("\r\n", "\n").replace("\r", "\n")


def write_atomic(path: str | Path, content: str | bytes) -> None:
    """Write a file under a temporary name in the same folder, then move it into place.

    Raises:
        UserError: the folder is missing or not writable, or the disk is full.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise UserError(f"{path}: cannot write: {error.strerror}") from None


def make_folder(folder: Path) -> None:
    """Make a folder for results, and those above it.

    Raises:
        UserError: it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder}: cannot make this folder: {error.strerror}") from None


def keep_inputs(outputs: Iterable[Path], inputs: Iterable[Path]) -> None:
    """Refuse to write over what is read.

    Raises:
        UserError: an output is one of the inputs.
    """
    read = {place for path in inputs for place in (path.parent.resolve() / path.name, path.resolve())}
    for path in outputs:
        if path.parent.resolve() / path.name in read:
            raise UserError(f"{path}: would write over an input; choose another folder for --out")


def finite(value: Any) -> Any:
    """The same with None for numbers that are not finite, in dicts however deep: JSON has no word for them."""
    if isinstance(value, dict):
        return {str(name): finite(part) for name, part in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def natural_order(path: Path) -> list[tuple[int, str]]:
    """Sorting key of a file's name that compares digits as numbers: bag_2 before bag_10."""
    return [(int(word), "") if word.isdecimal() else (-1, word) for word in re.split(r"(\d+)", path.name)]
