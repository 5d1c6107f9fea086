"""Calibration files of every common kind, read once into the fields of sensor_msgs/CameraInfo.

KITTI (object, odometry, tracking, raw), ROS (``ost.yaml`` of camera_calibration, a CameraInfo as ``ros2 topic echo``
prints it), OpenCV FileStorage (YAML, XML, JSON) and Kalibr's camchain. Which it is, is told by what the file holds,
not by its name. Of a file of several cameras, one is named behind a colon: ``calib.txt:P0``, ``camchain.yaml:cam1``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import yaml

from skd_core.errors import UserError
from skd_core.files import read_text
from skd_core.notes import warn_once

LIMIT = 4 << 20
"""Bytes of the longest calibration file."""

_KITTI_LINE = re.compile(r"\s*(P_rect_\d\d|P\d)(?:\s*[:=]\s*|\s+)\[?\s*([-+.\d]|nan|inf)([^\]#]*)", re.IGNORECASE)
_KEYS = {
    "k": ("k", "cameramatrix", "cammatrix", "intrinsicmatrix", "intrinsics", "intrinsic", "m", "mtx"),
    "d": (
        "d",
        "distortioncoefficients",
        "distortioncoeffs",
        "distcoeffs",
        "distcoeff",
        "distcoefs",
        "distortion",
        "dist",
    ),
    "p": ("p", "projectionmatrix", "projmatrix"),
    "width": ("width", "imagewidth"),
    "height": ("height", "imageheight"),
    "size": ("resolution", "imagesize", "imgsize", "size"),
    "model": ("distortionmodel",),
    "lens": ("cameramodel",),
    "name": ("cameraname",),
    "roi": ("roi",),
    "binning_x": ("binningx",),
    "binning_y": ("binningy",),
}
_FIELDS = {key: name for name, keys in _KEYS.items() for key in keys}
_SIDES = ("0", "1", "2", "3", "left", "right", "l", "r")
_MODELS = {"radtan": "plumb_bob", "none": "plumb_bob", "": "plumb_bob", "opencv": "plumb_bob"}
_WHOLE = "width, height, roi and binning must be whole numbers"
_KINDS = "neither a KITTI calibration (no 'P2:' line) nor a camera file of ROS, OpenCV or Kalibr"


@dataclass(frozen=True)
class Roi:
    """sensor_msgs/RegionOfInterest, pixels; all 0: the whole image."""

    x_offset: int = 0
    y_offset: int = 0
    width: int = 0
    height: int = 0


@dataclass(frozen=True)
class Calibration:
    """One camera of a file, named as in sensor_msgs/CameraInfo, whose place it can take.

    Attributes:
        k: 9 numbers, of the raw image, pixels; zeros where the file has none.
        d: distortion coefficients of the raw image.
        p: 12 numbers, of the rectified image; zeros where the file has none.
        distortion_model: "plumb_bob", "rational_polynomial" or "equidistant".
        width, height: of the image in pixels; 0 where the file does not say.
        binning_x, binning_y: 0 and 1 mean none.
        roi: in the full image.
        kind: "KITTI", "OpenCV FileStorage", "Kalibr", "ROS", for messages.
        name: of the camera in the file.
        source: the file, with the line or camera, for messages.
    """

    k: tuple[float, ...] = (0.0,) * 9
    d: tuple[float, ...] = ()
    p: tuple[float, ...] = (0.0,) * 12
    distortion_model: str = "plumb_bob"
    width: int = 0
    height: int = 0
    binning_x: int = 0
    binning_y: int = 0
    roi: Roi = field(default_factory=Roi)
    kind: str = "ROS"
    name: str = ""
    source: str = ""


def split_choice(path: str | Path) -> tuple[Path, str | None]:
    """ "calib.txt:P0" -> the file and the camera's name in it; the name is None where there is none."""
    file, colon, name = str(path).rpartition(":")
    if colon and name and not _exists(Path(path)) and _exists(Path(file)):
        return Path(file), name
    return Path(path), None


def read_calibration(path: str | Path, wanted: str | None = None) -> Calibration:
    """One camera of a calibration file.

    Args:
        path: the file, or ``FILE:NAME``.
        wanted: the camera's name: "P2" or "P_rect_02" of KITTI, "cam1" of Kalibr, "left" or "1" of a stereo file,
            a ROS camera_name. Without, and without NAME: KITTI's P2, or the only camera there is.

    Raises:
        UserError: an unreadable file, none of the kinds, numbers that cannot be, or no such camera or several; the
            message names those there are, and the line where it can.
    """
    file, name = split_choice(path)
    wanted = name if wanted is None else wanted
    text = read_text(file, LIMIT, "camera file")
    if re.search(r"^\[image\]\s*$", text, re.MULTILINE) and re.search(r"^camera matrix\s*$", text, re.MULTILINE):
        raise UserError(
            f"{file}: is an INI file of camera_calibration (ost.txt); give the ost.yaml of the same archive"
        )
    if lines := _kitti_lines(text, file):
        return _kitti(lines, text, file, wanted)
    cameras = _other(text, file)
    if wanted is not None and wanted not in cameras:
        raise UserError(f"{file}: no camera '{wanted}'; it has {', '.join(cameras)}")
    if wanted is None and len(cameras) > 1:
        raise UserError(f"{file}: holds {len(cameras)} cameras: choose {' or '.join(f'{file}:{n}' for n in cameras)}")
    return cameras[wanted] if wanted is not None else next(iter(cameras.values()))


def read_kitti(path: str | Path, key: str) -> Calibration:
    """One ``P`` line of a KITTI calibration, with a size where the file has one.

    Raises:
        UserError: an unreadable file, no such line, or not 12 numbers.
    """
    text = read_text(path, LIMIT, "camera file")
    lines = _kitti_lines(text, path)
    if _kitti_key(key) not in lines:
        there = f"it has {', '.join(lines)}" if lines else "is this a KITTI calibration file?"
        raise UserError(f"{path}: no line '{key}:'; {there}")
    return _kitti(lines, text, Path(path), key)


# -- KITTI ------------------------------------------------------------------------------------------------------------
def _kitti_key(name: str) -> str:
    """P_rect_02 and p2 are P2."""
    return re.sub(r"^P_RECT_0?", "P", name.upper())


def _kitti_lines(text: str, file: str | Path) -> dict[str, tuple[int, str, str]]:
    """Lines ``P2: 12 numbers`` by key: number, name as written, values. Blanks and comments do not matter.

    Raises:
        UserError: two lines of one key that differ.
    """
    found: dict[str, tuple[int, str, str]] = {}
    for number, line in enumerate(text.splitlines(), 1):
        if entry := _KITTI_LINE.match(line):
            values = entry[2] + entry[3]
            first = found.setdefault(_kitti_key(entry[1]), (number, entry[1], values))
            if first[2].split() != values.split():
                raise UserError(f"{file}:{number}: {entry[1]} differs from line {first[0]}; which one is true?")
    return found


def _kitti(lines: dict[str, tuple[int, str, str]], text: str, file: Path, wanted: str | None) -> Calibration:
    key = _kitti_key(wanted or "P2")
    if key not in lines and (wanted is not None or len(lines) > 1):
        choice = " or ".join(f"{file}:{name}" for name in lines)
        raise UserError(f"{file}: no line '{wanted or key}:'; it has {', '.join(lines)}: choose {choice}")
    if key not in lines:
        key = next(iter(lines))
        warn_once(("only", key, file.parent), f"{file}: has no P2; {key}, the only camera in it, is taken")
    number, written, values = lines[key]
    where = f"{file}:{number}"
    p = _numbers(re.split(r"[,;]?\s+", values.strip()), f"{where}: {written}", (12,))
    size = re.search(rf"^\s*S_rect_0{key[1:]}\s*[:=]?\s*(\S+)\s+(\S+)\s*$", text, re.MULTILINE | re.IGNORECASE)
    width, height = (_whole(word, f"{file}: S_rect_0{key[1:]}") for word in size.groups()) if size else (0, 0)
    return Calibration(p=p, width=width, height=height, kind="KITTI", name=key, source=where)


# -- YAML, XML and JSON -----------------------------------------------------------------------------------------------
class _Loader(yaml.BaseLoader):
    """Every scalar as its text, so that no date and no 5000 digits can trip it; keys that come twice are errors."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        if isinstance(node, yaml.MappingNode):
            keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
            for key in keys:
                if keys.count(key) > 1:
                    raise yaml.constructor.ConstructorError(None, None, f"'{key}' is there twice", node.start_mark)
        return dict(super().construct_mapping(node, deep))


def _documents(text: str, path: Path) -> tuple[list[Any], str]:
    """What the file holds, as mappings, lists and texts, and whose format it is."""
    start = text.lstrip()
    try:
        if start.startswith("<"):
            return [_element(ElementTree.fromstring(start))], "OpenCV FileStorage"
        opencv = "opencv-matrix" in text or start.startswith("%YAML:")
        if start.startswith("{"):
            try:
                return [json.loads(text, parse_float=str, parse_int=str)], "OpenCV FileStorage" if opencv else "ROS"
            except json.JSONDecodeError:
                pass  # a flow mapping of YAML, or broken: YAML says where
        text = re.sub(r"\A\s*%YAML[: ].*\n", "", text).replace("\t", "    ")
        # OpenCV writes %YAML:1.0, which is no directive of YAML
        return list(yaml.load_all(text, Loader=_Loader)), "OpenCV FileStorage" if opencv else "ROS"
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        at = "" if mark is None else f" (line {mark.line + 1}: {getattr(error, 'problem', None)})"
        raise UserError(" ".join(f"{path}: {_KINDS}{at}".split())) from None
    except (ElementTree.ParseError, ValueError, RecursionError, TypeError, AttributeError, KeyError) as error:
        reason = "too deeply nested" if isinstance(error, RecursionError) else str(error)
        raise UserError(" ".join(f"{path}: {_KINDS} ({reason})".split())) from None


def _element(element: ElementTree.Element) -> Any:
    """An element of OpenCV's XML: of others, a mapping (or a list of ``_``); else its text, or its words."""
    if len(element):
        if all(child.tag == "_" for child in element):
            return [_element(child) for child in element]
        return {child.tag: _element(child) for child in element}
    words = (element.text or "").split()
    return words if len(words) > 1 else " ".join(words)


def _other(text: str, path: Path) -> dict[str, Calibration]:
    """The cameras of a file that is not KITTI's, by name."""
    documents, kind = _documents(text, path)
    found: dict[str, Calibration] = {}
    for document in documents:
        for name, camera in _cameras(document, str(path), kind, "camera", 0):
            if camera not in found.values():  # else a topic echoed several times
                found[name if name not in found else f"{name}{len(found)}"] = camera
    if not found:
        raise UserError(f"{path}: {_KINDS}")
    return found


def _cameras(value: Any, path: str, kind: str, name: str, depth: int) -> Iterator[tuple[str, Calibration]]:
    """The cameras in a mapping: itself, its numbered or named sides (M1, D1, M2 ...), or those deeper in it."""
    if isinstance(value, list) and depth and all(isinstance(part, Mapping) for part in value):
        value = {str(_fields(part, "").get("name", f"{name}{i}")): part for i, part in enumerate(value)}
    if not isinstance(value, Mapping) or depth > 3:
        return
    plain = _fields(value, "")
    if {"k", "p"} & set(plain) or (not depth and {"width", "height"} <= set(plain)) or (not depth and "width" in plain):
        yield str(plain.get("name") or name), _calibration(plain, path if not depth else f"{path}: {name}", kind)
        return
    sides = {side: found for side in _SIDES if {"k", "p"} & set(found := _fields(value, side))}
    if sides:
        shared = {key: plain[key] for key in ("width", "height", "size", "model") if key in plain}
        for side, found in sides.items():
            yield side, _calibration(shared | found, f"{path}: camera {side}", kind)
        return
    for key, part in value.items():
        yield from _cameras(part, path, kind, str(key), depth + 1)


def _fields(value: Mapping[Any, Any], side: str) -> dict[str, Any]:
    """What of a mapping we know, under our own names; of one camera of several where ``side`` is given."""
    found: dict[str, Any] = {}
    for key, part in value.items():
        bare = re.sub(r"[\W_]", "", str(key)).lower()
        if side:  # M1, camera_matrix_left, left_camera_matrix
            if side not in (bare[: len(side)], bare[-len(side) :]):
                continue
            bare = bare.removesuffix(side) if bare.endswith(side) else bare.removeprefix(side)
        if bare in _FIELDS and part not in (None, "", "~", "null"):
            found.setdefault(_FIELDS[bare], part)
    return found


def _calibration(found: Mapping[str, Any], where: str, kind: str) -> Calibration:
    lens, model = str(found.get("lens", "pinhole")).lower(), str(found.get("model", "")).lower()
    if lens not in ("pinhole", "plumb_bob", "opencv", "perspective"):
        raise UserError(
            f"{where}: camera model '{lens}' is not a pinhole model; calibrate with one, or undistort the images to one"
        )
    if "lens" in found or "resolution" in found:
        kind = "Kalibr"
    size = _flat(found["size"]) if "size" in found else [found.get("width", 0), found.get("height", 0)]
    if len(size) != 2:
        raise UserError(f"{where}: the image size must be two numbers, width and height")
    roi = found.get("roi") or {}
    if not isinstance(roi, Mapping):
        raise UserError(f"{where}: {_WHOLE}")
    k = _numbers(_flat(found.get("k", ())), f"{where}: K", (9, 4, 0))
    p = _numbers(_flat(found.get("p", ())), f"{where}: P", (12, 0))
    d = _numbers(_flat(found.get("d", ())), f"{where}: D", None)
    if len(k) == 4:  # fx, fy, cx, cy
        k = (k[0], 0.0, k[2], 0.0, k[1], k[3], 0.0, 0.0, 1.0)
    model = _MODELS.get(model, model)
    return Calibration(
        k=k or (0.0,) * 9,
        d=d,
        p=p or (0.0,) * 12,
        distortion_model="rational_polynomial" if model == "plumb_bob" and any(d[5:]) else model,
        width=_whole(size[0], where),
        height=_whole(size[1], where),
        binning_x=_whole(found.get("binning_x", 0), where),
        binning_y=_whole(found.get("binning_y", 0), where),
        roi=Roi(*(_whole(roi.get(key) or 0, where) for key in ("x_offset", "y_offset", "width", "height"))),
        kind=kind,
        name=str(found.get("name", "")),
        source=where,
    )


def _flat(value: Any) -> list[Any]:
    """A matrix as a flat list, however it is written: {data: ...}, rows of rows, or one text of numbers."""
    if isinstance(value, Mapping):
        value = value.get("data", ())
    if isinstance(value, str):
        return value.split()
    if not isinstance(value, (list, tuple)):
        return [value]
    rows = [part if isinstance(part, list) else [part] for part in value[:100]]
    return [number for row in rows for number in row[:100]]


def _numbers(values: Sequence[Any], name: str, lengths: tuple[int, ...] | None) -> tuple[float, ...]:
    if lengths is not None and len(values) not in lengths:
        raise UserError(f"{name} must be {lengths[0]} numbers, got {len(values)}")
    try:
        return tuple(float(value) for value in values)
    except (TypeError, ValueError, OverflowError) as error:
        raise UserError(" ".join(f"{name} must be a list of numbers ({error})".split())[:300]) from None


def _whole(value: Any, where: str) -> int:
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        number = -1.0
    if not 0 <= number < 1 << 31 or number != int(number):
        raise UserError(f"{where}: {_WHOLE}")
    return int(number)


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):
        return False
