"""Work for a Ray cluster, or for the cores of this machine by Ray [ours].

A task whose worker is lost with its machine is done again on another one. A process that a task has started ends with
its worker.
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Sequence
from typing import Any, TypeVar

from skd_core.cores import usable_cores
from skd_core.errors import UserError

RETRIES = 3
"""Times that the task of a lost worker is done again."""
CONNECT_SECONDS = 10.0
STOPPING = 120.0
"""Seconds that interrupted work has to stop in: a training writes its checkpoint after the step that it is in."""
STORE_BYTES = 100_000_000
"""Of Ray's object store, the least that it takes: results are lines of text."""

Item = TypeVar("Item")
Result = TypeVar("Result")


def spread(
    work: Callable[[Item], Result], items: Sequence[Item], address: str | None, cores: int, gpus: float = 0
) -> Generator[tuple[int, Result | str], None, None]:
    """Do work by Ray: the number of each item and its result as they come, or why there is none.

    Where the caller stops early or is interrupted, a KeyboardInterrupt is raised in the work that is under way.

    Args:
        address: of a cluster, as ``ray.init`` takes it; None: this machine alone.
        cores: of each item; gpus: likewise, which it then has for itself.

    Raises:
        UserError: Ray is not installed, no cluster there, or none of its machines has so many cores and GPUs.
    """
    try:
        import ray
    except ImportError:
        raise UserError("Ray is not installed: pip install '.[ray]'") from None

    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    if address is None:
        options |= {"num_cpus": usable_cores(), "include_dashboard": False, "object_store_memory": STORE_BYTES}
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        _knock(address)
        ray.init(address, **options)
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(f"--ray {address}: no Ray cluster can be reached there ({last_line(str(error))})") from None
    for number, handler in handlers.items():  # Ray's own of SIGTERM aborts the process
        signal.signal(number, handler)
    pending: dict[Any, int] = {}
    try:
        nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
        for kind, needed, name in (("CPU", cores, "CPU cores"), ("GPU", gpus, "GPUs")):
            most = max((node["Resources"].get(kind, 0) for node in nodes if node["Alive"]), default=0)
            if most < needed:
                raise UserError(f"{needed:g} {name} for each: the largest machine has {most:g}")
        remote = ray.remote(num_cpus=cores, num_gpus=gpus, max_retries=RETRIES)(work)
        pending.update((remote.remote(item), number) for number, item in enumerate(items))
        while pending:
            (done,), _ = ray.wait(list(pending), num_returns=1)
            try:
                yield pending[done], ray.get(done)
            except ray.exceptions.RayTaskError as error:
                yield pending[done], last_line(str(error))
            except ray.exceptions.RayError as error:
                yield pending[done], f"lost {RETRIES + 1} times: {last_line(str(error))}"
            del pending[done]
    finally:
        for task in pending:
            ray.cancel(task)
        if pending:
            ray.wait(list(pending), num_returns=len(pending), timeout=STOPPING)
        ray.shutdown()


def _knock(address: str | None) -> None:
    """Ray itself tries for minutes where nobody listens.

    Raises:
        OSError: nobody does.
    """
    host, colon, port = (address or "").removeprefix("ray://").rpartition(":")
    if colon and port.isdecimal():
        socket.create_connection((host, int(port)), CONNECT_SECONDS).close()


def end_with_parent(number: int = signal.SIGKILL) -> None:
    """For a new process: get this signal when its parent ends.

    Else a lost worker's command would go on beside the one that takes its place.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, number)  # PR_SET_PDEATHSIG


def wait(process: subprocess.Popen[bytes]) -> int:
    """The exit status of a process that a task of :func:`spread` has started; an interrupt ends it with SIGTERM.

    By polling: Ray's interrupts do not wake a task that sleeps in a system call.
    """
    try:
        while process.poll() is None:
            time.sleep(0.1)
    except KeyboardInterrupt:
        process.terminate()
    return process.wait()


def last_line(text: str) -> str:
    """The last line that is not blank, "" where there is none."""
    lines = [line.strip() for line in text.replace("\r", "\n").splitlines() if line.strip()]
    return lines[-1] if lines else ""
