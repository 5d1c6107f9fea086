"""What to say where the Python that runs a program lacks a package. Imports nothing that may be missing."""

from __future__ import annotations

import sys

_OURS = ("skd_core", "skd_wm3d_ros")
_ROS = ("ament_index_python", "cv_bridge", "launch", "launch_ros", "message_filters", "rclpy", "tf2_ros", "yolo_msgs")


def cure(error: ImportError) -> str:
    """One line that names what could not be imported, by which Python, and what to do.

    Raises:
        ImportError: the error, where it is a fault in our own modules.
    """
    name = error.name or ""
    package = name.partition(".")[0]
    if package in _OURS:
        raise error
    reason = f"{(str(error).splitlines() or ['import failed'])[0]} ({sys.executable})"
    if name.startswith("rclpy._"):
        return (
            f"{reason}: rclpy is built for another Python, use the one that ROS 2 uses (rm -rf .venv, then make setup)"
        )
    if name.startswith("rclpy."):
        return f"{reason}: this rclpy is too old, ROS 2 Jazzy or newer is needed"
    if package in _ROS or package.endswith(("_msgs", "_interfaces")):
        return f"{reason}: source ROS 2 (source /opt/ros/$ROS_DISTRO/setup.bash), or install this ROS package"
    return (
        f"{reason}: activate the virtual environment that `make setup` made (source .venv/bin/activate) in the shell "
        "that starts this"
    )
