"""docs/method.md names what is there: files, rows, constants, pictures."""

import json
import re
from pathlib import Path

import pytest

from skd_core.config import MethodConfig
from skd_core.losses.distillation import MARGIN, TAU, WEIGHT
from skd_core.priors import prior_of
from skd_core.training.ablation import ROWS, table

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "docs" / "method.md").read_text(encoding="utf-8")


def numbers(line_start: str) -> list[float]:
    """Those of the one line that starts so."""
    (line,) = [line for line in TEXT.splitlines() if line.startswith(line_start)]
    return [float(n) for n in re.findall(r"(?<![\w.])\d*\.?\d+", line[len(line_start) :])]


@pytest.mark.parametrize("name", sorted(set(re.findall(r"`([\w/]+\.(?:py|yaml))\b", TEXT))))
def test_files_that_the_page_names_exist(name: str):
    folders = (ROOT / "skd_core", ROOT / "config" / "train")
    assert (ROOT / name).is_file() or any(list(folder.rglob(name)) for folder in folders), name


def test_pictures_are_there_and_light():
    found = re.findall(r"!\[.*?\]\((.+?)\)", TEXT)
    assert len(found) == 2
    for name in found:
        assert 10_000 < (ROOT / "docs" / name).stat().st_size < 200_000


def test_every_row_of_the_ablation_is_explained():
    assert re.findall(r"^\| `(\w+)` \| ", TEXT, re.MULTILINE) == list(ROWS)


def test_the_ablation_is_that_of_the_result_file():
    result = json.loads((ROOT / "docs" / "ablation.json").read_text(encoding="utf-8"))
    assert list(result["rows"]) == list(ROWS)
    assert table(result) in (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    for row, measures in result["rows"].items():
        (line,) = [line for line in TEXT.splitlines() if line.startswith(f"| `{row}` | ")]
        ap = measures["ap3d_50_moderate"]
        assert line.endswith(f"| {ap['mean']:.1f} ± {ap['std']:.1f} |"), line


def test_margins_and_weights_are_the_codes():
    assert numbers("m_q ") == list(MARGIN.values())
    assert numbers("lambda  ") == list(WEIGHT.values())
    assert f"tau {TAU}".replace("0.", ".") in TEXT
    assert numbers("k_D ")[-1] == MethodConfig().gtm_alpha
    assert numbers("k_fb ")[-1] == MethodConfig().gtm_beta


@pytest.mark.parametrize("name", ["Car", "Pedestrian", "Cyclist"])
def test_class_sizes_are_the_codes(name: str):
    assert numbers(f"| {name} |") == [*prior_of(name).size, *prior_of(name).tolerance]
