"""Location of the package's launch, config and rviz files: in a workspace, a virtual environment or the source tree."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

from ament_index_python.packages import PackageNotFoundError, get_package_share_directory

from skd_core.errors import UserError

PACKAGE = "skd_wm3d_ros"


def share_file(name: str) -> Path:
    """Path of an installed file such as ``config/detector.yaml``.

    Raises:
        UserError: it is nowhere.
    """
    places = [Path(sys.prefix) / "share" / PACKAGE, Path(__file__).resolve().parents[1]]
    with contextlib.suppress(PackageNotFoundError, OSError):  # OSError: no ament environment at all
        places.insert(0, Path(get_package_share_directory(PACKAGE)))
    for place in places:
        if (place / name).is_file():
            return place / name
    raise UserError(f"{name}: not found in {', '.join(map(str, places))}; install the package again")
