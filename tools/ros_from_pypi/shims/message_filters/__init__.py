"""Pairing of stamped messages, for machines without a ROS distribution.

The calls this project makes of ROS 2's `message_filters`, with the same names, arguments and documented behaviour.
`tools/ros_from_pypi/install.py` installs it only where the real package is absent.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Sequence
from typing import Any

from rclpy.node import Node
from rclpy.time import Time

__all__ = ["ApproximateTimeSynchronizer", "SimpleFilter", "Subscriber", "TimeSynchronizer"]


class SimpleFilter:
    """Base of all filters: hands every output on to the registered callbacks."""

    def __init__(self) -> None:
        self.callbacks: dict[int, tuple[Callable[..., None], tuple[Any, ...]]] = {}

    def registerCallback(self, cb: Callable[..., None], *args: Any) -> int:
        """Call `cb(*messages, *args)` on every output. Returns the number of the connection."""
        connection = len(self.callbacks)
        self.callbacks[connection] = (cb, args)
        return connection

    def signalMessage(self, *messages: Any) -> None:
        for cb, args in self.callbacks.values():
            cb(*messages, *args)


class Subscriber(SimpleFilter):
    """A subscription as a source of messages; keywords go to `Node.create_subscription` (QoS depth 10 by default)."""

    def __init__(self, node: Node, msg_type: type, topic: str, **kwargs: Any) -> None:
        super().__init__()
        self.node = node
        self.topic = topic
        kwargs.setdefault("qos_profile", 10)
        self.sub = node.create_subscription(msg_type, topic, self.signalMessage, **kwargs)

    def getTopic(self) -> str:
        return self.topic


class TimeSynchronizer(SimpleFilter):
    """Outputs one message of every input as soon as all carry exactly the same header stamp.

    `queue_size` messages are kept per input; beyond that the oldest stamp is dropped. Unmatched messages that are
    older than a match stay until then.
    """

    def __init__(self, fs: Sequence[SimpleFilter], queue_size: int) -> None:
        super().__init__()
        self.queue_size = queue_size
        self.queues: list[dict[int, Any]] = [{} for _ in fs]  # per input: stamp in ns -> message
        self.lock = threading.Lock()  # inputs may be called from the threads of a multi-threaded executor
        self.input_connections = [f.registerCallback(self.add, i) for i, f in enumerate(fs)]

    def add(self, message: Any, index: int) -> None:
        """Take one message of input `index`; called by that input."""
        with self.lock:
            stamp = Time.from_msg(message.header.stamp).nanoseconds
            queue = self.queues[index]
            queue[stamp] = message
            while len(queue) > self.queue_size:
                del queue[min(queue)]
            if stamp in queue:
                self._match(index, stamp)

    def _match(self, index: int, stamp: int) -> None:
        if all(stamp in queue for queue in self.queues):
            self._output([stamp] * len(self.queues))

    def _output(self, stamps: Sequence[int]) -> None:
        self.signalMessage(*[queue.pop(stamp) for queue, stamp in zip(self.queues, stamps, strict=True)])


class ApproximateTimeSynchronizer(TimeSynchronizer):
    """As `TimeSynchronizer`, for stamps that lie less than `slop` seconds apart (strictly: a slop of 0 never matches).

    Each new message is matched at once with the messages nearest to it in time.
    """

    def __init__(self, fs: Sequence[SimpleFilter], queue_size: int, slop: float) -> None:
        super().__init__(fs, queue_size)
        self.slop = round(slop * 1e9)  # ns

    def _match(self, index: int, stamp: int) -> None:
        def distance(other: int) -> int:
            return abs(other - stamp)

        candidates = [
            [stamp] if i == index else sorted((s for s in queue if distance(s) < self.slop), key=distance)
            for i, queue in enumerate(self.queues)
        ]
        for stamps in itertools.product(*candidates):
            if max(stamps) - min(stamps) < self.slop:  # two inputs may lie on either side of the new message
                self._output(stamps)
                return
