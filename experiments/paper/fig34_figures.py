"""Figures 3 and 4, drawn: the curves at one τ, and what tuning τ makes of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from experiments.paper.fig34_numbers import METHODS, curve, level, sweep
from experiments.paper.style import STYLES
from experiments.studies.canvas import new_figure
from experiments.studies.study import Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ERROR = "‖m - ḡ‖ / ‖ḡ‖"


def draw(
    rows: Sequence[Row],
    *,
    name: str,
    title: str,
    caption: str,
    sizes: Sequence[int],
    tau: float,
) -> Mapping[str, Figure]:
    """One column a batch size: curves above, below each method's τ swept."""
    from matplotlib.ticker import NullFormatter

    figure = new_figure(4.2 * len(sizes), 7.6)
    axes = figure.subplots(2, len(sizes), squeeze=False)
    for column, size in enumerate(sizes):
        for method in METHODS:
            _curve(axes[0, column], rows, method, size, tau)
            _sweep(axes[1, column], rows, method, size)
        axes[0, column].set(
            title=f"batch size {size}, τ = {tau}", xlabel="iteration", xscale="log", yscale="log"
        )
        axes[1, column].set(
            title=f"batch size {size}, every τ that reaches {level(rows, size):.2g}",
            xlabel="plateau: mean error of the last fifth",
            xscale="log",
            yscale="log",
        )
        axes[1, column].margins(x=0.12)
        for line in axes[:, column]:
            line.grid(alpha=0.25)
            line.xaxis.set_minor_formatter(NullFormatter())
    axes[0, 0].set_ylabel(ERROR)
    axes[1, 0].set_ylabel("iterations to half a batch's noise")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)
    figure.suptitle(f"{title}\n{caption}", fontsize=9)
    return {name: figure}


def _curve(axes: Axes, rows: Sequence[Row], method: str, size: int, tau: float) -> None:
    points = [(t, e) for t, e in zip(*curve(rows, method, size, tau), strict=True) if t > 0]
    axes.plot(*zip(*points, strict=True), label=method, **STYLES[method])


def _sweep(axes: Axes, rows: Sequence[Row], method: str, size: int) -> None:
    points = [p for p in sweep(rows, method, size) if p.reached is not None]
    if not points:
        return
    x, y = [p.plateau for p in points], [p.reached or 0 for p in points]
    axes.plot(x, y, marker="o", markersize=4, **STYLES[method])
    for point in points:
        axes.annotate(
            f"{point.tau:.2g}",
            (point.plateau, point.reached or 0),
            xytext=(3, 3),
            textcoords="offset points",
            fontsize=6,
            color=STYLES[method]["color"],
        )
