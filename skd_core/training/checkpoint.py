"""Checkpoints: everything that an exact resume needs, readable with ``weights_only=True``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from skd_core.errors import UserError

FORMAT = "skd_core.checkpoint.v1"


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write atomically: plain containers, numbers, strings and tensors only.

    Raises:
        UserError: the folder is not writable or the disk is full; the last checkpoint stays.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        torch.save({"format": FORMAT, **state}, partial)
        os.replace(partial, path)
    except (OSError, RuntimeError) as error:  # torch's writer reports a full disk as a RuntimeError
        partial.unlink(missing_ok=True)
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
            f"{path}: not a checkpoint, or damaged ({type(error).__name__}); delete it to start anew"
        ) from None
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise UserError(f"{path}: not a checkpoint of this program ({FORMAT})")
    return state
