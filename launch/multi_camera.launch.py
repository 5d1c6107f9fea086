"""Start a detector for each camera of a file: ``ros2 launch skd_wm3d_ros multi_camera.launch.py cameras:=FILE``."""

import os

from ament_index_python.packages import get_package_share_directory
from launch import LaunchDescription
from launch.actions import OpaqueFunction
from launch_ros.actions import Node

from skd_wm3d_ros.cameras import read_cameras
from skd_wm3d_ros.launch_actions import Outcome, dds_profile, declared, open_rviz, watched_nodes
from skd_wm3d_ros.launch_arguments import MULTI_CAMERA
from skd_wm3d_ros.launching import PACKAGE, absolute, existing, file_parameters, values
from skd_wm3d_ros.rviz_view import view


def start_nodes(context, share, outcome):
    """One node for each camera, or one process with all of them; RViz, if wanted, for all."""
    given = values(MULTI_CAMERA, context.launch_configurations)
    cameras, defaults = read_cameras(given["cameras"]), existing("params_file", given["params_file"])
    own = [{"use_sim_time": given["use_sim_time"]}] if "use_sim_time" in given else []
    views = [_view(context, camera, defaults) for camera in cameras]
    rviz = open_rviz(context, share, views, given.get("use_sim_time"))
    common = {
        "package": PACKAGE,
        "executable": "detector_node",
        "output": "screen",
        "arguments": ["--ros-args", "--log-level", given["log_level"]],
    }
    if given["process"] == "one":
        common["arguments"] = ["--cameras", given["cameras"], *common["arguments"]]
        return [Node(**common, parameters=[defaults, *own], **watched_nodes(outcome, context)), *rviz]
    nodes = [
        Node(
            **common,
            name="detector",
            namespace=camera.name,
            parameters=[defaults, *([camera.params_file] if camera.params_file else []), camera.parameters, *own],
            remappings=camera.remappings,
            **watched_nodes(outcome, context),
        )
        for camera in cameras
    ]
    return [*nodes, *rviz]


def _view(context, camera, defaults):
    """Of one camera; its own parameters go before its file's, those before the defaults'."""
    namespace = absolute(context.launch_configurations.get("ros_namespace", ""), camera.name)
    known = {}
    for file in filter(None, (defaults, camera.params_file)):
        known |= file_parameters(file, absolute(namespace, "detector"))
    return view(namespace, dict(camera.remappings), known | camera.parameters)


def generate_launch_description():
    share, outcome = get_package_share_directory(PACKAGE), Outcome()
    arguments = declared(MULTI_CAMERA, params_file=os.path.join(share, "config", "detector.yaml"))
    nodes = OpaqueFunction(function=start_nodes, args=[share, outcome])
    return LaunchDescription([*arguments, *dds_profile(share), *outcome.actions(), nodes])
