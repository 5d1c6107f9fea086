"""The benchmark's report: the machine, median and spread of each measure, and the printed table."""

from __future__ import annotations

import os
import platform
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.table import Table

from skd_core.console import output_console
from skd_core.cores import usable_cores


def summary(values: list[float]) -> dict[str, float]:
    """Middle and spread of repeated measurements."""
    return {
        "median": statistics.median(values),
        "mean": statistics.fmean(values),
        "p90": float(np.percentile(values, 90)),
        "min": min(values),
        "max": max(values),
        "count": len(values),
    }


def describe_machine(device: torch.device) -> dict[str, Any]:
    """What kind of machine this is, and how busy; nothing that names this very one."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
        model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), model)
    return {
        "cpu": model,
        "cores": usable_cores(),
        "threads": torch.get_num_threads(),
        "load_before": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def print_result(result: dict[str, Any]) -> None:
    """Print what :func:`skd_core.benchmark.benchmark` returned."""
    console = output_console()
    for part in ("machine", "settings"):
        words = ", ".join(f"{k} {v}" for k, v in result[part].items() if v is not None)
        console.print(f"{part}: {words}", soft_wrap=True)
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("measure", no_wrap=True)
    columns = ("median", "mean", "p90", "min", "max")
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    for name, numbers in result["measures"].items():
        cells = (f"{numbers[c]:,.0f}" if 1e3 <= numbers[c] < 1e5 else f"{numbers[c]:.3g}" for c in columns)
        table.add_row(name, *cells)
    console.print(table)
