"""Endurance and cost of the node, measured on real processes over DDS.

``python -m skd_wm3d_ros.soak --frames 20000``: frames as fast as the node takes them, some of them malformed; memory
must stay flat, no frame be answered twice, answers come in the order of their stamps, and every frame that arrived be
answered or counted. ``--overhead``: the node's own cost, everything but the network, beside the cost of receiving the
same images in an empty callback.
"""

from __future__ import annotations

import argparse
import array
import contextlib
import math
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import rclpy
import torch
from builtin_interfaces.msg import Time
from diagnostic_msgs.msg import DiagnosticArray
from rclpy.executors import ExternalShutdownException
from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import CameraInfo, Image
from std_msgs.msg import Header
from vision_msgs.msg import Detection3DArray

from skd_core.boxes import Boxes3D
from skd_core.errors import UserError
from skd_core.inference.detector import Detector
from skd_wm3d_ros.bag_player import read_stamp
from skd_wm3d_ros.launching import PROFILE_VARIABLES
from skd_wm3d_ros.resources import share_file

RELIABLE = QoSProfile(depth=10, reliability=ReliabilityPolicy.RELIABLE)
STEP = 20_000_000  # nanoseconds between the stamps of two frames
START_TIMEOUT, ANSWER_TIMEOUT = 180.0, 2.0  # seconds
BURST_EVERY, BURST = 50, 3  # frames sent at once, so that some must be dropped for newer ones
MALFORMED_TIME = 0.02  # seconds before the next frame
MEMORY_EVERY = 100  # frames
MOST_GROWTH = 0.02
OVERHEAD_RATE = 10.0  # images per second
BOXES = 10  # that the null detector finds
ACCOUNTS = ("frames answered", "frames rejected", "frames dropped for newer ones", "frames in work")


class NullDetector:
    """In the place of a network: finds the same boxes in no time."""

    def __init__(self) -> None:
        self.device, self.precision, self.classes = torch.device("cpu"), "fp32", ("Car",)
        self.metadata = {"focal": [720.0, 720.0]}
        self.student = SimpleNamespace(config=SimpleNamespace(input_size=(1242, 375)))
        center = torch.stack([torch.linspace(-9, 9, BOXES), torch.ones(BOXES), torch.linspace(5, 50, BOXES)], 1)
        size = torch.tensor([4.0, 1.7, 1.5]).expand(BOXES, 3)
        self._boxes = Boxes3D(center, size, torch.zeros(BOXES), ("Car",) * BOXES, torch.full((BOXES,), 0.9))

    def warmup(self) -> None:
        pass

    def predict(self, image: Any, camera: Any, threshold: float) -> Boxes3D:
        return self._boxes


# -- frames -----------------------------------------------------------------------------------------------------------
def good_image(width: int, height: int, seed: int) -> Image:
    """A bgr8 image of smooth random colours."""
    coarse = np.random.default_rng(seed).integers(0, 256, (-(-height // 16), -(-width // 16), 3), dtype=np.uint8)
    pixels = np.ascontiguousarray(coarse.repeat(16, 0).repeat(16, 1)[:height, :width])
    data = array.array("B", pixels.tobytes())
    return Image(height=height, width=width, encoding="bgr8", step=3 * width, data=data)


def good_info(width: int, height: int) -> CameraInfo:
    """A camera of 80 degrees."""
    f = 0.58 * width
    k = [f, 0.0, width / 2, 0.0, f, height / 2, 0.0, 0.0, 1.0]
    p = [f, 0.0, width / 2, 0.0, 0.0, f, height / 2, 0.0, 0.0, 0.0, 1.0, 0.0]
    return CameraInfo(height=height, width=width, distortion_model="plumb_bob", d=[0.0] * 5, k=k, p=p)


def malformed(kind: int, width: int, height: int) -> tuple[Image, CameraInfo]:
    """One of the ways in which a frame can be wrong, by number."""
    image, info = good_image(width, height, 0), good_info(width, height)
    changes: list[Callable[[], None]] = [
        lambda: setattr(image, "encoding", "plasma9"),
        lambda: setattr(image, "data", image.data[:100]),
        lambda: setattr(image, "height", 0),
        lambda: setattr(image, "step", 1),
        lambda: setattr(image, "width", width - 1),
        lambda: setattr(info, "k", [math.nan] * 9),
        lambda: setattr(info, "k", [0.0] * 9),
        lambda: setattr(info, "width", width // 2),
    ]
    changes[kind % len(changes)]()
    return image, info


@dataclass
class Feeder:
    """Sends frames and keeps what comes back."""

    node: Node
    answers: list[int] = field(default_factory=list)
    status: dict[str, str] = field(default_factory=dict)
    statuses: int = 0

    def __post_init__(self) -> None:
        self._images = self.node.create_publisher(Image, "image", RELIABLE)
        self._infos = self.node.create_publisher(CameraInfo, "camera_info", RELIABLE)
        self.node.create_subscription(
            Detection3DArray, "/detector/detections", lambda cdr: self.answers.append(read_stamp(cdr)), 100, raw=True
        )
        self.node.create_subscription(DiagnosticArray, "/diagnostics", self._diagnostics, RELIABLE)

    def send(self, stamp: int, image: Image, info: CameraInfo) -> None:
        """Publish a pair, camera_info first, stamped in nanoseconds."""
        header = Header(stamp=Time(sec=stamp // 10**9, nanosec=stamp % 10**9), frame_id="camera")
        image.header = info.header = header
        self._infos.publish(info)
        self._images.publish(image)

    def spin_until(self, condition: Callable[[], object], timeout: float) -> bool:
        """Whether it came true in time."""
        deadline = time.monotonic() + timeout
        while not condition():
            if time.monotonic() > deadline:
                return False
            rclpy.spin_once(self.node, timeout_sec=0.02)
        return True

    def wait_for_subscribers(self, count: int = 1) -> None:
        """Until that many processes listen to the images, and their detections can be heard.

        Raises:
            UserError: they do not come.
        """

        def there() -> bool:
            return self._images.get_subscription_count() >= count and bool(
                self.node.count_publishers("/detector/detections")
            )

        if not self.spin_until(there, START_TIMEOUT):
            raise UserError(f"nobody listens to the images after {START_TIMEOUT:.0f} s; see the node's output above")

    def _diagnostics(self, message: DiagnosticArray) -> None:
        self.status = {value.key: value.value for status in message.status for value in status.values}
        self.statuses += 1


# -- soak -------------------------------------------------------------------------------------------------------------
@dataclass
class Result:
    """What a soak has shown.

    Attributes:
        sent: frames, malformed ones included; malformed: those.
        answers: stamps of the answers, in the order they came.
        status: the node's last diagnostics.
        memory: (frames sent, resident memory of the node in MiB), in between.
        seconds: of the whole.
    """

    sent: int
    malformed: int
    answers: list[int]
    status: dict[str, str]
    memory: list[tuple[int, float]]
    seconds: float

    def growth(self) -> float:
        """Growth of the node's memory after the first tenth of the frames, at most 1000 of them."""
        settled = min(1000, self.sent // 10)
        values = [mib for frames, mib in self.memory if frames >= settled]
        third = max(len(values) // 10, 1)
        first, last = float(np.median(values[:third])), float(np.median(values[-third:]))
        return last / first - 1

    def failures(self) -> list[str]:
        """What is not as it must be; [] where all is."""
        found = []
        if len(set(self.answers)) != len(self.answers):
            found.append(f"{len(self.answers) - len(set(self.answers))} frames were answered twice")
        if self.answers != sorted(self.answers):
            found.append("answers came in the wrong order")
        accounted = sum(int(self.status.get(name, 0)) for name in ACCOUNTS)
        if int(self.status.get("pairs", -1)) != accounted:
            found.append(f"{self.status.get('pairs')} frames arrived, but {accounted} are accounted for")
        if int(self.status.get("frames answered", -1)) != len(self.answers):
            found.append(f"the node counts {self.status.get('frames answered')} answers, {len(self.answers)} came")
        if self.growth() > MOST_GROWTH:
            found.append(f"memory grew by {self.growth():.1%}, more than {MOST_GROWTH:.0%}")
        return found

    def table(self) -> str:
        """As Markdown."""
        rows = {
            "frames sent": f"{self.sent}, {self.malformed} of them malformed",
            "time": f"{self.seconds:.0f} s, {self.sent / self.seconds:.0f} frames/s",
            "arrived in pairs": self.status.get("pairs", "?"),
            "answered": f"{len(self.answers)}",
            "rejected": self.status.get("frames rejected", "?"),
            **{f"- {k.partition(': ')[2]}": v for k, v in self.status.items() if k.startswith("frames rejected: ")},
            "dropped for newer ones": self.status.get("frames dropped for newer ones", "?"),
            "answered twice": str(len(self.answers) - len(set(self.answers))),
            "memory": f"{self.memory[0][1]:.1f} MiB at first, {self.memory[-1][1]:.1f} MiB at last, "
            f"{self.growth():+.2%} once settled",
            "infer, median of the last 50": f"{self.status.get('infer latency (ms)', '?')} ms",
        }
        return "\n".join(["| soak | |", "|---|---|", *(f"| {key} | {value} |" for key, value in rows.items())])


def soak(frames: int, share: float, width: int, height: int, weights: str, device: str, log: Path) -> Result:
    """Feed a node process.

    Args:
        frames: how many; share: of them malformed, 0 to 1.
        width, height: of the images.
        weights, device: of the node.
        log: file for the node's output.

    Raises:
        UserError: the node does not start, or dies.
    """
    parameters = ["-p", f"model:={weights}", "-p", f"device:={device}", "-p", "score_threshold:=0.0"]
    images, info = [good_image(width, height, seed) for seed in range(4)], good_info(width, height)
    bad, memory, stamp, index = 0, [], STEP, 0
    with _process("skd_wm3d_ros.detector_node", ["--ros-args", *parameters], log) as process, _feeder() as feeder:
        feeder.wait_for_subscribers()
        begin, every = time.monotonic(), round(1 / share) if share > 0 else 0
        while index < frames:
            for _ in range(BURST if index % BURST_EVERY == 0 else 1):
                index, stamp = index + 1, stamp + STEP
                wrong = bool(every) and index % every == 0
                bad += wrong
                feeder.send(stamp, *(malformed(index // every, width, height) if wrong else (images[index % 4], info)))
                if index % MEMORY_EVERY == 0:
                    memory.append((index, _memory(process.pid)))
            if wrong:  # no answer to wait for; at once, the next frame would replace it
                feeder.spin_until(lambda: False, MALFORMED_TIME)
            else:
                feeder.spin_until(lambda: feeder.answers and feeder.answers[-1] >= stamp, ANSWER_TIMEOUT)  # noqa: B023
            if process.poll() is not None:
                raise UserError(f"the node died after {index} frames; see {log}")
        seconds = time.monotonic() - begin
        _settle(feeder)
        memory.append((index, _memory(process.pid)))
    return Result(index, bad, feeder.answers, feeder.status, memory, seconds)


def _settle(feeder: Feeder) -> None:
    """Until the node's diagnostics say that nothing is in work."""

    def settled() -> bool:
        return feeder.statuses >= 2 and feeder.status.get("frames in work") == "0"

    feeder.statuses = 0
    feeder.spin_until(settled, 60.0)


# -- overhead ---------------------------------------------------------------------------------------------------------
def overhead(frames: int, width: int, height: int, folder: Path) -> str:
    """CPU time for each image: of a process with an empty callback, and of the node with a detector that costs nothing;
    both receive the same images at the same time. A table as Markdown.

    Raises:
        UserError: one of them does not start.
    """
    image, info = good_image(width, height, 0), good_info(width, height)
    with contextlib.ExitStack() as stack:
        floor = stack.enter_context(_process("skd_wm3d_ros.soak", ["--role", "floor"], folder / "floor.log"))
        node = stack.enter_context(_process("skd_wm3d_ros.soak", ["--role", "null"], folder / "node.log"))
        feeder = stack.enter_context(_feeder())
        feeder.wait_for_subscribers(2)
        feeder.spin_until(lambda: False, 2.0)
        before = [_cpu_seconds(process.pid) for process in (floor, node)]
        begin = time.monotonic()
        for i in range(frames):
            feeder.send(STEP * (i + 1), image, info)
            feeder.spin_until(lambda: False, max(begin + (i + 1) / OVERHEAD_RATE - time.monotonic(), 0.0))
        used = [_cpu_seconds(p.pid) - b for p, b in zip((floor, node), before, strict=True)]
        answered = len(feeder.answers)
    each = [1000 * seconds / frames for seconds in used]
    return "\n".join(
        [
            f"| {width}x{height} bgr8, {frames} images at {OVERHEAD_RATE:.0f} Hz | CPU for each image |",
            "|---|---|",
            f"| empty rclpy callback | {each[0]:.2f} ms |",
            f"| node without the network, {BOXES} boxes ({answered} answered) | {each[1]:.2f} ms |",
            f"| ratio | {each[1] / each[0]:.2f} |",
        ]
    )


def play_role(role: str) -> None:
    """What the processes of :func:`overhead` do, until SIGINT."""
    rclpy.init()
    if role == "null":
        from skd_wm3d_ros.node import DetectorNode

        node: Node = DetectorNode(lambda path, device, precision: NullDetector())  # type: ignore[arg-type,return-value]
        node.autostart()  # type: ignore[attr-defined]
    else:
        node = rclpy.create_node("floor")
        qos = QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)
        node.create_subscription(Image, "image", lambda message: None, qos)
    with contextlib.suppress(KeyboardInterrupt, ExternalShutdownException):
        rclpy.spin(node)
    sys.stdout.flush()
    os._exit(0)


# -- the rest ---------------------------------------------------------------------------------------------------------
def _memory(pid: int) -> float:
    """Resident memory in MiB."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def _cpu_seconds(pid: int) -> float:
    """CPU time used up to now, all threads."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextlib.contextmanager
def _feeder() -> Iterator[Feeder]:
    node = rclpy.create_node("soak")
    try:
        yield Feeder(node)
    finally:
        node.destroy_node()


@contextlib.contextmanager
def _process(module: str, arguments: Sequence[str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("wb") as sink:
        command = [sys.executable, "-m", module, *arguments]
        process = subprocess.Popen(command, stdout=sink, stderr=subprocess.STDOUT, start_new_session=True)
    try:
        yield process
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def main(args: Sequence[str] | None = None) -> int:
    """Entry point; 1 where the soak shows a failure, 2 for wrong input."""
    parser = argparse.ArgumentParser(prog="soak", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--frames", type=int, default=2000, help="how many (default 2000)")
    parser.add_argument("--malformed", type=float, default=0.05, help="share of them, 0 to 1 (default 0.05)")
    parser.add_argument("--size", default="1242x375", help="of the images (default 1242x375)")
    parser.add_argument("--weights", help="weights file (default: a small untrained network)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--overhead", action="store_true", help="measure the node's own cost instead")
    parser.add_argument("--log", type=Path, help="keep the node's output in this folder")
    parser.add_argument("--role", choices=["floor", "null"], help=argparse.SUPPRESS)
    parsed = parser.parse_args(args)
    if parsed.role:
        play_role(parsed.role)
    try:
        width, height = (int(part) for part in parsed.size.split("x"))
    except ValueError:
        parser.error(f"--size '{parsed.size}' must be WIDTHxHEIGHT, such as 1242x375")
    if parsed.frames < 100 or not 0 <= parsed.malformed <= 0.5 or min(width, height) < 32:
        parser.error("--frames must be at least 100, --malformed 0 to 0.5, --size at least 32x32")
    os.environ.setdefault("ROS_DOMAIN_ID", str(1 + os.getpid() % 100))
    os.environ.setdefault("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")
    try:
        for name in PROFILE_VARIABLES:
            os.environ.setdefault(name, str(share_file("config/fastdds_images.xml")))
        rclpy.init(args=[])
        with tempfile.TemporaryDirectory(prefix="soak_") as temporary:
            folder = parsed.log or Path(temporary)
            folder.mkdir(parents=True, exist_ok=True)
            if parsed.overhead:
                print(overhead(parsed.frames, width, height, folder))
                return 0
            weights = parsed.weights or str(Path(temporary) / "untrained.safetensors")
            if not parsed.weights:
                Detector.random().save(weights)
            log = folder / "detector.log"
            result = soak(parsed.frames, parsed.malformed, width, height, weights, parsed.device, log)
    except UserError as error:
        print(f"soak: error: {error}", file=sys.stderr)
        return 2
    except (KeyboardInterrupt, ExternalShutdownException):
        print("soak: interrupted", file=sys.stderr)
        return 130
    finally:
        rclpy.try_shutdown()
    print(result.table())
    for failure in result.failures():
        print(f"soak: failed: {failure}", file=sys.stderr)
    return 1 if result.failures() else 0


if __name__ == "__main__":
    sys.exit(main())
