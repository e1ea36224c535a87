"""Figure 2 and its extensions, drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from experiments.paper.streams import UPDATES
from experiments.paper.style import STYLES
from experiments.studies.canvas import new_figure
from experiments.studies.study import Row

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ERROR = "‖m - ĝ‖ / ‖ĝ‖"
CURVES_AT = 1.0
"""1/α of the curves over the iterations."""


def draw(iterations: int, tau: float, rows: Sequence[Row]) -> Mapping[str, Figure]:
    """The paper's two panels, and the same axes for what it leaves out."""
    final = [row for row in rows if row.get("iteration") == iterations]
    main = new_figure(12, 5.2)
    left, right = main.subplots(1, 2)
    for method in STYLES:
        _against_alpha(left, final, "paper", method, band=method in UPDATES)
    predicted = _points(final, "prediction", "momentum")
    left.plot(*predicted, linestyle="none", marker="x", color="black", label="momentum, predicted")
    _axes(left, f"after {iterations} iterations, τ = {tau}; bands: least to largest")
    for method in UPDATES:
        _curve(right, rows, method)
    _transient(right, rows, iterations)
    right.set(
        title=f"1/α = {CURVES_AT:g}", xlabel="iteration", ylabel=ERROR, xscale="log", yscale="log"
    )
    right.grid(alpha=0.25)
    main.suptitle("dotted lines run under the solid ones of their colour", fontsize=9)
    _legend(main, left, right)

    beyond = new_figure(13, 8)
    panels = beyond.subplots(2, 3).flatten()
    for axes, setting in zip(
        panels, ("elliptical noise", "d=100", "first sample as start"), strict=False
    ):
        for method in STYLES:
            _against_alpha(axes, final, setting, method, band=method in UPDATES)
        _axes(axes, setting)
    for axes, setting, title in (
        (panels[3], "decreasing tau", "decreasing τ, averaged (thin: fixed τ)"),
        (panels[4], "adaptive tau", "adaptive τ (thin: fixed τ)"),
    ):
        for method in ("momentum", "VClip", "CClip"):
            _against_alpha(axes, final, setting, method, band=True)
            _against_alpha(axes, final, "paper", method, band=False, linewidth=0.7)
        _axes(axes, title)
    _minibatches(panels[5], final)
    _legend(beyond, *panels)
    return {"fig2": main, "extensions": beyond}


def _points(rows: Sequence[Row], setting: str, method: str) -> tuple[list[float], list[float]]:
    own = [row for row in rows if (row["setting"], row["method"]) == (setting, method)]
    return [row["inverse_alpha"] for row in own], [row["error"] for row in own]


def _against_alpha(
    axes: Axes, rows: Sequence[Row], setting: str, method: str, *, band: bool, **style: float
) -> None:
    own = [row for row in rows if (row["setting"], row["method"]) == (setting, method)]
    if not own:
        return
    x = [row["inverse_alpha"] for row in own]
    label = None if style else method
    axes.plot(x, [row["error"] for row in own], label=label, **{**STYLES[method], **style})
    if band:
        low, high = ([row[edge] for row in own] for edge in ("least", "largest"))
        axes.fill_between(x, low, high, color=STYLES[method]["color"], alpha=0.12, linewidth=0)


def _axes(axes: Axes, title: str) -> None:
    axes.set(title=title, xlabel="1/α", ylabel=ERROR, yscale="log")
    axes.axhline(1, color="black", linewidth=0.5)
    low, high = axes.get_ylim()
    axes.set_ylim(max(low, 1e-3), min(high, 1e3))  # beyond, an estimate is as good as none
    axes.grid(alpha=0.25)


def _curve(axes: Axes, rows: Sequence[Row], method: str) -> None:
    own = [
        row
        for row in rows
        if (row["setting"], row["method"]) == ("paper", method)
        and abs(row["inverse_alpha"] - CURVES_AT) < 1e-9
        and row["iteration"] > 0
    ]
    t = [row["iteration"] for row in own]
    axes.plot(t, [row["error"] for row in own], label=method, **STYLES[method])


def _transient(axes: Axes, rows: Sequence[Row], iterations: int) -> None:
    """VClip's predicted way from m₀ = 0."""
    for row in rows:
        if "rate" in row and abs(row["inverse_alpha"] - CURVES_AT) < 1e-9:
            t = np.geomspace(1, iterations, 50)
            label = "VClip's transient, predicted"
            axes.plot(t, np.exp(-row["rate"] * t), color="black", linewidth=0.8, label=label)


def _minibatches(axes: Axes, rows: Sequence[Row]) -> None:
    """The heaviest tails: error against the batch size, for each way to fuse a batch."""
    own = [row for row in rows if row["setting"].startswith("minibatches")]
    heavy = max(row["inverse_alpha"] for row in own)
    fusions = {
        "batch mean": ("v", "of the batch mean"),
        "averaged": ("o", "averaged over the batch"),
        "batch": ("s", "as one exact prox"),
    }
    for method in ("momentum", "VClip", "CClip"):
        for fusion, (marker, words) in fusions.items():
            cell = [
                row
                for row in own
                if row["method"] == method
                and row["setting"] == f"minibatches, {fusion}"
                and row["inverse_alpha"] == heavy
            ]
            if cell:
                x, y = [row["batch"] for row in cell], [row["error"] for row in cell]
                # The last two fall together: one is seen around the other.
                size = 11 if fusion == "batch" else 6
                style = {**STYLES[method], "marker": marker, "markersize": size}
                style["fillstyle"] = "none" if fusion == "batch" else "full"
                axes.plot(x, y, label=f"{method} {words}", **style)
    axes.set(
        title=f"minibatches, 1/α = {heavy:.2f}",
        xlabel="batch size b",
        ylabel=ERROR,
        xscale="log",
        yscale="log",
    )
    axes.grid(alpha=0.25)


def _legend(figure: Figure, *panels: Axes) -> None:
    shown: dict[str, Artist] = {}
    for axes in panels:
        handles, labels = axes.get_legend_handles_labels()
        shown |= dict(zip(labels, handles, strict=True))
    figure.legend(
        list(shown.values()),
        list(shown),
        loc="outside lower center",
        ncols=4,
        frameon=False,
        fontsize=8,
    )
