"""Files and folders: written whole or not at all, and in which order they are read."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from skd_core.errors import UserError


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
