"""Start the detector node, and RViz if wanted: ``ros2 launch skd_wm3d_ros detector.launch.py --show-args``."""

import os

from ament_index_python.packages import get_package_share_directory
from launch import LaunchDescription
from launch.actions import OpaqueFunction
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node

from skd_wm3d_ros.launch_actions import Outcome, dds_profile, declared, open_rviz, watched_nodes
from skd_wm3d_ros.launch_arguments import DETECTOR
from skd_wm3d_ros.launching import PACKAGE, absolute, existing, file_parameters, node_parameters
from skd_wm3d_ros.rviz_view import view

TOPICS = {"image": "image_topic", "camera_info": "camera_info_topic", "detections_2d": "detections_2d_topic"}


def start_nodes(context, share, outcome):
    """The node and RViz; of the parameters, only arguments that are given go before the parameter file."""
    given = context.launch_configurations
    file, parameters = existing("params_file", given["params_file"]), node_parameters(DETECTOR, given)
    topics = {name: given[argument] for name, argument in TOPICS.items()}
    detector = Node(
        package=PACKAGE,
        executable="detector_node",
        name="detector",
        namespace=LaunchConfiguration("namespace"),
        parameters=[file, parameters],
        remappings=list(topics.items()),
        arguments=["--ros-args", "--log-level", given["log_level"]],
        output="screen",
        **watched_nodes(outcome, context),
    )
    namespace = absolute(given.get("ros_namespace", ""), given["namespace"])
    known = file_parameters(file, absolute(namespace, "detector")) | parameters
    return [
        detector,
        *open_rviz(context, share, [view(namespace, topics, known)], parameters.get("use_sim_time")),
    ]


def generate_launch_description():
    share, outcome = get_package_share_directory(PACKAGE), Outcome()
    arguments = declared(DETECTOR, params_file=os.path.join(share, "config", "detector.yaml"))
    nodes = OpaqueFunction(function=start_nodes, args=[share, outcome])
    return LaunchDescription([*arguments, *dds_profile(share), *outcome.actions(), nodes])
