"""Start the detector node, and RViz if wanted: ``ros2 launch skd_wm3d_ros detector.launch.py --show-args``."""

import os

from ament_index_python.packages import get_package_share_directory
from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument, OpaqueFunction
from launch.conditions import IfCondition
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node

from skd_wm3d_ros.launching import BOOLEAN, PACKAGE, dds_profile, listed, parameter_file, respawn_argument, respawning

TEXTS = (
    "model",
    "device",
    "precision",
    "boxes_from",
    "detector_2d",
    "detections_2d_type",
    "detections_2d_fit",
    "image_transport",
    "target_frame",
)
FLAGS = ("autostart", "use_sim_time", "image_is_rectified", "tracking")
OTHERS = {
    "detector_2d_tiles": int,
    "class_map": listed,
    "detections_2d_size": lambda text: [int(item) for item in listed(text)],
}
"""Parameters of other types, and how their arguments are read."""


def start_nodes(context, share):
    """The two nodes; of the parameters, only arguments that are given go before the parameter file."""
    given = {name: LaunchConfiguration(name).perform(context) for name in TEXTS}
    parameters = {name: value for name, value in given.items() if value}
    for name in FLAGS:
        value = LaunchConfiguration(name).perform(context)
        if value:
            parameters[name] = BOOLEAN[value]
    for name, read in OTHERS.items():
        value = LaunchConfiguration(name).perform(context)
        if value:
            parameters[name] = read(value)
    remappings = [
        ("image", LaunchConfiguration("image_topic")),
        ("camera_info", LaunchConfiguration("camera_info_topic")),
        ("detections_2d", LaunchConfiguration("detections_2d_topic")),
    ]
    detector = Node(
        package=PACKAGE,
        executable="detector_node",
        name="detector",
        namespace=LaunchConfiguration("namespace"),
        parameters=[parameter_file(context), parameters],
        remappings=remappings,
        arguments=["--ros-args", "--log-level", LaunchConfiguration("log_level")],
        output="screen",
        **respawning(context),
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
        DeclareLaunchArgument(
            "precision",
            default_value="",
            choices=["", "auto", "fp32", "fp16", "bf16"],
            description=f"What the network computes in; {as_in_file}.",
        ),
        DeclareLaunchArgument("image_topic", default_value="image", description="Image of the camera."),
        DeclareLaunchArgument("camera_info_topic", default_value="camera_info", description="Its calibration."),
        DeclareLaunchArgument(
            "boxes_from",
            default_value="",
            choices=["", "own", "topic", "onnx"],
            description=f"2D boxes: the weights' own, those on detections_2d_topic, detector_2d's; {as_in_file}.",
        ),
        DeclareLaunchArgument(
            "detector_2d",
            default_value="",
            description=f"ONNX file of a 2D network, for boxes_from:=onnx; {as_in_file}.",
        ),
        DeclareLaunchArgument(
            "detector_2d_tiles",
            default_value="",
            description=f"Parts of the image that the 2D network looks at besides the whole; {as_in_file}.",
        ),
        DeclareLaunchArgument(
            "class_map",
            default_value="",
            description=f"Classes of the 2D boxes, as in class_map:=2:car,0:pedestrian,1:cycle; {as_in_file}.",
        ),
        DeclareLaunchArgument(
            "detections_2d_topic", default_value="detections_2d", description="2D boxes, for boxes_from:=topic."
        ),
        DeclareLaunchArgument(
            "detections_2d_type",
            default_value="",
            choices=["", "vision_msgs", "yolo_msgs"],
            description=f"Package of the messages there; {as_in_file}.",
        ),
        DeclareLaunchArgument(
            "detections_2d_size",
            default_value="",
            description=f"Picture in whose pixels they are, as in detections_2d_size:=640,640; {as_in_file}.",
        ),
        DeclareLaunchArgument(
            "detections_2d_fit",
            default_value="",
            choices=["", "stretch", "letterbox"],
            description=f"How that picture holds the image; {as_in_file}.",
        ),
        DeclareLaunchArgument(
            "image_transport",
            default_value="",
            choices=["", "raw", "compressed"],
            description=f"compressed: subscribe to <image_topic>/compressed; {as_in_file}.",
        ),
        DeclareLaunchArgument(
            "image_is_rectified",
            default_value="",
            choices=["", *BOOLEAN],
            description=f"false: a raw image, undistorted with K and D of its calibration; {as_in_file}.",
        ),
        DeclareLaunchArgument(
            "target_frame",
            default_value="",
            description=f"Frame of the detections, by TF; {as_in_file}.",
        ),
        DeclareLaunchArgument(
            "tracking",
            default_value="",
            choices=["", *BOOLEAN],
            description=f"Fill the detections' id with a track's number; {as_in_file}.",
        ),
        respawn_argument(),
        DeclareLaunchArgument("rviz", default_value="false", choices=list(BOOLEAN), description="Open RViz."),
    ]
    return LaunchDescription([*arguments, *dds_profile(share), OpaqueFunction(function=start_nodes, args=[share])])
