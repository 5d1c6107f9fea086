"""The processes of one run under torchrun, and the exchange of numbers between them."""

from __future__ import annotations

import os

import torch

from skd_core.errors import UserError

SIZES = ("WORLD_SIZE", "LOCAL_WORLD_SIZE")
PROCESS_VARIABLES = ("RANK", "LOCAL_RANK", "MASTER_PORT")


def world_sizes() -> tuple[int, int]:
    """Processes of the run, and of them on this machine, as torchrun puts them into the environment; 1 and 1 without.

    Raises:
        UserError: a variable of torchrun's is no number, missing, or does not fit the others; it is named.
    """
    numbers = {name: _number(name) for name in (*SIZES, *PROCESS_VARIABLES)}
    world = numbers["WORLD_SIZE"] if numbers["WORLD_SIZE"] is not None else 1
    local = numbers["LOCAL_WORLD_SIZE"] if numbers["LOCAL_WORLD_SIZE"] is not None else 1
    if world < 1 or local < 1 or world % local:
        raise UserError(
            f"environment: WORLD_SIZE {world} must be a multiple of LOCAL_WORLD_SIZE {local}, both at least 1; start "
            "several processes with torchrun, or unset them"
        )
    missing = [name for name in PROCESS_VARIABLES if numbers[name] is None]
    if world > 1 and missing:
        raise UserError(
            f"environment: WORLD_SIZE is {world}, but {missing[0]} is not set; start several processes with torchrun, "
            "or unset it"
        )
    for place, size in (("RANK", world), ("LOCAL_RANK", local)):
        if not 0 <= (numbers[place] or 0) < size:
            raise UserError(f"environment: {place} {numbers[place]} must be less than the number of processes, {size}")
    return world, local


def is_first() -> bool:
    """Whether this process is the one that writes: rank 0, or the only one."""
    return world_sizes()[0] == 1 or _number("RANK") == 0


def mean_terms(terms: dict[str, float]) -> dict[str, float]:
    """Each term's mean over all processes; one that lacks a term has no share in it and counts as 0.

    The gradients are averaged alike: these are the terms of the loss that the whole batch has.
    """
    if not torch.distributed.is_initialized():
        return terms
    parts: list[dict[str, float]] = [{} for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather_object(parts, terms)
    names = dict.fromkeys(name for part in parts for name in part)
    return {name: sum(part.get(name, 0.0) for part in parts) / len(parts) for name in names}


def _number(name: str) -> int | None:
    text = os.environ.get(name)
    if text is None:
        return None
    if not text.strip().isdecimal() or len(text) > 9:
        raise UserError(f"environment: {name}={text!r:.50}: must be a whole number; unset it unless torchrun sets it")
    return int(text)
