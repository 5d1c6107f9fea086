"""Learning rate and the ramps of the 3D losses (method: Training, Schedule)."""

from __future__ import annotations

from skd_core.config import ScheduleConfig


def ramp(progress: float, start: float, end: float) -> float:
    """0 before start, 1 after end, linear between."""
    if end <= start:
        return float(progress >= start)
    return min(max((progress - start) / (end - start), 0.0), 1.0)


def learning_rate(schedule: ScheduleConfig, step: int, steps_per_epoch: int) -> float:
    """Linear warm-up, then constant, a tenth after each share in ``decay`` [peer]."""
    warmup = schedule.warmup_epochs * steps_per_epoch
    factor = min((step + 1) / warmup, 1.0) if warmup > 0 else 1.0
    progress = step / (schedule.epochs * steps_per_epoch)
    for share in schedule.decay:
        factor *= 0.1 if progress >= share else 1.0
    return schedule.learning_rate * factor
