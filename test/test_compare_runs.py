"""tools/compare_runs.py and tools/method_runs.sh: differences seed by seed, and calls that the configs accept."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from skd_core.config import load_config
from skd_core.training.ablation import row_config, rows_of

ROOT = Path(__file__).resolve().parents[1]
CALL = re.compile(r"^    ablate (\S+) (\S+) (\S+) (?:\S+)(.*)$", re.MULTILINE)


def written(path: Path, **rows: dict[int, float]) -> Path:
    measures = {row: {"seeds": list(of), "ap3d_50_moderate": {"seeds": list(of.values())}} for row, of in rows.items()}
    path.write_text(json.dumps({"rows": measures}))
    return path


def compare(*names: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "tools" / "compare_runs.py"), *map(str, names)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


def test_differences_seed_by_seed(tmp_path: Path) -> None:
    """+1, +2, -1.5 and one seed that the other lacks: mean .5, standard deviation 1.80, of three 1.04."""
    base = written(tmp_path / "a.json", distill_uad={0: 20.0, 1: 21.0, 2: 22.0, 3: 9.0})
    (tmp_path / "b").mkdir()
    written(tmp_path / "b" / "ablation.json", full={0: 21.0, 1: 23.0, 2: 20.5})
    done = compare(f"{base}:distill_uad", tmp_path / "b")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith(": +0.50 ± 1.04 over 3 seeds, better in 2")
    missing = compare(base, tmp_path / "b")
    assert missing.returncode == 1
    assert "no row 'full'" in missing.stderr


@pytest.mark.parametrize("call", CALL.findall((ROOT / "tools" / "method_runs.sh").read_text()), ids=lambda c: c[1])
def test_every_run_is_one_that_the_configs_know(call: tuple[str, str, str, str]) -> None:
    config, _, rows, options = call
    name = "config/train/synthetic.yaml" if config == "$SYNTHETIC" else config
    options = options.replace("$2", "method.gtm_form=lift_student method.gtm_measure=labels")
    base = load_config(ROOT / name, options.split())
    for row in rows.split(","):
        assert row in rows_of(base)
        assert row_config(base, row, 0).seed == 0
