"""One thread that works on the newest item; inference never runs in a callback and a queue never grows."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

Item = TypeVar("Item")


class LatestWorker(Generic[Item]):
    """Calls ``work(item)`` in a thread of its own, always with the newest item.

    Args:
        work: must not raise.
    """

    def __init__(self, work: Callable[[Item], None]) -> None:
        self._work = work
        self._item: Item | None = None
        self._stopping = False
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

    def stop(self, timeout: float) -> bool:
        """Let the item in work finish, forget a waiting one; False if it is still at work after ``timeout`` seconds."""
        with self._changed:
            self._stopping, self._item = True, None
            self._changed.notify()
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while True:
            with self._changed:
                while self._item is None and not self._stopping:
                    self._changed.wait()
                if self._stopping:
                    return
                item, self._item = self._item, None
            self._work(item)  # type: ignore[arg-type]
