"""Lifecycle transitions with error reporting."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Protocol, TypeVar

from rclpy.lifecycle import LifecycleState, TransitionCallbackReturn


class _Node(Protocol):
    def fail(self, message: str) -> None: ...


N = TypeVar("N", bound=_Node)
Method = Callable[[N, LifecycleState], TransitionCallbackReturn]


def reported(transition: Method[N]) -> Method[N]:
    """Say what a transition raised: rclpy turns it into an ERROR without a word."""

    @functools.wraps(transition)
    def wrapper(self: N, state: LifecycleState) -> TransitionCallbackReturn:
        try:
            return transition(self, state)
        except Exception as error:
            self.fail(f"{transition.__name__} failed: {type(error).__name__}: {error}")
            raise

    return wrapper
