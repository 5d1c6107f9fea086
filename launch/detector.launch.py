"""Start the detector node, and RViz if wanted: ``ros2 launch skd_wm3d_ros detector.launch.py --show-args``."""

import os

from ament_index_python.packages import get_package_share_directory
from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument, OpaqueFunction, SetEnvironmentVariable
from launch.conditions import IfCondition
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node

PACKAGE = "skd_wm3d_ros"
PROFILE_VARIABLES = ("FASTRTPS_DEFAULT_PROFILES_FILE", "FASTDDS_DEFAULT_PROFILES_FILE")
BOOLEAN = {"true": True, "false": False}


def start_nodes(context, share):
    """The two nodes; of the parameters, only arguments that are given go before the parameter file."""
    given = {name: LaunchConfiguration(name).perform(context) for name in ("model", "device", "image_transport")}
    parameters = {name: value for name, value in given.items() if value}
    for name in ("autostart", "use_sim_time"):
        value = LaunchConfiguration(name).perform(context)
        if value:
            parameters[name] = BOOLEAN[value]
    remappings = [
        ("image", LaunchConfiguration("image_topic")),
        ("camera_info", LaunchConfiguration("camera_info_topic")),
    ]
    detector = Node(
        package=PACKAGE,
        executable="detector_node",
        name="detector",
        namespace=LaunchConfiguration("namespace"),
        parameters=[LaunchConfiguration("params_file"), parameters],
        remappings=remappings,
        arguments=["--ros-args", "--log-level", LaunchConfiguration("log_level")],
        output="screen",
    )
    rviz = Node(
        package="rviz2",
        executable="rviz2",
        name="rviz",
        namespace=LaunchConfiguration("namespace"),
        arguments=["-d", os.path.join(share, "rviz", "detector.rviz")],
        parameters=[{name: value for name, value in parameters.items() if name == "use_sim_time"}],
        remappings=remappings,
        condition=IfCondition(LaunchConfiguration("rviz")),
        output="screen",
    )
    return [detector, rviz]


def generate_launch_description():
    share = get_package_share_directory(PACKAGE)
    as_in_file = "empty = as in params_file"
    arguments = [
        DeclareLaunchArgument("namespace", default_value="", description="Namespace of the node and its topics."),
        DeclareLaunchArgument(
            "params_file",
            default_value=os.path.join(share, "config", "detector.yaml"),
            description="Parameter file of the node.",
        ),
        DeclareLaunchArgument(
            "use_sim_time",
            default_value="",
            choices=["", *BOOLEAN],
            description=f"Take the time from /clock; {as_in_file}.",
        ),
        DeclareLaunchArgument(
            "autostart",
            default_value="",
            choices=["", *BOOLEAN],
            description=f"Configure and activate at the start; {as_in_file}.",
        ),
        DeclareLaunchArgument(
            "log_level",
            default_value="info",
            choices=["debug", "info", "warn", "error", "fatal"],
            description="Least severity that is logged.",
        ),
        DeclareLaunchArgument(
            "model",
            default_value="",
            description=f"Weights file, or 'default' for the bundled weights; {as_in_file}.",
        ),
        DeclareLaunchArgument(
            "device",
            default_value="",
            description=f"Where the network runs: auto, cpu, cuda or cuda:N; {as_in_file}.",
        ),
        DeclareLaunchArgument("image_topic", default_value="image", description="Rectified image of the camera."),
        DeclareLaunchArgument("camera_info_topic", default_value="camera_info", description="Its calibration."),
        DeclareLaunchArgument(
            "image_transport",
            default_value="",
            choices=["", "raw", "compressed"],
            description=f"compressed: subscribe to <image_topic>/compressed; {as_in_file}.",
        ),
        DeclareLaunchArgument("rviz", default_value="false", choices=list(BOOLEAN), description="Open RViz."),
    ]
    # Images do not fit the default shared-memory segment; a profile of the user's own goes first.
    environment = []
    if not any(os.environ.get(name) for name in PROFILE_VARIABLES):
        profile = os.path.join(share, "config", "fastdds_images.xml")
        environment = [SetEnvironmentVariable(name, profile) for name in PROFILE_VARIABLES]
    return LaunchDescription([*arguments, *environment, OpaqueFunction(function=start_nodes, args=[share])])
