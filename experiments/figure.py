"""The figure of a finished run: accuracy, the estimate's error, the Byzantine rows' weight."""

from __future__ import annotations

import math
import os
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.config import RunConfig
from experiments.metrics import Metrics
from experiments.report import Results, untrained

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe & Ito's, which colour-blind readers tell apart, without the yellow that white swallows.
_COLOURS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
# When the colours are used up. None is dotted: that is the training without the attack.
_DASHES: tuple[Any, ...] = ("-", (0, (4, 1.5)), (0, (6, 1.5, 1, 1.5)), (0, (10, 3)), (0, (2, 2)))

_WIDTH = 13.0
_PANELS = 4.0
_LINE = 0.21
# Inches: of the figure, the height of its panels, the height of a line of text.
_TITLE = 110
_LABEL = 130
_NOTE = 48
# Characters a line.

_SMALL = 1e-2
_LARGE = 1e4
# Below, an estimate is the honest mean; above, it has nothing to do with it.
_ROUNDING = 1e-11
# Below, not even small differences are worth a look.


@dataclass(frozen=True, kw_only=True)
class _ErrorScale:
    """Limits and labelled ticks of the logarithmic axis; what lies beyond is drawn at its end."""

    bottom: float
    top: float
    ticks: Mapping[float, str]


def draw(path: Path, config: RunConfig, results: Results) -> None:
    """Write :func:`compose`'s figure as an image."""
    temporary = path.with_name(f".{path.name}")
    compose(config, results).savefig(temporary, dpi=130, format="png")
    os.replace(temporary, path)


def compose(config: RunConfig, results: Results) -> Figure:
    """Accuracy and estimate error against rounds, and the Byzantine rows' share of the weights.

    A gap in a line is an evaluated round without the value, one that was skipped for example.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    # No pyplot: it would choose a backend for the whole process.
    figure = Figure(figsize=(_WIDTH, _PANELS), layout="constrained")
    FigureCanvasAgg(figure)
    accuracy, error, weight = figure.subplots(1, 3)
    _draw_accuracy(accuracy, config, results)
    _draw_error(error, config, results)
    _draw_weight(weight, config, results)
    for axes in (accuracy, error, weight):
        axes.set(xlabel="round", xlim=(0, config.rounds))
        axes.xaxis.get_major_locator().set_params(integer=True, nbins=6)
        axes.title.set_fontsize(11)
        axes.grid(alpha=0.25)
    lines = _title(figure, config) + _legend(figure, config.defences)
    figure.set_figheight(_PANELS + _LINE * lines)
    return figure


def _draw_accuracy(axes: Axes, config: RunConfig, results: Results) -> None:
    # All dotted lines first: they may lie under others.
    for attacked in (False, True):
        for place, defence in enumerate(config.defences):
            metrics = results[defence, attacked]
            style = _style(place) if attacked else _dotted(place)
            if not untrained(metrics):
                _line(axes, metrics, "accuracy", **style)
    axes.set(
        title=f"{config.split.capitalize()} accuracy (dotted: no attack)",
        ylim=(0, 1),
        ylabel="accuracy",
    )
    _percent(axes)
    idle = [
        f"{defence}{'' if attacked else ' (no attack)'}"
        for (defence, attacked), metrics in results.items()
        if untrained(metrics)
    ]
    if idle:
        _note(axes, f"every round skipped: {', '.join(idle)}", 0.2)


def _draw_error(axes: Axes, config: RunConfig, results: Results) -> None:
    errors = [m.error for d in config.defences for m in results[d, True] if m.error is not None]
    scale = _error_scale(errors)
    for place, defence in enumerate(config.defences):
        limits = (scale.bottom, scale.top)
        _line(axes, results[defence, True], "error", limits=limits, **_style(place))
    axes.set(
        title="Error of m, the estimate the model is stepped by",
        ylabel="‖m − honest mean‖ / ‖honest mean‖",
        yscale="log",
        ylim=(scale.bottom, scale.top),
    )
    axes.set_yticks(list(scale.ticks), list(scale.ticks.values()))
    axes.set_yticks([], minor=True)
    if not errors:
        _note(axes, "not measured in any evaluated round", 0.97)


def _error_scale(errors: Sequence[float]) -> _ErrorScale:
    """Labels 1, 2 and 5 of each decade where the errors span few, else only 1."""
    largest = max(errors, default=1.0)
    # Where all are small, small differences are all there is to see.
    floor = _SMALL if largest > _SMALL else 10.0 ** (_exponent(max(largest, _ROUNDING)) - 1)
    inside = [min(max(e, floor), _LARGE) for e in errors] or [floor, 1.0]
    low, high = min(inside), max(inside)
    steps = (1, 2, 5) if high / low < 50 else (1,)
    marks = [s * 10.0**k for k in range(_exponent(low) - 1, _exponent(high) + 2) for s in steps]
    bottom = floor if low <= floor else max(t for t in marks if t < low)
    top = _LARGE if high >= _LARGE else min(t for t in marks if t > high)
    ticks = {t: f"{t:g}" for t in marks if bottom <= t <= top}
    if min(errors, default=low) < bottom:
        ticks[bottom] = f"≤ {bottom:g}"
    if largest > top:
        ticks[top] = f"≥ {top:g}"
    return _ErrorScale(bottom=bottom, top=top, ticks=ticks)


def _exponent(value: float) -> int:
    return math.floor(math.log10(value))


def _draw_weight(axes: Axes, config: RunConfig, results: Results) -> None:
    share = config.byzantine / config.workers
    axes.axhline(share, color="grey", linewidth=0.8, linestyle="--")
    for place, defence in enumerate(config.defences):
        _line(axes, results[defence, True], "byzantine_weight", **_style(place))
    weights = [m.byzantine_weight or 0.0 for d in config.defences for m in results[d, True]]
    top = min(1.0, max(2 * share, 1.1 * max(weights), 0.05))
    axes.set(
        title="Weight of the Byzantine rows",
        ylabel="Σ|w| of the Byzantine rows / Σ|w| of all rows",
        ylim=(0, top),
    )
    _percent(axes)
    _note(axes, "their share of the workers", share / top + 0.015)
    without = [
        defence
        for defence in config.defences
        for metrics in [results[defence, True]]
        if not untrained(metrics) and all(m.byzantine_weight is None for m in metrics)
    ]
    if without:
        _note(axes, f"no weights: {', '.join(without)}", 0.97)


def _line(
    axes: Axes,
    metrics: Sequence[Metrics],
    name: str,
    *,
    limits: tuple[float, float] = (-math.inf, math.inf),
    **style: Any,
) -> None:
    """A line with gaps where there is no value; points where there are gaps on both sides."""
    found = [getattr(m, name) for m in metrics]
    values = [math.nan if v is None else min(max(v, limits[0]), limits[1]) for v in found]
    padded = [None, *found, None]
    alone = [i for i, v in enumerate(found) if v is not None and padded[i] is padded[i + 2] is None]
    if alone:
        style |= {"marker": "o", "markersize": 5, "markevery": alone}
    # Unclipped: a line along the border is as thick as any other.
    axes.plot([m.round for m in metrics], values, clip_on=False, **style)


def _style(place: int) -> dict[str, Any]:
    return {
        "color": _COLOURS[place % len(_COLOURS)],
        "linestyle": _DASHES[place // len(_COLOURS) % len(_DASHES)],
        "linewidth": 1.6,
        "zorder": 3,
    }


def _dotted(place: int) -> dict[str, Any]:
    """The dots of lines that coincide are shifted, so that none hides all others."""
    gap = 3 + 2 * (place // len(_COLOURS))
    return {
        "color": _COLOURS[place % len(_COLOURS)],
        "linestyle": (place, (1, gap)),
        "linewidth": 1.4,
        "zorder": 2.5,
        "markerfacecolor": "white",
    }


def _percent(axes: Axes) -> None:
    axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.3g}%")


def _note(axes: Axes, text: str, height: float) -> None:
    """Small text at the left of the panel, towards its middle from ``height``."""
    wrapped = textwrap.fill(text, _NOTE, max_lines=4, placeholder=" …")
    above = height > 0.9
    axes.text(
        0.02,
        min(height, 0.97),
        wrapped,
        transform=axes.transAxes,
        verticalalignment="top" if above else "bottom",
        fontsize=8,
        color="#505050",
        parse_math=False,
        bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1.0},
        zorder=4,
    )


def _title(figure: Figure, config: RunConfig) -> int:
    """Lines that the title has."""
    text = textwrap.fill(
        f"{config.dataset}, {config.partition}, seed {config.seed}; "
        f"{config.byzantine} of {config.workers} workers Byzantine: {config.attack_label}",
        _TITLE,
        max_lines=5,
        placeholder=" …",
    )
    figure.suptitle(text, parse_math=False)  # a path may hold dollar signs
    return text.count("\n") + 1


def _legend(figure: Figure, defences: Sequence[str]) -> int:
    """Lines that the legend has."""
    from matplotlib.lines import Line2D

    labels = [textwrap.fill(d, _LABEL, max_lines=3, placeholder=" …") for d in defences]
    columns = _columns([max(map(len, label.split("\n"))) for label in labels])
    legend = figure.legend(
        handles=[Line2D([], [], **_style(place)) for place in range(len(labels))],
        labels=labels,
        loc="outside lower center",
        ncols=columns,
        handlelength=3,
        frameon=False,
    )
    for text in legend.get_texts():
        text.set_parse_math(False)
    return math.ceil(len(labels) / columns) * max(label.count("\n") + 1 for label in labels)


def _columns(lengths: Sequence[int]) -> int:
    """As many columns as fit for labels of so many characters."""
    for columns in range(min(5, len(lengths)), 1, -1):
        rows = math.ceil(len(lengths) / columns)
        widest = [max(lengths[i : i + rows]) for i in range(0, len(lengths), rows)]
        if len(widest) == columns and sum(0.85 + 0.083 * w for w in widest) < _WIDTH:
            return columns
    return 1
