"""Draw docs/architecture.png: the networks, the losses, and what of it runs at inference."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

OUT = Path(__file__).resolve().parents[1] / "docs" / "architecture.png"
INPUT, STUDENT, TEACHER, LOSS, INK = "#e9e9e9", "#cfe3f7", "#fbdfc0", "#f6cdd3", "#222222"
Point = tuple[float, float]


def box(axes: Axes, left: float, bottom: float, width: float, height: float, text: str, colour: str) -> None:
    """A rounded box with a text of one or more lines, in percent of the picture's width."""
    shape = FancyBboxPatch((left, bottom), width, height, boxstyle="round,pad=0,rounding_size=.9", fc=colour, ec=INK)
    shape.set_linewidth(0.7)
    axes.add_patch(shape)
    axes.text(left + width / 2, bottom + height / 2, text, ha="center", va="center", fontsize=7.6, linespacing=1.25)


def arrow(axes: Axes, *points: Point, dashed: bool = False, colour: str = INK) -> None:
    """A line through the points with a head at the last."""
    style = {"color": colour, "lw": 1.0, "ls": "--" if dashed else "-", "shrinkA": 0, "shrinkB": 0}
    for a, b in pairwise(points[:-1]):
        axes.plot([a[0], b[0]], [a[1], b[1]], color=colour, lw=1.0, ls=style["ls"], solid_capstyle="round")
    axes.annotate("", points[-1], points[-2], arrowprops={"arrowstyle": "-|>", "mutation_scale": 8, **style})


def note(axes: Axes, x: float, y: float, text: str, colour: str = "#555555", where: str = "center") -> None:
    """Small text beside what it explains."""
    axes.text(x, y, text, ha=where, va="center", fontsize=6.8, color=colour, linespacing=1.2)


def draw() -> Figure:
    """The whole picture."""
    figure = Figure((8.4, 4.75))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_xlim(0, 100)
    axes.set_ylim(1.75, 58.3)
    axes.axis("off")
    for bottom, height, colour, line, title in (
        (36.2, 21.6, "#f1f7fd", 55.8, "Inference runs this and nothing else: the student, MDN"),
        (2.25, 31.95, "#fef7ef", 4.3, "Training only: the teacher, DSN, on the same shared features"),
    ):
        band = FancyBboxPatch((0.5, bottom), 99, height, boxstyle="round,pad=0,rounding_size=1", fc=colour, ec="none")
        axes.add_patch(band)
        axes.text(1.8, line, title, fontsize=7.8, va="center", weight="bold")

    # the student
    box(axes, 1.8, 41, 10, 7, "image,\ncamera P", INPUT)
    box(axes, 15, 41, 11, 7, "backbone,\nneck", STUDENT)
    box(axes, 29.5, 41, 9, 7, "$F_G$\nstride 4", STUDENT)
    box(axes, 43, 47.5, 14, 6, "2D heads: heat-\nmap, offset, size", STUDENT)
    box(axes, 61, 41, 10, 7, "RoIAlign,\nrays, class", STUDENT)
    box(axes, 74, 41, 9.5, 7, "3D head", STUDENT)
    box(axes, 86.5, 41, 11.5, 7, "decode:\n3D boxes", STUDENT)
    arrow(axes, (11.8, 44.5), (15, 44.5))
    arrow(axes, (26, 44.5), (29.5, 44.5))
    arrow(axes, (38.5, 43), (61, 43))
    arrow(axes, (38.5, 46), (40.5, 46), (40.5, 50.5), (43, 50.5))
    arrow(axes, (57, 50.5), (66, 50.5), (66, 48))
    note(axes, 66.8, 51.6, "the 2D boxes found (in training\nthose at the labels' centres)", where="left")
    arrow(axes, (71, 44.5), (74, 44.5))
    arrow(axes, (83.5, 44.5), (86.5, 44.5))

    # the teacher
    box(axes, 28, 22.5, 12, 7, "depth head:\n$F_D$, depth $D_p$", TEACHER)
    box(axes, 46, 22.5, 11, 7, "RoIAlign,\nrays, class", TEACHER)
    box(axes, 61, 22.5, 10, 7, "fusion with\nX, Y, Z", TEACHER)
    box(axes, 74, 22.5, 9.5, 7, "3D head", TEACHER)
    box(axes, 86.5, 22.5, 11.5, 7, "decode:\n3D boxes", TEACHER)
    arrow(axes, (34, 41), (34, 29.5))
    note(axes, 33.2, 35.2, "gradient\n$\\times k_D$", "#8a3c00", "right")
    arrow(axes, (40, 26), (46, 26))
    arrow(axes, (36.8, 41), (36.8, 33), (51.5, 33), (51.5, 29.5))
    arrow(axes, (9, 29.5), (9, 31.2), (48.5, 31.2), (48.5, 29.5))
    note(axes, 9.8, 32.4, "RoIs: the labels' own boxes, and MDN's", where="left")
    arrow(axes, (57, 26), (61, 26))
    arrow(axes, (71, 26), (74, 26))
    arrow(axes, (83.5, 26), (86.5, 26))

    # what training is given
    box(axes, 1.8, 22.5, 14, 7, "2D boxes:\nthe only labels", INPUT)
    box(axes, 1.8, 11, 14, 7, "depth map of any\nestimator", INPUT)
    box(axes, 43, 11, 14.5, 7, "pseudo-targets,\nmade once: z, yaw,\npoints", INPUT)

    # losses
    box(axes, 20, 49.9, 9, 4.2, "$L_{2D}$", LOSS)
    arrow(axes, (43, 52), (29, 52), colour="#b0304a")
    box(axes, 28, 12.5, 12, 4.2, "$L_{depth}$", LOSS)
    arrow(axes, (34, 22.5), (34, 16.7), colour="#b0304a")
    arrow(axes, (15.8, 14.5), (28, 14.5))
    arrow(axes, (9, 11), (9, 7.6), (50, 7.6), (50, 11))
    arrow(axes, (9, 22.5), (9, 20), (21, 20), (21, 9.4), (46.5, 9.4), (46.5, 11))
    losses = "$L_{proj} + L_{dim}$: the 2D boxes, class sizes\n$L_z + L_{yaw} + L_{points}$: pseudo-targets"
    box(axes, 67, 10.5, 31, 7.6, losses, LOSS)
    arrow(axes, (57.5, 14.4), (67, 14.4))
    arrow(axes, (94.6, 22.5), (94.6, 18.1), colour="#b0304a")
    box(axes, 84, 32.4, 9.4, 4.2, "$L_{UAD}$", LOSS)
    arrow(axes, (88.7, 29.5), (88.7, 32.4), colour="#b0304a")
    arrow(axes, (88.7, 36.6), (88.7, 41), colour="#b0304a")
    arrow(axes, (95.8, 41), (95.8, 29.5), dashed=True, colour="#b0304a")
    note(axes, 95.2, 38.6, "$k_{fb} L_{rev}$", "#8a3c00", "right")
    note(axes, 66, 36.2, "GTM compares the errors of student and teacher", "#8a3c00")
    note(axes, 66, 34.4, "without 3D labels and sets $k_D$ and $k_{fb}$", "#8a3c00")
    note(
        axes,
        98,
        7.4,
        "the student gets $L_{proj} + L_{dim}$ too (and, with pseudo-targets, $L_{yaw}$ and .3 $L_z$)",
        where="right",
    )
    return figure


if __name__ == "__main__":
    draw().savefig(OUT, dpi=200, metadata={"Software": None})
