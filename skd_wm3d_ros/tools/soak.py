"""Endurance and cost of the node, measured on real processes over DDS.

``python -m skd_wm3d_ros.tools.soak --frames 20000``: frames as fast as the node takes them, some of them malformed;
memory must stay flat, no frame be answered twice, answers come in the order of their stamps, and every frame that
arrived be answered or counted. ``--overhead``: node overhead, everything but the network, beside the cost of
receiving the same images in an empty callback.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import rclpy
from rclpy.executors import ExternalShutdownException
from sensor_msgs.msg import CameraInfo, Image

from skd_core.errors import UserError
from skd_core.inference.detector import Detector
from skd_wm3d_ros.launching import PROFILE_VARIABLES
from skd_wm3d_ros.resources import share_file
from skd_wm3d_ros.tools.feeder import Feeder, feeder_node, good_image, good_info
from skd_wm3d_ros.tools.overhead import overhead
from skd_wm3d_ros.tools.processes import running

STEP = 20_000_000  # nanoseconds between the stamps of two frames
ANSWER_TIMEOUT = 2.0  # seconds
BURST_EVERY, BURST = 50, 3  # frames sent at once, so that some must be dropped for newer ones
MALFORMED_TIME = 0.02  # seconds before the next frame
MEMORY_EVERY = 100  # frames
MAX_MEMORY_GROWTH = 0.02
FRAME_COUNTERS = ("frames answered", "frames rejected", "frames dropped for newer ones", "frames in work")


# -- frames -----------------------------------------------------------------------------------------------------------
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

    def settled(self) -> int:
        """Frames after which the memory must not grow: the first tenth, at most 1000."""
        return min(1000, self.sent // 10)

    def frames_accounted_for(self) -> int:
        """Frames that the node says it has answered, rejected, dropped, or has in work."""
        return sum(int(self.status.get(name, 0)) for name in FRAME_COUNTERS)

    def growth(self) -> float:
        """Growth of the node's memory once it has settled: median of the last tenth over that of the first."""
        values = [mib for frames, mib in self.memory if frames >= self.settled()]
        tenth = max(len(values) // 10, 1)
        first, last = float(np.median(values[:tenth])), float(np.median(values[-tenth:]))
        return last / first - 1

    def failures(self) -> list[str]:
        """What is not as it must be; [] where all is."""
        found = []
        if len(set(self.answers)) != len(self.answers):
            found.append(f"{len(self.answers) - len(set(self.answers))} frames were answered twice")
        if self.answers != sorted(self.answers):
            found.append("answers came in the wrong order")
        if int(self.status.get("pairs", -1)) != self.frames_accounted_for():
            found.append(
                f"{self.status.get('pairs')} frames arrived, but {self.frames_accounted_for()} are accounted for"
            )
        if int(self.status.get("frames answered", -1)) != len(self.answers):
            found.append(f"the node counts {self.status.get('frames answered')} answers, {len(self.answers)} came")
        if self.growth() > MAX_MEMORY_GROWTH:
            found.append(f"memory grew by {self.growth():.1%}, more than {MAX_MEMORY_GROWTH:.0%}")
        return found

    def table(self) -> str:
        """As Markdown."""
        rows = {
            "frames sent": f"{self.sent}, {self.malformed} of them malformed",
            "time": f"{self.seconds:.0f} s, {self.sent / self.seconds:.0f} frames/s",
            "arrived in pairs": self.status.get("pairs", "?"),
            "replaced by newer ones before the node took them": str(self.sent - int(self.status.get("pairs", 0))),
            "answered": f"{len(self.answers)}",
            "rejected": self.status.get("frames rejected", "?"),
            **{f"- {k.partition(': ')[2]}": v for k, v in self.status.items() if k.startswith("frames rejected: ")},
            "dropped for newer ones": self.status.get("frames dropped for newer ones", "?"),
            "answered, rejected, dropped or in work": str(self.frames_accounted_for()),
            "answered twice": str(len(self.answers) - len(set(self.answers))),
            "answers in the order of their stamps": "yes" if self.answers == sorted(self.answers) else "no",
            "memory": f"{self.memory[0][1]:.1f} MiB at first, {self.memory[-1][1]:.1f} MiB at last, "
            f"{self.growth():+.2%} after the first {self.settled()} frames",
            "infer, median of the last 50": f"{self.status.get('infer latency (ms)', '?')} ms",
        }
        return "\n".join(["| soak | |", "|---|---|", *(f"| {key} | {value} |" for key, value in rows.items())])


def soak(frames: int, share: float, size: tuple[int, int], weights: str, device: str, log: Path) -> Result:
    """Feed a node process.

    Args:
        frames: how many; share: of them malformed, 0 to 1.
        size: (width, height) of the images.
        weights, device: of the node.
        log: file for the node's output.

    Raises:
        UserError: the node does not start, or dies.
    """
    width, height = size
    parameters = ["-p", f"model:={weights}", "-p", f"device:={device}", "-p", "score_threshold:=0.0"]
    images, info = [good_image(width, height, seed) for seed in range(4)], good_info(width, height)
    bad, memory, stamp, index = 0, [], STEP, 0
    with (
        running([sys.executable, "-m", "skd_wm3d_ros.detector_node", "--ros-args", *parameters], log) as process,
        feeder_node() as feeder,
    ):
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


# -- the rest ---------------------------------------------------------------------------------------------------------
def _memory(pid: int) -> float:
    """Resident memory in MiB."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def main(args: Sequence[str] | None = None) -> int:
    """Entry point; 1 where the soak shows a failure, 2 for wrong input."""
    parser = argparse.ArgumentParser(prog="soak", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--frames", type=int, default=2000, help="how many (default 2000)")
    parser.add_argument("--malformed", type=float, default=0.05, help="share of them, 0 to 1 (default 0.05)")
    parser.add_argument("--size", default="1242x375", help="of the images (default 1242x375)")
    parser.add_argument("--weights", help="weights file (default: a small untrained network)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--overhead", action="store_true", help="measure the node overhead instead")
    parser.add_argument("--log", type=Path, help="keep the node's output in this folder")
    parsed = parser.parse_args(args)
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
            result = soak(parsed.frames, parsed.malformed, (width, height), weights, parsed.device, log)
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
