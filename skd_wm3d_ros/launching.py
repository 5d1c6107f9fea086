"""What the launch files share. Imports no torch: ``ros2 launch`` may run in a Python that has none."""

from __future__ import annotations

import os
from typing import Any

PACKAGE = "skd_wm3d_ros"
BOOLEAN = {"true": True, "false": False}
RESPAWN_DELAY = 2.0  # seconds
ENDED = (0, 2)  # exit statuses of a node that was told to end, and of one with a wrong parameter: it would end again
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


def parameter_file(context: Any) -> str:
    """Path in the launch argument ``params_file``.

    Raises:
        FileNotFoundError: no such file; launch itself would warn and start the node with its defaults.
    """
    path: str = context.launch_configurations["params_file"]
    if not os.path.isfile(path):
        raise FileNotFoundError(f"params_file '{path}': no such file")
    return path


def listed(text: str) -> list[str]:
    """Items of a launch argument that is a list, with commas between, with or without brackets around."""
    return [item.strip().strip("'\"") for item in text.strip().strip("[]").split(",")]


def respawn_argument() -> Any:
    """Launch argument ``respawn``, which :func:`respawning` reads."""
    from launch.actions import DeclareLaunchArgument

    return DeclareLaunchArgument(
        "respawn",
        default_value="true",
        choices=list(BOOLEAN),
        description=f"Start a node that died again, after {RESPAWN_DELAY:.0f} s; "
        "not one that was told to end or has a wrong parameter.",
    )


def respawning(context: Any) -> dict[str, Any]:
    """Keyword arguments of a Node action that is started again when it dies."""
    respawn = BOOLEAN[context.launch_configurations["respawn"]]
    return {"respawn": respawn, "respawn_delay": RESPAWN_DELAY, "on_exit": let_it_end} if respawn else {}


def let_it_end(event: Any, context: Any) -> list[Any]:
    """What takes back the respawning of a process that left with one of ENDED; for ``on_exit``."""
    from launch.actions import EmitEvent
    from launch.events import matches_action
    from launch.events.process import ShutdownProcess

    if event.returncode not in ENDED:
        return []
    return [EmitEvent(event=ShutdownProcess(process_matcher=matches_action(event.action)))]
