"""Files and folders: written whole or not at all, and what training runs leave behind."""

from __future__ import annotations

import json
import math
import os
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


def finite(value: Any) -> Any:
    """The same with None for numbers that are not finite, in dicts however deep: JSON has no word for them."""
    if isinstance(value, dict):
        return {str(name): finite(part) for name, part in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_run(run: Path) -> list[dict[str, Any]]:
    """The records of a training run's ``metrics.jsonl``, of which there must be some; see :func:`read_records`.

    Args:
        run: the run's folder, or the file.

    Raises:
        UserError: no such file, nothing in it, or it is damaged.
    """
    path = run / "metrics.jsonl" if run.is_dir() else run
    if not path.is_file():
        raise UserError(f"{path}: no such file; name a training run's folder")
    records = read_records(path)
    if not records:
        raise UserError(f"{path}: holds no records yet")
    return records


def read_records(path: Path) -> list[dict[str, Any]]:
    """The lines of a ``metrics.jsonl``; a last one that is cut is left out.

    Raises:
        UserError: the file is damaged.
    """
    records = []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        raise UserError(f"{path}: cannot read, or not a text file") from None
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            if number < len(lines):
                raise UserError(f"{path}:{number}: no JSON") from None
            continue
        if not isinstance(record, dict) or "step" not in record:
            raise UserError(f"{path}:{number}: no record of a training run (has no 'step')")
        records.append(record)
    return records
