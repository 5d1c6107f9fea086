"""Everything that is imported is declared: in install_requires, or in the extra that a command names."""

from __future__ import annotations

import ast
import functools
import importlib.metadata
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest import mock

from skd_core.cli import EXTRAS

ROOT = Path(__file__).resolve().parents[1]
WITH_EXTRA = (
    "skd_core.training", "skd_core.synthetic", "skd_core.benchmark", "skd_core.evaluation.plots",
    "skd_core.evaluation.bag_report", "skd_core.export",
)  # fmt: skip
"""Rooms and modules that need an extra to be imported at all."""


def canonical(requirement: str) -> str:
    return re.sub(r"[-_.]+", "-", re.split(r"[ <>=!\[;]", requirement, maxsplit=1)[0]).lower()


@functools.cache
def declared() -> dict[str, Any]:
    """What setup.py hands to setuptools."""
    with mock.patch("setuptools.setup") as setup:
        exec(
            compile((ROOT / "setup.py").read_text("utf-8"), str(ROOT / "setup.py"), "exec"),
            {"__file__": ROOT / "setup.py"},
        )
    arguments: dict[str, Any] = setup.call_args.kwargs
    return arguments


@functools.cache
def imports() -> dict[str, set[str]]:
    """Top-level name -> the files of skd_core that import it, in functions too; without the standard library's."""
    found: dict[str, set[str]] = {}
    for file in sorted((ROOT / "skd_core").rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [str(node.module)] if isinstance(node, ast.ImportFrom) else []
            for name in {name.partition(".")[0] for name in names} - {"skd_core"} - sys.stdlib_module_names:
                found.setdefault(name, set()).add(file.relative_to(ROOT).as_posix())
    return found


@functools.cache
def providers() -> dict[str, set[str]]:
    """Top-level name -> distributions that bring it."""
    return {name: {canonical(d) for d in them} for name, them in importlib.metadata.packages_distributions().items()}


def test_every_import_is_declared():
    extras = {canonical(r) for many in declared()["extras_require"].values() for r in many}
    known = {canonical(r) for r in declared()["install_requires"]} | extras
    missing = {
        name: files
        for name, files in imports().items()
        if name in providers() and not providers()[name] & known
    }  # fmt: skip
    assert not missing
    assert {"rich", "torch", "pydantic", "transformers"} <= set(imports())


def test_every_extra_that_a_command_names_is_there():
    for module, extra in EXTRAS.items():
        assert extra in declared()["extras_require"], module
        if module in providers():
            wanted = {canonical(r) for r in declared()["extras_require"][extra]}
            assert providers()[module] & wanted, module


def test_a_command_names_only_what_it_may_import():
    through_torch = {"tensorboard"}
    assert set(EXTRAS) <= set(imports()) | through_torch


def test_all_is_everything_but_what_pins_numpy_below_2():
    extras = {name: {canonical(r) for r in them} for name, them in declared()["extras_require"].items()}
    assert {"train", "synth", "eval", "depth", "export", "nuscenes", "rerun"} <= set(extras)
    of_developers = {"all", "test", "docs", "dev", "nuscenes"}
    wanted = set().union(*(them for name, them in extras.items() if name not in of_developers))
    assert extras["all"] == wanted
    assert "nuscenes-devkit" not in extras["all"]


def test_the_base_install_has_nothing_that_an_extra_is_for():
    base = {canonical(r) for r in declared()["install_requires"]}
    extras = declared()["extras_require"]
    assert not base & {canonical(r) for name, them in extras.items() if name != "docs" for r in them}


WITHOUT = {
    "plot RUN --out OUT.png": "matplotlib",
    "eval kitti --labels RUN --results RUN --plots OUT": "matplotlib",
    "bag-eval skd_wm3d_ros/data/demo_bag --out OUT": "matplotlib",
    "train config/train/own.yaml --out OUT": "lightning",
    "synth OUT": "numba",
    "export default --out OUT.onnx": "onnx",
}
"""Command -> what is missing."""

COMMANDS = """
import json, os, sys
import skd_core.data.bag, skd_core.inference.detector  # once for all; nothing that an extra brings
from skd_core.cli import main

for module, words in json.load(sys.stdin):
    sys.stderr.flush()
    child = os.fork()
    if not child:
        sys.modules[module] = None
        sys.argv = ["skd_core", *words]
        try:
            main()
        except SystemExit as left:
            print("status", left.code, file=sys.stderr, flush=True)
        os._exit(0)
    os.waitpid(child, 0)
"""


def test_a_command_without_its_extra_says_so_in_one_line(tmp_path):
    (tmp_path / "RUN").mkdir()
    (tmp_path / "RUN" / "metrics.jsonl").write_text("{}\n")
    cases = [
        (module, [re.sub(r"^(RUN|OUT)", lambda found: str(tmp_path / found[0]), word) for word in command.split()])
        for command, module in WITHOUT.items()
    ]
    done = subprocess.run(
        [sys.executable, "-c", COMMANDS], input=json.dumps(cases), cwd=ROOT, capture_output=True, text=True
    )
    assert done.stdout == "", done.stdout
    expected = [
        line
        for module in WITHOUT.values()
        for line in (
            f"skd_core: error: this command needs {module}, which is not installed: "
            f"run pip install '.[{EXTRAS[module]}]' in the skd_wm3d_ros source folder",
            "status 2",
        )
    ]
    said = [re.sub(r"needs (\w+)[\w.]*,", r"needs \1,", line) for line in done.stderr.splitlines()]
    assert said == expected
    assert not list(tmp_path.glob("OUT*"))


CHILD = """
import importlib, importlib.abc, json, sys

blocked, modules = json.load(sys.stdin)


class Without(importlib.abc.MetaPathFinder):
    def __init__(self, finder):
        self.finder = finder

    def find_spec(self, name, path=None, target=None):
        return None if name.partition(".")[0] in blocked else self.finder.find_spec(name, path, target)

    def find_distributions(self, context):
        return getattr(self.finder, "find_distributions", lambda context: ())(context)


sys.meta_path[:] = [Without(finder) for finder in sys.meta_path]
for module in modules:
    importlib.import_module(module)
"""


def test_modules_import_with_the_plain_dependencies_alone():
    """What only an extra brings, or nothing that is declared, cannot be imported there."""
    plain = {canonical(r) for r in declared()["install_requires"]}
    queue, closure = list(plain), set()
    while queue:
        name = queue.pop()
        if name in closure:
            continue
        closure.add(name)
        try:
            wanted = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            continue
        queue += [canonical(r) for r in wanted if "extra ==" not in r]
    blocked = [name for name, them in providers().items() if not them & closure and not them & {"skd-wm3d-ros"}]
    blocked = [name for name in blocked if name not in ("skd_core", "pkg_resources", "setuptools", "_distutils_hack")]
    assert {"numba", "lightning", "transformers", "onnx", "nuscenes"} & set(blocked)
    modules = [
        ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for file in sorted((ROOT / "skd_core").rglob("*.py"))
    ]
    modules = [name for name in modules if not name.startswith(WITH_EXTRA)]
    done = subprocess.run(
        [sys.executable, "-c", CHILD], input=json.dumps([blocked, modules]), cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
