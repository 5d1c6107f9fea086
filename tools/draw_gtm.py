"""Draw GTM's course in a training run, from its metrics.jsonl: `tools/draw_gtm.py RUN [PNG]`."""

from __future__ import annotations

import sys
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from skd_core.errors import UserError
from skd_core.training.modulation import ERROR_NAMES
from skd_core.training.records import read_run

OUT = Path(__file__).resolve().parents[1] / "docs" / "gtm.png"
TITLES = dict(zip(ERROR_NAMES, ("E1: depth", "E2: 1 - IoU(projection, 2D box)", "E3: yaw"), strict=True))


def draw(run: Path) -> Figure:
    """Top: the errors of both networks; bottom: the factors that GTM derives from them; one point per report."""
    records = [record for record in read_run(run) if "gtm/rho" in record]
    if not records:
        raise SystemExit(f"{run}: no GTM in this run")
    epochs = [record["epoch"] for record in records]
    figure = Figure((8.4, 4.2), layout="constrained")
    panels = figure.subplots(2, 3, sharex=True)
    for axes, (name, title) in zip(panels[0], TITLES.items(), strict=True):
        for who, label, colour in (("teacher", "DSN", "#d98324"), ("student", "MDN", "#2f74b5")):
            points = [record.get(f"gtm/{who}_{name}") for record in records]
            axes.plot(epochs, points, color=colour, label=label, marker=".", linewidth=1.4)
        axes.set_title(title, fontsize=9)
    panels[0][0].legend(fontsize=8)
    factors = (
        ("rho", "rho: above 1 the student lags"),
        ("k_teacher", "k_D, on DSN's gradient into F_G"),
        ("k_feedback", "k_fb, of L_rev"),
    )
    for axes, (name, title) in zip(panels[1], factors, strict=True):
        axes.plot(epochs, [record[f"gtm/{name}"] for record in records], color="#555555", marker=".", linewidth=1.4)
        axes.set_title(title, fontsize=9)
        axes.set_xlabel("epoch", fontsize=8)
    for axes in (*panels[0], *panels[1][1:]):
        axes.set_ylim(0, 1.1 * axes.get_ylim()[1])
    panels[1][0].axhline(1, color="#b0304a", linewidth=0.8, linestyle="--")
    panels[1][0].xaxis.set_major_locator(MaxNLocator(integer=True))
    for axes in panels.flat:
        axes.tick_params(labelsize=8)
        axes.grid(alpha=0.3)
    return figure


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        raise SystemExit(__doc__)
    try:
        figure = draw(Path(sys.argv[1]))
    except UserError as error:
        raise SystemExit(str(error)) from None
    figure.savefig(sys.argv[2] if len(sys.argv) == 3 else OUT, dpi=150, metadata={"Software": None})
