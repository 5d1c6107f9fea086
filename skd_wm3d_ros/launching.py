"""What the launch files share. Imports no torch: ``ros2 launch`` may run in a Python that has none."""

from __future__ import annotations

import os
from typing import Any

PACKAGE = "skd_wm3d_ros"
BOOLEAN = {"true": True, "false": False}
PROFILE_VARIABLES = ("FASTRTPS_DEFAULT_PROFILES_FILE", "FASTDDS_DEFAULT_PROFILES_FILE")


def dds_profile(share: str) -> list[Any]:
    """Actions that choose the Fast DDS profile for images; none where the user has a profile of their own.

    Images do not fit the default shared-memory segment.
    """
    from launch.actions import SetEnvironmentVariable

    if any(os.environ.get(name) for name in PROFILE_VARIABLES):
        return []
    profile = os.path.join(share, "config", "fastdds_images.xml")
    return [SetEnvironmentVariable(name, profile) for name in PROFILE_VARIABLES]
