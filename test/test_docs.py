"""docs/method.md names what is there: files, constants, pictures; what refers to it names its headings."""

from __future__ import annotations

import io
import json
import re
import tokenize
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
    pages = (ROOT / "docs").glob("*.md")
    found = [name for page in pages for name in re.findall(r"!\[.*?\]\((.+?)\)", page.read_text(encoding="utf-8"))]
    assert sorted(found) == ["architecture.png", "gtm.png", "scaling.png"]
    for name in found:
        assert 10_000 < (ROOT / "docs" / name).stat().st_size < 200_000


def test_the_page_stays_a_specification():
    """Results belong on docs/benchmarks.md, history into commit messages."""
    assert len(TEXT.split()) <= 2500


def test_the_ablation_is_that_of_the_result_file():
    result = json.loads((ROOT / "docs" / "ablation.json").read_text(encoding="utf-8"))
    assert list(result["rows"]) == list(ROWS)
    assert table(result) in (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")


def test_margins_and_weights_are_the_codes():
    assert numbers("| margin $m_q$ |") == list(MARGIN.values())
    assert numbers("| weight $\\lambda_q$ |") == list(WEIGHT.values())
    assert f"\\tau = {TAU}\n" in TEXT
    assert f"`gtm_alpha`, {MethodConfig().gtm_alpha:g}," in TEXT
    assert f"`gtm_beta`, {MethodConfig().gtm_beta}:" in TEXT


@pytest.mark.parametrize("name", ["Car", "Pedestrian", "Cyclist"])
def test_class_sizes_are_the_codes(name: str):
    assert numbers(f"| {name} |") == [*prior_of(name).size, *prior_of(name).tolerance]


# --- references ------------------------------------------------------------------------------------------------------


def sections() -> dict[str, list[str]]:
    """The headings of the second level, and those of the third below each."""
    found: dict[str, list[str]] = {}
    for marks, title in re.findall(r"^(###?) (.+)$", TEXT, re.MULTILINE):
        if marks == "##":
            found[title] = []
        else:
            found[list(found)[-1]].append(title)
    return found


def references(text: str) -> list[str]:
    """Of prose: "method: Losses, Points" or "docs/method.md, Losses, Points", up to a bracket or full stop."""
    return [
        name.strip() for name in re.findall(r"(?:\bmethod: |\bdocs/method\.md, )([A-Z0-9][^][(){}.;:\"`\n]*)", text)
    ]


def unknown(names: list[str]) -> list[str]:
    """Those that are no heading of the page."""
    known = sections()
    parts = [name.partition(", ") for name in names]
    return [a + comma + b for a, comma, b in parts if a not in known or (b and b not in known[a])]


def prose(file: Path) -> str:
    """Comments and strings of Python, all of another text."""
    text = file.read_text(encoding="utf-8")
    if file.suffix != ".py":
        return text
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    return "\n".join(token.string for token in tokens if token.type in (tokenize.COMMENT, tokenize.STRING))


def test_references_name_headings_that_exist():
    files = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "mkdocs.yml")]
    for folder in ("skd_core", "skd_wm3d_ros", "test", "tools", "launch", "config", "docs"):
        files += [f for f in sorted((ROOT / folder).rglob("*")) if f.suffix in (".py", ".yaml", ".md")]
    count = 0
    for file in files:
        text = prose(file)
        names = references(text)
        count += len(names)
        assert unknown(names) == [], file.relative_to(ROOT)
        assert not re.search(r"METHOD [0-9]|method\.md\)?, section", text), f"{file.name}: name the heading"
    assert count > 40


def test_the_check_of_references_finds_what_it_looks_for():
    text = "(method" + ": Losses, Points). see method" + ": Speed [ours]; docs/method.md" + ", Losses, Yaw"
    assert references(text) == ["Losses, Points", "Speed", "Losses, Yaw"]
    assert unknown(references(text)) == ["Speed", "Losses, Yaw"]
