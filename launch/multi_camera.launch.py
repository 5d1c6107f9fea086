"""Start a detector for each camera of a file: ``ros2 launch skd_wm3d_ros multi_camera.launch.py cameras:=FILE``."""

import os

from ament_index_python.packages import get_package_share_directory
from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument, OpaqueFunction
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node

from skd_wm3d_ros.cameras import read_cameras
from skd_wm3d_ros.launching import BOOLEAN, PACKAGE, dds_profile, parameter_file, respawn_argument, respawning


def start_nodes(context):
    """One node for each camera, or one process with all of them."""
    path = LaunchConfiguration("cameras").perform(context)
    cameras = read_cameras(path)
    sim_time = LaunchConfiguration("use_sim_time").perform(context)
    own = [{"use_sim_time": BOOLEAN[sim_time]}] if sim_time else []
    common = {
        "package": PACKAGE,
        "executable": "detector_node",
        "output": "screen",
        "arguments": ["--ros-args", "--log-level", LaunchConfiguration("log_level")],
        **respawning(context),
    }
    defaults = parameter_file(context)
    if LaunchConfiguration("process").perform(context) == "one":
        common["arguments"] = ["--cameras", path, *common["arguments"]]
        return [Node(**common, parameters=[defaults, *own])]
    return [
        Node(
            **common,
            name="detector",
            namespace=camera.name,
            parameters=[defaults, *([camera.params_file] if camera.params_file else []), camera.parameters, *own],
            remappings=camera.remappings,
        )
        for camera in cameras
    ]


def generate_launch_description():
    share = get_package_share_directory(PACKAGE)
    arguments = [
        DeclareLaunchArgument(
            "cameras", description="YAML list of the cameras; config/cameras.yaml of this package shows how."
        ),
        DeclareLaunchArgument(
            "process",
            default_value="several",
            choices=["several", "one"],
            description="several: one process for each camera; one: all in one, with one GPU context.",
        ),
        DeclareLaunchArgument(
            "params_file",
            default_value=os.path.join(share, "config", "detector.yaml"),
            description="Parameter file of all nodes; the file of cameras goes before it.",
        ),
        DeclareLaunchArgument(
            "use_sim_time",
            default_value="",
            choices=["", *BOOLEAN],
            description="Take the time from /clock; empty = as in the files.",
        ),
        DeclareLaunchArgument(
            "log_level",
            default_value="info",
            choices=["debug", "info", "warn", "error", "fatal"],
            description="Least severity that is logged.",
        ),
        respawn_argument(),
    ]
    return LaunchDescription([*arguments, *dds_profile(share), OpaqueFunction(function=start_nodes)])
