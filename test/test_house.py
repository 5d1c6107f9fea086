"""The package as a whole: metadata that agree, an install that has everything, commands that answer, clean sources."""

from __future__ import annotations

import ast
import configparser
import importlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tarfile
import xml.etree.ElementTree as ElementTree
import zipfile
from importlib.metadata import distribution
from pathlib import Path

import pytest
import typer.main
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import skd_core
from skd_core.cli import app

ROOT = Path(__file__).resolve().parents[1]
NAME = "skd_wm3d_ros"


LOCKED_EXTRAS = ("train", "synth", "eval", "depth", "export", "nuscenes", "dev")
"""What the lock holds: all but rerun, whose pyarrow does not go with numpy 1.26, and docs, which has its own place."""


def run(
    *command: str | Path, timeout: float = 120, cwd: Path = ROOT, **environment: str
) -> subprocess.CompletedProcess:
    return subprocess.run(
        [str(c) for c in command],
        cwd=cwd,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=timeout,
    )


def tracked_files() -> list[Path]:
    listing = run("git", "ls-files", "-z")
    if listing.returncode:
        pytest.skip("not a git checkout")
    return [ROOT / name for name in listing.stdout.split("\0") if name and (ROOT / name).is_file()]


@pytest.fixture(scope="module")
def manifest() -> ElementTree.Element:
    return ElementTree.parse(ROOT / "package.xml").getroot()


# --- metadata ------------------------------------------------------------------------------------------------------


def test_package_xml_says_what_ros_needs(manifest):
    assert manifest.get("format") == "3"
    assert manifest.findtext("name") == NAME
    assert manifest.findtext("export/build_type") == "ament_python"
    assert manifest.findtext("license") == "Apache-2.0"
    assert len(manifest.findtext("description", "").split()) > 10
    assert re.fullmatch(r"[\w.+-]+@[\w-]+(\.[\w-]+)+", manifest.find("maintainer").get("email"))


def test_ros_packages_in_use_are_dependencies(manifest):
    declared = {element.text for element in manifest.iter("exec_depend")}
    imports = re.compile(r"^\s*(?:from|import) ([a-z_0-9]+)", re.MULTILINE)
    used = set()
    for folder in (ROOT / NAME, ROOT / "launch"):
        for file in folder.rglob("*.py"):
            used |= set(imports.findall(file.read_text(encoding="utf-8")))
    ros = {
        n
        for n in used
        if n.endswith(("_msgs", "_interfaces")) or n in {"rclpy", "cv_bridge", "message_filters", "launch"}
    }
    ros |= used & {"launch_ros", "tf2_ros", "ament_index_python", "diagnostic_updater", "lifecycle_msgs"}
    assert "rclpy" in ros
    assert ros - {"yolo_msgs"} <= declared  # taken where it is installed, and said where it is not


def test_ros_packages_that_only_tests_use_are_test_dependencies(manifest):
    declared = {element.text for kind in ("exec_depend", "test_depend") for element in manifest.iter(kind)}
    used = set()
    for file in (ROOT / "test").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            used |= {alias.name for alias in node.names} if isinstance(node, ast.Import) else set()
            used |= {str(node.module)} if isinstance(node, ast.ImportFrom) else set()
    roots = {name.partition(".")[0] for name in used}
    ros = {name for name in roots if name.endswith(("_msgs", "_interfaces")) or name in ("rclpy", "tf2_ros", "launch")}
    assert "rosgraph_msgs" in ros
    assert ros <= declared
    tests_of_pip = {f"python3-{name}" for name in ("hypothesis", "pytest", "pytest-timeout", "shapely")}
    assert tests_of_pip <= declared


def test_linters_agree_on_the_length_of_a_line():
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    ruff = re.search(r"^line-length = (\d+)$", (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)
    assert config["flake8"]["max-line-length"] == ruff[1]
    assert {"convention", "add_ignore"} <= set(config["pydocstyle"])


def test_what_rviz_needs_is_a_dependency(manifest):
    declared = {element.text for element in manifest.iter("exec_depend")}
    plugins = set(re.findall(r"Class: (\w+)/", (ROOT / "rviz" / "detector.rviz").read_text(encoding="utf-8")))
    assert plugins - {"rviz_common", "rviz_default_plugins"} <= declared  # those two are rviz2's
    assert {"rviz2", "compressed_image_transport"} <= declared


def test_one_version_everywhere(manifest):
    changelog = (ROOT / "CHANGELOG.rst").read_text(encoding="utf-8")
    newest = re.search(r"^(\d+\.\d+\.\d+) \(", changelog, re.MULTILINE)[1]
    assert {skd_core.__version__, manifest.findtext("version"), newest, distribution(NAME).version} == {newest}


def test_the_citation_is_of_this_version_and_licence():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert (citation["version"], citation["license"]) == (skd_core.__version__, "Apache-2.0")
    assert citation["references"][0]["identifiers"][0]["value"] in (ROOT / "README.md").read_text(encoding="utf-8")


def test_licence_is_apache_2():
    text = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert "Apache License" in text
    assert "Version 2.0, January 2004" in text
    assert "END OF TERMS AND CONDITIONS" in text


def test_the_lock_satisfies_what_setup_py_asks_for():
    lines = (ROOT / "tools" / "requirements-lock.txt").read_text(encoding="utf-8").splitlines()
    pins = {canonicalize_name(name): pin for name, _, pin in (line.partition("==") for line in lines) if pin}
    assert all("==" in line for line in lines if line and not line.startswith("#"))
    for text in distribution(NAME).requires:
        requirement = Requirement(text)
        if requirement.marker and not any(requirement.marker.evaluate({"extra": e}) for e in LOCKED_EXTRAS):
            continue
        pin = pins.get(canonicalize_name(requirement.name))
        assert requirement.specifier.contains(pin or "0"), f"{text}, but the lock has {pin}"


# --- install -------------------------------------------------------------------------------------------------------


def test_entry_points_lead_to_functions():
    scripts = {e.name: e for e in distribution(NAME).entry_points if e.group == "console_scripts"}
    assert set(scripts) == {"skd_core", "detector_node"}
    for name, entry in scripts.items():
        if name != "skd_core" and importlib.util.find_spec("rclpy") is None:
            continue
        assert callable(entry.load())
        assert (Path(sys.prefix) / "bin" / name).exists()


def test_executables_go_where_ros2_run_looks():
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    for section, key in (("develop", "script_dir"), ("install", "install_scripts")):
        assert config[section][key] == f"$base/lib/{NAME}"
    # not the interpreter of the machine that built it: the user's environment has torch
    assert config["build_scripts"]["executable"] == "/usr/bin/env python3"


def installed_share(prefix: Path) -> set[str]:
    share = prefix / "share"
    folders = os.walk(share / NAME, followlinks=True)
    found = {Path(folder, file).relative_to(share).as_posix() for folder, _, files in folders for file in files}
    return found | {f"index/{f.name}" for f in (share / "ament_index/resource_index/packages").glob(NAME)}


def sources_to_share() -> set[str]:
    sources = {"package.xml"}
    for folder, patterns in {
        "launch": ["*.launch.py"],
        "config": ["*.yaml", "*.xml"],
        "config/train": ["*.yaml"],
        "rviz": ["*.rviz"],
    }.items():
        sources |= {f.relative_to(ROOT).as_posix() for pattern in patterns for f in (ROOT / folder).glob(pattern)}
    assert {"launch/detector.launch.py", "config/detector.yaml", "rviz/detector.rviz"} <= sources
    return {f"{NAME}/{source}" for source in sources} | {f"index/{NAME}"}


def test_the_environment_is_an_ament_prefix():
    missing = sources_to_share() - installed_share(Path(sys.prefix))
    assert not missing, "run `make setup` once more"
    assert {f.name for f in (Path(sys.prefix) / "lib" / NAME).iterdir()} == {"detector_node", "bag_player", "soak"}


def test_setup_works_where_its_own_environment_is_activated(monkeypatch):
    """The README has users activate .venv, whose rclpy must not pass for the machine's."""
    if Path(sys.prefix) != ROOT / ".venv":
        pytest.skip("not in .venv")
    spec = importlib.util.spec_from_file_location("setup_venv", ROOT / "tools" / "setup_venv.py")
    setup_venv, started = importlib.util.module_from_spec(spec), []
    spec.loader.exec_module(setup_venv)
    monkeypatch.setattr(setup_venv.os, "execv", lambda python, arguments: started.append((python, arguments)))
    setup_venv.leave_own_venv()
    ((python, arguments),) = started
    assert arguments == [str(python), *sys.argv]
    assert run(python, "-c", "import sys; print(sys.prefix == sys.base_prefix)").stdout == "True\n"
    monkeypatch.setattr(setup_venv.sys, "prefix", sys.base_prefix)
    setup_venv.leave_own_venv()
    assert len(started) == 1


@pytest.fixture(scope="module")
def colcon_install(tmp_path_factory) -> Path:
    """`colcon build` of this repository."""
    pytest.importorskip("colcon_core")
    base = tmp_path_factory.mktemp("colcon")
    done = run(
        *(sys.executable, "-m", "colcon", "--log-base", base / "log", "build", "--build-base", base / "build"),
        *("--install-base", base / "install"),
        PYTHONWARNINGS="ignore",
    )
    assert done.returncode == 0, done.stderr
    return base / "install"


def test_colcon_takes_it_for_an_ament_python_package():
    pytest.importorskip("colcon_core")
    done = run(sys.executable, "-m", "colcon", "--log-base", os.devnull, "list")
    assert done.stdout.split("\n")[0].split("\t") == [NAME, ".", "(ros.ament_python)"], done.stderr


def test_colcon_builds_the_usual_tree(colcon_install):
    prefix = colcon_install / NAME
    assert sources_to_share() <= installed_share(prefix)
    assert {f.name for f in (prefix / "lib" / NAME).iterdir()} == {"skd_core", "detector_node", "bag_player", "soak"}
    (site_packages,) = prefix.glob("lib/python3*/site-packages")
    for file in tracked_files():
        if file.relative_to(ROOT).parts[0] in ("skd_core", NAME):
            assert (site_packages / file.relative_to(ROOT)).exists(), f"{file.relative_to(ROOT)} is not installed"


def test_a_sourced_workspace_has_skd_core_on_the_path(colcon_install, tmp_path):
    script = f'. "{colcon_install}/setup.bash" && command -v skd_core && skd_core --version'
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = run("bash", "-c", script, cwd=tmp_path, PATH=path)
    found = str(colcon_install / NAME / "share" / NAME / "bin" / "skd_core")
    assert done.stdout.splitlines() == [found, skd_core.__version__], done.stderr


def test_a_sourced_workspace_puts_nothing_else_on_the_path(colcon_install, tmp_path):
    script = f'. "{colcon_install}/setup.bash" && echo "$PATH"'
    done = run("bash", "-c", script, cwd=tmp_path, PATH="/usr/bin:/bin")
    added = [Path(folder) for folder in done.stdout.strip().split(os.pathsep) if str(colcon_install) in folder]
    assert [file.name for folder in added for file in folder.iterdir()] == ["skd_core"]


@pytest.fixture(scope="module")
def artefacts(tmp_path_factory) -> tuple[Path, Path]:
    """The source distribution, and the wheel that is built from it alone; of the weights only their names."""
    base = tmp_path_factory.mktemp("artefacts")
    for file in tracked_files():
        copy = base / "tree" / file.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        if file.suffix in (".safetensors", ".onnx"):
            copy.write_bytes(b"")
        else:
            shutil.copy(file, copy)
    code = f"from setuptools import build_meta; build_meta.build_sdist({str(base)!r})"
    done = run(sys.executable, "-c", code, cwd=base / "tree")
    assert done.returncode == 0, done.stderr
    (sdist,) = base.glob("*.tar.gz")
    safely = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}  # Python 3.11 has it from 3.11.4 on
    shutil.unpack_archive(sdist, base / "unpacked", **safely)
    (source,) = (base / "unpacked").iterdir()
    command = (sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "--no-index")
    done = run(*command, "-w", base, source, cwd=base)
    assert done.returncode == 0, done.stderr
    (wheel,) = base.glob("*.whl")
    return source, wheel


def test_the_source_distribution_holds_all_that_git_has(artefacts):
    source = artefacts[0]
    files = {file.relative_to(ROOT).as_posix() for file in tracked_files()} - {".gitignore"}
    assert {"LICENSE", "config/detector.yaml", "skd_core/weights/LICENCES.md"} <= files
    assert not [name for name in sorted(files) if not (source / name).is_file()]


def test_a_wheel_holds_what_ros_and_users_need(artefacts):
    with zipfile.ZipFile(artefacts[1]) as wheel:
        names = set(wheel.namelist())
        metadata = wheel.read(next(name for name in names if name.endswith(".dist-info/METADATA"))).decode()
    shared = {name.partition(".data/data/share/")[2] for name in names} - {""}
    assert {name for name in sources_to_share() if not name.startswith("index/")} <= shared
    assert f"ament_index/resource_index/packages/{NAME}" in shared
    for file in tracked_files():
        if file.relative_to(ROOT).parts[0] in ("skd_core", NAME):
            assert file.relative_to(ROOT).as_posix() in names
    licences = {name.rpartition("/")[2] for name in names if ".dist-info/" in name}
    assert {"LICENSE", "LICENCES.md"} <= licences
    assert {f"skd_core/weights/{name}" for name in ("default.safetensors", "street.onnx", "LICENCES.md")} <= names
    assert 'matplotlib>=3.7; extra == "eval"' in metadata
    assert "Requires-Dist: torch>=2.4\n" in metadata
    assert not [name for name in names if name.startswith(("test/", "tools/", "docs/"))]


def test_a_wheel_puts_two_commands_on_the_path(artefacts):
    """The rest is for `ros2 run`: soak and bag_player are too common as names."""
    with zipfile.ZipFile(artefacts[1]) as wheel:
        entry_points = next(name for name in wheel.namelist() if name.endswith("entry_points.txt"))
        config = configparser.ConfigParser()
        config.read_string(wheel.read(entry_points).decode())
        modes = {info.filename.partition(".data/")[2]: info.external_attr >> 16 for info in wheel.infolist()}
    assert set(config["console_scripts"]) == {"skd_core", "detector_node"}
    assert not [name for name in modes if name.startswith(("scripts/", "data/bin/"))]
    executables = {name: mode for name, mode in modes.items() if name.startswith(f"data/lib/{NAME}/")}
    assert {Path(name).name for name in executables} == {"bag_player", "soak"}
    assert all(mode & 0o111 for mode in executables.values())


# --- commands ------------------------------------------------------------------------------------------------------


def commands(group, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    found = []
    for name, command in getattr(group, "commands", {}).items():
        found += [(*path, name), *commands(command, (*path, name))]
    return found


def test_version_is_printed(tmp_path):
    done = run(Path(sys.prefix) / "bin" / "skd_core", "--version", cwd=tmp_path)
    assert (done.returncode, done.stdout.strip()) == (0, skd_core.__version__), done.stderr


@pytest.mark.parametrize("command", commands(typer.main.get_command(app)), ids=" ".join)
def test_every_command_explains_itself(command):
    from typer.testing import CliRunner

    result = CliRunner().invoke(app, [*command, "--help"], env={"COLUMNS": "200"})
    assert result.exit_code == 0
    assert "Usage:" in result.output
    node = typer.main.get_command(app)
    for name in command:
        node = node.commands[name]
    assert node.help
    for parameter in node.params:
        assert parameter.help, f"{' '.join(command)} {parameter.name} has no help"


def test_the_readmes_commands_exist():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    used = set(re.findall(r"\bmake ([a-z0-9-]+)", readme))
    assert {"demo", "test"} <= used <= targets
    known = {command[0] for command in commands(typer.main.get_command(app))}
    code = "\n".join(re.findall(r"```.*?\n(.*?)```", readme, re.DOTALL))
    assert set(re.findall(r"^skd_core ([a-z-]+)", code, re.MULTILINE)) <= known


def test_ci_runs_make_test():
    lines = (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()
    assert lines[-1] == "exec make test"
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "test.yml").read_text(encoding="utf-8"))
    steps = {name: [str(step.get("run", "")) for step in job["steps"]] for name, job in workflow["jobs"].items()}
    assert "make test" in steps["make-test"]
    assert workflow["jobs"]["jazzy"]["container"] == "ros:jazzy"
    assert any("colcon build --packages-select skd_wm3d_ros" in step for step in steps["jazzy"])
    assert "has not been run on GitHub yet" in (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")


# --- sources -------------------------------------------------------------------------------------------------------


def test_no_path_of_a_developers_machine():
    pattern = re.compile(rb"/(?:home|root|work|Users)/[A-Za-z0-9_.-]+")
    texts = [
        f
        for f in tracked_files()
        if f.suffix in {".py", ".md", ".xml", ".yaml", ".cfg", ".toml", ".txt", ".sh", ".rst"}
    ]
    assert len(texts) > 20
    assert not [f"{f.relative_to(ROOT)}: {m[0].decode()}" for f in texts for m in pattern.finditer(f.read_bytes())]


def test_the_core_never_imports_ros():
    ros = re.compile(
        r"^\s*(?:from|import) (rclpy|\w+_msgs|cv_bridge|message_filters|launch\w*|skd_wm3d_ros)\b", re.MULTILINE
    )
    for file in (ROOT / "skd_core").rglob("*.py"):
        assert not ros.search(file.read_text(encoding="utf-8")), file


def test_every_module_imports():
    names = []
    for package in ("skd_core", NAME):
        if package == NAME and importlib.util.find_spec("rclpy") is None:
            continue
        names += [".".join(f.relative_to(ROOT).with_suffix("").parts) for f in sorted((ROOT / package).rglob("*.py"))]
    if importlib.util.find_spec("launch_ros") is None:
        names.remove(f"{NAME}.launch_actions")
    for name in names:
        if not name.endswith("__main__"):
            importlib.import_module(name.removesuffix(".__init__"))


LONG = {
    "skd_core/training/trainer.py": "one loop, its checkpoint and its report",
    "skd_core/cli.py": "the dictionary of all commands; each has its own help",
}
"""Files of more than 400 lines, and why."""


def test_functions_take_no_more_than_six_positional_arguments():
    """A command's arguments are its options; the renderer's kernels and mesh builders take plain numbers."""
    for file in [*(ROOT / "skd_core").rglob("*.py"), *(ROOT / NAME).rglob("*.py")]:
        if file.name == "cli.py" or "synthetic" in file.parts:
            continue
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef):
                names = [a.arg for a in node.args.posonlyargs + node.args.args if a.arg not in ("self", "cls")]
                assert len(names) <= 6, f"{file.name}: {node.name}"


def test_files_have_no_more_than_400_lines():
    for file in [*(ROOT / "skd_core").rglob("*.py"), *(ROOT / NAME).rglob("*.py")]:
        lines = file.read_text(encoding="utf-8").count("\n")
        assert lines <= 400 or file.relative_to(ROOT).as_posix() in LONG, f"{file.name}: {lines}"


def test_ruff_is_content():
    done = run(sys.executable, "-m", "ruff", "check", ".")
    assert done.returncode == 0, done.stdout


def test_mypy_is_content():
    done = run(sys.executable, "-m", "mypy", timeout=600)
    assert done.returncode == 0, done.stdout


def test_ros_tests_run_here():
    if importlib.util.find_spec("rclpy") is None:
        pytest.skip("no rclpy: everything in test/ros was left out")
