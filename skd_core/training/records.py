"""The metrics of a training run: mean loss terms over an epoch, and ``metrics.jsonl``."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from skd_core.errors import UserError

AP_IOU = {"Car": "0.50", "Pedestrian": "0.25", "Cyclist": "0.25"}
"""The IoU at which the progress line reports AP."""


class Means:
    """Means of the terms of an epoch; a term counts the steps in which it took part."""

    def __init__(self, sums: dict[str, float] | None = None, counts: dict[str, int] | None = None) -> None:
        self.sums = sums or {}
        self.counts = counts or {}

    def add(self, terms: dict[str, float]) -> None:
        """Take in the terms of one step."""
        for name, value in terms.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
            self.counts[name] = self.counts.get(name, 0) + 1

    def values(self) -> dict[str, float]:
        """By the terms' names."""
        return {name: total / self.counts[name] for name, total in self.sums.items()}


def append_record(path: Path, record: dict[str, Any]) -> None:
    """Add a line, whole and on the disk; a disk that is full takes none of it.

    Raises:
        UserError: the file cannot be written.
    """
    line = json.dumps(record, allow_nan=False) + "\n"
    try:
        before = path.stat().st_size if path.exists() else 0
        try:
            with open(path, "a", encoding="utf-8") as file:
                file.write(line)
                file.flush()
                os.fsync(file.fileno())
        except OSError:
            os.truncate(path, before)
            raise
    except OSError as error:
        raise UserError(f"{path}: cannot write: {error.strerror}") from None


def show_record(report: Mapping[str, Any], classes: Sequence[str], writer: Any) -> str:
    """Give a record's numbers to TensorBoard; what is said of it on the screen.

    Args:
        writer: a ``torch.utils.tensorboard.SummaryWriter``.
    """
    for name, value in report.items():
        if isinstance(value, (int, float)):
            writer.add_scalar(name, value, report["step"])
    line = f"epoch {report['epoch']}: loss {report['loss']:.3f}, {report['images_per_second']:.1f} images/s"
    for who, scores in report.get("val", {}).items():
        if "nuscenes" in scores:
            for measure in ("mAP", "NDS"):
                writer.add_scalar(f"{who}/{measure}", scores["nuscenes"][measure], report["step"])
            line += f"\n  {who}: mAP {scores['nuscenes']['mAP']:.4f}, NDS {scores['nuscenes']['NDS']:.4f}"
        for name in classes:
            if name in scores["ap"]:
                value, errors = scores["ap"][name]["3d"]["R40"][AP_IOU[name]][1], scores["errors"][name]
                writer.add_scalar(f"{who}/{name}_ap3d_{AP_IOU[name]}_moderate", value or 0.0, report["step"])
                line += f"\n  {who} {name}: AP3D@{AP_IOU[name]} {value or 0:.2f}"
                if not errors["count"]:
                    continue  # no detection on any label: no error to speak of
                for axis in ("depth", "lateral", "length", "width", "height", "yaw_mod_pi", "yaw_folded"):
                    writer.add_scalar(f"{who}/{name}_{axis}_median", errors[f"{axis}_median"], report["step"])
                line += f", depth {errors['depth_median']:.1%}, lateral {errors['lateral_median']:.2f} m"
                line += f", length {errors['length_median']:.1%}, yaw {errors['yaw_mod_pi_median']:.1f}"
                line += f" (folded {errors['yaw_folded_median']:.1f}) degrees"
    if "gtm/rho" in report:
        line += f", rho {report['gtm/rho']:.2f}"
    return line


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
