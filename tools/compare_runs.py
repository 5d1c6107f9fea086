"""Compare rows of ablations seed by seed: `tools/compare_runs.py BASE[:ROW] OTHER[:ROW] ...`.

BASE and OTHER are ablation.json files, or folders that hold one; ROW is `full` unless named. Printed are the mean
difference OTHER - BASE of 3D AP of cars at .5, moderate, over the seeds that both have, its standard error, and in how
many of them OTHER is better.
"""

from __future__ import annotations

import json
import math
import statistics
import sys
from pathlib import Path

MEASURE = "ap3d_50_moderate"


def values(name: str) -> dict[int, float]:
    """Seed -> AP in percent."""
    place, _, row = name.partition(":")
    path = Path(place) / "ablation.json" if Path(place).is_dir() else Path(place)
    try:
        measures = json.loads(path.read_text(encoding="utf-8"))["rows"][row or "full"]
        return dict(zip(measures["seeds"], measures[MEASURE]["seeds"], strict=True))
    except (OSError, ValueError, KeyError) as error:
        raise SystemExit(f"{path}: no row '{row or 'full'}' of an ablation ({error!r})") from None


def compare(base: dict[int, float], other: dict[int, float]) -> str:
    """The line of one pair."""
    differences = [other[seed] - base[seed] for seed in sorted(base.keys() & other.keys())]
    if not differences:
        return "no seed in common"
    n, wins = len(differences), sum(d > 0 for d in differences)
    error = f" ± {statistics.stdev(differences) / math.sqrt(n):.2f}" if n > 1 else ""
    return f"{statistics.fmean(differences):+.2f}{error} over {n} seeds, better in {wins}"


if __name__ == "__main__":
    if len(sys.argv) < 3:
        raise SystemExit(__doc__)
    base = values(sys.argv[1])
    for name in sys.argv[2:]:
        print(f"{name} - {sys.argv[1]}: {compare(base, values(name))}")
