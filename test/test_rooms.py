"""The order of the rooms: a module imports only from its own room and those below it, and no two files need each other.

:data:`ROOMS` is the one place where the order is written down.
"""

from __future__ import annotations

import ast
import functools
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

ROOMS = (
    "skd_core.errors",
    "skd_core.locks",
    "skd_core.files",
    "skd_core.yaml_files",
    "skd_core.console",
    "skd_core.notes",
    "skd_core.calibration",
    "skd_core.camera",
    "skd_core.boxes",
    "skd_core.covariance",
    "skd_core.geometry",
    "skd_core.iou",
    "skd_core.cores",
    "skd_core.cluster",
    "skd_core.devices",
    "skd_core.priors",
    "skd_core.visualize",
    "skd_core.config_aliases",
    "skd_core.config",
    "skd_core.data",
    "skd_core.supervision",
    "skd_core.models",
    "skd_core.losses",
    "skd_core.inference",
    "skd_core.export",
    "skd_core.evaluation",
    "skd_core.training",
    "skd_core.synthetic",
    "skd_core.many",
    "skd_core.benchmark_report",
    "skd_core.benchmark_backends",
    "skd_core.benchmark_machine",
    "skd_core.benchmark",
    "skd_core.benchmark_training",
    "skd_core.benchmark_scaling",
    "skd_core.doctor",
    "skd_core",  # the package's own __init__.py, which offers the detector under a short name
    "skd_core.command_line",
    "skd_core.cli",
    "skd_wm3d_ros",
    "skd_wm3d_ros.tools",
)
"""From the ground up: modules, and packages with all that is in them."""

USERS_OF_THE_RENDERER = {"skd_core.synthetic", "skd_core.cli"} | {
    f"skd_core.benchmark{part}" for part in ("", "_scaling", "_training")
}


@functools.cache
def sources() -> dict[str, Path]:
    """Module name -> file."""
    found = {}
    for package in ("skd_core", "skd_wm3d_ros"):
        for file in sorted((ROOT / package).rglob("*.py")):
            found[".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")] = file
    return found


def room_of(module: str) -> str:
    """The room that a module is in; what has none of its own, such as a new file of skd_core, is an error."""
    if module == "skd_core" or module in ROOMS:
        return module
    parents = [module.rsplit(".", up)[0] for up in range(1, module.count(".") + 1)]
    rooms = [parent for parent in parents if parent in ROOMS and parent != "skd_core"]
    assert rooms, f"{module}: give it a place in ROOMS"
    return rooms[0]


def imported(tree: ast.AST, known: set[str]) -> set[str]:
    """All that a file imports, within functions and under TYPE_CHECKING too; of ours, the modules it means."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "write imports in full"
            base = str(node.module)
            names |= {sub if (sub := f"{base}.{alias.name}") in known else base for alias in node.names}
    return names


@functools.cache
def imports() -> dict[str, set[str]]:
    known = set(sources())
    return {name: imported(ast.parse(file.read_text(encoding="utf-8")), known) for name, file in sources().items()}


def ours(names: set[str]) -> set[str]:
    return {name for name in names if name.partition(".")[0] in ("skd_core", "skd_wm3d_ros")}


def climbing(graph: dict[str, set[str]]) -> list[str]:
    return [
        f"{module} -> {other}"
        for module, names in sorted(graph.items())
        for other in sorted(ours(names))
        if ROOMS.index(room_of(other)) > ROOMS.index(room_of(module))
    ]


def circle(graph: dict[str, set[str]]) -> list[str]:
    """Modules that import each other in a circle; [] if there are none."""
    done: set[str] = set()

    def visit(module: str, path: list[str]) -> list[str]:
        if module in path:
            return [*path[path.index(module) :], module]
        if module in done:
            return []
        for other in sorted(ours(graph.get(module, set()))):
            if found := visit(other, [*path, module]):
                return found
        done.add(module)
        return []

    for module in sorted(graph):
        if found := visit(module, []):
            return found
    return []


def test_no_import_climbs():
    assert len(sources()) > 100
    assert not climbing(imports())


def test_no_two_files_need_each_other():
    assert not circle(imports())


def test_only_the_benchmark_and_the_command_line_import_the_renderer():
    users = {m for m, names in imports().items() if any(n.startswith("skd_core.synthetic") for n in names)}
    assert {room_of(module) for module in users} == USERS_OF_THE_RENDERER


def test_only_the_renderer_imports_numba():
    users = {room_of(m) for m, names in imports().items() if any(n.partition(".")[0] == "numba" for n in names)}
    assert users == {"skd_core.synthetic"}


def test_imports_are_written_as_imports():
    """What the checks above cannot see; the bag player alone imports by name, ROS message packages."""
    for module, file in sources().items():
        if module == "skd_wm3d_ros.tools.bag_player":
            continue
        text = file.read_text(encoding="utf-8")
        assert "import_module" not in text, module
        assert "__import__" not in text, module


def test_the_checks_find_what_they_look_for():
    inside = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import skd_core.cli\ndef f():\n    {}\n"
    known = {"skd_core.evaluation", "skd_core.evaluation.plots", "skd_core.cli", "skd_core.boxes"}
    tree = ast.parse(inside.format("from skd_core.evaluation import plots, Missing"))
    found = {"typing", "skd_core.cli", "skd_core.evaluation.plots", "skd_core.evaluation"}
    assert imported(tree, known) == found
    assert climbing({"skd_core.boxes": {"skd_core.camera", "torch"}, "skd_core.camera": {"skd_core.boxes"}}) == [
        "skd_core.camera -> skd_core.boxes"
    ]
    assert circle({"skd_core.a": {"skd_core.b"}, "skd_core.b": {"skd_core.c"}, "skd_core.c": {"skd_core.b"}}) == [
        "skd_core.b", "skd_core.c", "skd_core.b",
    ]  # fmt: skip
    with pytest.raises(AssertionError, match=r"skd_core\.new: give it a place"):
        room_of("skd_core.new")


CHILD = '''
"""Import the modules of each room in a process of its own in which the rooms above it cannot be imported."""
import importlib, importlib.abc, json, os, sys, types
import cv2, lightning.fabric, matplotlib.figure, numba, pydantic, scipy.optimize, timm, torchvision  # once for all

rooms, root = json.load(sys.stdin)
package = types.ModuleType("skd_core")  # without what its __init__.py imports
package.__path__ = [root + "/skd_core"]


class Block(importlib.abc.MetaPathFinder):
    def __init__(self, names):
        self.names = names

    def find_spec(self, name, path=None, target=None):
        if name in self.names:
            raise ImportError(name + " is above")


def attempt(modules, blocked):
    sys.meta_path.insert(0, Block(blocked))
    if modules != ["skd_core"]:
        sys.modules["skd_core"] = package
    for module in modules:
        importlib.import_module(module)


for room, (modules, blocked) in rooms.items():
    sys.stdout.flush()
    child = os.fork()
    if not child:
        try:
            if room.startswith("skd_wm3d_ros"):
                try:
                    import cv_bridge, rclpy, sensor_msgs.msg, vision_msgs.msg
                except Exception:  # none, or built for another numpy
                    print(json.dumps([room, "no ROS"]), flush=True)
                    os._exit(0)
            attempt(modules, set(blocked))
            said = "fine"
        except BaseException as error:
            said = type(error).__name__ + ": " + str(error)
        print(json.dumps([room, said]), flush=True)
        os._exit(0)
    os.waitpid(child, 0)
'''


@pytest.fixture(scope="module")
def alone() -> dict[str, str]:
    """Room -> what became of importing it without those above it."""
    rooms = {}
    for number, room in enumerate(ROOMS):
        inside = [module for module in sources() if room_of(module) == room]
        if importlib.util.find_spec("launch_ros") is None:
            inside = [module for module in inside if module != "skd_wm3d_ros.launch_actions"]
        rooms[room] = inside, [name for name in ROOMS[number + 1 :] if name != "skd_core"]
    done = subprocess.run(
        [sys.executable, "-c", CHILD], input=json.dumps([rooms, str(ROOT)]), cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return dict(json.loads(line) for line in done.stdout.splitlines() if line.startswith("["))


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_needs_nothing_above_it(alone, room):
    if alone[room] == "no ROS":
        pytest.skip("needs ROS")
    assert alone[room] == "fine"


def test_without_the_renderers_extra_its_commands_say_so(tmp_path):
    code = "import sys; sys.modules['numba'] = None; from skd_core.cli import main; main()"
    for arguments in (["synth", str(tmp_path / "set"), "--frames", "1"], ["bench", "--quick"]):
        done = subprocess.run([sys.executable, "-c", code, *arguments], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 2
        said = "skd_core: error: this command needs numba, which is not installed: "
        assert done.stderr == said + "run pip install '.[synth]' in the skd_wm3d_ros source folder\n"
