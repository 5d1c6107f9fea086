"""Samples that are kept in memory from epoch to epoch, in one place for all worker processes."""

from __future__ import annotations

import io
import mmap
import multiprocessing
import os
from typing import Any

import torch
from torch import Tensor

from skd_core.data.sample import Sample
from skd_core.supervision.pseudo import PseudoTargets

Prepared = tuple[Sample, PseudoTargets]
SHARE = 0.5
"""Of the machine's free memory, that the cache may fill at most."""


class SampleCache:
    """Prepared samples by their index.

    Without workers they are kept as they are. With workers they lie, each once, in memory that the processes forked
    from this one share; where workers are spawned, each keeps its own.

    Args:
        count: of samples.
        workers: processes that will read and write; 0: this one alone.
        limit: bytes of shared memory; None: :data:`SHARE` of what is free now. What no longer fits is not kept.
    """

    def __init__(self, count: int, workers: int, limit: int | None = None) -> None:
        self.own: dict[int, Prepared] = {}
        self.memory: mmap.mmap | None = None
        if not (workers and hasattr(os, "fork")):
            return
        self.limit = _free_memory() if limit is None else limit
        no_reserve = getattr(mmap, "MAP_NORESERVE", 0)
        self.memory = mmap.mmap(-1, max(self.limit, 1), flags=mmap.MAP_SHARED | mmap.MAP_ANONYMOUS | no_reserve)
        self.lock = multiprocessing.get_context("fork").Lock()
        self.end = _shared(1)  # of what is taken
        self.places = _shared(count, 2)  # begin and length; length 0: not there

    def get(self, index: int) -> Prepared | None:
        """The sample, if it is there; not to be changed."""
        if self.memory is None:
            return self.own.get(index)
        begin, length = self.places[index].tolist()
        if length == 0:
            return None
        found: Prepared = torch.load(io.BytesIO(self.memory[begin : begin + length]), weights_only=False)
        return found

    def put(self, index: int, prepared: Prepared) -> None:
        """Keep a sample."""
        if self.memory is None:
            self.own[index] = prepared
            return
        buffer = io.BytesIO()
        torch.save(prepared, buffer)
        content = buffer.getbuffer()
        with self.lock:
            begin = int(self.end)
            if begin + len(content) > self.limit or self.places[index, 1] > 0:  # full, or another worker was faster
                return
            self.end += len(content)
        self.memory[begin : begin + len(content)] = content
        self.places[index, 0] = begin
        self.places[index, 1] = len(content)  # last: from now on others read it

    def __getstate__(self) -> dict[str, Any]:
        """For a process that is spawned: an empty cache of its own."""
        return {"own": {}, "memory": None}


def _shared(*shape: int) -> Tensor:
    """Zeros that forked processes share."""
    numbers: Tensor = torch.zeros(shape, dtype=torch.long).share_memory_()  # type: ignore[no-untyped-call]
    return numbers


def _free_memory() -> int:
    """Bytes that the shared cache may fill."""
    pages = os.sysconf("SC_AVPHYS_PAGES") if "SC_AVPHYS_PAGES" in os.sysconf_names else 0
    return int(SHARE * pages * os.sysconf("SC_PAGE_SIZE"))
