"""The ablation: rows differ as they say, results are gathered exactly, and it resumes from what is there."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
import yaml
from typer.testing import CliRunner

from skd_core import cli
from skd_core.config import TrainConfig, load_config
from skd_core.errors import UserError
from skd_core.locks import acquire, release
from skd_core.training import ablation, ablation_runs, evaluate_runs
from skd_core.training.ablation import MEASURES, REAL_ROWS, ROWS, collect, row_config, run_ablation, table
from skd_core.training.ablation_runs import Place, run_all


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.make_dataset(tmp_path_factory.mktemp("data"), frames=4)


@pytest.fixture
def config(root: Path, tmp_path: Path) -> Path:
    run = tiny.make_config(
        root,
        data={"train": {"root": str(root)}, "val": {"root": str(root)}, "depth_dir": "depth"},
        schedule={"epochs": 1, "batch_size": 2},
        method={"modulation": False},
    )
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(run.model_dump(mode="json")))
    return path


def _base(config: Path) -> TrainConfig:
    return TrainConfig.model_validate(yaml.safe_load(config.read_text()))


def _scores(ap: float, error: float | None) -> dict[str, Any]:
    """A validation's result; each measure gets a value of its own."""
    of = {iou: {"0.50": [0, ap + i, 0], "0.70": [0, ap + i + 0.25, 0]} for i, iou in enumerate(("3d", "bev"))}
    ious = {iou: {"R40": values} for iou, values in of.items()}
    errors = {path[1]: error for path in MEASURES.values() if path[0] == "errors"}
    return {"ap": {"Car": ious}, "errors": {"Car": errors}}


def _finish(
    config: Path, out: Path, row: str, seed: int, student: float, teacher: float, error: float | None = 0.5
) -> None:
    """What a complete run leaves: the last report counts, the one before must not."""
    folder = out / row / str(seed)
    folder.mkdir(parents=True, exist_ok=True)
    written = row_config(_base(config), row, seed).model_dump(mode="json")
    (folder / "config.yaml").write_text(yaml.safe_dump(written))
    early = {"step": 1, "val": {"student": _scores(-1, 9), "teacher": _scores(-1, 9)}}
    late = {"step": 2, "val": {"student": _scores(student, error), "teacher": _scores(teacher, error)}}
    (folder / "metrics.jsonl").write_text(f"{json.dumps(early)}\n{json.dumps(late)}\n" + '{"step": 3}\n')
    (folder / "student.safetensors").touch()


def test_rows_differ_from_the_config_by_one_thing(config: Path) -> None:
    base = _base(config)
    rows = {row: row_config(base, row, 7) for row in ROWS}
    assert all(c.seed == 7 for c in rows.values())
    assert rows["distill_uad"] == base.model_copy(update={"seed": 7})
    assert not rows["mdn_proj"].method.teacher
    assert not rows["direct_targets"].method.teacher
    assert [rows[r].method.distillation for r in ("dsn", "distill_l1", "distill_uad", "full")] == [
        "none", "l1", "uad", "uad",
    ]  # fmt: skip
    assert [r for r, c in rows.items() if c.method.modulation] == ["full", "full_no_centre_offset", "full_no_depth"]
    assert [r for r, c in rows.items() if c.method.supervised] == ["supervised"]
    assert [r for r, c in rows.items() if not c.model.center_offset] == ["full_no_centre_offset"]
    assert [r for r, c in rows.items() if c.data.depth_dir is None] == ["full_no_depth"]
    same = {json.dumps(c.schedule.model_dump(mode="json")) for c in rows.values()}
    assert len(same) == 1  # trained equally long
    with pytest.raises(UserError, match=r"no row 'fool'.*full"):
        row_config(base, "fool", 0)


def test_runs_get_no_more_threads_than_there_are_cores_for_them(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under taskset too: two threads on one core wait for each other."""
    given: list[str] = []

    class Process:
        returncode = 0

        def __init__(self, command: list[str], env: dict[str, str], **rest: object) -> None:
            given.append(env["OMP_NUM_THREADS"])

        def poll(self) -> int:
            return 0

    (tmp_path / "full" / "0").mkdir(parents=True)
    monkeypatch.setattr(subprocess, "Popen", Process)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    for cores, jobs in ((1, 1), (4, 1), (4, 2), (4, 8)):
        monkeypatch.setattr(os, "sched_getaffinity", lambda _, cores=cores: set(range(cores)))
        run_all(tmp_path, [("full", 0)], Place(jobs, "cpu"), None)
    assert given == ["1", "4", "2", "1"]


def test_mean_spread_and_single_values(config: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for seed, ap in enumerate((20.0, 22.0, 27.0)):
        _finish(config, out, "full", seed, student=ap, teacher=99)
    _finish(config, out, "dsn", 0, student=99, teacher=18.5)
    (out / "full" / "3").mkdir()  # begun, not complete
    rows = collect(out, _base(config))["rows"]
    full = rows["full"]
    assert full["seeds"] == [0, 1, 2]
    assert list(rows) == ["dsn", "full"]
    assert full["ap3d_50_moderate"]["seeds"] == [20, 22, 27]
    assert full["ap3d_50_moderate"]["mean"] == 23
    assert full["ap3d_50_moderate"]["std"] == pytest.approx(statistics.stdev([20, 22, 27]))
    assert full["ap3d_70_moderate"]["seeds"][0] == 20.25
    assert full["apbev_50_moderate"]["seeds"][0] == 21
    assert rows["dsn"]["ap3d_50_moderate"] == {"mean": 18.5, "std": None, "seeds": [18.5]}  # of the teacher


def test_a_row_that_finds_nothing_is_reported(config: Path, tmp_path: Path) -> None:
    _finish(config, tmp_path, "full", 0, 0.0, 0.0, error=None)
    result = collect(tmp_path, _base(config))
    assert result["rows"]["full"]["depth_median"] == {"mean": None, "std": None, "seeds": [None]}
    (line,) = [line for line in table(result).splitlines() if "`full`" in line]
    assert line.count("?") == 6


def test_the_result_file_alone_is_enough_to_go_on(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, asked = tmp_path / "out", []

    def run_all(out: Path, pending: list[tuple[str, int]], *rest: object) -> None:
        asked.append(pending)
        for row, seed in pending:
            _finish(config, out, row, seed, student=10.0 + seed, teacher=5)

    monkeypatch.setattr(ablation, "run_all", run_all)
    first = run_ablation(_base(config), out, ["full"], 2, Place(1, "cpu"))
    for folder in (p for p in out.iterdir() if p.is_dir()):
        shutil.rmtree(folder)
    second = run_ablation(_base(config), out, ["full", "dsn"], 3, Place(1, "cpu"))
    assert asked == [[("full", 0), ("full", 1)], [("dsn", 0), ("dsn", 1), ("full", 2), ("dsn", 2)]]
    assert second["rows"]["full"]["ap3d_50_moderate"]["seeds"] == [10, 11, 12]
    assert first["rows"]["full"]["depth_median"]["seeds"] == second["rows"]["full"]["depth_median"]["seeds"][:2]
    assert json.loads((out / "ablation.json").read_text()) == second
    assert (out / "ablation.md").read_text() == table(second)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": {"teacher": False}}, "method.teacher: true"),
        ({"method": {"distillation": "l1", "modulation": True}}, "distillation: uad, method.modulation: false"),
        ({"data": {"depth_dir": None}}, "data.depth_dir"),
        ({"model": {"center_offset": False}}, "model.center_offset: true"),
        ({"data": {"val": None}}, "needs data.val"),
        ({"model": {"classes": ["Pedestrian"]}}, "class Car"),
    ],
)
def test_a_config_that_the_rows_do_not_fit_is_refused(
    config: Path, tmp_path: Path, change: dict[str, dict[str, Any]], message: str
) -> None:
    """Its rows would not be what they are called."""
    raw = yaml.safe_load(config.read_text())
    for section, values in change.items():
        raw[section].update(values)
    with pytest.raises(UserError, match=message):
        run_ablation(TrainConfig.model_validate(raw), tmp_path / "out", ["full"], 1, Place(1, "cpu"))
    assert not (tmp_path / "out").exists()


def test_a_row_named_twice_runs_once_and_what_is_missing_is_said(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = []
    monkeypatch.setattr(ablation, "run_all", lambda out, pending, *rest: asked.append(pending))
    run_ablation(_base(config), tmp_path, ["full", "dsn", "full"], 2, Place(2, "cpu"), stop_after=0)
    assert asked == [[("full", 0), ("dsn", 0), ("full", 1), ("dsn", 1)]]
    assert "4 of 4 runs are missing; run the same command to resume" in capsys.readouterr().out


def test_a_result_file_outlives_new_keys_of_the_config(config: Path, tmp_path: Path) -> None:
    result = collect(tmp_path, _base(config))
    del result["config"]["schedule"]["freeze_norm"]  # as written before there was such a key
    (tmp_path / "ablation.json").write_text(json.dumps(result))
    assert collect(tmp_path, _base(config))["config"]["schedule"]["freeze_norm"] is False


def test_results_of_another_config_are_not_mixed(config: Path, tmp_path: Path) -> None:
    base = _base(config)
    (tmp_path / "ablation.json").write_text(json.dumps(collect(tmp_path, base)))
    longer = base.model_copy(update={"schedule": base.schedule.model_copy(update={"epochs": 9})})
    with pytest.raises(UserError, match="another config"):
        collect(tmp_path, longer)
    collect(tmp_path, base.model_copy(update={"seed": 5}))  # the seed belongs to the run
    (tmp_path / "ablation.json").unlink()
    _finish(config, tmp_path, "full", 0, 1.0, 1.0)  # and a run, where the file was deleted
    with pytest.raises(UserError, match="full/0: is a run of another config"):
        collect(tmp_path, longer)
    for damaged in ("{", '{"rows": {"full": {}}}', '{"rows": []}', '{"rows": {}}'):
        (tmp_path / "ablation.json").write_text(damaged)
        with pytest.raises(UserError, match="not a result of this command"):
            collect(tmp_path, base)


def test_without_a_validation_set_it_says_so(root: Path, tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(tiny.make_config(root).model_dump(mode="json")))
    with pytest.raises(UserError, match=r"data\.val"):
        run_ablation(_base(path), tmp_path / "out", ["full"], 1, Place(1, "cpu"))


def test_a_place_that_cannot_be_written_is_named(config: Path) -> None:
    with pytest.raises(UserError, match=r"/proc/nowhere.*cannot make this folder"):
        run_ablation(_base(config), Path("/proc/nowhere"), ["full"], 1, Place(1, "cpu"))


def test_two_rows_are_trained_for_real(config: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = run_ablation(_base(config), out, ["mdn_proj", "full"], 1, Place(2, "cpu"))
    for row in ("mdn_proj", "full"):
        assert (out / row / "0" / "student.safetensors").exists()
        assert result["rows"][row]["seeds"] == [0]
    written = yaml.safe_load((out / "mdn_proj" / "0" / "config.yaml").read_text())
    assert written["method"]["teacher"] is False


def test_whoever_stops_it_stops_its_runs(config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SIGTERM, as systemd and schedulers send it: the trainings get it too, and write their checkpoints."""
    script = tmp_path / "train"
    lines = ("#!/bin/sh", f"trap 'touch {tmp_path}/stopped; exit 0' TERM", f"touch {tmp_path}/begun")
    script.write_text("\n".join([*lines, "while :; do sleep .05; done", ""]))
    script.chmod(0o755)
    monkeypatch.setattr(ablation_runs.sys, "executable", str(script))

    def stop() -> None:
        while not (tmp_path / "begun").exists():
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=stop)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        run_ablation(_base(config), tmp_path / "out", ["full"], 1, Place(1, "cpu"))
    thread.join()
    assert (tmp_path / "stopped").exists()
    assert signal.getsignal(signal.SIGTERM) != signal.default_int_handler
    assert json.loads((tmp_path / "out" / "ablation.json").read_text())["rows"] == {}


def test_runs_by_ray_stop_with_a_checkpoint_and_resume(config: Path, tmp_path: Path) -> None:
    out, longer = tmp_path / "out", ["schedule.epochs=8", "schedule.eval_every=8"]
    words = [sys.executable, "-m", "skd_core.cli", "ablate", str(config), "--out", str(out), "--device", "cpu"]
    words += ["--rows", "mdn_proj", "--seeds", "1", "--ray", "local"]
    words += [word for change in longer for word in ("--set", change)]
    run = out / "mdn_proj" / "0"
    first = subprocess.Popen(words)
    try:
        while not (run / "metrics.jsonl").exists() or not (run / "metrics.jsonl").read_text():
            assert first.poll() is None
            time.sleep(0.1)
        first.terminate()
        assert first.wait() == 130
    finally:
        first.kill()
    lock = acquire(run)
    assert lock is not None  # it has ended too
    release(lock)
    step = torch.load(run / "checkpoint.pt", weights_only=False)["step"]
    assert step > 0
    result = run_ablation(load_config(config, longer), out, ["mdn_proj"], 1, Place(1, "cpu", "local"))
    assert result["rows"]["mdn_proj"]["seeds"] == [0]
    assert f"interrupted at step {step}" in (run / "log.txt").read_text()
    assert not list(run.glob("*.previous"))  # it went on


def test_a_run_that_fails_names_its_log(config: Path, tmp_path: Path) -> None:
    raw = yaml.safe_load(config.read_text())
    raw["schedule"]["batch_size"] = 64
    config.write_text(yaml.safe_dump(raw))
    with pytest.raises(UserError, match=r"log\.txt"):
        run_ablation(_base(config), tmp_path / "out", ["full"], 1, Place(1, "cpu"))
    assert "batch_size" in (tmp_path / "out" / "full" / "0" / "log.txt").read_text()


def test_the_command_takes_values_over_the_files(config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(ablation, "run_ablation", lambda *arguments, **options: asked.append(arguments) or {"rows": {}})
    words = ["ablate", str(config), "--out", str(tmp_path / "out"), "--rows", "full, dsn", "--seeds", "2"]
    assert CliRunner().invoke(cli.app, [*words, "--set", "method.mode=paper"]).exit_code == 0
    ((base, out, rows, seeds, *_),) = asked
    assert base == _base(config).model_copy(update={"method": base.method})
    assert base.method.student_targets == "teacher"
    assert (out, rows, seeds) == (tmp_path / "out", ["full", "dsn"], 2)


def test_gpus_of_a_cluster_need_one(config: Path, tmp_path: Path) -> None:
    words = ["ablate", str(config), "--out", str(tmp_path / "out"), "--gpus", "1"]
    with pytest.raises(UserError, match="--gpus 1: goes with --ray"):
        CliRunner().invoke(cli.app, words, catch_exceptions=False)
    with pytest.raises(UserError, match=r"--ray 127\.0\.0\.1:1: no Ray cluster can be reached"):
        CliRunner().invoke(cli.app, [*words, "--ray", "127.0.0.1:1"], catch_exceptions=False)


# -- on real frames ----------------------------------------------------------------------------------------------------
@pytest.fixture
def real(root: Path, tmp_path: Path) -> TrainConfig:
    """Two sets, one of them as if it were real, and one to measure on."""
    train = [
        {"root": str(root), "depth_dir": "depth", "rendered": True},
        {"root": str(root), "labels_3d": False},
    ]
    return tiny.make_config(
        root,
        model={"focal": 120.0, "center_range": 2.5},
        data={"train": train, "val": {"root": str(root)}, "test": [{"root": str(root)}], "depth_dir": None},
        schedule={"epochs": 1, "epoch_steps": 1, "batch_size": 2},
        method={"modulation": False},
    )


def test_rows_on_real_frames_differ_in_their_sets(real: TrainConfig) -> None:
    rows = {row: row_config(real, row, 3) for row in REAL_ROWS}
    assert [len(c.data.sets) for c in rows.values()] == [1, 2, 2, 2]
    assert rows["rendered"].data.sets[0].rendered
    assert [part.only_2d for part in rows["real_2d"].data.sets] == [False, True]
    assert rows["weak"] == real.model_copy(update={"seed": 3})
    assert rows["supervised"].method.supervised
    assert [part.teaches_3d(True) for part in rows["supervised"].data.sets] == [True, False]
    assert len({c.schedule.epoch_steps for c in rows.values()}) == 1
    with pytest.raises(UserError, match=r"no row 'dsn'.*real_2d"):
        row_config(real, "dsn", 0)


@pytest.mark.parametrize(
    ("section", "change", "message"),
    [
        ("schedule", {"epoch_steps": None}, "schedule.epoch_steps"),
        ("data", {"test": []}, "data.test"),
        ("data", {"train": [{"root": "a", "rendered": True}]}, "with and without rendered"),
        ("data", {"test": [{"root": "/nowhere"}]}, "/nowhere"),
    ],
)
def test_a_config_that_is_no_benchmark_on_real_frames_is_refused(
    real: TrainConfig, tmp_path: Path, section: str, change: dict[str, Any], message: str
) -> None:
    raw = real.model_dump(mode="json")
    raw[section].update(change)
    with pytest.raises(UserError, match=message):
        run_ablation(TrainConfig.model_validate(raw), tmp_path / "out", ["weak"], 1, Place(1, "cpu"))
    assert not (tmp_path / "out").exists()


def test_runs_on_real_frames_are_measured_once_and_kept_in_a_file(
    real: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, asked = tmp_path / "out", []

    def run_all(out: Path, pending: list[tuple[str, int]], *rest: object) -> None:
        for row, seed in pending:
            (out / row / str(seed)).mkdir(parents=True, exist_ok=True)
            (out / row / str(seed) / "student.safetensors").touch()

    def measured(weights: Path, *rest: object) -> dict[str, dict[str, float]]:
        asked.append((weights.parent.parent.name, weights.parent.name))
        bev = {"weak": 0.27, "supervised": 0.3}[asked[-1][0]] + 0.03 * int(asked[-1][1])
        return {"a:val": {"bev_50": bev, "recall_50": 0.5, "depth_error": math.nan, "on_nothing": 0.25}}

    monkeypatch.setattr(ablation, "run_all", run_all)
    monkeypatch.setattr(evaluate_runs, "measure_weights", measured)
    run_ablation(real, out, ["weak", "supervised"], 1, Place(1, "cpu"))
    for folder in (p for p in out.iterdir() if p.is_dir()):
        shutil.rmtree(folder)
    run_ablation(real, out, ["weak"], 2, Place(1, "cpu"))
    assert asked == [("weak", "0"), ("supervised", "0"), ("weak", "1")]
    result = json.loads((out / "test_sets.json").read_text())
    assert {row: list(runs) for row, runs in result["runs"].items() if runs} == {
        "weak": ["0", "1"],
        "supervised": ["0"],
    }
    assert evaluate_runs.ratios(result) == {"a:val": pytest.approx(0.285 / 0.3)}
    text = (out / "test_sets.md").read_text()
    assert "| `weak` | a:val | 2 | 0.285 ± 0.021 | 0.500 | ? | 0.25 |" in text
    assert text.endswith("weak / supervised, BEV > .5: a:val 0.95\n")
    (out / "test_sets.json").rename(out / "ruler.json")  # its earlier name
    assert evaluate_runs.measure_runs(real, out, {}, "cpu") == result
    other = real.model_copy(update={"precision": "bf16-mixed"})
    with pytest.raises(UserError, match="is of another config"):
        evaluate_runs.measure_runs(other, out, {}, "cpu")
    (out / "test_sets.json").write_text('{"runs": []}')
    with pytest.raises(UserError, match="not a result of this command"):
        evaluate_runs.measure_runs(real, out, {}, "cpu")


def test_a_run_on_real_frames_from_end_to_end(real: TrainConfig, tmp_path: Path) -> None:
    result = run_ablation(real, tmp_path, ["supervised"], 1, Place(1, "cpu"))
    assert result["rows"]["supervised"]["seeds"] == [0]
    assert REAL_ROWS["supervised"][0] in (tmp_path / "ablation.md").read_text()
    kept = json.loads((tmp_path / "test_sets.json").read_text())
    (name,) = kept["runs"]["supervised"]["0"]
    assert kept["runs"]["supervised"]["0"][name]["labels"] > 0
