"""Play a rosbag2 bag: its bytes go to the publishers as they are, nothing is decoded.

``python -m skd_wm3d_ros.tools.bag_player BAG [--rate R] [--topics T ...]
    [--wait-subscribers [N]] [--lossless TOPIC] [--loop]``
"""

from __future__ import annotations

import argparse
import importlib
import struct
import sys
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import rclpy
from rclpy.executors import ExternalShutdownException
from rclpy.node import Node
from rclpy.publisher import Publisher
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from rclpy.utilities import remove_ros_args
from rosbags.interfaces import Connection
from rosbags.interfaces import QosDurability as RecordedDurability

from skd_core.data.bag import CAMERA_INFO, COMPRESSED_IMAGE, DETECTIONS, IMAGE, open_bag
from skd_core.errors import UserError

IMAGES = (IMAGE, COMPRESSED_IMAGE)
RESEND_AFTER = 5.0  # seconds without an answer; a subscriber may not have been ready for the first image


@dataclass(frozen=True)
class Options:
    """How to play.

    Attributes:
        rate: times real time; 0 = as fast as possible.
        topics: only these; empty = all.
        loop: start again at the end, until interrupted.
        wait_subscribers: do not begin before every image topic has so many subscribers, and every camera_info one.
        lossless: a Detection3DArray topic; the next image waits until the one before is answered there.
        timeout: seconds to wait for a subscriber or an answer.
    """

    rate: float = 1.0
    topics: tuple[str, ...] = ()
    loop: bool = False
    wait_subscribers: int = 0
    lossless: str | None = None
    timeout: float = 60.0


def read_stamp(cdr: bytes) -> int:
    """Stamp in nanoseconds of a serialized message that begins with a std_msgs/Header."""
    seconds, nanoseconds = struct.unpack_from("<iI" if cdr[1] & 1 else ">iI", cdr, 4)
    return int(seconds) * 1_000_000_000 + int(nanoseconds)


def import_message(name: str) -> Any:
    """The class of a message type such as ``sensor_msgs/msg/Image``."""
    package, _, kind = name.split("/")
    return getattr(importlib.import_module(f"{package}.msg"), kind)


class BagPlayer:
    """Publishes a bag's messages in the order of recording.

    Raises:
        UserError: no such bag or topic, or no subscriber, or no answer in time.
    """

    def __init__(self, node: Node, bag: str, options: Options) -> None:
        self._node, self._bag, self._options = node, bag, options
        self._publishers: dict[str, Publisher] = {}
        self._answered: set[int] = set()
        self._pending: int | None = None  # stamp of the image that waits for its answer
        self._recent: deque[tuple[Publisher, bytes]] = deque(maxlen=4)  # that image and the camera_info around it
        self.published = 0
        if options.lossless:
            node.create_subscription(
                import_message(DETECTIONS),
                options.lossless,
                lambda cdr: self._answered.add(read_stamp(cdr)),
                QoSProfile(depth=10, reliability=ReliabilityPolicy.RELIABLE),
                raw=True,
            )

    def play(self) -> None:
        """Play to the end; with ``loop`` for ever."""
        with open_bag(self._bag) as reader:
            connections = [c for c in reader.connections if not self._options.topics or c.topic in self._options.topics]
            missing = set(self._options.topics) - {c.topic for c in connections}
            if missing or not connections:
                have = ", ".join(sorted(c.topic for c in reader.connections)) or "nothing"
                raise UserError(f"{self._bag}: no topic {', '.join(sorted(missing))}; the bag has {have}")
            connections = [c for c in connections if self._advertise(c)]
            if self._options.wait_subscribers:
                wanted = {c.topic: 1 for c in connections if c.msgtype == CAMERA_INFO}
                wanted |= {c.topic: self._options.wait_subscribers for c in connections if c.msgtype in IMAGES}
                self._wait_for_subscribers(wanted)
            while True:
                self._play_once(reader.messages(connections))
                if not self._options.loop:
                    return

    def _play_once(self, messages: Any) -> None:
        begin: tuple[float, int] | None = None
        for connection, timestamp, data in messages:
            cdr, publisher = bytes(data), self._publishers[connection.topic]
            is_image = connection.msgtype in IMAGES
            if is_image:
                self._wait_for_answer()
            begin = begin or (time.monotonic(), timestamp)
            if self._options.rate > 0:
                self._spin_until(begin[0] + (timestamp - begin[1]) / 1e9 / self._options.rate)
            publisher.publish(cdr)
            self.published += 1
            if self._options.lossless and (is_image or connection.msgtype == CAMERA_INFO):
                self._recent.append((publisher, cdr))
                self._pending = read_stamp(cdr) if is_image else self._pending
        self._wait_for_answer()

    def _advertise(self, connection: Connection) -> bool:
        if connection.topic in self._publishers:
            return True
        try:
            kind = import_message(connection.msgtype)
        except (ImportError, AttributeError):
            self._node.get_logger().warning(f"{connection.topic} left out: {connection.msgtype} is not installed")
            return False
        profiles = getattr(connection.ext, "offered_qos_profiles", [])
        latched = any(profile.durability == RecordedDurability.TRANSIENT_LOCAL for profile in profiles)
        durability = DurabilityPolicy.TRANSIENT_LOCAL if latched else DurabilityPolicy.VOLATILE
        qos = QoSProfile(depth=10, reliability=ReliabilityPolicy.RELIABLE, durability=durability)
        self._publishers[connection.topic] = self._node.create_publisher(kind, connection.topic, qos)
        return True

    def _wait_for_subscribers(self, wanted: dict[str, int]) -> None:
        deadline = time.monotonic() + self._options.timeout
        answers = self._options.lossless
        while True:
            lacking = [t for t, n in sorted(wanted.items()) if self._publishers[t].get_subscription_count() < n]
            unanswerable = answers is not None and not self._node.count_publishers(answers)
            if not lacking and not unanswerable:
                return
            if time.monotonic() > deadline:
                missing = [f"subscriber of {t}" for t in lacking] + [f"publisher of {answers}"] * unanswerable
                raise UserError(f"no {', no '.join(missing)} after {self._options.timeout:.0f} s")
            self._spin_until(time.monotonic() + 0.05)

    def _wait_for_answer(self) -> None:
        if self._pending is None:
            return
        deadline, resend = time.monotonic() + self._options.timeout, time.monotonic() + RESEND_AFTER
        while self._pending not in self._answered:
            if time.monotonic() > deadline:
                raise UserError(
                    f"no answer on {self._options.lossless} to the image stamped {self._pending / 1e9:.3f} s "
                    f"after {self._options.timeout:.0f} s; see the detector's log"
                )
            if time.monotonic() > resend:
                for publisher, cdr in self._recent:
                    publisher.publish(cdr)
                resend += RESEND_AFTER
            rclpy.spin_once(self._node, timeout_sec=0.05)
        self._answered.discard(self._pending)
        self._pending = None

    def _spin_until(self, deadline: float) -> None:
        while (left := deadline - time.monotonic()) > 0:
            rclpy.spin_once(self._node, timeout_sec=left)


def main(args: Sequence[str] | None = None) -> int:
    """Entry point."""
    arguments = list(sys.argv if args is None else ["bag_player", *args])
    parser = argparse.ArgumentParser(prog="bag_player", description="Play a rosbag2 bag without decoding it.")
    parser.add_argument("bag", help="folder with metadata.yaml (sqlite3 or MCAP)")
    parser.add_argument("--rate", type=float, default=1.0, help="times real time; 0 = as fast as possible (default 1)")
    parser.add_argument("--topics", nargs="+", default=[], help="only these topics")
    parser.add_argument("--loop", action="store_true", help="start again at the end, until interrupted")
    waiting = "begin when images have N subscribers (1 without a number) and camera_info one"
    parser.add_argument("--wait-subscribers", type=int, nargs="?", const=1, default=0, metavar="N", help=waiting)
    parser.add_argument("--lossless", metavar="TOPIC", help="wait for an answer to each image on this topic")
    parser.add_argument("--timeout", type=float, default=60.0, help="seconds to wait for subscriber or answer")
    parsed = parser.parse_args(remove_ros_args(arguments)[1:])
    if parsed.rate < 0:
        parser.error("--rate must not be negative")
    options = Options(
        parsed.rate, tuple(parsed.topics), parsed.loop, parsed.wait_subscribers, parsed.lossless, parsed.timeout
    )
    rclpy.init(args=arguments)
    try:
        player = BagPlayer(rclpy.create_node("bag_player"), parsed.bag, options)
        started = time.monotonic()
        player.play()
        print(f"bag_player: {player.published} messages in {time.monotonic() - started:.1f} s")
    except UserError as error:
        print(f"bag_player: error: {error}", file=sys.stderr)
        return 2
    except (KeyboardInterrupt, ExternalShutdownException):
        pass
    finally:
        rclpy.try_shutdown()
    return 0


if __name__ == "__main__":
    sys.exit(main())
