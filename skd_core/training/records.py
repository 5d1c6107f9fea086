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
