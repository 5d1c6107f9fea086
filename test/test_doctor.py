"""`skd_core doctor` in environments that lack something: packages, extras, ROS, GPUs, weights, disk."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import shutil
import subprocess
import sys
from collections import namedtuple
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from packaging.requirements import Requirement

from skd_core import doctor
from skd_core.cli import EXTRAS as EXTRA_OF_MODULE
from skd_core.cli import app
from skd_core.command_line import run_app
from skd_core.doctor import FAIL, OK, WARN, Finding

ROOT = Path(__file__).resolve().parents[1]
BUNDLED = ROOT / "skd_core" / "weights"


def levels(findings: list[Finding]) -> dict[str, str]:
    return {finding.subject: finding.level for finding in findings}


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Distribution -> version; nothing else is installed."""
    versions: dict[str, str] = {}

    def version(name: str) -> str:
        try:
            return versions[name]
        except KeyError:
            raise importlib.metadata.PackageNotFoundError(name) from None

    monkeypatch.setattr(importlib.metadata, "version", version)
    return versions


def fake_ros(monkeypatch: pytest.MonkeyPatch, answer: object, error: Exception | None = None) -> None:
    def run(*_: object, **__: object) -> SimpleNamespace:
        if error is not None:
            raise error
        return SimpleNamespace(stdout=f"a plugin's chatter\n{json.dumps(answer)}\n")

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setenv("ROS_DISTRO", "jazzy")
    for name in doctor.PROFILES:
        monkeypatch.delenv(name, raising=False)


# -- packages and extras -----------------------------------------------------------------------------------------------
def test_packages_are_there_new_enough_or_named_with_the_command(installed):
    installed |= {"numpy": "2.1.0", "torch": "2.1.0"}
    needed = [Requirement(text) for text in ("numpy>=1.24", "torch>=2.4", "timm>=1.0", "numba; extra == 'synth'")]
    found = doctor.check_versions(needed)
    assert levels(found) == {"numpy": OK, "timm": FAIL, "torch": FAIL}
    assert [f.found for f in found] == ["2.1.0", "not installed", "version 2.1.0, needed is >=2.4"]
    assert [f.cure for f in found] == ["", "pip install 'timm>=1.0'", "pip install 'torch>=2.4'"]


def test_a_requirement_of_another_python_is_none(installed):
    assert doctor.check_versions([Requirement("tomli; python_version < '3'")]) == []


def test_a_package_that_is_not_installed_is_a_failure(monkeypatch):
    monkeypatch.setattr(doctor, "PACKAGE", "no_such_package")
    assert doctor.requirements() == []
    (finding,) = doctor.check_versions([])
    assert finding.level == FAIL
    assert "make setup" in finding.cure


def test_an_old_python_is_a_failure(monkeypatch):
    monkeypatch.setattr(doctor, "PYTHON", (9, 0))
    assert [f.level for f in doctor.check_python()] == [FAIL]


def test_extras_say_what_they_lack(installed):
    installed |= {"lightning": "2.6", "tensorboard": "2.0", "numba": "0.60"}
    texts = ["lightning>=2.3; extra == 'train'", "tensorboard>=2.14; extra == 'train'", "numba; extra == 'synth'"]
    found = {f.subject: f for f in doctor.check_extras([Requirement(text) for text in texts])}
    assert found["synth"].level == OK
    assert found["train"].level == WARN
    assert found["train"].found == "tensorboard version 2.0, needed is >=2.14"
    assert found["train"].cure.endswith("pip install '.[train]' in the skd_wm3d_ros source folder")
    assert found["rerun"].level == WARN  # of no requirement: another version of the package is installed
    assert set(EXTRA_OF_MODULE.values()) <= set(found)


# -- devices -----------------------------------------------------------------------------------------------------------
def test_without_a_gpu_the_cpu_is_used(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert levels(doctor.check_devices())["gpu"] == OK
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    (gpu,) = [f for f in doctor.check_devices() if f.subject == "gpu"]
    assert gpu.level == WARN
    assert "nvidia-smi" in gpu.cure


def test_a_gpu_that_does_not_compute_is_a_failure(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda number: "Fake GPU")

    def ones(*_: object, **__: object) -> None:
        raise RuntimeError("CUDA error: no kernel image is available\nmore lines")

    monkeypatch.setattr(torch, "ones", ones)
    (gpu,) = [f for f in doctor.check_devices() if f.subject == "cuda:0"]
    assert gpu.level == FAIL
    assert gpu.found == "Fake GPU: CUDA error: no kernel image is available"


def test_without_torch_devices_and_weights_fail_with_a_cure(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    assert levels(doctor.check_devices())["torch"] == FAIL
    monkeypatch.setitem(sys.modules, "skd_core.inference.detector", None)
    (finding,) = doctor.check_weights(["default"])
    assert finding.level == FAIL
    assert "make setup" in finding.cure


# -- ROS ---------------------------------------------------------------------------------------------------------------
def test_without_ros_there_is_one_warning(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    (finding,) = doctor.check_ros()
    assert (finding.subject, finding.level) == ("rclpy", WARN)
    assert finding.cure.startswith("for the node only: ")


def test_ros_packages_that_are_missing_are_named_with_their_debian_package(monkeypatch):
    fake_ros(monkeypatch, [{"cv_bridge": "No module named 'cv_bridge'", "tf2_ros": "gone"}, True, "rmw_zenoh_cpp"])
    found = {f.subject: f for f in doctor.check_ros()}
    expected = {"rclpy": OK, "cv_bridge": FAIL, "message_filters": OK, "vision_msgs": OK, "tf2_ros": WARN, "dds": OK}
    assert {name: f.level for name, f in found.items()} == expected
    assert found["cv_bridge"].cure == "sudo apt install ros-jazzy-cv-bridge"
    assert found["tf2_ros"].cure == "sudo apt install ros-jazzy-tf2-ros-py"


def test_an_rclpy_for_another_python_is_a_failure_and_an_old_one_a_warning(monkeypatch):
    fake_ros(monkeypatch, [{"rclpy": "No module named 'rclpy._rclpy_pybind11'"}, False, ""])
    assert levels(doctor.check_ros()) == {"rclpy": FAIL}
    fake_ros(monkeypatch, [{}, False, "rmw_fastrtps_cpp"])
    assert levels(doctor.check_ros()) == {"rclpy": WARN}


@pytest.mark.parametrize("error", [subprocess.CalledProcessError(-11, "python"), subprocess.TimeoutExpired("p", 60)])
def test_an_rclpy_that_ends_or_stops_its_process_is_a_failure(monkeypatch, error):
    fake_ros(monkeypatch, None, error)
    assert levels(doctor.check_ros()) == {"rclpy": FAIL}


def test_the_question_to_ros_is_answered_by_a_python_without_it():
    code = f"import sys; sys.modules['rclpy'] = None\n{doctor.ASK_ROS}"
    done = subprocess.run([sys.executable, "-c", code, "rclpy", "json"], capture_output=True, text=True, check=True)
    missing, new, rmw = json.loads(done.stdout)
    assert list(missing) == ["rclpy"]
    assert (new, rmw) == (False, "")


def test_the_dds_profile_must_carry_images(monkeypatch, tmp_path):
    for name in doctor.PROFILES:
        monkeypatch.delenv(name, raising=False)
    assert doctor.check_dds("rmw_fastrtps_cpp").level == WARN
    assert "rmem_max" in doctor.check_dds("rmw_cyclonedds_cpp").cure
    monkeypatch.setenv(doctor.PROFILES[0], str(ROOT / "config" / "fastdds_images.xml"))
    assert doctor.check_dds("rmw_fastrtps_cpp").level == OK
    small = tmp_path / "small.xml"
    small.write_text("<segment_size>524288</segment_size>")
    monkeypatch.setenv(doctor.PROFILES[0], str(small))
    assert doctor.check_dds("rmw_fastrtps_cpp").level == WARN
    monkeypatch.setenv(doctor.PROFILES[0], str(tmp_path / "none.xml"))
    assert doctor.check_dds("rmw_fastrtps_cpp").level == FAIL


# -- weights and disk --------------------------------------------------------------------------------------------------
def test_bundled_weights_are_sound_and_one_inference_is_made():
    found = doctor.check_weights(["default"])
    assert [(f.check, f.level) for f in found] == [("weights", OK), ("inference", OK)]


@pytest.mark.parametrize("missing", [False, True])
def test_what_runs_the_weights_is_said(monkeypatch, missing):
    if missing:
        monkeypatch.setitem(sys.modules, "onnxruntime", None)
    text = doctor.check_weights(["street"])[0].found
    assert text.endswith("run by PyTorch, as onnxruntime is not installed" if missing else "run by onnxruntime")


def test_damaged_and_missing_weights_fail(tmp_path):
    damaged = tmp_path / "damaged.safetensors"
    content = bytearray((BUNDLED / "default.safetensors").read_bytes())
    content[-1000] ^= 0x55
    damaged.write_bytes(content)
    found = doctor.check_weights([damaged, tmp_path / "none.safetensors"])
    assert [f.level for f in found] == [FAIL, FAIL]
    assert all(f.cure for f in found)
    assert levels(doctor.check_weights([])) == {"bundled": FAIL}


def test_an_inference_that_fails_or_gives_nan_is_told():
    def fails(*_: object) -> None:
        raise RuntimeError("operator torchvision::nms does not exist")

    def box(center: float) -> SimpleNamespace:
        return SimpleNamespace(center=torch.tensor([[center, 0, 9]]), size=torch.ones(1, 3), yaw=torch.zeros(1))

    made = [fails, lambda *_: box(float("nan")), lambda *_: box(0.0)]
    found = [doctor.check_inference(SimpleNamespace(predict=predict, device="cpu"), "w") for predict in made]
    assert [f.level for f in found] == [FAIL, FAIL, OK]


@pytest.mark.parametrize(("free", "level"), [(50e9, OK), (1e9, WARN), (1e6, FAIL)])
def test_disk_space(monkeypatch, tmp_path, free, level):
    monkeypatch.setattr(shutil, "disk_usage", lambda place: namedtuple("Usage", "free")(free))
    assert levels(doctor.check_disk({"here": tmp_path})) == {"here": level}


def test_a_folder_that_is_not_there(tmp_path):
    assert levels(doctor.check_disk({"here": tmp_path / "none"})) == {"here": FAIL}


# -- the command -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("level", "status"), [(OK, 0), (WARN, 0), (FAIL, 1)])
def test_exit_status_and_json(monkeypatch, capsys, tmp_path, level, status):
    findings = [Finding("disk", "here", OK, "9 GB"), Finding("ros", "rclpy", level, "found", "cure")]
    monkeypatch.setattr(doctor, "examine", lambda weights: findings)
    out = tmp_path / "doctor.json"
    assert run_app(app, {}, ["doctor", "--json", str(out)]) == status
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == "OK   disk: here: 9 GB"
    assert printed[1] == f"{level:4} ros: rclpy: found -> cure"
    assert printed[2].startswith(f"{level}: ")
    result = json.loads(out.read_text())
    assert result["status"] == level
    assert result["findings"][1] == {
        "check": "ros", "subject": "rclpy", "level": level, "found": "found", "cure": "cure",
    }  # fmt: skip


def test_json_over_the_weights_is_refused(tmp_path, capsys):
    weights = tmp_path / "w.safetensors"
    weights.write_bytes(b"mine")
    assert run_app(app, {}, ["doctor", "--weights", str(weights), "--json", str(weights)]) == 2
    assert weights.read_bytes() == b"mine"


def test_every_finding_that_is_not_ok_has_a_cure(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(doctor, "check_weights", lambda names: [])
    found = doctor.examine()
    assert {"versions", "devices", "ros", "extras", "disk"} == {f.check for f in found}
    assert all(f.cure for f in found if f.level != OK)
