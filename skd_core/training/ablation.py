"""The rows of the ablation (method: Training, Ablation), each over several seeds, resumable, in one command."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml

from skd_core.config import SetConfig, TrainConfig, load_config, parse_config
from skd_core.errors import UserError
from skd_core.files import make_folder, write_atomic
from skd_core.training.ablation_runs import Place, run_all
from skd_core.training.evaluate_runs import check_test_sets, measure_runs
from skd_core.training.records import read_records

Overrides = dict[str, dict[str, Any]]

ROWS: dict[str, tuple[str, Overrides, str]] = {
    "mdn_proj": (
        "student, projection and priors only",
        {"method": {"teacher": False, "distillation": "none"}},
        "student",
    ),
    "dsn": ("teacher alone", {"method": {"distillation": "none"}}, "teacher"),
    "distill_l1": ("+ plain distillation (L1)", {"method": {"distillation": "l1"}}, "student"),
    "distill_uad": ("+ uncertainty and margin (the default)", {}, "student"),
    "full": ("+ gradient-targeted modulation", {"method": {"modulation": True}}, "student"),
    "full_no_centre_offset": (
        "full without centre offset",
        {"method": {"modulation": True}, "model": {"center_offset": False}},
        "student",
    ),
    "full_no_depth": (
        "full without depth",
        {"method": {"modulation": True}, "data": {"depth_dir": None}},
        "student",
    ),
    "supervised": (
        "fully supervised, same network",
        {"method": {"supervised": True, "teacher": False, "distillation": "none"}, "model": {"direction": True}},
        "student",
    ),
    "direct_targets": (
        "pseudo-targets without a teacher",
        {"method": {"teacher": False, "direct_targets": True, "distillation": "none"}},
        "student",
    ),
}
"""Name -> (what it is, what differs from the config, which network is measured)."""

REAL_ROWS: dict[str, tuple[str, Overrides, str]] = {
    "rendered": ("rendered frames only", {}, "student"),
    "real_2d": ("+ real frames, 2D losses", {}, "student"),
    "weak": ("+ their 3D losses without 3D labels", {}, "student"),
    "supervised": ("3D labels where a set has labels_3d, else 2D losses", ROWS["supervised"][1], "student"),
}
"""The same where ``data.train`` is a list: equally long, on rendered and real frames."""

CHANGED_SETS: dict[str, Callable[[dict[str, Any]], list[dict[str, Any]]]] = {
    "rendered": lambda part: [part] if part["rendered"] else [],
    "real_2d": lambda part: [part if part["rendered"] else part | {"only_2d": True}],
}
"""What becomes of each training set in a row of :data:`REAL_ROWS`."""

MEASURES = {
    "ap3d_50_moderate": ("ap", "3d", "0.50"),
    "apbev_50_moderate": ("ap", "bev", "0.50"),
    "ap3d_70_moderate": ("ap", "3d", "0.70"),
    "apbev_70_moderate": ("ap", "bev", "0.70"),
    "depth_median": ("errors", "depth_median"),
    "yaw_mod_pi_median": ("errors", "yaw_mod_pi_median"),
    "yaw_folded_median": ("errors", "yaw_folded_median"),
    "length_median": ("errors", "length_median"),
    "width_median": ("errors", "width_median"),
    "height_median": ("errors", "height_median"),
}
"""What is reported of the class Car: AP R40 in percent, relative errors, degrees."""

HEADINGS = (
    "3D AP .5",
    "BEV AP .5",
    "3D AP .7",
    "BEV AP .7",
    "depth",
    "yaw mod pi",
    "folded yaw",
    "length",
    "width",
    "height",
)
"""Of :data:`MEASURES` in the table."""


def rows_of(base: TrainConfig) -> dict[str, tuple[str, Overrides, str]]:
    """The rows that differ from a config: :data:`REAL_ROWS` for a list of sets, :data:`ROWS` for a single one."""
    return ROWS if isinstance(base.data.train, SetConfig) else REAL_ROWS


def row_config(base: TrainConfig, row: str, seed: int) -> TrainConfig:
    """The config of one row and seed.

    Raises:
        UserError: no such row.
    """
    rows = rows_of(base)
    if row not in rows:
        raise UserError(f"ablation: no row '{row}'; there are {', '.join(rows)}")
    raw = base.model_dump(mode="json")
    for section, values in rows[row][1].items():
        raw[section].update(values)
    if row in CHANGED_SETS:
        raw["data"]["train"] = [kept for part in raw["data"]["train"] for kept in CHANGED_SETS[row](part)]
    raw["seed"] = seed
    config: TrainConfig = parse_config(TrainConfig, raw, f"row {row}")
    return config


def run_ablation(
    base: TrainConfig,
    out: Path,
    rows: Sequence[str],
    seeds: int,
    where: Place,
    *,
    stop_after: float | None = None,
) -> dict[str, Any]:
    """Run what is missing, then write ``out/ablation.json`` and ``out/ablation.md``: all rows and seeds there are.

    An ``ablation.json`` that lies in ``out`` already counts: its runs need not be there any more. So a long ablation
    can be resumed elsewhere from that file alone.

    Args:
        base: the training config that the rows differ from.
        out: gets a folder ROW/SEED for each run.
        seeds: 0 to seeds - 1; where: they run.
        stop_after: minutes after which to stop; run the same command to resume.

    Raises:
        UserError: unknown row, no validation set, the folder holds another config's results, or a run failed (the
            message names its log).
    """
    _check_base(base)
    check_test_sets(base)
    rows = list(dict.fromkeys(rows))
    result = collect(out, base)
    todo = [(row, seed) for seed in range(seeds) for row in rows]
    configs = {run: row_config(base, *run) for run in todo}
    pending = _missing(result, todo)
    for row, seed in pending:
        folder = out / row / str(seed)
        make_folder(folder)
        text = yaml.safe_dump(configs[row, seed].model_dump(mode="json"), sort_keys=False)
        write_atomic(folder / "row.yaml", text)
    try:
        run_all(out, pending, where, stop_after)
    finally:
        result = collect(out, base)
        write_atomic(out / "ablation.json", json.dumps(result, indent=1) + "\n")
        write_atomic(out / "ablation.md", table(result))
    device = where.device if where.ray is None else "auto"  # this machine may have no GPU
    measure_runs(base, out, {row: [out / row / str(s) for s in range(seeds)] for row in rows_of(base)}, device)
    if missing := len(_missing(result, todo)):
        print(f"{missing} of {len(todo)} runs are missing; run the same command to resume", flush=True)
    return result


def _missing(result: dict[str, Any], todo: Sequence[tuple[str, int]]) -> list[tuple[str, int]]:
    return [(row, seed) for row, seed in todo if seed not in result["rows"].get(row, {}).get("seeds", [])]


def _check_base(base: TrainConfig) -> None:
    """The rows say how they differ from the method without GTM, which therefore the config must be."""
    if base.data.val is None or base.data.val.kind != "kitti" or "Car" not in base.model.classes:
        raise UserError("ablation: the config needs data.val, of kind kitti, and the class Car: it reports KITTI's AP")
    method = base.method
    needed = {
        "method.teacher: true": method.teacher,
        "method.distillation: uad": method.distillation == "uad",
        "method.modulation: false": not method.modulation,
        "model.center_offset: true": base.model.center_offset,
    }
    if isinstance(base.data.train, SetConfig):
        needed["data.depth_dir"] = base.data.depth_dir is not None
    else:
        needed["schedule.epoch_steps"] = base.schedule.epoch_steps is not None
        needed["data.train: sets with and without rendered"] = len({part.rendered for part in base.data.sets}) == 2
        needed["data.test"] = bool(base.data.test)
    missing = [name for name, there in needed.items() if not there]
    if missing:
        needs = ", ".join(missing)
        raise UserError(f"ablation: its rows start from the method without GTM; the config needs {needs}")


def _complete(folder: Path) -> bool:
    return (folder / "student.safetensors").exists() and _last_report(folder) is not None


def _last_report(folder: Path) -> dict[str, Any] | None:
    path = folder / "metrics.jsonl"
    if not path.exists():
        return None
    measured = [r for r in read_records(path) if "val" in r]
    return measured[-1] if measured else None


def collect(out: Path, base: TrainConfig) -> dict[str, Any]:
    """Mean, spread and single values of every measure, from ``out/ablation.json`` and the complete runs in ``out``.

    Raises:
        UserError: the file is damaged, or it or a run is of another config.
    """
    path = out / "ablation.json"
    runs: dict[str, dict[int, dict[str, float | None]]] = {row: {} for row in rows_of(base)}
    if path.exists():
        try:
            before = json.loads(path.read_text(encoding="utf-8"))
            for row, measures in before["rows"].items():
                for i, seed in enumerate(measures["seeds"]):
                    runs[row][seed] = {name: measures[name]["seeds"][i] for name in MEASURES}
            written = before["config"]
        except (OSError, ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
            raise UserError(f"{path}: not a result of this command ({error!r}); delete it") from None
        if parse_config(TrainConfig, written, f"{path}: config") != base.model_copy(update={"seed": 0}):
            raise UserError(f"{path}: is of another config; choose another --out or delete it")
    for row, known in runs.items():
        for folder in (p for p in (out / row).glob("*") if p.name.isdigit()):
            report = _last_report(folder) if _complete(folder) else None
            if report is not None:
                if load_config(folder / "config.yaml") != row_config(base, row, int(folder.name)):
                    raise UserError(f"{folder}: is a run of another config; choose another --out or delete it")
                known[int(folder.name)] = _measures(report["val"][rows_of(base)[row][2]])
    rows: dict[str, Any] = {}
    for row, known in runs.items():
        if known:
            seeds = sorted(known)
            values = {name: [known[seed][name] for seed in seeds] for name in MEASURES}
            rows[row] = {"seeds": seeds} | {name: _spread(v) for name, v in values.items()}
    return {"rows": rows, "config": base.model_dump(mode="json", exclude={"seed"})}


def _measures(scores: dict[str, Any]) -> dict[str, float | None]:
    """None for an error where nothing was found on any label."""
    result = {}
    for name, path in MEASURES.items():
        if path[0] == "ap":
            result[name] = scores["ap"]["Car"][path[1]]["R40"][path[2]][1] or 0.0
        else:
            result[name] = scores["errors"]["Car"][path[1]]
    return result


def _spread(values: list[float | None]) -> dict[str, Any]:
    """Mean and sample standard deviation of what is known; of one value alone the spread is unknown."""
    known = [v for v in values if v is not None]
    return {
        "mean": statistics.fmean(known) if known else None,
        "std": statistics.stdev(known) if len(known) > 1 else None,
        "seeds": values,
    }


def table(result: dict[str, Any]) -> str:
    """The result as a Markdown table: Car, moderate, AP R40 in percent; medians of matched pairs."""
    lines = [f"| row | seeds | {' | '.join(HEADINGS)} |\n", "|---|---|" + "---|" * len(HEADINGS) + "\n"]
    for row, measures in result["rows"].items():
        cells = []
        for name, path in MEASURES.items():
            factor, digits, unit = (1, 2, "") if path[0] == "ap" else (1, 1, "°") if "yaw" in name else (100, 1, " %")
            mean, std = measures[name]["mean"], measures[name]["std"]
            text = "?" if mean is None else f"{factor * mean:.{digits}f}"
            if std is not None:
                text += f" ± {factor * std:.{digits}f}"
            cells.append(text + unit)
        name = (ROWS | REAL_ROWS if isinstance(result["config"]["data"]["train"], list) else ROWS)[row][0]
        lines.append(f"| `{row}`: {name} | {len(measures['seeds'])} | {' | '.join(cells)} |\n")
    return "".join(lines)
