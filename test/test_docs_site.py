"""The pages of docs/: each is in the navigation of mkdocs.yml, and links lead to what is there."""

from __future__ import annotations

import importlib
import re
import unicodedata
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted((ROOT / "docs").glob("*.md"))
TEXTS = [*PAGES, *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "QUALITY_DECLARATION.md"))]
SITE = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))


def without_code(text: str) -> str:
    return re.sub(r"^( *)```.*?^\1```", "", text, flags=re.DOTALL | re.MULTILINE)


def anchors(page: Path) -> set[str]:
    """Of headings, as Python-Markdown makes them."""
    found = set()
    for title in re.findall(r"^#+ (.+)$", without_code(page.read_text(encoding="utf-8")), re.MULTILINE):
        plain = unicodedata.normalize("NFKD", title).encode("ascii", "ignore").decode()
        found.add(re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", plain).strip().lower()))
    return found


def broken(page: Path, text: str) -> list[str]:
    """Links of a page that lead nowhere."""
    wrong = []
    for link in re.findall(r"\]\(([^)\s]+)\)", without_code(text)):
        if re.match(r"[a-z]+:", link):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            wrong.append(link)
    return wrong


def test_the_navigation_names_every_page_once_and_no_other():
    names = [name for entry in SITE["nav"] for name in entry.values()]
    assert names[0] == "index.md"
    assert sorted(names) == [page.name for page in PAGES]


@pytest.mark.parametrize("page", TEXTS, ids=lambda page: page.name)
def test_links_lead_to_files_and_headings(page):
    assert broken(page, page.read_text(encoding="utf-8")) == []


def test_pages_of_the_site_link_to_nothing_outside_of_it():
    for page in PAGES:
        for link in re.findall(r"\]\(([^)\s]+)\)", without_code(page.read_text(encoding="utf-8"))):
            assert not link.startswith(("../", "/")), f"{page.name}: {link}"


def test_the_check_finds_what_it_looks_for():
    page = ROOT / "docs" / "index.md"
    text = "[a](none.md) [b](deployment.md#no-such) [c](deployment.md#cameras) [d](https://x.y)\n```\n[e](f)\n```\n"
    assert broken(page, text) == ["none.md", "deployment.md#no-such"]


def test_the_api_page_names_what_is_there():
    text = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    names = re.findall(r"^::: ([\w.]+)$", text, re.MULTILINE)
    assert {"skd_core.camera.Camera", "skd_core.boxes.Boxes3D", "skd_core.inference.detector.Detector"} <= set(names)
    for name in names:
        module, _, attribute = name.rpartition(".")
        assert getattr(importlib.import_module(module), attribute).__doc__, name
    members = re.search(r"members: \[(.+)\]", text)
    detector: Any = importlib.import_module("skd_core.inference.detector").Detector
    assert members
    assert all(hasattr(detector, name) for name in members[1].split(", "))


def test_the_extra_docs_is_what_make_docs_installs():
    lines = (ROOT / "tools" / "requirements-docs.txt").read_text(encoding="utf-8").split()
    assert [line.partition(">")[0] for line in lines] == [
        "latex2mathml",
        "mkdocs",
        "mkdocs-material",
        "mkdocstrings[python]",
    ]
    assert {"search", "mkdocstrings"} == {next(iter(p)) if isinstance(p, dict) else p for p in SITE["plugins"]}
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert "-r tools/requirements-docs.txt" in makefile
    assert "mkdocs build --strict" in makefile
