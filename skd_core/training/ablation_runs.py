"""The trainings of an ablation: processes of their own, on this machine or on those of a Ray cluster [ours]."""

from __future__ import annotations

import contextlib
import functools
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from skd_core.cluster import end_with_parent, spread, wait
from skd_core.cores import usable_cores
from skd_core.errors import UserError
from skd_core.locks import acquire, release

LEAST = 30.0
"""Seconds that must be left for another run to start."""


@dataclass(frozen=True)
class Place:
    """Where runs are done.

    Attributes:
        jobs: at a time on a machine with as many CPU cores as this one, which they share.
        device: "auto", "cpu" or "cuda".
        ray: address of a Ray cluster, as ``ray.init`` takes it; None: this machine, without Ray.
        gpus: that each run has for itself there.
    """

    jobs: int = 1
    device: str = "auto"
    ray: str | None = None
    gpus: float = 0


@dataclass(frozen=True)
class Run:
    """A training.

    Attributes:
        name: such as "full seed 0".
        folder: with its row.yaml.
        cwd: the folder that the config's paths are relative to.
        device: as of :class:`Place`.
        threads: of the CPU.
        end: when to stop, by ``time.time``.
    """

    name: str
    folder: Path
    cwd: Path
    device: str
    threads: int
    end: float


def run_all(out: Path, pending: Sequence[tuple[str, int]], where: Place, stop_after: float | None) -> None:
    """Train by each ``out/ROW/SEED/row.yaml``, with a log.txt beside it; an interrupt stops all with a checkpoint each.

    Args:
        pending: row and seed of each run.
        stop_after: minutes after which to stop with checkpoints.

    Raises:
        UserError: a run failed, which stops the others; of a cluster as in :func:`skd_core.cluster.spread`.
    """
    end = math.inf if stop_after is None else time.time() + 60 * stop_after
    threads = max(usable_cores() // where.jobs, 1)
    runs = [
        Run(f"{row} seed {seed}", out / row / str(seed), Path.cwd(), where.device, threads, end)
        for row, seed in pending
    ]
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # else it would leave the runs behind
    try:
        if where.ray is None:
            _run_here(runs, where.jobs)
        elif runs:
            _run_there(runs, where)
    finally:
        signal.signal(signal.SIGTERM, before)


def start(run: Run) -> subprocess.Popen[bytes] | None:
    """Start a training, which is told to stop when this process ends; None where its time is over."""
    left = run.end - time.time()
    if left < LEAST:
        return None
    words = ["train", str(run.folder / "row.yaml"), "--out", str(run.folder), "--device", run.device]
    if math.isfinite(left):
        words += ["--stop-after", f"{left / 60:.2f}"]
    with open(run.cwd / run.folder / "log.txt", "ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "skd_core.cli", *words],
            cwd=run.cwd,
            stdout=log,
            stderr=log,
            env={**os.environ, "OMP_NUM_THREADS": str(run.threads)},
            preexec_fn=functools.partial(end_with_parent, signal.SIGTERM),
        )


def _run_here(runs: list[Run], jobs: int) -> None:
    running: dict[subprocess.Popen[bytes], Run] = {}
    queue = list(runs)
    try:
        while queue or running:
            while queue and len(running) < jobs:
                run = queue.pop(0)
                if (process := start(run)) is not None:
                    print(f"{run.name}: {run.folder / 'log.txt'}", flush=True)
                    running[process] = run
            time.sleep(1)
            for process, run in list(running.items()):
                if process.poll() is not None:
                    del running[process]
                    _check(run, process.returncode)
    finally:
        for process in running:
            process.terminate()
        for process in running:
            process.wait()


def _run_there(runs: list[Run], where: Place) -> None:
    for run in runs:
        print(f"{run.name}: {run.folder / 'log.txt'}", flush=True)
    cores, end = runs[0].threads, runs[0].end
    cure = f"raise --jobs {where.jobs}, by which the cores of this machine are divided"
    with contextlib.closing(spread(train, runs, where.ray, cores, where.gpus, cure=cure, end=end)) as ended:
        for number, status in ended:
            if status is not None:
                _check(runs[number], status)
                print(f"{runs[number].name}: ended", flush=True)


def train(run: Run) -> int | None:
    """As a task of Ray's: a whole training; its exit status, or None where there was no time for it."""
    while (lock := acquire(run.cwd / run.folder)) is None:
        time.sleep(0.5)  # where a worker was lost, its run may still be writing its checkpoint
    release(lock)
    process = start(run)
    return None if process is None else wait(process)


def _check(run: Run, status: int | str) -> None:
    if isinstance(status, str):
        raise UserError(f"ablation: {run.name}: {status}")
    if status:
        raise UserError(f"ablation: a run failed; see {run.folder / 'log.txt'}")
