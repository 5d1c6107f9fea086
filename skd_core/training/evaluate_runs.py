"""The ablation on real frames: every complete run evaluated on ``data.test``, in one small file that is kept [ours]."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from skd_core.config import SetConfig, TrainConfig, parse_config
from skd_core.data.kitti import KittiDataset
from skd_core.data.sets import check_frames
from skd_core.errors import UserError
from skd_core.evaluation.real import join
from skd_core.evaluation.real_report import labelled_frames, measure
from skd_core.files import finite, write_atomic
from skd_core.inference.detector import Detector

THRESHOLD = 0.2
"""Minimum score of a detection."""
KIND = "Car"
FILE, EARLIER_FILE = "test_sets.json", "ruler.json"


def name_of(part: SetConfig) -> str:
    """Name of a set in the file: its folder, with its split."""
    return Path(part.root).name + (f":{part.split}" if part.split else "")


def check_test_sets(base: TrainConfig) -> None:
    """The sets are there and their labels can be read, before anything is trained.

    Raises:
        UserError: see :class:`skd_core.data.kitti.KittiDataset`; or two sets have one name.
    """
    names = [name_of(part) for part in base.data.test]
    if len(set(names)) < len(names):
        raise UserError(f"data.test: two sets are called {max(names, key=names.count)}; give their folders other names")
    for part in base.data.test:
        check_frames(KittiDataset(part.root, part.split), with_3d=True)


def measure_runs(base: TrainConfig, out: Path, rows: Mapping[str, Sequence[Path]], device: str) -> dict[str, Any]:
    """Evaluate the runs that are complete and not yet in ``out/test_sets.json``; the file is written after each run.

    Entries are by row, seed and set: the statistics of :class:`skd_core.evaluation.real.Tally` for cars at score
    THRESHOLD, "on_nothing" and "ill_fitting" a frame. The runs themselves need not be kept.

    Args:
        out: the ablation's folder; ``out/test_sets.md`` gets a table.
        rows: row -> folders of its runs, each called by its seed.

    Returns:
        the file's content; empty without ``data.test``.

    Raises:
        UserError: the file is damaged or of another config.
    """
    if not base.data.test:
        return {}
    path, config = out / FILE, base.model_dump(mode="json", exclude={"seed"})
    result: dict[str, Any] = {"config": config, "threshold": THRESHOLD, "kind": KIND, "runs": {}}
    if (written_before := next((p for p in (path, out / EARLIER_FILE) if p.exists()), None)) is not None:
        result = _read(written_before)
        written = parse_config(TrainConfig, result["config"], f"{path}: config")  # keys added since take their defaults
        if written != base.model_copy(update={"seed": 0}):
            raise UserError(f"{path}: is of another config; choose another --out or delete it")
    for row, folders in rows.items():
        for folder in folders:
            weights, known = folder / "student.safetensors", result["runs"].setdefault(row, {})
            if weights.exists() and folder.name not in known:
                known[folder.name] = finite(measure_weights(weights, base.data.test, device))
                write_atomic(path, json.dumps(result, indent=1, allow_nan=False) + "\n")
    write_atomic(out / "test_sets.md", results_table(result))
    return result


def measure_weights(weights: Path, sets: Sequence[SetConfig], device: str) -> dict[str, dict[str, float]]:
    """Set -> statistics, shares in [0, 1] and medians; NaN where there is nothing to tell."""
    detector = Detector.load(str(weights), device)
    found = {}
    for part in sets:
        frames = labelled_frames(part.root, part.split)
        by_kind = measure(frames, lambda frame: detector.predict(frame.image, frame.camera, THRESHOLD), [KIND])
        tally = join(by_kind[KIND])
        found[name_of(part)] = tally.statistics() | {"on_nothing": tally.on_nothing, "ill_fitting": tally.ill_fitting}
    return found


def ratios(result: Mapping[str, Any]) -> dict[str, float | None]:
    """Set -> mean BEV > .5 share of the row weak over that of the row supervised; None where it cannot be told."""
    found: dict[str, float | None] = {}
    names = dict.fromkeys(name for runs in result["runs"].values() for run in runs.values() for name in run)
    for name in names:
        weak, labels = (_mean(result["runs"].get(row, {}), name, "bev_50") for row in ("weak", "supervised"))
        found[name] = weak / labels if weak is not None and labels else None
    return found


def results_table(result: Mapping[str, Any]) -> str:
    """As Markdown: means over seeds, for each set; below it the ratio of weak to full supervision."""
    lines = ["| row | set | seeds | BEV > .5 | recall .5 | depth error | on nothing a frame |\n", "|---" * 7 + "|\n"]
    for row, runs in result["runs"].items():
        for name in dict.fromkeys(name for run in runs.values() for name in run):
            seeds = [run[name]["bev_50"] for run in runs.values() if run.get(name, {}).get("bev_50") is not None]
            spread = f" ± {statistics.stdev(seeds):.3f}" if len(seeds) > 1 else ""
            cells = [_text(_mean(runs, name, "bev_50"), "{:.3f}") + spread]
            for key, form in (("recall_50", "{:.3f}"), ("depth_error", "{:.1%}"), ("on_nothing", "{:.2f}")):
                cells.append(_text(_mean(runs, name, key), form))
            lines.append(f"| `{row}` | {name} | {len(runs)} | {' | '.join(cells)} |\n")
    shares = ", ".join(f"{name} {_text(value, '{:.2f}')}" for name, value in ratios(result).items())
    return "".join(lines) + f"\nweak / supervised, BEV > .5: {shares}\n"


def _mean(runs: Mapping[str, Any], name: str, key: str) -> float | None:
    values = [run[name][key] for run in runs.values() if name in run and run[name][key] is not None]
    return statistics.fmean(values) if values else None


def _text(value: float | None, form: str) -> str:
    return "?" if value is None else form.format(value)


def _read(path: Path) -> dict[str, Any]:
    try:
        result: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if not all(isinstance(result[key], dict) for key in ("config", "runs")) or result["threshold"] != THRESHOLD:
            raise ValueError("parts are missing or of another kind")
        results_table(result)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: not a result of this command ({error!r}); delete it") from None
    return result
