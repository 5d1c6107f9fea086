"""The arguments of the launch files, as ``ros2 launch skd_wm3d_ros FILE --show-args`` shows them."""

from __future__ import annotations

from collections.abc import Mapping

from skd_wm3d_ros.launching import Argument, boolean, listed, parse_integers, whole

_AS_IN_FILE = "empty = as in params_file"
_LEVELS = ("debug", "info", "warn", "error", "fatal")


def _parameter(name: str, description: str, choices: tuple[str, ...] = ()) -> Argument:
    """A text that is a parameter of the node too."""
    allowed = ("", *choices) if choices else ()
    return Argument(name, f"{description}; {_AS_IN_FILE}.", choices=allowed, parameter=True)


def _flag(name: str, description: str) -> Argument:
    """True or false, and a parameter of the node too."""
    return Argument(name, f"{description} (true or false); {_AS_IN_FILE}.", read=boolean, parameter=True)


def _option(name: str, option: str, description: str, default: str = "") -> Argument:
    """A text that becomes an option of a command line."""
    return Argument(name, description, default, option=option)


def _switch(name: str, option: str, description: str) -> Argument:
    """True or false; true becomes an option of a command line."""
    return Argument(name, f"{description} (true or false).", "false", read=boolean, option=option)


LOG_LEVEL = Argument("log_level", "Minimum severity that is logged.", "info", _LEVELS)
RESPAWN = Argument(
    "respawn",
    "Restart a node that died, after 2 s (true or false); not one that was stopped on request, nor one that would fail "
    "in the same way again: a wrong parameter, a missing package.",
    "true",
    read=boolean,
)
RVIZ = Argument("rviz", "Open RViz (true or false).", "false", read=boolean)
FIXED_FRAME = Argument(
    "fixed_frame", "Fixed frame of RViz; empty = target_frame, or without one the frame_id of the camera."
)

DETECTOR = (
    Argument("namespace", "Namespace of the node and its topics."),
    Argument("params_file", "Parameter file of the node; empty = config/detector.yaml of this package."),
    _flag("use_sim_time", "Take the time from /clock"),
    _flag("autostart", "Configure and activate at the start"),
    LOG_LEVEL,
    _parameter("model", "Weights file, a file of `skd_core export`, or bundled: default, street, street-dsn"),
    _parameter("device", "Device of the network: auto, cpu, cuda or cuda:N"),
    _parameter("precision", "Numeric precision of the network", ("auto", "fp32", "fp16", "bf16")),
    Argument("image_topic", "Image of the camera.", "image"),
    Argument("camera_info_topic", "Its calibration.", "camera_info"),
    _parameter(
        "boxes_from",
        "2D boxes: the weights' own, those on detections_2d_topic, or those of detector_2d",
        ("own", "topic", "onnx"),
    ),
    _parameter("detector_2d", "ONNX file of a 2D network, for boxes_from:=onnx"),
    Argument(
        "detector_2d_tiles",
        f"Crops that the 2D network processes besides the whole image; {_AS_IN_FILE}.",
        read=whole,
        parameter=True,
    ),
    Argument(
        "class_map",
        f"Classes of the 2D boxes, as in class_map:=2:car,0:pedestrian,1:cycle; {_AS_IN_FILE}.",
        read=listed,
        parameter=True,
    ),
    Argument("detections_2d_topic", "2D boxes, for boxes_from:=topic.", "detections_2d"),
    _parameter("detections_2d_type", "Package of the messages there", ("vision_msgs", "yolo_msgs")),
    Argument(
        "detections_2d_size",
        f"Picture in whose pixels they are, as in detections_2d_size:=640,640; {_AS_IN_FILE}.",
        read=parse_integers,
        parameter=True,
    ),
    _parameter("detections_2d_fit", "How that picture holds the image", ("stretch", "letterbox")),
    _parameter("image_transport", "compressed: subscribe to <image_topic>/compressed", ("raw", "compressed")),
    _flag("image_is_rectified", "false: a raw image, undistorted with K and D of its calibration"),
    _parameter("calibration", "Calibration file, for a camera that publishes no camera_info"),
    _parameter("target_frame", "Frame of the detections, by TF"),
    _flag("tracking", "Fill the detections' id with a track's number"),
    _flag("lazy", "Run inference only while an output has subscribers"),
    RESPAWN,
    RVIZ,
    FIXED_FRAME,
)
"""Of detector.launch.py."""

MULTI_CAMERA = (
    Argument("cameras", "YAML list of the cameras; config/cameras.yaml of this package shows how.", None),
    Argument(
        "process",
        "several: one process per camera; one: all cameras in one process, with one GPU context.",
        "several",
        ("several", "one"),
    ),
    Argument(
        "params_file",
        "Parameter file of all nodes; settings in the file of cameras take precedence; empty = config/detector.yaml.",
    ),
    Argument("use_sim_time", "Take the time from /clock (true or false); empty = as in the files.", read=boolean),
    LOG_LEVEL,
    RESPAWN,
    RVIZ,
    FIXED_FRAME,
)
"""Of multi_camera.launch.py."""

BAG = Argument("bag", "rosbag2 folder to play.", None)
EVALUATION = (
    _option("model", "--weights", "Weights file, or bundled: default, street, street-dsn.", "default"),
    _option("out", "--out", "Folder for report.html, scores.json, results and detections.", "out/bag_evaluation"),
    _option("rate", "--rate", "Playing speed, times real time.", "1.0"),
    _option("device", "--device", "Device of the network: auto, cpu, cuda or cuda:N.", "auto"),
    _option("threshold", "--threshold", "Minimum score, 0 to 1.", "0.2"),
    _option("params_file", "--params-file", "Parameter file of the node; empty = none."),
    _option("truth", "--truth", "Topic of true boxes; empty = what bag-make writes, if it is there."),
    _option("labels", "--labels", "Folder of KITTI label files, one per frame; empty = none."),
    _option("image_topic", "--image-topic", "Image topic, if the bag has several cameras."),
    _option(
        "camera_info_topic", "--camera-info-topic", "Calibration topic, if it is not the one next to the image topic."
    ),
    _switch("lossless", "--lossless", "Wait for the answer to each image, not in real time; drops none"),
    _switch("raw_images", "--raw-images", "Undistort the images first: they are raw, not rectified"),
    _switch("check", "--check", "Detect offline too and compare with what the node found"),
)
"""Of evaluate_bag.launch.py, besides the bag."""


def evaluation_command(given: Mapping[str, str]) -> list[str]:
    """Command line of the evaluation; `env python3`, so that a sourced virtual environment's Python is taken.

    Raises:
        ArgumentError: an argument that cannot be read.
    """
    command = ["/usr/bin/env", "python3", "-m", "skd_wm3d_ros.tools", "bag_evaluation", given["bag"]]
    for argument in EVALUATION:
        value = argument.value(given)
        if value is True:
            command.append(argument.option)
        elif value:
            command += [argument.option, value]
    return command
