"""How the time of evaluation, rendering and labelling grows: `skd_core bench --scaling`. The network's growth is in
:mod:`skd_core.benchmark_machine`.

All inputs are made up on the spot. One core, wall clock; the sizes of a curve take turns, so a busy machine slows all
of them. [ours]
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from tqdm import tqdm

from skd_core.benchmark import objects_of_frame, random_footprints
from skd_core.benchmark_machine import seconds
from skd_core.benchmark_report import describe_machine
from skd_core.boxes import Boxes2D
from skd_core.data.kitti import KittiObjects
from skd_core.data.sample import Sample
from skd_core.evaluation.kitti import evaluate
from skd_core.files import check_outputs, write_atomic
from skd_core.iou import bev_iou
from skd_core.supervision.label_rules import LabelRules
from skd_core.supervision.pseudo import pseudo_targets
from skd_core.supervision.tiles import suppress
from skd_core.synthetic import SynthConfig, render_frame
from skd_core.synthetic.render import generator, render_scene, still

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Work = Callable[[], object]


@dataclass(frozen=True)
class Curve:
    """One thing that is measured at growing sizes.

    Attributes:
        over: what grows, a plural noun.
        sizes: ascending.
        prepare: size -> the work to be timed.
    """

    over: str
    sizes: tuple[int, ...]
    prepare: Callable[[int], Work]

    def measure(self, rounds: int) -> dict[str, Any]:
        """Median, minimum and maximum in ms at each size, and the exponent of the growth between the last two."""
        works = [self.prepare(size) for size in self.sizes]
        for work in works:
            work()  # compiled, and in the caches
        times = [[seconds(work) for work in works] for _ in range(rounds)]
        at_size = [[1e3 * value for value in values] for values in zip(*times, strict=True)]
        median = [statistics.median(values) for values in at_size]
        growth = math.log(median[-1] / median[-2]) / math.log(self.sizes[-1] / self.sizes[-2])
        return {
            "over": self.over,
            "sizes": list(self.sizes),
            "median_ms": median,
            "min_ms": [min(values) for values in at_size],
            "max_ms": [max(values) for values in at_size],
            "growth": growth,
        }


def curves(largest: float = 1.0) -> dict[str, Curve]:
    """What is measured, by name.

    Args:
        largest: share of the largest sizes, 0 to 1; smaller ones make it quicker.
    """

    def sizes(*full: int) -> tuple[int, ...]:
        return tuple(max(round(size * largest), n + 1) for n, size in enumerate(full))

    return {
        "KITTI evaluation, 12 objects a frame": Curve("frames", sizes(200, 400, 800, 1600), _evaluation_of_frames),
        "KITTI evaluation, 100 frames": Curve("objects a frame", sizes(12, 25, 50, 100), _evaluation_of_objects),
        "IoU of footprints": Curve("pairs", sizes(1000, 10_000, 100_000, 1_000_000), _overlaps),
        "renderer, three frames": Curve("pixels", sizes(61_440, 122_880, 245_760, 491_520), _rendering_of_pixels),
        "renderer, 640x192": Curve("objects", sizes(25, 50, 100, 200), _rendering_of_objects),
        "pseudo-targets, 1242x375": Curve("objects", sizes(5, 10, 20, 40), _targets),
        "autolabel's rules": Curve("boxes", sizes(25, 50, 100, 200), _rules),
    }


def _evaluation_of_frames(count: int) -> Work:
    rng = np.random.default_rng(0)
    return _evaluation([objects_of_frame(rng) for _ in range(count)])


def _evaluation_of_objects(count: int) -> Work:
    rng = np.random.default_rng(0)
    return _evaluation([objects_of_frame(rng, count - count // 3, count // 3) for _ in range(100)])


def _evaluation(frames: Sequence[tuple[KittiObjects, KittiObjects]]) -> Work:
    return partial(evaluate, [labels for labels, _ in frames], [results for _, results in frames])


def _overlaps(count: int) -> Work:
    return partial(bev_iou, *random_footprints(count), aligned=True)


def _rendering_of_pixels(count: int) -> Work:
    height = max(round(math.sqrt(count * 192 / 640)), 32)
    config = SynthConfig(max(round(count / height), 64), height)
    return lambda: [render_frame(config, 2, frame) for frame in range(3)]


def _rendering_of_objects(count: int) -> Work:
    """Things near the camera first; a scene that has too few shows its own again, in the same places."""
    config, scene = SynthConfig(), still(SynthConfig(), 2, 0)
    near = sorted(scene.things, key=lambda thing: abs(thing.at(0.0)[0] - scene.ego[0]))
    crowded = replace(scene, things=[near[i % len(near)] for i in range(count)])
    return lambda: render_scene(config, crowded, generator(2, count))


def _targets(count: int) -> Work:
    frame = render_frame(SynthConfig(1242, 375), 1, 0)
    chosen = [i % len(frame.boxes2d) for i in range(count)]
    image = torch.from_numpy(frame.image).permute(2, 0, 1).contiguous()
    boxes, depth = frame.boxes2d.to(torch.float32)[chosen], torch.from_numpy(frame.depth).float()
    sample = Sample("0", image, frame.camera, boxes, Boxes2D.empty(), depth)
    return partial(pseudo_targets, sample)


def _rules(count: int) -> Work:
    """Suppression and label rules on the boxes of all windows of one image."""
    random = torch.Generator().manual_seed(0)
    corner = torch.rand(count, 2, generator=random) * torch.tensor([1100.0, 300.0])
    side = 20 + 100 * torch.rand(count, 2, generator=random)
    labels = tuple(("Car", "Pedestrian", "Cyclist")[i % 3] for i in range(count))
    boxes = Boxes2D(torch.cat([corner, corner + side], 1), labels, torch.rand(count, generator=random))
    return lambda: LabelRules().apply(suppress(boxes))


# -- the command -------------------------------------------------------------------------------------------------------
def report_scaling(rounds: int, largest: float, json_file: Path | None = None, plot: Path | None = None) -> None:
    """Measure, print, and write the files that are named.

    Raises:
        UserError: a file cannot be written.
    """
    check_outputs([json_file, plot])  # now, not after minutes of measuring; a missing matplotlib too
    if plot is not None:
        import matplotlib  # noqa: F401
    machine, threads = describe_machine(torch.device("cpu")), torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        chosen = curves(largest)
        found = {name: chosen[name].measure(rounds) for name in tqdm(chosen, unit="part", dynamic_ncols=True)}
    finally:
        torch.set_num_threads(threads)
    result = {"machine": machine | {"threads": 1}, "rounds": rounds, "scaling": found}
    if json_file is not None:
        write_atomic(json_file, json.dumps(result, indent=1, allow_nan=False) + "\n")
    if plot is not None:
        from skd_core.evaluation.plots import write_figure

        write_figure(plot, draw(found))
    print(f"{machine['cpu']}, 1 thread, medians of {rounds} in ms", "", *table(found), sep="\n")


def table(found: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Markdown lines of what was measured."""
    rows = ["| | over | size: ms | growth |", "|---|---|---|---|"]
    for name, curve in found.items():
        times = ", ".join(f"{n}: {ms:.3g}" for n, ms in zip(curve["sizes"], curve["median_ms"], strict=True))
        rows.append(f"| {name} | {curve['over']} | {times} | {curve['growth']:.2f} |")
    return rows


def draw(found: Mapping[str, Mapping[str, Any]]) -> Figure:
    """One panel a curve, both axes logarithmic; linear growth dashed."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter

    columns = 4
    rows = -(-len(found) // columns)
    figure = Figure(figsize=(3.2 * columns, 2.7 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).flat
    for axes in panels:
        axes.set_visible(False)
    for axes, (name, curve) in zip(figure.axes, found.items(), strict=False):
        sizes, times = np.array(curve["sizes"]), np.array(curve["median_ms"])
        axes.set_visible(True)
        axes.fill_between(sizes, curve["min_ms"], curve["max_ms"], alpha=0.2)
        axes.plot(sizes, times, marker="o")
        axes.plot(sizes, times[-1] * sizes / sizes[-1], color="grey", linestyle="--", linewidth=1)
        axes.set(xscale="log", yscale="log", xlabel=curve["over"], ylabel="ms")
        axes.set_xticks(sizes, [f"{n:,}" for n in sizes], fontsize=7)
        axes.xaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.set_title(f"{name}\nexponent {curve['growth']:.2f}", fontsize=9)
        axes.grid(alpha=0.3)
    return figure
