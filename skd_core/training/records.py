"""The records of a training run: its ``metrics.jsonl``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from skd_core.errors import UserError


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
        lines = path.read_text(encoding="utf-8").split("\n")  # a key may hold other line breaks
        lines = lines[:-1] if lines[-1] == "" else lines
    except (OSError, UnicodeDecodeError):
        raise UserError(f"{path}: cannot read, or not a text file") from None
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):  # ValueError: of a number of 5000 digits too
            if number < len(lines):
                raise UserError(f"{path}:{number}: no JSON") from None
            continue
        step = record.get("step") if isinstance(record, dict) else None
        if not isinstance(step, int) or isinstance(step, bool) or not 0 <= step < 2**53:
            raise UserError(f"{path}:{number}: no record of a training run (its 'step' must be a number of steps)")
        records.append(record)
    return records
