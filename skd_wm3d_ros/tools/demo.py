"""End-to-end demonstration: a bag player and the detector node as processes over DDS; writes pictures and a bag.

``python -m skd_wm3d_ros.tools.demo [--images DIR --camera FILE | --bag DIR] [--weights W] [--out out/demo]``

Every frame is answered: the player waits for the detections of one image before it sends the next.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import math
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import rclpy
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState
from rclpy.executors import ExternalShutdownException
from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rclpy.serialization import deserialize_message
from sensor_msgs.msg import CompressedImage, Image
from vision_msgs.msg import Detection3DArray

from skd_core.boxes import Boxes3D
from skd_core.data.bag import DETECTIONS, BagWriter, CameraTopics, find_camera, read_frames, write_frames
from skd_core.data.bag_make import folder_frames
from skd_core.data.folder import ImageFolder
from skd_core.data.ros_detections import boxes_from_detections
from skd_core.data.ros_messages import stamp_nanoseconds
from skd_core.errors import UserError
from skd_core.files import make_folder
from skd_core.inference.origin import domain_warning
from skd_core.inference.weights import load_weights
from skd_core.visualize import add_caption, draw_bev, draw_boxes3d, stack, strip, write_image
from skd_wm3d_ros.resources import share_file
from skd_wm3d_ros.tools.bag_player import read_stamp
from skd_wm3d_ros.tools.processes import running

DEMO_BAG = Path(__file__).resolve().parents[1] / "data" / "demo_bag"
FRAME_RATE = 10.0  # of the pictures of a folder, per second
ROWS_PER_FRAME = 5  # of the table
FRAMES_SHOWN, FIRST_FRAMES = 30, 10  # more than so many, and the table holds but the first
STRIP_FRAMES = 6
START_TIMEOUT, FRAME_TIMEOUT = 120.0, 60.0  # seconds


@dataclass
class Answer:
    """What came back for one image.

    Attributes:
        stamp: of the image, nanoseconds.
        cdr: the serialized Detection3DArray.
        boxes: its content.
        published: when the node handed it to DDS, nanoseconds.
        latency: seconds from handing the image to DDS to handing over the answer; NaN until the image is seen here.
    """

    stamp: int
    cdr: bytes
    boxes: Boxes3D
    published: int
    latency: float = math.nan


@dataclass
class Collector:
    """Receives images (their stamps only) and detections."""

    node: Node
    topics: CameraTopics
    detections_topic: str
    answers: list[Answer] = field(default_factory=list)
    _published: dict[int, int] = field(default_factory=dict)  # images, by stamp; nanoseconds

    def __post_init__(self) -> None:
        reliable = QoSProfile(depth=10, reliability=ReliabilityPolicy.RELIABLE)
        kind = CompressedImage if self.topics.compressed else Image
        self.node.create_subscription(kind, self.topics.image, self._image, reliable, raw=True)
        # the player waits for answers, not for this process: on a busy machine it may be many behind
        patient = QoSProfile(depth=1000, reliability=ReliabilityPolicy.RELIABLE)
        self.node.create_subscription(Detection3DArray, self.detections_topic, self._detections, patient, raw=True)

    # DDS's own time stamps, since this process may see an image late, even after its answer
    def _image(self, cdr: bytes, info: dict[str, int]) -> None:
        stamp = read_stamp(cdr)
        self._published.setdefault(stamp, info["source_timestamp"])
        for answer in self.answers[-2:]:
            self._set_latency(answer)

    def _detections(self, cdr: bytes, info: dict[str, int]) -> None:
        message = deserialize_message(cdr, Detection3DArray)
        stamp = stamp_nanoseconds(message.header)
        if stamp not in {answer.stamp for answer in self.answers[-2:]}:  # an image sent twice is answered twice
            answer = Answer(stamp, bytes(cdr), boxes_from_detections(message), info["source_timestamp"])
            self._set_latency(answer)
            self.answers.append(answer)

    def _set_latency(self, answer: Answer) -> None:
        if answer.stamp in self._published:
            answer.latency = 1e-9 * (answer.published - self._published[answer.stamp])


@dataclass(frozen=True)
class NodeOptions:
    """How the detector node is started.

    Attributes:
        weights, device: see :meth:`skd_core.inference.detector.Detector.load`.
        threshold: minimum score, 0 to 1; None leaves it to the node.
        parameter_file: for the node; the others here go before it.
        rectified: whether the images are; the node undistorts others.
    """

    weights: str = "default"
    device: str = "auto"
    threshold: float | None = None
    parameter_file: Path | None = None
    rectified: bool = True


def run(
    bag: Path, out: Path, options: NodeOptions, topics: CameraTopics | None = None, rate: float | None = None
) -> list[Answer]:
    """Play a bag to the detector node and collect its answers.

    Args:
        bag: what to play; out: gets the logs.
        topics: of the bag's camera; found without.
        rate: times real time, and the node drops what it cannot keep up with; None waits for each answer.

    Returns:
        one answer for each image of the bag that was not dropped.

    Raises:
        UserError: the node cannot be configured, dies, or does not answer in time.
    """
    topics = topics or find_camera(bag)
    make_folder(out)
    os.environ.setdefault("ROS_DOMAIN_ID", str(1 + os.getpid() % 100))  # no mixing with what runs on this network
    os.environ.setdefault("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")
    profile = str(share_file("config/fastdds_images.xml"))
    for name in ("FASTRTPS_DEFAULT_PROFILES_FILE", "FASTDDS_DEFAULT_PROFILES_FILE"):
        os.environ.setdefault(name, profile)
    image = topics.image.removesuffix("/compressed") if topics.compressed else topics.image
    remaps = {"image": image, "camera_info": topics.camera_info, "__node": "detector"}
    parameters = {
        "model": options.weights,
        "device": options.device,
        "autostart": "false",
        "image_transport": "compressed" if topics.compressed else "raw",
        "image_is_rectified": "true" if options.rectified else "false",
    }
    reliable = {
        f"qos_overrides.{topics.image}.subscription.reliability": "reliable",
        f"qos_overrides.{topics.camera_info}.subscription.reliability": "reliable",
        f"qos_overrides.{topics.camera_info}.subscription.depth": "10",
    }
    if rate is None:
        parameters |= reliable
    if options.threshold is not None:
        parameters["score_threshold"] = f"{options.threshold:f}"  # a decimal point makes it a double
    arguments = ["--ros-args", "--disable-external-lib-logs"]
    if options.parameter_file is not None:
        arguments += ["--params-file", str(options.parameter_file)]
    arguments += [part for key, value in remaps.items() for part in ("-r", f"{key}:={value}")]
    arguments += [part for key, value in parameters.items() for part in ("-p", f"{key}:={value}")]
    rclpy.init(args=[])
    node = rclpy.create_node("demo")
    try:
        collector = Collector(node, topics, "/detector/detections")
        node_command = [sys.executable, "-m", "skd_wm3d_ros.detector_node", *arguments]
        with running(node_command, out / "detector.log") as detector:
            for transition in (Transition.TRANSITION_CONFIGURE, Transition.TRANSITION_ACTIVATE):
                _change_state(node, detector, transition, out / "detector.log")
            command = player_command(bag, topics, rate, collector.detections_topic)
            with running(command, out / "player.log") as player:
                while player.poll() is None:
                    rclpy.spin_once(node, timeout_sec=0.1)
                    if detector.poll() is not None:
                        raise UserError(f"the detector node died: {_last_error(out / 'detector.log')}")
            if player.returncode != 0:
                raise UserError(_last_error(out / "player.log"))
            slowest = max(_latencies(collector.answers), default=2.0)
            _drain(collector, 0.5 if rate is None else 1.0 + 2 * slowest)
    finally:
        node.destroy_node()
        rclpy.try_shutdown()
    return collector.answers


def _latencies(answers: list[Answer]) -> list[float]:
    return [answer.latency for answer in answers if math.isfinite(answer.latency)]


def player_command(bag: Path, topics: CameraTopics, rate: float | None, answers: str) -> list[str]:
    """How to play one camera of a bag: `ros2 bag play` where it is installed, our player elsewhere.

    Only ours can wait for an answer to each image (``rate`` None), and play a recording without metadata.yaml.
    """
    installed = importlib.util.find_spec("ros2bag") is not None and shutil.which("ros2") is not None
    if rate is not None and installed and (bag / "metadata.yaml").is_file():
        played = ["--topics", topics.image, topics.camera_info, "--rate", str(rate), "--delay", "2"]
        return ["ros2", "bag", "play", str(bag), *played]
    command = [sys.executable, "-m", "skd_wm3d_ros.tools.bag_player", str(bag)]
    command += ["--topics", topics.image, topics.camera_info]
    command += ["--wait-subscribers", "2", "--timeout", str(FRAME_TIMEOUT)]  # the node, and the collector for latency
    return [*command, "--rate", "0", "--lossless", answers] if rate is None else [*command, "--rate", str(rate)]


def report(bag: Path, answers: list[Answer], out: Path, note: str = "") -> None:
    """Print the table, of many frames the first, and a summary; write ``frames.png``, ``bev.png`` and ``bag``.

    Args:
        note: :func:`skd_core.inference.origin.domain_warning` of the weights; printed and drawn on the pictures.
    """
    print("camera frame: x right, y down, z forward; metres, radians; latency from the image to its detections")
    print("frame  class             x       y       z  |    l     w     h  |   yaw  score  latency")
    shown = answers if len(answers) <= FRAMES_SHOWN else answers[:FIRST_FRAMES]
    for index, answer in enumerate(shown):
        latency = f"{1000 * answer.latency:5.0f} ms" if math.isfinite(answer.latency) else ""
        boxes = answer.boxes
        if not len(boxes):
            print(f"{index:5d}  -{'':62s}  {latency}")
        for i in range(min(len(boxes), ROWS_PER_FRAME)):
            x, y, z = boxes.center[i].tolist()
            length, width, height = boxes.size[i].tolist()
            place = f"{x:6.1f}  {y:6.1f}  {z:6.1f}  | {length:4.1f}  {width:4.1f}  {height:4.1f}"
            pose = f"{boxes.yaw[i]:5.2f}  {boxes.scores[i]:5.2f}"
            print(f"{index:5d}  {boxes.labels[i]:12s}  {place}  | {pose}  {latency if i == 0 else ''}")
        if len(boxes) > ROWS_PER_FRAME:
            print(f"{'':7s}and {len(boxes) - ROWS_PER_FRAME} more")
    if len(shown) < len(answers):
        print(f"... and {len(answers) - len(shown)} more frames; all boxes are in {out}/bag")
    median = 1000 * statistics.median(_latencies(answers) or [math.nan])
    found = sum(len(answer.boxes) for answer in answers)
    print(f"{len(answers)} frames, {found} detections{_by_class(answers)}, median latency {median:.0f} ms")
    if note:
        print(note)

    chosen = {round(i * (len(answers) - 1) / (STRIP_FRAMES - 1)) for i in range(STRIP_FRAMES)}
    by_stamp = {answers[i].stamp: answers[i].boxes for i in chosen}
    most = max(answers, key=lambda answer: len(answer.boxes))
    rows = []
    for frame in read_frames(bag):
        if frame.stamp in by_stamp:
            boxes = by_stamp[frame.stamp]
            camera = frame.camera.centred()  # the answers are in the frame that the header names
            rows.append(stack(draw_boxes3d(frame.image, boxes, camera), draw_bev(boxes, camera=camera)))
        if frame.stamp == most.stamp:
            above = draw_bev(most.boxes, camera=frame.camera, size=(800, 800))
            write_image(out / "bev.png", add_caption(above, note))
    write_image(out / "frames.png", add_caption(strip(rows), note))
    with BagWriter(out / "bag", overwrite=True) as writer:
        for answer in answers:
            writer.write("/detector/detections", DETECTIONS, answer.cdr, answer.stamp)
    print(f"wrote {out}/frames.png, {out}/bev.png, {out}/bag, {out}/detector.log")


def _by_class(answers: list[Answer]) -> str:
    counts = Counter(label for answer in answers for label in answer.boxes.labels)
    return f" ({', '.join(f'{count} {name}' for name, count in sorted(counts.items()))})" if counts else ""


def main(args: Sequence[str] | None = None) -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="demo", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--images", type=Path, help="folder of pictures, played in the order of their names")
    parser.add_argument("--camera", type=Path, help="their camera: KITTI calibration, ROS calibration or CameraInfo")
    parser.add_argument("--bag", type=Path, help="rosbag2 folder with one image topic and its camera_info")
    parser.add_argument("--weights", default="default", help="weights file, or bundled: default, street, street-dsn")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--threshold", type=float, help="minimum score, 0 to 1 (default: the node's)")
    parser.add_argument("--out", type=Path, default=Path("out/demo"), help="folder to write to (default out/demo)")
    parsed = parser.parse_args(args)
    for name in ("images", "camera", "bag", "out"):
        if getattr(parsed, name) is not None:
            setattr(parsed, name, getattr(parsed, name).expanduser())
    if bool(parsed.images) != bool(parsed.camera) or (parsed.images and parsed.bag):
        parser.error("give --images DIR with --camera FILE, or --bag DIR, or nothing")
    try:
        with contextlib.ExitStack() as cleanup:
            bag = parsed.bag or DEMO_BAG
            if parsed.images:
                folder = cleanup.enter_context(tempfile.TemporaryDirectory(prefix="demo_bag_"))
                bag = Path(folder) / "bag"
                write_frames(bag, folder_frames(ImageFolder(parsed.images, parsed.camera), FRAME_RATE))
            answers = run(bag, parsed.out, NodeOptions(parsed.weights, parsed.device, parsed.threshold))
            if not answers:
                raise UserError(f"{bag}: holds no image")
            report(bag, answers, parsed.out, domain_warning(load_weights(parsed.weights)[1]))
    except UserError as error:
        print(f"demo: error: {error}", file=sys.stderr)
        return 2
    except (KeyboardInterrupt, ExternalShutdownException):
        print("demo: interrupted", file=sys.stderr)
        return 130
    return 0


def _change_state(node: Node, detector: subprocess.Popen[bytes], transition: int, log: Path) -> None:
    client = node.create_client(ChangeState, "/detector/change_state")
    deadline = time.monotonic() + START_TIMEOUT
    while not client.service_is_ready():
        rclpy.spin_once(node, timeout_sec=0.1)
        _check_alive(detector, deadline, log)
    future = client.call_async(ChangeState.Request(transition=Transition(id=transition)))
    while not future.done():
        rclpy.spin_once(node, timeout_sec=0.1)
        _check_alive(detector, deadline, log)
    if not future.result().success:
        raise UserError(f"the detector node is not ready: {_last_error(log)}")


def _check_alive(detector: subprocess.Popen[bytes], deadline: float, log: Path) -> None:
    if detector.poll() is not None:
        raise UserError(f"the detector node died: {_last_error(log)}")
    if time.monotonic() > deadline:
        raise UserError(f"the detector node did not start in {START_TIMEOUT:.0f} s; see {log}")


def _drain(collector: Collector, quiet: float) -> None:
    """Take what has arrived and is not handled yet, until no answer has come for so many seconds.

    The player may see the last answer before this process does, and a node that is not waited for is still at work.
    """
    answers, until = len(collector.answers), time.monotonic() + quiet
    while time.monotonic() < until:
        rclpy.spin_once(collector.node, timeout_sec=0.1)
        if len(collector.answers) != answers:
            answers, until = len(collector.answers), time.monotonic() + quiet


def _last_error(log: Path) -> str:
    """The last line of a log that tells of an error, without ROS's prefix; else the last line."""
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    telling = [line for line in lines if "error" in line.lower()]
    line = (telling or lines or [f"see {log}"])[-1]
    return line.rpartition("]: ")[2] if line.startswith("[") else line


if __name__ == "__main__":
    sys.exit(main())
