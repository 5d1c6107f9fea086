"""Start the detector node, and RViz if wanted: ``ros2 launch skd_wm3d_ros detector.launch.py --show-args``."""

import os

from ament_index_python.packages import get_package_share_directory
from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument, SetEnvironmentVariable
from launch.conditions import IfCondition
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue

PACKAGE = "skd_wm3d_ros"
PROFILE_VARIABLES = ("FASTRTPS_DEFAULT_PROFILES_FILE", "FASTDDS_DEFAULT_PROFILES_FILE")


def generate_launch_description():
    share = get_package_share_directory(PACKAGE)
    boolean = ["true", "false"]
    arguments = [
        DeclareLaunchArgument("namespace", default_value="", description="Namespace of the node and its topics."),
        DeclareLaunchArgument(
            "params_file",
            default_value=os.path.join(share, "config", "detector.yaml"),
            description="Parameter file; the arguments autostart, model, device and image_transport override it.",
        ),
        DeclareLaunchArgument(
            "use_sim_time", default_value="false", choices=boolean, description="Take the time from /clock."
        ),
        DeclareLaunchArgument(
            "autostart", default_value="true", choices=boolean, description="Configure and activate at the start."
        ),
        DeclareLaunchArgument(
            "log_level",
            default_value="info",
            choices=["debug", "info", "warn", "error", "fatal"],
            description="Least severity that is logged.",
        ),
        DeclareLaunchArgument(
            "model", default_value="default", description="Weights file, or 'default' for the bundled weights."
        ),
        DeclareLaunchArgument(
            "device", default_value="auto", description="Where the network runs: auto, cpu, cuda or cuda:N."
        ),
        DeclareLaunchArgument("image_topic", default_value="image", description="Rectified image of the camera."),
        DeclareLaunchArgument("camera_info_topic", default_value="camera_info", description="Its calibration."),
        DeclareLaunchArgument(
            "image_transport",
            default_value="raw",
            choices=["raw", "compressed"],
            description="compressed: subscribe to <image_topic>/compressed.",
        ),
        DeclareLaunchArgument("rviz", default_value="false", choices=boolean, description="Open RViz."),
    ]

    # Images do not fit the default shared-memory segment; a profile of the user's own goes first.
    environment = []
    if not any(os.environ.get(name) for name in PROFILE_VARIABLES):
        profile = os.path.join(share, "config", "fastdds_images.xml")
        environment = [SetEnvironmentVariable(name, profile) for name in PROFILE_VARIABLES]

    def text(name):
        return ParameterValue(LaunchConfiguration(name), value_type=str)

    def flag(name):
        return ParameterValue(LaunchConfiguration(name), value_type=bool)

    remappings = [
        ("image", LaunchConfiguration("image_topic")),
        ("camera_info", LaunchConfiguration("camera_info_topic")),
    ]
    detector = Node(
        package=PACKAGE,
        executable="detector_node",
        name="detector",
        namespace=LaunchConfiguration("namespace"),
        parameters=[
            LaunchConfiguration("params_file"),
            {
                "use_sim_time": flag("use_sim_time"),
                "autostart": flag("autostart"),
                "model": text("model"),
                "device": text("device"),
                "image_transport": text("image_transport"),
            },
        ],
        remappings=remappings,
        arguments=["--ros-args", "--log-level", LaunchConfiguration("log_level")],
        output="screen",
        emulate_tty=True,
    )
    rviz = Node(
        package="rviz2",
        executable="rviz2",
        name="rviz",
        namespace=LaunchConfiguration("namespace"),
        arguments=["-d", os.path.join(share, "rviz", "detector.rviz")],
        parameters=[{"use_sim_time": flag("use_sim_time")}],
        remappings=remappings,
        condition=IfCondition(LaunchConfiguration("rviz")),
        output="screen",
    )
    return LaunchDescription([*arguments, *environment, detector, rviz])
