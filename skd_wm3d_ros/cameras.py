"""The list of cameras that multi_camera.launch.py and ``detector_node --cameras`` start.

Imports no torch: ``ros2 launch`` may run in a Python that has none.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from skd_core.errors import UserError
from skd_core.yaml_files import read_yaml

KEYS = ("name", "image_topic", "camera_info_topic", "detections_2d_topic", "parameters", "params_file")


COMPRESSED = "/compressed"


def transport_topic(image_topic: str, transport: str) -> str:
    """Topic that an image comes on.

    Args:
        image_topic: of the raw image; where the transport is compressed, its own suffix may be there already.
        transport: "raw" or "compressed".
    """
    return f"{image_topic.removesuffix(COMPRESSED)}{COMPRESSED}" if transport == "compressed" else image_topic


class CameraFileError(ValueError):
    """A file that is no list of cameras; one line that names the file and what is wrong."""


@dataclass(frozen=True)
class CameraEntry:
    """One camera.

    Attributes:
        name: namespace of its node: the detections are on /<name>/detector/detections.
        image_topic: without "/compressed", as image_transport has it.
        camera_info_topic: of the same camera; "" where its parameter calibration names a file.
        detections_2d_topic: 2D boxes of another node, where boxes_from is topic; "" = detections_2d in the namespace.
        parameters: of its node, over what ``params_file`` says; nested names are one, with dots.
        params_file: parameter file, which exists; "" = the defaults.
    """

    name: str
    image_topic: str
    camera_info_topic: str = ""
    detections_2d_topic: str = ""
    parameters: dict[str, Any] = field(default_factory=dict)
    params_file: str = ""

    @property
    def remappings(self) -> list[tuple[str, str]]:
        topics = {
            "image": self.image_topic,
            "camera_info": self.camera_info_topic,
            "detections_2d": self.detections_2d_topic,
        }
        return [(name, topic) for name, topic in topics.items() if topic]

    def ros_arguments(self) -> list[str]:
        """For a node of this camera in one process with others."""
        arguments = ["--ros-args"]
        for name, topic in self.remappings:
            arguments += ["-r", f"{name}:={topic}"]
        if self.params_file:
            arguments += ["--params-file", self.params_file]
        for name, value in self.parameters.items():
            text = yaml.safe_dump(value, default_flow_style=True, width=10**6).removesuffix("\n").removesuffix("\n...")
            arguments += ["-p", f"{name}:={text}"]
        return arguments


def _flat(parameters: dict[Any, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Names, those of nested mappings with dots between, and values.

    Raises:
        ValueError: a value that no parameter of the node can have.
    """
    for key, value in parameters.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict):
            yield from _flat(value, f"{name}.")
        elif isinstance(value, bool | int | float | str) or _is_list_of_one_kind(value):
            yield name, value
        else:
            raise ValueError(
                f"parameter {name} must be true, false, a number, text, or a list of one of these, got {value!r}"
            )


def _is_list_of_one_kind(value: Any) -> bool:
    kinds = {type(item) for item in value} if isinstance(value, list) else set()
    return len(kinds) == 1 and kinds <= {bool, int, float, str}


def read_cameras(path: str | Path) -> list[CameraEntry]:
    """Cameras of a YAML file: ``cameras:``, a list of mappings with KEYS (see config/cameras.yaml).

    Raises:
        CameraFileError: no such file, no YAML, an unknown key, a missing topic, a name twice, a params_file that is not
            there, or a parameter whose value is neither true, false, a number, text nor a list of one of these.
    """
    try:
        content = read_yaml(path)
    except UserError as error:
        raise CameraFileError(f"{error}; it cannot be read as a list of cameras") from None
    rows = content.get("cameras") if isinstance(content, dict) else None
    if not isinstance(rows, list) or not rows:
        raise CameraFileError(f"{path}: needs 'cameras:', a list of cameras")
    cameras: list[CameraEntry] = []
    for number, row in enumerate(rows, 1):
        where = f"{path}: camera {number}"
        if not isinstance(row, dict):
            raise CameraFileError(f"{where}: must be a mapping with name, image_topic and camera_info_topic")
        unknown = [str(key) for key in row if key not in KEYS]
        if unknown:
            raise CameraFileError(f"{where}: unknown {', '.join(unknown)}; known are {', '.join(KEYS)}")
        parameters = row.get("parameters")
        calibrated = isinstance(parameters, dict) and bool(parameters.get("calibration"))  # by a file
        needed = KEYS[:2] if calibrated and row.get("camera_info_topic") is None else KEYS[:3]
        missing = [key for key in needed if not isinstance(row.get(key), str) or not row[key]]
        if missing:
            raise CameraFileError(f"{where}: {', '.join(missing)} must be given as text")
        if not isinstance(row.get("detections_2d_topic") or "", str):
            raise CameraFileError(f"{where}: detections_2d_topic must be text")
        if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", row["name"]):
            raise CameraFileError(f"{where}: name '{row['name']}' must be letters, digits and _, a letter first")
        if not isinstance(row.get("parameters") or {}, dict):
            raise CameraFileError(f"{where}: parameters must be a mapping")
        given = {key: value for key, value in row.items() if value is not None}
        try:
            given["parameters"] = dict(_flat(row.get("parameters") or {}))
        except ValueError as error:
            raise CameraFileError(f"{where}: {error}") from None
        if "params_file" in given and not Path(str(given["params_file"])).is_file():
            raise CameraFileError(f"{where}: params_file '{given['params_file']}': no such file")
        camera = CameraEntry(**given)
        if camera.name in {other.name for other in cameras}:
            raise CameraFileError(f"{where}: the name '{camera.name}' is there twice")
        cameras.append(camera)
    return cameras
