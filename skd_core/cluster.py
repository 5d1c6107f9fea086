"""Work for a Ray cluster, or for the cores of this machine by Ray [ours].

A task whose worker is lost with its machine is done again on another one. A process that a task has started ends with
its worker.
"""

from __future__ import annotations

import ctypes
import math
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
    work: Callable[[Item], Result],
    items: Sequence[Item],
    address: str | None,
    cores: int,
    gpus: float = 0,
    *,
    cure: str = "",
    end: float = math.inf,
) -> Generator[tuple[int, Result | str], None, None]:
    """Do work by Ray: the number of each item and its result as they come, or why there is none.

    Where the caller stops early or is interrupted, a KeyboardInterrupt is raised in the work that is under way.

    Args:
        address: of a cluster, as ``ray.init`` takes it; None: this machine alone, also where a cluster runs on it.
        cores: of each item; gpus: likewise, which it then has for itself, or 0.
        cure: what to do where no machine has so many, for the message.
        end: when to stop, by ``time.time``.

    Raises:
        UserError: no cluster there, or none of its machines has so many cores and GPUs.
    """
    import ray

    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    if address in (None, "local"):
        options |= {"num_cpus": usable_cores(), "include_dashboard": False, "object_store_memory": STORE_BYTES}
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        _knock(address)
        ray.init(address or "local", **options)
    except (OSError, ValueError, RuntimeError) as error:
        if "ersion mismatch" in str(error):
            raise UserError(f"--ray {address}: Ray or Python there is of another version than here") from None
        raise UserError(f"--ray {address}: no Ray cluster can be reached there ({last_line(str(error))})") from None
    for number, handler in handlers.items():  # Ray's own of SIGTERM aborts the process
        signal.signal(number, handler)
    pending: dict[Any, int] = {}
    try:
        nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
        machines = [node["Resources"] for node in nodes if node["Alive"]]
        if not any(have.get("CPU", 0) >= cores and have.get("GPU", 0) >= gpus for have in machines):
            needed = f"{cores} CPU cores" + (f" and {gpus:g} GPUs" if gpus else "")
            raise UserError(f"each takes {needed}, and no machine has so many; {cure}")
        remote = ray.remote(num_cpus=cores, num_gpus=gpus, max_retries=RETRIES)(work)
        pending.update((remote.remote(item), number) for number, item in enumerate(items))
        while pending:
            left = None if end == math.inf else max(end - time.time(), 0.0)
            done, _ = ray.wait(list(pending), num_returns=1, timeout=left)
            if not done:
                break
            try:
                yield pending[done[0]], ray.get(done[0])
            except ray.exceptions.WorkerCrashedError:
                yield pending[done[0]], f"its worker was lost {RETRIES + 1} times"
            except ray.exceptions.RayError as error:
                yield pending[done[0]], last_line(str(error))
            del pending[done[0]]
    finally:
        if pending:
            print(f"stopping {len(pending)} under way or waiting", file=sys.stderr)
            for task in pending:
                ray.cancel(task)
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
