"""What nuScenes' tables and submissions hold, checked while they are read; only what is used is listed.

The devkit takes whatever is in a JSON file and fails much later, or computes with it.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, TypeAdapter, ValidationError, with_config

# of pydantic's own choice: Python before 3.12 has one that it cannot read
from typing_extensions import TypedDict

from skd_core.errors import UserError

MAX_MAP_DISTANCE = 1e8  # metres from the map's origin


def _turns(quaternion: list[float]) -> list[float]:
    if not 0.9 < math.hypot(*quaternion) < 1.1:
        raise ValueError("must be a quaternion of unit length")
    return quaternion


def _is_matrix(rows: list[list[float]]) -> list[list[float]]:
    if len(rows) not in (0, 3):
        raise ValueError("must be 3 rows of 3 numbers, or empty")
    return rows


def _is_file_name(name: str) -> str:
    if not name or "\0" in name:
        raise ValueError("must be a file's name")
    return name


Token = Annotated[str, Field(min_length=1)]
Metres = Annotated[float, Field(ge=-MAX_MAP_DISTANCE, le=MAX_MAP_DISTANCE, allow_inf_nan=False)]
Place = Annotated[list[Metres], Field(min_length=3, max_length=3)]
Length = Annotated[float, Field(gt=0, le=1e4, allow_inf_nan=False)]
Size = Annotated[list[Length], Field(min_length=3, max_length=3)]
Finite = Annotated[float, Field(ge=-1e9, le=1e9, allow_inf_nan=False)]
Turn = Annotated[list[Finite], Field(min_length=4, max_length=4), AfterValidator(_turns)]
Row = Annotated[list[Finite], Field(min_length=3, max_length=3)]
Intrinsic = Annotated[list[Row], AfterValidator(_is_matrix)]
Time = Annotated[float, Field(ge=0, lt=2**63, allow_inf_nan=False)] | Annotated[int, Field(ge=0, lt=2**63)]
FileName = Annotated[str, AfterValidator(_is_file_name)]
Pixels = Annotated[int, Field(ge=0, le=65535)]
Count = Annotated[int, Field(ge=0, lt=2**31)]

_STRICT = with_config(strict=True, extra="allow")


@_STRICT
class Named(TypedDict):
    """attribute, category."""

    token: Token
    name: str


@_STRICT
class Sensor(TypedDict):
    token: Token
    channel: str
    modality: str


@_STRICT
class Tokened(TypedDict):
    """log; visibility."""

    token: Token


@_STRICT
class Map(TypedDict):
    token: Token
    log_tokens: list[Token]
    filename: FileName


@_STRICT
class Scene(TypedDict):
    token: Token
    name: str


@_STRICT
class Sample(TypedDict):
    token: Token
    timestamp: Time
    scene_token: Token


@_STRICT
class SampleData(TypedDict):
    token: Token
    sample_token: Token
    ego_pose_token: Token
    calibrated_sensor_token: Token
    timestamp: Time
    is_key_frame: bool
    width: Pixels
    height: Pixels
    filename: FileName


@_STRICT
class CalibratedSensor(TypedDict):
    token: Token
    sensor_token: Token
    translation: Place
    rotation: Turn
    camera_intrinsic: Intrinsic


@_STRICT
class EgoPose(TypedDict):
    token: Token
    translation: Place
    rotation: Turn


@_STRICT
class Instance(TypedDict):
    token: Token
    category_token: Token


@_STRICT
class SampleAnnotation(TypedDict):
    token: Token
    sample_token: Token
    instance_token: Token
    visibility_token: Literal["", "1", "2", "3", "4"]
    attribute_tokens: list[Token]
    translation: Place
    size: Size
    rotation: Turn
    prev: str
    next: str
    num_lidar_pts: Count
    num_radar_pts: Count


@_STRICT
class Detection(TypedDict):
    """An entry of a submission."""

    sample_token: Token
    translation: Place
    size: Size
    rotation: Turn
    velocity: Annotated[list[Finite], Field(min_length=2, max_length=2)]
    detection_name: str
    detection_score: Annotated[float, Field(allow_inf_nan=False)]
    attribute_name: str


@_STRICT
class Submission(TypedDict):
    meta: dict[str, Any]
    results: dict[str, list[Detection]]


ROWS: dict[str, Any] = {
    "attribute": Named, "calibrated_sensor": CalibratedSensor, "category": Named, "ego_pose": EgoPose,
    "instance": Instance, "log": Tokened, "map": Map, "sample": Sample, "sample_annotation": SampleAnnotation,
    "sample_data": SampleData, "scene": Scene, "sensor": Sensor, "visibility": Tokened,
}  # fmt: skip
"""Of each of the 13 tables."""


def read_table(path: Path, name: str) -> list[dict[str, Any]]:
    """A table's records.

    Args:
        name: one of :data:`ROWS`.

    Raises:
        UserError: unreadable, not JSON in UTF-8, a record lacks a field or holds one of another kind or out of range,
            or a token is there twice.
    """
    rows: Any = list
    records: list[dict[str, Any]] = _read(path, TypeAdapter(rows[ROWS[name]]))
    if len({record["token"] for record in records}) < len(records):
        raise UserError(f"{path}: two records have one token")
    return records


def read_splits(path: Path) -> dict[str, list[str]]:
    """A version's ``splits.json``: names of scenes by split.

    Raises:
        UserError: unreadable, or anything else.
    """
    splits: dict[str, list[str]] = _read(path, TypeAdapter(dict[str, list[str]]))
    return splits


def read_results(path: Path) -> dict[str, list[dict[str, Any]]]:
    """A submission's entries by sample token.

    Raises:
        UserError: unreadable, no submission, or an entry that is none.
    """
    try:
        submission = _read(path, TypeAdapter(Submission))
    except UserError as error:
        raise UserError(f"{error}; is it a nuScenes submission?") from None
    results: dict[str, list[dict[str, Any]]] = submission["results"]
    return results


def _read(path: Path, kind: TypeAdapter[Any]) -> Any:
    try:
        if path.exists() and not path.is_file():
            raise UserError(f"{path}: cannot read: not a regular file")
        return kind.validate_json(path.read_bytes())
    except OSError as error:
        raise UserError(f"{path}: cannot read: {error.strerror}") from None
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        if first["type"] == "json_invalid":
            raise UserError(f"{path}: not valid JSON: {first['msg'].removeprefix('Invalid JSON: ')}") from None
        where = ", ".join(f"record {part}" if isinstance(part, int) else f"'{part}'" for part in first["loc"][:4])
        got = "" if first["type"] == "missing" else f", got {_short(first['input'])}"
        raise UserError(f"{path}: {where}{': ' if where else ''}{first['msg']}{got}") from None


def _short(value: Any) -> str:
    text = "null" if value is None else repr(value) if isinstance(value, (str, bool, int, float)) else ""
    if not text or len(text) > 60:
        return f"a {type(value).__name__}"
    return text
