"""Where the time of a training step goes: `skd_core bench --training`."""

from __future__ import annotations

import json
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch

from skd_core.benchmark_report import describe_machine, print_result, summary
from skd_core.config import TrainConfig, load_config, parse_config
from skd_core.files import check_outputs, write_atomic
from skd_core.synthetic import SynthConfig, write_dataset
from skd_core.training.memory import keep_memory
from skd_core.training.trainer import Trainer

PARTS = ("data", "forward", "backward", "modulation", "optimizer", "logging")
"""Of a step. Data: waiting for the batch and bringing it to the device. Optimizer: with the running mean and the check
that weights are numbers. Modulation: what follows from GTM's errors; to measure them is part
of forward. Logging: reading the terms from the device, and the check that they are numbers."""
FRAMES = 24
WARM_UP = 3
"""Steps that do not count."""

SMALL: dict[str, Any] = {
    "model": {
        "backbone": "tf_efficientnet_lite0",
        "neck_channels": 32,
        "head_channels": 64,
        "depth_channels": 32,
        "input_size": [480, 144],
    },
    "initial": {"freeze": ["conv_stem", "bn1", "blocks.0", "blocks.1"]},
    "method": {"student_targets": "teacher", "modulation": True},
    "schedule": {"batch_size": 8},
}
"""The row `full` of config/train/synthetic.yaml without its data and start."""


def measure_training(config: TrainConfig, steps: int, device: str, folder: Path) -> dict[str, list[float]]:
    """Seconds of each part of each step, all losses switched on; nothing is written but into ``folder``.

    Args:
        config: of a run whose data are there; steps: that count, after :data:`WARM_UP`.
        folder: a new one.

    Raises:
        UserError: the data are missing, as in training.
    """
    schedule = config.schedule.model_copy(update={"start_3d": (0.0, 0.0), "start_distillation": (0.0, 0.0)})
    config = config.model_copy(update={"schedule": schedule, "data": config.data.model_copy(update={"val": None})})
    trainer = Trainer(config, folder, device, resume=False)
    needed = -(-(WARM_UP + steps) // len(trainer.sampler))
    trainer.config = config.model_copy(update={"schedule": schedule.model_copy(update={"epochs": needed})})
    spent: dict[str, list[float]] = defaultdict(list)
    last = time.perf_counter()

    def lap(part: str) -> None:
        nonlocal last
        if trainer.fabric.device.type == "cuda":
            torch.cuda.synchronize(trainer.fabric.device)
        now = time.perf_counter()
        if trainer.step >= WARM_UP:
            spent[part].append(now - last)
        last = now

    trainer.lap = lap
    for batch in trainer.batches():
        moved = batch.to(trainer.fabric.device)
        lap("data")
        trainer.means.add(trainer._train_step(moved))
        trainer.step += 1
        if trainer.step == WARM_UP + steps:
            break
        last = time.perf_counter()
    return dict(spent)


def training_report(file: Path | None, steps: int, device: str, json_file: Path | None = None) -> None:
    """Measure, print, and write the JSON file if one is named.

    Args:
        file: a training config; None: the small network of config/train/synthetic.yaml on frames rendered now.

    Raises:
        UserError: wrong config, missing data, or the file cannot be written.
    """
    check_outputs([json_file])
    keep_memory()
    with tempfile.TemporaryDirectory() as temporary:
        if file is None:
            root = Path(temporary) / "data"
            write_dataset(root, SynthConfig(), FRAMES, 1)
            config = parse_config(
                TrainConfig, SMALL | {"data": {"train": {"root": str(root)}, "depth_dir": "depth"}}, "bench"
            )
        else:
            config = load_config(file)
        spent = measure_training(config, steps, device, Path(temporary) / "run")
    result = {
        "machine": describe_machine(torch.device("cpu")),
        "settings": {
            "input_size": list(config.model.input_size),
            "backbone": config.model.backbone,
            "batch_size": config.schedule.batch_size,
            "precision": config.precision,
            "workers": config.data.workers,
            "steps": steps,
        },
        "measures": measures(spent, config.schedule.batch_size),
    }
    if json_file is not None:
        write_atomic(json_file, json.dumps(result, indent=1, allow_nan=False) + "\n")
    print_result(result)


def measures(spent: dict[str, list[float]], batch_size: int) -> dict[str, dict[str, float]]:
    """Images per second of each step, and each part's share of it."""
    steps = [sum(parts) for parts in zip(*spent.values(), strict=True)]
    found = {
        "train/images_per_second": [batch_size / step for step in steps],
        "train/step_ms": [1e3 * s for s in steps],
    }
    for part in PARTS:
        found[f"train/{part}_share"] = [took / step for took, step in zip(spent[part], steps, strict=True)]
    return {name: summary(values) for name, values in found.items()}
