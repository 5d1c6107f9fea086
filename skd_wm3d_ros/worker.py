"""One thread that works on the newest item; inference never runs in a callback and a queue never grows."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from typing import Generic, TypeVar

Item = TypeVar("Item")


class LatestWorker(Generic[Item]):
    """Calls ``work(item)`` in a thread of its own, always with the newest item.

    Args:
        work: must not raise.
        period: seconds from the start of one work to the next, asked anew with each item; 0 = at once.
    """

    def __init__(self, work: Callable[[Item], None], period: Callable[[], float] = lambda: 0.0) -> None:
        self._work, self._period = work, period
        self._item: Item | None = None
        self._stopping = self._ended = False
        self._started: float | None = None  # monotonic seconds, while at work
        self._changed = threading.Condition()
        self.dropped = 0
        # a daemon, so that a stuck inference cannot keep the process alive
        self._thread = threading.Thread(target=self._run, name="inference", daemon=True)
        self._thread.start()

    def put(self, item: Item) -> None:
        """Hand over an item; one that still waits is dropped and counted."""
        with self._changed:
            self.dropped += self._item is not None
            self._item = item
            self._changed.notify()

    def busy(self) -> float:
        """Seconds that the item in work has taken up to now; 0 where there is none."""
        started = self._started
        return 0.0 if started is None else time.monotonic() - started

    def waiting(self) -> int:
        """How many items are neither dropped nor done: 0, 1 or 2."""
        with self._changed:
            return (self._item is not None) + (self._started is not None)

    def stop(self, timeout: float) -> bool:
        """Let the item in work finish, forget a waiting one.

        Returns:
            False, with nothing changed, if it is still at work after ``timeout`` seconds.
        """
        with self._changed:
            self.dropped += self._item is not None
            self._stopping, self._item = True, None
            self._changed.notify()
        self._thread.join(timeout)
        with self._changed:
            self._stopping = self._ended
        return self._ended

    def abandon(self) -> None:
        """Let the thread end by itself, whenever the item in work lets it; forget a waiting one."""
        with self._changed:
            self._stopping, self._item = True, None
            self._changed.notify()

    def _run(self) -> None:
        begun = -math.inf
        while True:
            with self._changed:
                while not self._stopping:
                    wait = begun + self._period() - time.monotonic()
                    if self._item is not None and wait <= 0:
                        break
                    self._changed.wait(None if self._item is None else wait)
                if self._stopping or self._item is None:
                    self._ended = True
                    return
                item, self._item = self._item, None
                self._started = begun = time.monotonic()
            self._work(item)
            with self._changed:
                self._started = None
