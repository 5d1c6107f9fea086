"""What to say where the Python that runs a program lacks a package, or has too old a ROS 2. Imports nothing that may be
missing."""

from __future__ import annotations

import os
import sys

from skd_core.errors import UserError

_OURS = ("skd_core", "skd_wm3d_ros")
_ROS = ("ament_index_python", "cv_bridge", "launch", "launch_ros", "message_filters", "rclpy", "tf2_ros", "yolo_msgs")


def import_advice(error: ImportError) -> str:
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


def require_jazzy() -> None:
    """Say that the ROS 2 of this machine is too old, before anything fails for it.

    Humble's rclpy has neither a module of event handlers nor callbacks after parameters were set.

    Raises:
        UserError: it is older than Jazzy.
        ImportError: there is no rclpy.
    """
    from rclpy.node import Node

    try:
        import rclpy.event_handler  # noqa: F401
    except ImportError:
        old = True
    else:
        old = not hasattr(Node, "add_post_set_parameters_callback")
    if old:
        raise UserError(
            f"the node needs ROS 2 Jazzy or newer, this is {os.environ.get('ROS_DISTRO') or 'an older one'}: its rclpy "
            "lacks what the node is built on; skd_core itself (predict, bag-eval) needs no ROS"
        )
