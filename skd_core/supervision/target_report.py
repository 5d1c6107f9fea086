"""Coverage of a data set's pseudo-targets and, given 3D labels, their errors (`skd_core pseudo`).

3D labels are read here to measure the targets, never to make them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.box import SIMPLE_HEAD
from rich.table import Table
from tqdm import tqdm

from skd_core.console import output_console
from skd_core.data.kitti import LABEL_COLUMNS, KittiDataset
from skd_core.data.sample import Sample
from skd_core.files import check_outputs, files_of, finite, read_text, write_atomic
from skd_core.priors import prior_of
from skd_core.supervision.depth import check_kind
from skd_core.supervision.pseudo import PseudoTargets, box_depth, pseudo_targets
from skd_core.supervision.targets import TargetMaker

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]

TABLE_WIDTH = 110
DISTANCES = (0, 8, 15, 25, 35, 50, math.inf)
CONFIDENCES = (0, 0.25, 0.5, 0.75, 0.9, 1)


@dataclass
class TargetTable:
    """One row a 2D box.

    Attributes:
        label: N class names.
        distance: shape (N,), true depth of the centre, f H / h2d + e where it is not known, metres.
        z: shape (N,), target depth, NaN: none; weight: shape (N,), q_yaw.
        depth_error: shape (N,), target / truth - 1; NaN without either.
        yaw_error: shape (N,), of the observation angle modulo pi, degrees in [0, 90]; NaN without either.
        yaw_folded: shape (N,), the same with a and -a taken as one, which the 2D box alone cannot tell apart.
    """

    label: NDArray[np.str_]
    distance: Floats
    z: Floats
    weight: Floats
    depth_error: Floats
    yaw_error: Floats
    yaw_folded: Floats

    def statistics(self, chosen: Flags) -> dict[str, float]:
        """Counts and errors of some rows; NaN where there is nothing to measure.

        Depth errors are shares; ``yaw_gross`` is the share of yaws more than 25 degrees off, ``yaw_confidence`` the
        mean q_yaw, and ``yaw_cosine`` the mean of cos 2(error): calibrated targets have the two equal.
        """
        depth = self.depth_error[chosen & np.isfinite(self.depth_error)]
        turned = chosen & (self.weight > 0)
        known = turned & np.isfinite(self.yaw_error)
        yaw, folded, count = self.yaw_error[known], self.yaw_folded[known], int(chosen.sum())
        return {
            "boxes": count,
            "with_depth": float(np.isfinite(self.z[chosen]).mean()) if count else math.nan,
            "depth_bias": _percentile(depth, 50),
            "depth_median": _percentile(np.abs(depth), 50),
            "depth_p90": _percentile(np.abs(depth), 90),
            "with_yaw": float((self.weight[chosen] > 0).mean()) if count else math.nan,
            "yaw_median": _percentile(yaw, 50),
            "yaw_p90": _percentile(yaw, 90),
            "yaw_folded_median": _percentile(folded, 50),
            "yaw_gross": float((yaw > 25).mean()) if len(yaw) else math.nan,
            "yaw_confidence": float(self.weight[turned].mean()) if turned.any() else math.nan,
            "yaw_cosine": float(np.cos(2 * np.radians(yaw)).mean()) if len(yaw) else math.nan,
        }

    def groups(self) -> dict[str, dict[str, Flags]]:
        """Rows by class, by distance and by confidence of yaw."""
        classes = {str(name): self.label == name for name in dict.fromkeys(self.label)}
        distances = {
            f"{low:g}-{high:g} m" if math.isfinite(high) else f"{low:g} m and beyond": (
                (self.distance >= low) & (self.distance < high)
            )
            for low, high in pairwise(DISTANCES)
        }
        confidences = {
            f"{low:g}-{high:g}": (self.weight > low) & (self.weight <= high) for low, high in pairwise(CONFIDENCES)
        }
        return {"class": classes | {"all": np.ones(len(self.label), bool)}, "distance": distances, "q_yaw": confidences}


def measure(made: Iterable[tuple[Sample, PseudoTargets]]) -> TargetTable:
    """The table of samples whose ``boxes3d``, where known, are the truth. Boxes of size <= 0 count as unknown."""
    rows: list[tuple[str, float, float, float, float, float, float]] = []
    for sample, target in made:
        P = sample.camera.P.numpy()
        seen = None if sample.boxes3d is None else sample.boxes3d.moved(sample.camera.offset)  # from the optical centre
        for i, label in enumerate(sample.boxes2d.labels):
            z, alpha, weight = float(target.z[i]), float(target.alpha[i]), float(target.alpha_weight[i])
            distance = box_depth(sample.boxes2d.xyxy[i].double().numpy(), prior_of(label), P)
            depth_error = yaw_error = folded = math.nan
            if seen is not None and bool((seen.size[i] > 0).all()):
                distance, true_alpha = float(seen.center[i, 2]), float(seen.alpha[i])
                depth_error = z / distance - 1
                yaw_error, mirrored = (_degrees_modulo_pi(sign * alpha - true_alpha) for sign in (1, -1))
                folded = min(yaw_error, mirrored)
            rows.append((label, distance, z, weight, depth_error, yaw_error, folded))
    label_column = np.array([row[0] for row in rows], dtype=np.str_)
    numbers = np.array([row[1:] for row in rows], dtype=np.float64).reshape(-1, 6)
    return TargetTable(label_column, *numbers.T)


def _degrees_modulo_pi(angle: float) -> float:
    return math.degrees(abs((angle + 0.5 * math.pi) % math.pi - 0.5 * math.pi))


def _percentile(values: Floats, percent: float) -> float:
    return float(np.percentile(values, percent)) if len(values) else math.nan


def report_targets(
    root: Path,
    split: str | None,
    depth_dir: str,
    maker: TargetMaker,
    classes: Sequence[str],
    json_file: Path | None = None,
) -> None:
    """`skd_core pseudo`: make the targets of a data set in the KITTI layout and print what they are worth.

    Raises:
        UserError: missing or malformed files, maps of the other kind, or the JSON file cannot be written.
    """
    for name in classes:
        prior_of(name)
    check_outputs([json_file], files_of(root, root / "training" / depth_dir))
    plain = KittiDataset(root, split, classes, depth_dir)
    check_kind(plain.files(0)["depth"].parent, maker.depth_kind)
    labelled = all(_has_3d(plain.files(i)["label"]) for i in range(len(plain)))
    source = KittiDataset(root, split, classes, depth_dir, with_3d=True) if labelled else plain
    unaligned = 0

    def make() -> Iterator[tuple[Sample, PseudoTargets]]:
        nonlocal unaligned
        for index in tqdm(range(len(source)), desc="pseudo-targets", unit="frame", dynamic_ncols=True, mininterval=1):
            sample = maker.read(source[index])
            unaligned += sample.depth is None
            yield sample, pseudo_targets(sample, maker.center_offset)

    table = measure(make())
    statistics = {by: {n: table.statistics(m) for n, m in groups.items()} for by, groups in table.groups().items()}
    if json_file is not None:
        data = {"frames": len(source), "frames_without_scale": unaligned, "labels_3d": labelled, **finite(statistics)}
        write_atomic(json_file, json.dumps(data, indent=1, allow_nan=False) + "\n")
    console = output_console()
    console.width = max(console.width, TABLE_WIDTH)  # else a pipe's 80 columns cut the headings short
    for by, groups in statistics.items():
        console.print(_table(by, groups, labelled))
    if maker.depth_kind == "relative":
        console.print(f"{unaligned} of {len(source)} frames could not be given a scale and have no targets")
    if not labelled:
        console.print("no 3D labels: errors cannot be measured; distance is f H / h2d + e")


def _has_3d(path: Path) -> bool:
    """Whether every line of a label file has KITTI's columns, of which the 3D ones may still say unknown."""
    lines = read_text(path, kind="label file").splitlines()
    return all(len(words) >= LABEL_COLUMNS for line in lines if (words := line.split()))


def _table(by: str, groups: dict[str, dict[str, float]], labelled: bool) -> Table:
    title = f"Pseudo-targets by {by}"
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for name in (by, "boxes", "depth\nshare %", "yaw\nshare %", "q_yaw"):
        table.add_column(name, justify="left" if name == by else "right")
    errors = ["depth %\nbias", "\nmedian", "\np90", "yaw, deg\nmedian", "\np90", "\nfolded", "gross\n%", "cos 2e"]
    for name in errors if labelled else []:
        table.add_column(name, justify="right")
    for name, of in groups.items():
        cells = [f"{of['boxes']:.0f}", _number(100 * of["with_depth"], 0), _number(100 * of["with_yaw"], 0)]
        cells.append(_number(of["yaw_confidence"], 2))
        if labelled:
            cells += [_number(100 * of[f"depth_{key}"], 1) for key in ("bias", "median", "p90")]
            cells += [_number(of[f"yaw_{key}"], 1) for key in ("median", "p90", "folded_median")]
            cells += [_number(100 * of["yaw_gross"], 0), _number(of["yaw_cosine"], 2)]
        table.add_row(name, *cells)
    return table


def _number(value: float, digits: int) -> str:
    return "-" if math.isnan(value) else f"{value:.{digits}f}"
