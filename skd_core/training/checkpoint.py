"""Checkpoints: everything that an exact resume needs, readable with ``weights_only=True``."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from skd_core.errors import UserError
from skd_core.files import replacing
from skd_core.training.modulation import MEASURES

FORMAT = "skd_core.checkpoint.v1"
PARTS: dict[str, type | tuple[type, ...]] = {
    "config": dict,
    "step": int,
    "seconds": (int, float),
    "model": dict,
    "ema": dict,
    "optimizer": dict,
    "modulation": dict,
    "rng": Tensor,
    "means": dict,
}
"""What a checkpoint holds besides its format, and of which kind."""


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write atomically and have it on the disk: plain containers, numbers, strings and tensors only.

    Raises:
        UserError: the folder is not writable or the disk is full; the last checkpoint stays.
    """
    with replacing(path, durable=True) as temporary:
        try:
            torch.save({"format": FORMAT, **state}, temporary)
        except RuntimeError as error:  # torch's writer reports a full disk as such
            raise UserError(f"{path}: cannot write the checkpoint: {str(error).splitlines()[0]}") from None


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint onto the CPU.

    Raises:
        UserError: missing, damaged or foreign file.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such checkpoint")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for a damaged file
        raise UserError(
            f"{path}: not a checkpoint, or damaged ({type(error).__name__}); delete it to start over"
        ) from None
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise UserError(f"{path}: not a checkpoint of this program ({FORMAT})")
    return state


def check_parts(path: Path, state: Mapping[str, Any], steps: int) -> None:
    """Refuse a checkpoint whose parts are missing, of another kind, or hold what no run can have written.

    Args:
        steps: of the whole run.

    Raises:
        UserError: the part is named.
    """
    for name, kind in PARTS.items():
        if name not in state:
            raise foreign(path, f"has no '{name}'")
        if not isinstance(state[name], kind) or isinstance(state[name], bool):
            raise foreign(path, f"'{name}' is a {type(state[name]).__name__}")
    if not 0 <= state["step"] <= steps:
        raise foreign(path, f"step {state['step']} of {steps}")
    if not 0 <= state["seconds"] < math.inf:
        raise foreign(path, f"seconds {state['seconds']}")
    means = state["means"]
    if set(means) != {"sums", "counts"} or not all(isinstance(part, dict) for part in means.values()):
        raise foreign(path, "'means' is not an epoch's record")
    numbers = {**state["modulation"], **{f"{k}.{name}": v for k, part in means.items() for name, v in part.items()}}
    for name, value in numbers.items():
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not math.isfinite(value):
            raise foreign(path, f"{name} is {value!r:.40}")
    if means["sums"].keys() != means["counts"].keys() or not all(count > 0 for count in means["counts"].values()):
        raise foreign(path, "'means' counts other terms than it sums")
    if unknown := sorted(map(str, state["modulation"].keys() - set(MEASURES))):
        raise foreign(path, f"'modulation' has {unknown[0]:.40}")
    for part in ("model", "ema"):
        if bad := not_finite(state[part]):
            raise foreign(path, f"{part}: {bad[0]} is not finite, and {len(bad) - 1} more")


def check_weights(path: Path, own: Mapping[str, Tensor], given: Mapping[str, Any]) -> None:
    """Refuse weights of other names, kinds or shapes than the network's.

    Raises:
        UserError: the first is named.
    """
    if other := sorted(map(str, own.keys() ^ given.keys())):
        raise foreign(path, f"{other[0]:.80} is {'missing' if other[0] in own else 'unknown'}")
    for name, mine in own.items():
        theirs = given[name]
        if not isinstance(theirs, Tensor) or (theirs.shape, theirs.dtype) != (mine.shape, mine.dtype):
            kind = f"{theirs.dtype} {tuple(theirs.shape)}" if isinstance(theirs, Tensor) else type(theirs).__name__
            raise foreign(path, f"{name} is {kind}, not {mine.dtype} {tuple(mine.shape)}")


def check_optimizer(path: Path, optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """Refuse an optimizer's state that does not fit its parameters or settings.

    Raises:
        UserError: what differs is named.
    """
    own = optimizer.state_dict()["param_groups"]
    given, moments = state.get("param_groups"), state.get("state")
    ignored = {"lr", "params", "fused", "foreach"}  # the last two: how it is computed, which a run keeps
    if not isinstance(given, list) or not isinstance(moments, dict) or len(given) != len(own):
        raise foreign(path, "'optimizer' is not an optimizer's state")
    for mine, theirs in zip(own, given, strict=True):
        if not isinstance(theirs, dict) or mine["params"] != theirs.get("params"):
            raise foreign(path, "'optimizer' is of other parameters")
        if changed := [key for key in (mine.keys() & theirs.keys()) - ignored if mine[key] != theirs[key]]:
            raise foreign(path, f"'optimizer' has {changed[0]} {theirs[changed[0]]!r:.40}, not {mine[changed[0]]!r}")
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for number, parts in moments.items():
        parameter = parameters[number] if isinstance(number, int) and 0 <= number < len(parameters) else None
        if parameter is None or not isinstance(parts, dict) or set(parts) != {"step", "exp_avg", "exp_avg_sq"}:
            raise foreign(path, "'optimizer' is of other parameters")
        if any(getattr(parts[name], "shape", None) != parameter.shape for name in ("exp_avg", "exp_avg_sq")):
            raise foreign(path, "'optimizer' is of parameters of another shape")
        if bad := not_finite(parts):
            raise foreign(path, f"optimizer: {bad[0]} is not finite")


def foreign(path: Path, what: str) -> UserError:
    """What to say of a checkpoint that no run has written."""
    return UserError(f"{path}: damaged, or from another run: {what}; delete it to start over")


def not_finite(state: Mapping[str, Any]) -> list[str]:
    """The names of tensors that hold NaN or inf; one look at the device for all of them."""
    floats = {
        name: value
        for name, value in state.items()
        if isinstance(value, Tensor) and value.is_floating_point() and value.numel()
    }
    if not floats:
        return []
    with torch.no_grad():
        if bool(torch.nn.utils.get_total_norm(list(floats.values()), math.inf).isfinite()):
            return []
    return [name for name, value in floats.items() if not bool(value.isfinite().all())]
