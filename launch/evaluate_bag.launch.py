"""Score the live node on a recording: ``ros2 launch skd_wm3d_ros evaluate_bag.launch.py bag:=FOLDER``.

One process plays the bag (`ros2 bag play` where it is installed), runs the node, records its answers and scores them.
"""

from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument, ExecuteProcess, OpaqueFunction
from launch.substitutions import LaunchConfiguration

OPTIONS = {
    "model": ("--weights", "Weights file, or 'default' for the bundled weights."),
    "out": ("--out", "Folder for report.html, scores.json, results and the detections as a bag."),
    "rate": ("--rate", "Playing speed, times real time."),
    "device": ("--device", "Where the network runs: auto, cpu, cuda or cuda:N."),
    "threshold": ("--threshold", "Least score, 0 to 1."),
    "params_file": ("--params-file", "Parameter file of the node; empty = none."),
    "truth": ("--truth", "Topic of true boxes; empty = what bag-make writes, if it is there."),
    "labels": ("--labels", "Folder of KITTI label files, one per frame; empty = none."),
    "image_topic": ("--image-topic", "Image topic, if the bag has several cameras."),
    "camera_info_topic": ("--camera-info-topic", "Its calibration, if it is not beside the image."),
}
DEFAULTS = {"model": "default", "out": "out/bag_evaluation", "rate": "1.0", "device": "auto", "threshold": "0.2"}
FLAGS = {
    "lossless": ("--lossless", "Wait for the answer to each image instead of playing in real time; drops none."),
    "raw_images": ("--raw-images", "Undistort the images first: they are raw, not rectified."),
    "check": ("--check", "Detect offline too and compare with what the node found."),
}


def evaluate(context):
    """The evaluation as a process; `env python3`, so that a sourced virtual environment's Python is taken."""
    command = ["/usr/bin/env", "python3", "-m", "skd_wm3d_ros.tools.bag_evaluation"]
    command.append(LaunchConfiguration("bag").perform(context))
    for name, (option, _) in OPTIONS.items():
        value = LaunchConfiguration(name).perform(context)
        if value:
            command += [option, value]
    for name, (option, _) in FLAGS.items():
        if LaunchConfiguration(name).perform(context) == "true":
            command.append(option)
    return [ExecuteProcess(cmd=command, output="screen")]


def generate_launch_description():
    arguments = [DeclareLaunchArgument("bag", description="rosbag2 folder to play.")]
    for name, (_, text) in OPTIONS.items():
        arguments.append(DeclareLaunchArgument(name, default_value=DEFAULTS.get(name, ""), description=text))
    for name, (_, text) in FLAGS.items():
        arguments.append(
            DeclareLaunchArgument(name, default_value="false", choices=["true", "false"], description=text)
        )
    return LaunchDescription([*arguments, OpaqueFunction(function=evaluate)])
