"""Node overhead (all but the network), compared with receiving the same images in an empty callback."""

from __future__ import annotations

import contextlib
import itertools
import os
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import rclpy
import torch
from rclpy.executors import ExternalShutdownException
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import Image

from skd_core.boxes import Boxes3D
from skd_core.errors import UserError
from skd_core.inference.calibration import Calibration
from skd_wm3d_ros import detector_node
from skd_wm3d_ros.tools.feeder import feeder_node, good_image, good_info
from skd_wm3d_ros.tools.processes import running

RATE = 10.0  # images per second
STEP = 100_000_000  # nanoseconds between their stamps
BOXES = 10  # that the null detector finds
WARM_UP = 10  # images that are not counted
ROLES = ("floor", "node")


class NullDetector:
    """In the place of a network: finds the same boxes in no time."""

    def __init__(self) -> None:
        self.device, self.precision, self.classes = torch.device("cpu"), "fp32", ("Car",)
        self.metadata, self.threshold = {"focal": [720.0, 720.0]}, 0.0
        self.calibration = Calibration.of(self.classes, {}, heading_known=False)
        self.backend, self.slow_because, self.config = "torch", "", SimpleNamespace(input_size=(1242, 375))
        center = torch.stack([torch.linspace(-9, 9, BOXES), torch.ones(BOXES), torch.linspace(5, 50, BOXES)], 1)
        size = torch.tensor([4.0, 1.7, 1.5]).expand(BOXES, 3)
        self._boxes = Boxes3D(center, size, torch.zeros(BOXES), ("Car",) * BOXES, torch.full((BOXES,), 0.9))

    def warmup(self) -> None:
        pass

    def predict(self, image: Any, camera: Any, threshold: float, boxes2d: Any = None) -> Boxes3D:
        return self._boxes


def overhead(frames: int, width: int, height: int, folder: Path) -> str:
    """CPU time for each image: of a process with an empty callback, and of the node with a detector that does nothing;
    both receive the same images at the same time. A table as Markdown.

    Raises:
        UserError: one of them does not start, or receives less than half of the images.
    """
    image, info = good_image(width, height, 0), good_info(width, height)
    logs = {role: folder / f"{role}.log" for role in ROLES}
    with contextlib.ExitStack() as stack:
        command = [sys.executable, "-m", "skd_wm3d_ros.tools.overhead"]
        pids = [stack.enter_context(running([*command, role], log)).pid for role, log in logs.items()]
        feeder = stack.enter_context(feeder_node())
        feeder.wait_for_subscribers(len(pids))

        def send(first: int, count: int) -> None:
            begin = time.monotonic()
            for i in range(count):
                feeder.send(STEP * (first + i), image, info)
                feeder.spin_until(lambda: False, max(begin + (i + 1) / RATE - time.monotonic(), 0.0))

        send(1, WARM_UP)
        before = [_cpu_seconds(pid) for pid in pids]
        send(1 + WARM_UP, frames)
        used = [_cpu_seconds(pid) - earlier for pid, earlier in zip(pids, before, strict=True)]
        answered = sum(stamp > STEP * WARM_UP for stamp in feeder.answers)
    received = int(logs["floor"].read_text().split()[-1]) - WARM_UP
    if min(received, answered) < frames / 2:
        raise UserError(f"of {frames} images {received} were received and {answered} answered: is the machine busy?")
    floor, node = 1000 * used[0] / received, 1000 * used[1] / answered
    return "\n".join(
        [
            f"| {width}x{height} bgr8, {frames} images at {RATE:.0f} Hz | CPU for each image |",
            "|---|---|",
            f"| empty rclpy callback ({received} received) | {floor:.2f} ms |",
            f"| node without the network, {BOXES} boxes ({answered} answered) | {node:.2f} ms |",
            f"| ratio | {node / floor:.2f} |",
        ]
    )


def play_role(role: str) -> None:
    """What the processes of :func:`overhead` do, until SIGINT."""
    status = detector_node.run([], _load) if role == "node" else _receive()
    sys.stdout.flush()
    os._exit(status)


def _load(path: str, device: str, precision: str) -> Any:
    return NullDetector()


def _receive() -> int:
    """Receive images in an empty callback, and print how many."""
    received = itertools.count()
    rclpy.init()
    node = rclpy.create_node("floor")
    qos = QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)
    node.create_subscription(Image, "image", lambda message: next(received), qos)
    with contextlib.suppress(KeyboardInterrupt, ExternalShutdownException):
        rclpy.spin(node)
    print(next(received))
    return 0


def _cpu_seconds(pid: int) -> float:
    """CPU time used up to now, all threads."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    play_role(sys.argv[1])
