"""SKD-WM3D: 3D boxes from a single camera image, learnt without 3D labels."""

from __future__ import annotations

from typing import TYPE_CHECKING

from skd_core.errors import UserError

if TYPE_CHECKING:
    from skd_core.boxes import Boxes2D, Boxes3D
    from skd_core.camera import Camera
    from skd_core.inference.detector import Detector

__version__ = "0.1.0"
__all__ = ["Boxes2D", "Boxes3D", "Camera", "Detector", "UserError", "__version__"]


def __getattr__(name: str) -> object:
    """The public names are imported when first used: `skd_core --help` need not wait for PyTorch."""
    if name in ("Boxes2D", "Boxes3D"):
        from skd_core import boxes

        return getattr(boxes, name)
    if name == "Camera":
        from skd_core.camera import Camera

        return Camera
    if name == "Detector":
        from skd_core.inference.detector import Detector

        return Detector
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
