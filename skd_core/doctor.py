"""``skd_core doctor``: checks whether this machine can run the detector, and says how to fix what fails.

Each check gives one or more findings: OK; WARN, where something is missing that only some commands need; FAIL, where
the detector or the node cannot work. Nothing is written, downloaded or changed. ROS is asked in a process of its own.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from skd_core.cores import usable_cores
from skd_core.errors import UserError
from skd_core.files import check_outputs, write_atomic

if TYPE_CHECKING:
    from packaging.requirements import Requirement

    from skd_core.inference.detector import Detector

PACKAGE = "skd_wm3d_ros"
OK, WARN, FAIL = "OK", "WARN", "FAIL"
PYTHON = (3, 10)
"""Oldest Python."""
EXTRAS = ("train", "synth", "eval", "depth", "export", "nuscenes", "ray", "rerun")
"""Extras that users choose; the others are for developers."""
FREE_WARN, FREE_FAIL = 5.0, 0.1
"""GB that should be free for training and recordings, and without which not even a report can be written [ours]."""
MEMORY_WARN = 2.0
"""GB of memory that should be available: the node takes about one [ours]."""
ROS_TIMEOUT = 60
"""Seconds in which ROS must have answered."""
ROS_PACKAGES = ("cv_bridge", "message_filters", "vision_msgs.msg", "tf2_ros")
PROFILES = ("FASTRTPS_DEFAULT_PROFILES_FILE", "FASTDDS_DEFAULT_PROFILES_FILE")
SEGMENT = 4 << 20
"""Bytes that Fast DDS's shared memory must have for camera images; its default is 0.5 MiB (docs/deployment.md)."""
SETUP = "in the skd_wm3d_ros source folder, run `make setup` and `source .venv/bin/activate`, or pip install ."

ASK_ROS = """
import json, sys
missing, new, rmw = {}, False, ""
for name in sys.argv[1:]:
    try:
        exec("import " + name)
    except Exception as error:
        missing[name.partition(".")[0]] = (str(error).splitlines() or [type(error).__name__])[0]
try: from rclpy.node import Node; import rclpy.event_handler; new = hasattr(Node, "add_post_set_parameters_callback")
except Exception: pass
try: import rclpy; rmw = rclpy.get_rmw_implementation_identifier()
except Exception: pass
print(json.dumps([missing, new, rmw]))
"""
"""Run in a process of its own, since an rclpy that does not fit may end it; prints what is missing and why, whether
rclpy is Jazzy's or newer, and the middleware."""


@dataclass(frozen=True)
class Finding:
    """What a check found.

    Attributes:
        check: what was looked at; subject: the thing itself, such as a package or a file.
        level: :data:`OK`, :data:`WARN` or :data:`FAIL`.
        found: what is there; cure: what to do, "" where all is well.
    """

    check: str
    subject: str
    level: str
    found: str
    cure: str = ""


# -- software ----------------------------------------------------------------------------------------------------------
def check_python() -> list[Finding]:
    """The interpreter, and whether it is one of a virtual environment."""
    found = f"{platform.python_version()} at {sys.executable}"
    if sys.version_info < PYTHON:
        return [Finding("versions", "python", FAIL, found, "use Python 3.10 or newer")]
    return [Finding("versions", "python", OK, found)]


def requirements() -> list[Requirement]:
    """What the installed package needs, extras included; [] where it is not installed. Raises ImportError."""
    from packaging.requirements import Requirement

    try:
        return [Requirement(text) for text in importlib.metadata.requires(PACKAGE) or []]
    except importlib.metadata.PackageNotFoundError:
        return []


def problem(requirement: Requirement) -> str | None:
    """What is wrong with a requirement in this environment, such as "not installed"; None if it is met."""
    try:
        version = importlib.metadata.version(requirement.name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
    if not requirement.specifier.contains(version, prereleases=True):
        return f"version {version}, needed is {requirement.specifier}"
    return None


def check_versions(needed: Sequence[Requirement]) -> list[Finding]:
    """Each package of the base install: there, and new enough."""
    if not needed:
        return [Finding("versions", PACKAGE, FAIL, "not installed in this Python", SETUP)]
    found = []
    for requirement in sorted(needed, key=lambda r: r.name):
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        fault = problem(requirement)
        if fault is None:
            found.append(Finding("versions", requirement.name, OK, importlib.metadata.version(requirement.name)))
        else:
            cure = f"pip install '{requirement.name}{requirement.specifier}'"
            found.append(Finding("versions", requirement.name, FAIL, fault, cure))
    return found


def check_extras(needed: Sequence[Requirement]) -> list[Finding]:
    """Each extra: complete, or what it lacks."""
    found = []
    for extra in EXTRAS if needed else ():
        mine = [r for r in needed if r.marker is not None and _only_of(r, extra)]
        faults = {r.name: fault for r in mine if (fault := problem(r)) is not None}
        cure = f"where a command needs it, run pip install '.[{extra}]' in the {PACKAGE} source folder"
        if not mine:
            cure = f"the installed {PACKAGE} is older than these files: install it again"
            found.append(Finding("extras", extra, WARN, "unknown to the installed package", cure))
        elif faults:
            lacks = ", ".join(f"{name} {fault}" for name, fault in sorted(faults.items()))
            found.append(Finding("extras", extra, WARN, lacks, cure))
        else:
            found.append(Finding("extras", extra, OK, "installed"))
    return found


def _only_of(requirement: Requirement, extra: str) -> bool:
    """Whether an extra asks for a requirement, and the base install does not."""
    marker = requirement.marker
    return marker is not None and marker.evaluate({"extra": extra}) and not marker.evaluate({"extra": ""})


# -- devices -----------------------------------------------------------------------------------------------------------
def check_devices() -> list[Finding]:
    """CPU cores and memory; the GPUs that PyTorch sees, each tried with one multiplication."""
    found = [_memory()]
    try:
        import torch
    except ImportError as error:
        return [*found, Finding("devices", "torch", FAIL, _first_line(error), SETUP)]
    if not torch.cuda.is_available():
        driver = shutil.which("nvidia-smi") is not None
        seen = "PyTorch sees none" + (", though nvidia-smi is installed" if driver else "")
        cure = "install a PyTorch built for the driver's CUDA version (nvidia-smi names it)" if driver else ""
        return [*found, Finding("devices", "gpu", WARN if driver else OK, f"{seen}; the CPU is used", cure)]
    for number in range(torch.cuda.device_count()):
        name = torch.cuda.get_device_name(number)
        try:
            one = torch.ones(8, 8, device=f"cuda:{number}")
            works = bool((one @ one == 8).all())
            free, total = (part / 1e9 for part in torch.cuda.mem_get_info(number))
        except RuntimeError as error:
            cure = "check nvidia-smi and the driver, or use device cpu"
            found.append(Finding("devices", f"cuda:{number}", FAIL, f"{name}: {_first_line(error)}", cure))
            continue
        level, cure = (OK, "") if works else (FAIL, "it computes wrong numbers: check the driver, or use device cpu")
        found.append(Finding("devices", f"cuda:{number}", level, f"{name}, {free:.1f} of {total:.1f} GB free", cure))
    return found


def _memory() -> Finding:
    found, level, cure = f"{usable_cores()} cores", OK, ""
    with contextlib.suppress(OSError, ValueError):
        match = re.search(r"^MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text(), re.MULTILINE)
        if match:
            free = int(match[1]) / 1e6
            found += f", {free:.1f} GB of memory available"
            if free < MEMORY_WARN:
                level, cure = WARN, f"end other programs: about {MEMORY_WARN:g} GB should be available"
    return Finding("devices", "cpu", level, found, cure)


# -- ROS ---------------------------------------------------------------------------------------------------------------
def check_ros() -> list[Finding]:
    """ROS 2 as this Python sees it, the packages that the node needs, and the DDS profile. Without ROS: one warning."""
    if importlib.util.find_spec("rclpy") is None:
        installed = sorted(Path("/opt/ros").glob("*/setup.bash"))
        state = f"installed ({installed[-1]}), but not sourced" if installed else "not found"
        cure = f"source {installed[-1]}" if installed else "install ROS 2 Jazzy, or run `make setup`"
        return [Finding("ros", "rclpy", WARN, state, f"for the node only: {cure}")]
    try:
        done = subprocess.run(
            [sys.executable, "-c", ASK_ROS, "rclpy", *ROS_PACKAGES],
            capture_output=True, text=True, timeout=ROS_TIMEOUT, check=True,
        )  # fmt: skip
        missing, new, rmw = json.loads(done.stdout.splitlines()[-1])
    except (subprocess.SubprocessError, OSError, ValueError, IndexError) as error:
        cure = "use the Python that this ROS 2 was built for"
        return [Finding("ros", "rclpy", FAIL, f"cannot be imported ({_first_line(error)})", cure)]
    distribution = os.environ.get("ROS_DISTRO") or "distribution unknown (ROS_DISTRO is not set)"
    if "rclpy" in missing:
        cure = "source ROS 2, and use the Python that it was built for (rm -rf .venv, then `make setup`)"
        return [Finding("ros", "rclpy", FAIL, missing["rclpy"], cure)]
    if not new:
        cure = "the node needs Jazzy or newer; skd_core itself needs no ROS"
        return [Finding("ros", "rclpy", WARN, f"{distribution}: too old", cure)]
    found = [Finding("ros", "rclpy", OK, distribution)]
    for name in (name.partition(".")[0] for name in ROS_PACKAGES):
        if name in missing:
            deb = f"ros-{os.environ.get('ROS_DISTRO') or 'jazzy'}-{name.replace('_', '-')}"
            deb += "-py" if name == "tf2_ros" else ""
            level = WARN if name == "tf2_ros" else FAIL
            found.append(Finding("ros", name, level, missing[name], f"sudo apt install {deb}"))
        else:
            found.append(Finding("ros", name, OK, "installed"))
    return [*found, check_dds(rmw)]


def check_dds(rmw: str) -> Finding:
    """Whether the middleware can carry camera images.

    Args:
        rmw: its name, such as rmw_fastrtps_cpp.
    """
    if "fastrtps" not in rmw:
        cure = "give it large socket buffers: net.core.rmem_max (docs/deployment.md)" if "cyclone" in rmw else ""
        return Finding("ros", "dds", WARN if cure else OK, rmw or "unknown middleware", cure)
    profile = next((os.environ[name] for name in PROFILES if os.environ.get(name)), None)
    advice = "set FASTRTPS_DEFAULT_PROFILES_FILE to config/fastdds_images.xml for the camera's driver too"
    if profile is None:
        cure = f"{advice}; the launch files set it for the node"
        return Finding("ros", "dds", WARN, f"{rmw} without a profile: large images get lost", cure)
    try:
        text = Path(profile).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        return Finding("ros", "dds", FAIL, f"profile {profile}: {_first_line(error)}", advice)
    sizes = [int(size) for size in re.findall(r"<segment_size>\s*(\d+)\s*</segment_size>", text)]
    if max(sizes, default=0) < SEGMENT:
        return Finding("ros", "dds", WARN, f"profile {profile} has no large segment_size", advice)
    return Finding("ros", "dds", OK, f"{rmw}, profile {profile}, {max(sizes) >> 20} MiB of shared memory")


# -- weights, inference, disk ------------------------------------------------------------------------------------------
def check_weights(names: Iterable[str | Path]) -> list[Finding]:
    """Each weights file: readable, as written, all numbers finite; with the first, one inference on the CPU.

    Args:
        names: files, or names of bundled weights.
    """
    try:
        from skd_core.inference.detector import Detector
        from skd_core.inference.weights import load_weights
    except ImportError as error:
        return [Finding("weights", "import", FAIL, _first_line(error), SETUP)]
    found: list[Finding] = []
    tried = False
    for name in names:
        try:
            load_weights(name)  # whatever runs them
            detector = Detector.load(name, "cpu")
        except UserError as error:
            found.append(Finding("weights", str(name), FAIL, _first_line(error), "copy the file again, or reinstall"))
            continue
        licence = str(detector.metadata.get("licence") or "licence unknown")
        runs = "PyTorch" if detector.backend == "torch" else "onnxruntime"
        runs += f", as {detector.slow_because}" if detector.slow_because else ""
        text = f"{', '.join(detector.classes)}; {licence}; run by {runs}"
        found.append(Finding("weights", str(name), OK, text))
        if not tried:
            found.append(check_inference(detector, str(name)))
        tried = True
    if not found:
        found.append(Finding("weights", "bundled", FAIL, "there are none", "reinstall the package"))
    return found


def check_inference(detector: Detector, name: str) -> Finding:
    """One inference on an empty image, whose boxes, with any score, must be finite."""
    import numpy as np
    import torch

    from skd_core.camera import Camera

    P = torch.tensor([[400.0, 0, 320, 0], [0, 400, 96, 0], [0, 0, 1, 0]], dtype=torch.float64)
    try:
        boxes = detector.predict(np.zeros((192, 640, 3), np.uint8), Camera(P, 640, 192), 0.0)
        sound = bool(boxes.center.isfinite().all() and boxes.size.isfinite().all() and boxes.yaw.isfinite().all())
    except (RuntimeError, UserError) as error:
        cure = "install torch and torchvision of versions that belong together, or as `make setup` does"
        return Finding("inference", name, FAIL, _first_line(error), cure)
    if not sound:
        return Finding("inference", name, FAIL, "boxes with NaN or infinity", "reinstall torch; copy the weights again")
    return Finding("inference", name, OK, f"one image of 640x192 on the {detector.device}")


def check_disk(places: Mapping[str, Path]) -> list[Finding]:
    """Free space of some folders.

    Args:
        places: what a folder is for -> the folder.
    """
    found = []
    for purpose, place in places.items():
        try:
            free = shutil.disk_usage(place).free / 1e9
        except OSError as error:
            cure = "make this folder, or work in another"
            found.append(Finding("disk", purpose, FAIL, f"{place}: {error.strerror}", cure))
            continue
        level = FAIL if free < FREE_FAIL else WARN if free < FREE_WARN else OK
        cure = "" if level == OK else f"free some space: {FREE_WARN:g} GB are enough for training and recordings"
        found.append(Finding("disk", purpose, level, f"{free:.1f} GB free at {place}", cure))
    return found


# -- the command -------------------------------------------------------------------------------------------------------
def examine(weights: Sequence[str | Path] = ()) -> list[Finding]:
    """All checks, in order.

    Args:
        weights: files or bundled names to check; all bundled ones if empty.
    """
    bundled = sorted(path.stem for path in (Path(__file__).parent / "weights").glob("*.safetensors"))
    places = {"working folder": Path.cwd(), "temporary files": Path(tempfile.gettempdir())}
    try:
        needed = requirements()
        versions = check_versions(needed)
    except ImportError as error:  # packaging, which reads them
        needed, versions = [], [Finding("versions", "packaging", FAIL, _first_line(error), SETUP)]
    return [
        *check_python(),
        *versions,
        *check_devices(),
        *check_ros(),
        *check_extras(needed),
        *check_weights(weights or bundled),
        *check_disk(places),
    ]


def summary(findings: Sequence[Finding]) -> dict[str, Any]:
    """The findings as JSON-able values: ``status``, the worst level, and ``findings``."""
    levels = [finding.level for finding in findings]
    worst = next((level for level in (FAIL, WARN) if level in levels), OK)
    return {"status": worst, "findings": [asdict(finding) for finding in findings]}


def report(json_file: Path | None = None, weights: Sequence[str] = ()) -> int:
    """The command: print the findings, and write them as JSON if asked to.

    Returns:
        exit status: 1 where a finding is FAIL, else 0.

    Raises:
        UserError: the JSON file cannot be written, or a weights file that was named is missing or damaged.
    """
    check_outputs([json_file], [Path(name) for name in weights])
    _check_named(weights)
    findings = examine(weights)
    for finding in findings:
        cure = f" -> {finding.cure}" if finding.cure else ""
        print(f"{finding.level:4} {finding.check}: {finding.subject}: {finding.found}{cure}")
    result = summary(findings)
    counts = ", ".join(f"{sum(f.level == level for f in findings)} {level}" for level in (OK, WARN, FAIL))
    print(f"{result['status']}: {counts}")
    if json_file is not None:
        write_atomic(json_file, json.dumps(result, indent=1) + "\n")
    return int(result["status"] == FAIL)


def _check_named(weights: Sequence[str]) -> None:
    """Refuse weights that the user names and that cannot be used: they are input, as in any other command."""
    try:
        from skd_core.inference.weights import load_weights
    except ImportError:  # a finding of its own
        return
    for name in weights:
        load_weights(name)


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:300]
