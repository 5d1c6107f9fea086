"""The CPU cores that may be used; without PyTorch, so that `skd_core doctor` can count them where it is missing."""

from __future__ import annotations

import os


def usable_cores() -> int:
    """CPU cores that this process may run on: fewer than the machine has under `taskset` or in a container's cpuset.
    More threads than that wait for each other and nearly double the time of a training step."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
