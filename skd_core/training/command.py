"""`skd_core train`: the checks before a run and the summary after it."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from pathlib import Path

from skd_core.config import TrainConfig, load_config
from skd_core.errors import UserError
from skd_core.files import keep_inputs, lock_folder
from skd_core.inference.bundled import bundled_names
from skd_core.training.memory import keep_memory
from skd_core.training.processes import is_first
from skd_core.training.trainer import WRITTEN, Trainer

INTERRUPTED = 130
"""Exit status of a run that a signal has stopped, as a shell has it for Ctrl-C."""


def run_training(
    file: Path,
    overrides: Sequence[str],
    out: Path,
    device: str = "auto",
    resume: bool = True,
    stop_after: float | None = None,
) -> int:
    """Train, with the folder locked against other commands, and print how it ended.

    Args:
        file: the config; overrides: see :func:`skd_core.config.load_config`.
        out, device, resume: see :class:`skd_core.training.trainer.Trainer`.
        stop_after: minutes, see :meth:`skd_core.training.trainer.Trainer.fit`.

    Returns:
        the exit status: 0, or :data:`INTERRUPTED`.

    Raises:
        UserError: wrong input of any kind; another command is writing in ``out``; the run would write over its input.
    """
    if stop_after is not None and not 0 <= stop_after < math.inf:
        raise UserError(f"--stop-after {stop_after:g}: must be a number of minutes, 0 or more")
    config = load_config(file, list(overrides))
    _keep_config(file, config, out)
    start = config.initial.weights
    keep_inputs((out / name for name in WRITTEN), [Path(start)] if start and start not in bundled_names() else [])
    keep_memory()
    with lock_folder(out) if is_first() else contextlib.nullcontext():
        trainer = Trainer(config, out, device, resume)
        done = trainer.fit(stop_after)
    if done:
        print(out / "student.safetensors")
    else:
        how = "interrupted" if trainer.stop_requested else "stopped"
        print(f"{how} at step {trainer.step}; run the same command to resume")
    return INTERRUPTED if trainer.stop_requested and not done else 0


def _keep_config(file: Path, config: TrainConfig, out: Path) -> None:
    """A run may be started from its own ``config.yaml``, but not with other values: these would be written into it."""
    try:
        keep_inputs([out / "config.yaml"], [file])
    except UserError:
        if load_config(file) != config:
            raise
