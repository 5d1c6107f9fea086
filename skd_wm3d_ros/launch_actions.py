"""Actions that the launch files share; needs ROS's `launch`, but no torch."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Iterable, Sequence
from tempfile import NamedTemporaryFile
from typing import Any

from ament_index_python.packages import PackageNotFoundError, get_package_prefix
from launch import Event
from launch.actions import (
    DeclareLaunchArgument,
    EmitEvent,
    OpaqueFunction,
    RegisterEventHandler,
    SetEnvironmentVariable,
)
from launch.event_handler import EventHandler
from launch.event_handlers import OnShutdown
from launch.events import matches_action
from launch.events.process import ShutdownProcess
from launch.logging import get_logger, launch_config
from launch_ros.actions import Node

from skd_wm3d_ros.launch_arguments import FIXED_FRAME, RESPAWN, RVIZ
from skd_wm3d_ros.launching import PROFILE_VARIABLES, RESPAWN_DELAY, Argument, is_respawned, sets_dds_profile
from skd_wm3d_ros.rviz_view import View, configuration


def declared(arguments: Iterable[Argument], **defaults: str) -> list[DeclareLaunchArgument]:
    """Actions that declare launch arguments; defaults: of arguments whose default depends on where the package is."""
    return [
        DeclareLaunchArgument(
            argument.name,
            default_value=defaults.get(argument.name, argument.default),
            description=argument.description,
            choices=list(argument.choices) or None,
        )
        for argument in arguments
    ]


def dds_profile(share: str) -> list[SetEnvironmentVariable]:
    """Actions that choose the Fast DDS profile for images; see :func:`skd_wm3d_ros.launching.sets_dds_profile`."""
    if not sets_dds_profile(os.environ):
        return []
    profile = os.path.join(share, "config", "fastdds_images.xml")
    return [SetEnvironmentVariable(name, profile) for name in PROFILE_VARIABLES]


class Failed(Event):
    """A process has left for good with another exit status than 0."""

    name = "skd_wm3d_ros.Failed"

    def __init__(self, reason: str) -> None:
        self.reason = reason


class Outcome:
    """Makes ``ros2 launch`` end with status 1 where a process of ours did not end well.

    launch itself ends with 0 whatever the processes' statuses were; 1 is the only other one it has, for an exception in
    an event handler. That is raised when all is over, so that the other processes of the launch are not torn down.
    """

    def __init__(self) -> None:
        self._failures: list[str] = []

    def actions(self) -> list[RegisterEventHandler]:
        """To be executed before the processes."""
        return [
            RegisterEventHandler(OnShutdown(on_shutdown=self._shutting_down)),
            RegisterEventHandler(
                EventHandler(matcher=lambda event: isinstance(event, Failed), entities=[OpaqueFunction(function=_fail)])
            ),
        ]

    def watched(self, respawn: bool = False) -> dict[str, Any]:
        """Keyword arguments of a process whose exit status counts, and which is started again if ``respawn``."""

        def on_exit(event: Any, context: Any) -> list[EmitEvent]:
            failure = f"{event.process_name} ended with status {event.returncode}" if event.returncode else ""
            if context.is_shutdown:
                return [EmitEvent(event=Failed(failure))] if failure else []
            if is_respawned(respawn, event.returncode):
                return []
            self._failures += [failure] if failure else []
            taken_back = ShutdownProcess(process_matcher=matches_action(event.action))
            return [EmitEvent(event=taken_back)] if respawn else []

        restart = {"respawn": True, "respawn_delay": RESPAWN_DELAY} if respawn else {}
        return {**restart, "on_exit": on_exit}

    def _shutting_down(self, event: Any, context: Any) -> list[EmitEvent]:
        failures, self._failures = self._failures, []
        return [EmitEvent(event=Failed("; ".join(failures)))] if failures else []


def _fail(context: Any) -> None:
    raise RuntimeError(context.locals.event.reason)


def watched_nodes(outcome: Outcome, context: Any) -> dict[str, Any]:
    """Keyword arguments of a detector node: see :meth:`Outcome.watched`, respawned as the argument says."""
    return outcome.watched(bool(RESPAWN.value(context.launch_configurations)))


def open_rviz(context: Any, share: str, views: Sequence[View], use_sim_time: bool | None) -> list[Node]:
    """RViz, if the argument ``rviz`` is true; without rviz2 a message says so, and the rest starts.

    Args:
        share: folder of this package's shared files.
        views: the cameras; the fixed frame is that of the first.
        use_sim_time: None = not given.
    """
    given = context.launch_configurations
    if not RVIZ.value(given):
        return []
    try:
        executable = os.path.join(get_package_prefix("rviz2"), "lib", "rviz2", "rviz2")
    except PackageNotFoundError:
        executable = ""
    if not os.access(executable, os.X_OK):
        cure = "sudo apt install ros-$ROS_DISTRO-rviz2 ros-$ROS_DISTRO-vision-msgs-rviz-plugins"
        get_logger("launch").error(f"rviz2 is not installed, the detector runs without: {cure}")
        return []
    text = configuration(os.path.join(share, "rviz", "detector.rviz"), views)
    with NamedTemporaryFile("w", dir=launch_config.log_dir, suffix=".rviz", delete=False, encoding="utf-8") as file:
        file.write(text)
    frame = FIXED_FRAME.value(given) or views[0].frame
    topics = views[0].image, views[0].camera_info, views[0].detections
    wait = [sys.executable, "-m", "skd_wm3d_ros.tools.rviz_frame", *topics]
    return [
        Node(
            package="rviz2",
            executable="rviz2",
            exec_name="rviz2",
            name="rviz",
            namespace=given.get("namespace", ""),
            arguments=["-d", file.name, *(["-f", frame] if frame else [])],
            parameters=[] if use_sim_time is None else [{"use_sim_time": use_sim_time}],
            prefix="" if frame else shlex.join(wait),
            output="screen",
        )
    ]
