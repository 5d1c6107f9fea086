"""``skd_core eval real --calibrate``: box errors per class, for the covariances [ours].

Of all labels that are found (the rules of :mod:`skd_core.evaluation.real`) and have a place:

- **depth**: |z error| / the network's own depth_std; its factor makes depth_std true;
- **across the viewing ray**, sideways and upwards: |error| / distance;
- **yaw** modulo pi: |error|;
- **flip**, of weights that tell front from rear: the share of yaws off by more than a quarter turn, (k + 1) / (n + 2).

A spread is what .6827 of the absolute errors do not exceed: that of a normal distribution's standard deviation, bias
included, and one far outlier does not move it. Errors have longer tails than a normal distribution's: see the shares
within two. A class with fewer than :data:`MIN_OBJECTS` objects takes the position of all classes together, and no yaw:
that of cars says nothing of pedestrians. Where all together are fewer, nothing is stored and
:mod:`skd_core.covariance`'s constants hold.

What is measured and what is stored come from the same frames. So that this does not flatter, the table says what share
of errors lies within the spreads of the *other half* of the frames: each set is cut in two in its frames' order, since
neighbouring frames of a drive show the same objects.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from rich.table import Table

from skd_core.covariance import YAW_STD
from skd_core.data.kitti import Floats
from skd_core.errors import UserError
from skd_core.evaluation.real import Tally, join
from skd_core.evaluation.report import plain_table
from skd_core.inference.metadata import ClassCalibration

MIN_OBJECTS = 20
"""Objects below which a class has no spread of its own; half of them in one half of the frames."""
SHARE = 0.6827
ERRORS = ("depth", "sideways", "upwards", "yaw")
HEADS = ("objects", "depth", "sideways", "upwards", "yaw", "flip")


def calibrate(
    tallies: Mapping[str, Tally], heading_known: bool, min_objects: int = MIN_OBJECTS
) -> dict[str, ClassCalibration]:
    """Class -> its spreads; without the classes of which nothing can be said.

    Args:
        tallies: of detections whose depth_std is the network's own, by class.
        heading_known: whether the weights tell front from rear; else they flip with .5.
        min_objects: minimum number of objects for a spread of a class's own.
    """
    pooled = _errors(join(list(tallies.values())))
    found = {}
    for kind, tally in tallies.items():
        errors = _errors(tally)
        own = len(errors) >= min_objects
        if not own and len(pooled) < min_objects:
            continue
        depth, sideways, upwards = (_spread(column) for column in (errors if own else pooled).T[:3])
        flip = 0.5
        if heading_known and own:
            flip = min((float(errors[:, 4].sum()) + 1) / (len(errors) + 2), 0.5)
        found[kind] = ClassCalibration(
            depth_scale=min(max(depth, 1e-3), 100.0),
            lateral_std=min(max(sideways, 1e-4), 1.0),
            vertical_std=min(max(upwards, 1e-4), 1.0),
            yaw_std=max(_spread(errors[:, 3]), 1e-3) if own else None,
            flip=flip,
            count=len(errors),
            pooled=not own,
        )
    return found


def held_out(
    halves: Sequence[Mapping[str, Tally]], heading_known: bool
) -> dict[str, dict[str, tuple[float, float] | None]]:
    """Class -> error -> share of each half's errors within one and two of the spreads of the other half.

    Args:
        halves: two, class -> tally, see :func:`calibrate`.

    Returns:
        None where a half has nothing to measure by.
    """
    inside: dict[str, list[Floats]] = {kind: [] for kind in halves[0]}
    for fitted, tested in (halves, halves[::-1]):
        measured = calibrate(fitted, heading_known, MIN_OBJECTS // 2)
        for kind, tally in tested.items():
            if (row := measured.get(kind)) is not None:
                yaw_std = YAW_STD if row.yaw_std is None else row.yaw_std
                spreads = [row.depth_scale, row.lateral_std, row.vertical_std, yaw_std]
                inside[kind].append(_errors(tally)[:, :4] / spreads)
    shares: dict[str, dict[str, tuple[float, float] | None]] = {}
    for kind, parts in inside.items():
        ratios = np.concatenate([*parts, np.zeros((0, 4))])
        shares[kind] = {
            error: (float((column <= 1).mean()), float((column <= 2).mean())) if len(column) else None
            for error, column in zip(ERRORS, ratios.T, strict=True)
        }
    return shares


def calibration_tables(
    measured: Mapping[str, ClassCalibration],
    shares: Mapping[str, Mapping[str, tuple[float, float] | None]],
    heading_known: bool,
) -> list[Table]:
    """Of each class its spreads, and the shares of the other half's errors within one and within two of them."""
    spreads = plain_table("spread of errors: depth in units of the network's own, across in shares of the distance")
    within = plain_table("shares of errors within 1 | 2 spreads of the other half of the frames (normal: .68 | .95)")
    for table, heads in ((spreads, HEADS), (within, ERRORS)):
        table.add_column("")
        for head in heads:
            table.add_column(head, justify="right")
    for kind, row in measured.items():
        yaw = "-" if row.yaw_std is None else f"{math.degrees(row.yaw_std):.0f} deg"
        across = (f"{100 * fraction:.2f} %" for fraction in (row.lateral_std, row.vertical_std))
        flip = f"{row.flip:.2f}" if heading_known else "1/2"
        spreads.add_row(kind, str(row.count), f"{row.depth_scale:.2f}", *across, yaw, flip)
        cells = (shares[kind][error] for error in ERRORS)
        within.add_row(kind, *("-" if cell is None else f"{cell[0]:.2f} | {cell[1]:.2f}" for cell in cells))
    return [spreads, within]


def calibration_notes(tallies: Mapping[str, Tally], measured: Mapping[str, ClassCalibration]) -> list[str]:
    """What is said of classes with too few objects.

    Raises:
        UserError: nothing could be measured.
    """
    counts = {kind: len(_errors(tally)) for kind, tally in tallies.items()}
    if not measured:
        total = sum(counts.values())
        raise UserError(f"eval real --calibrate: {total} objects with a place are found, {MIN_OBJECTS} are needed")
    return [
        f"{kind}: {counts[kind]} objects, fewer than {MIN_OBJECTS}: position as of all together, yaw not measured"
        for kind, row in measured.items()
        if row.pooled
    ]


def stored(
    before: Mapping[str, Any], measured: Mapping[str, ClassCalibration], sets: Sequence[str], threshold: float
) -> dict[str, Any]:
    """What a weights file keeps of it.

    Args:
        before: the metadata; classes that were not looked at keep what they have.
        sets: names of the data sets; threshold: minimum score of the detections.
    """
    new = {kind: row.model_dump() for kind, row in measured.items()}
    about = {"sets": list(sets), "threshold": threshold}
    return {"calibration": before.get("calibration", {}) | new, "calibrated_on": about}


def _errors(tally: Tally) -> Floats:
    """shape (N, 5) of what is found and has a place: |depth| in depth_std, |sideways| and |upwards| as fractions of the
    distance, |yaw| modulo pi in radians, whether front and rear are taken for each other."""
    columns = [tally["spread"], tally["lateral"], tally["vertical"], np.radians(tally["yaw"]), tally["turned"]]
    rows = np.abs(np.stack(columns, 1))
    found: Floats = rows[np.isfinite(rows).all(1)]
    return found


def _spread(errors: Floats) -> float:
    """The smallest error that a share of SHARE does not exceed."""
    return float(np.quantile(errors, SHARE, method="inverted_cdf")) if len(errors) else math.nan
