"""The node's own cost, everything but the network, beside that of receiving the same images in an empty callback."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import rclpy
import torch
from rclpy.executors import ExternalShutdownException
from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import Image

from skd_core.boxes import Boxes3D
from skd_wm3d_ros.feeder import feeder_node, good_image, good_info, module_process

RATE = 10.0  # images per second
STEP = 100_000_000  # nanoseconds between their stamps
BOXES = 10  # that the null detector finds


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


def overhead(frames: int, width: int, height: int, folder: Path) -> str:
    """CPU time for each image: of a process with an empty callback, and of the node with a detector that costs nothing;
    both receive the same images at the same time. A table as Markdown.

    Raises:
        UserError: one of them does not start.
    """
    image, info = good_image(width, height, 0), good_info(width, height)
    with contextlib.ExitStack() as stack:
        floor = stack.enter_context(module_process("skd_wm3d_ros.overhead", ["floor"], folder / "floor.log"))
        node = stack.enter_context(module_process("skd_wm3d_ros.overhead", ["null"], folder / "node.log"))
        feeder = stack.enter_context(feeder_node())
        feeder.wait_for_subscribers(2)
        feeder.spin_until(lambda: False, 2.0)
        before = [_cpu_seconds(process.pid) for process in (floor, node)]
        begin = time.monotonic()
        for i in range(frames):
            feeder.send(STEP * (i + 1), image, info)
            feeder.spin_until(lambda: False, max(begin + (i + 1) / RATE - time.monotonic(), 0.0))
        used = [_cpu_seconds(p.pid) - b for p, b in zip((floor, node), before, strict=True)]
        answered = len(feeder.answers)
    each = [1000 * seconds / frames for seconds in used]
    return "\n".join(
        [
            f"| {width}x{height} bgr8, {frames} images at {RATE:.0f} Hz | CPU for each image |",
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


def _cpu_seconds(pid: int) -> float:
    """CPU time used up to now, all threads."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    play_role(sys.argv[1])
