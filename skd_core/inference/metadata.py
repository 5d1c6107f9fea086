"""The metadata of a weights file, checked as strictly as a config: a file may come from anywhere."""

from __future__ import annotations

import json
import math
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt, StrictStr

from skd_core.config import FOCAL_LIMITS, Strict, parse_config
from skd_core.errors import UserError

FORMAT = "skd_core.student.v1"
NEEDED = ("model", "focal", "sha256")

Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
Score = Annotated[Number, Field(ge=0, le=1)]
Focal = Annotated[Number, Field(ge=FOCAL_LIMITS[0], le=FOCAL_LIMITS[1])]
Side = Annotated[Number, Field(ge=0.05, le=100)]
"""Of an average object, metres."""
Share = Annotated[Number, Field(gt=0, le=1)]


class ClassCalibration(Strict):
    """How far off the boxes of a class were on frames with 3D labels, see :mod:`skd_core.evaluation.calibrate` [ours].

    Each value is the one that .68 of the errors do not exceed, as of a standard deviation.
    """

    depth_scale: Annotated[Number, Field(gt=0, le=100)]  # times the network's own depth_std
    lateral_std: Share  # across the viewing ray, sideways, as a fraction of the distance
    vertical_std: Share  # across the viewing ray, upwards, as a fraction of the distance
    yaw_std: Annotated[Number, Field(gt=0, le=math.pi / 2)] | None  # modulo pi, radians; None: not measured
    flip: Annotated[Number, Field(ge=0, le=0.5)]  # share of boxes whose front is taken for their rear
    count: Annotated[StrictInt, Field(ge=0)]  # objects of this class
    pooled: StrictBool = False  # too few of them: the position is that of all classes together


class Metadata(BaseModel):
    """What is read from the metadata; whatever else they hold is kept as it is."""

    model_config = ConfigDict(extra="allow", frozen=True)

    model: dict[StrictStr, Any]
    focal: tuple[Focal, Focal]
    sha256: StrictStr
    prior_sizes: tuple[tuple[Side, Side, Side], ...] = ()
    threshold: Score = 0.0
    learnt_from: StrictStr = "unknown"
    trained_on: dict[StrictStr, StrictStr] = {}
    licence: StrictStr = ""
    heading_known: StrictBool = False
    calibration: dict[StrictStr, ClassCalibration] = {}


def read_metadata(text: str, name: str) -> dict[str, Any]:
    """The metadata of a weights file.

    Args:
        text: JSON.
        name: of the file, for messages.

    Raises:
        UserError: not JSON, of another format, or with a value that cannot be; the message names it.
    """
    try:
        raw = json.loads(text)
    except (ValueError, RecursionError):  # ValueError: also a number of thousands of digits
        raise UserError(f"{name}: not written by skd_core (its metadata is not valid JSON)") from None
    if not isinstance(raw, dict):
        raise UserError(f"{name}: not written by skd_core (its metadata is not a mapping)")
    if raw.get("format") != FORMAT:
        found = repr(raw.get("format"))[:80]
        raise UserError(f"{name}: not written by skd_core (format {found}, not {FORMAT!r})")
    missing = [key for key in NEEDED if raw.get(key) is None]
    if missing:
        raise UserError(f"{name}: the metadata lack {', '.join(missing)}; export the weights again")
    parse_config(Metadata, raw, name)
    return raw
