"""The report's figures: small panels for the page, and whole ones for papers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from experiments.studies.canvas import new_figure
from experiments.sweeps.report.breakdown import Fall
from experiments.sweeps.report.colours import Style
from experiments.sweeps.report.curves import Panel
from experiments.sweeps.report.heat import HeatMap
from experiments.sweeps.report.leaderboard import Entry
from experiments.sweeps.report.names import wrapped
from experiments.sweeps.report.tradeoff import Point

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_BLUE, _GREY, _BLACK = "#0072B2", "#767676", "#1A1A1A"
_WIDTH, _HEIGHT = 4.4, 2.9
_COLUMNS = 3
_LINE = 0.24
# Inches: a panel, panels beside each other, a line of text.


# --- curves ---------------------------------------------------------------------------------------


def curve_panel(panel: Panel, styles: Mapping[str, Style]) -> Figure:
    """One panel, small enough for a phone; its title and legend are the page's."""
    figure = new_figure(_WIDTH, _HEIGHT)
    # All panels have the same labels: nothing to be measured, and axes that line up.
    figure.set_layout_engine(None)
    figure.subplots_adjust(left=0.18, right=0.97, bottom=0.17, top=0.97)
    _draw_curves(figure.subplots(), panel, styles)
    return figure


def curve_sheet(panels: Sequence[Panel], styles: Mapping[str, Style]) -> Figure:
    """All panels of a scenario with one legend."""
    from matplotlib.lines import Line2D

    columns = min(_COLUMNS, len(panels))
    rows = math.ceil(len(panels) / columns)
    names = [name for name in styles if any(name == ln.defence for p in panels for ln in p.lines)]
    width = max(_WIDTH * columns, 7.0)
    figure = new_figure(width, (_HEIGHT + 0.3) * rows + _LINE * len(names))
    places = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes, panel in zip(places, panels, strict=False):
        _draw_curves(axes, panel, styles)
        axes.set_title(wrapped(panel.attack, 48), fontsize=10, parse_math=False)
    for axes in places[len(panels) :]:
        axes.set_axis_off()
    legend = figure.legend(
        handles=[Line2D([], [], **styles[name].line) for name in names],
        labels=[wrapped(name, int(12 * width)) for name in names],
        loc="outside lower center",
        handlelength=3,
        frameon=False,
    )
    for text in legend.get_texts():
        text.set_parse_math(False)
    return figure


def _draw_curves(axes: Axes, panel: Panel, styles: Mapping[str, Style]) -> None:
    from matplotlib.ticker import MaxNLocator

    # The best on top.
    for line in sorted(panel.lines, key=lambda line: -[*styles].index(line.defence)):
        style = styles[line.defence]
        # A single evaluation is a point, of which a line shows nothing.
        marker = "o" if len(line.rounds) == 1 else None
        axes.plot(line.rounds, line.mean, marker=marker, clip_on=marker is None, **style.line)
        if style.dash or style.width > 1:
            axes.fill_between(
                line.rounds, line.low, line.high, color=style.colour, alpha=0.15, linewidth=0
            )
    last = max(line.rounds[-1] for line in panel.lines)
    axes.set(xlim=(0, last), ylim=(0, 1), xlabel="round", ylabel="validation accuracy")
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    _percent(axes.yaxis)
    _plain(axes)


# --- the leaderboard, the trade-off, the breakdown ------------------------------------------------


def leaderboard_chart(entries: Sequence[Entry]) -> Figure:
    """Worst cases with their intervals, the best on top."""
    shown = [(entry, entry.worst.test) for entry in entries if entry.worst is not None]
    figure = new_figure(7.0, 1.0 + 0.34 * len(shown))
    axes = figure.subplots()
    for place, (entry, test) in enumerate(shown):
        colour = _BLACK if entry.rank is not None else _GREY
        error = 0.0 if test.half is None else test.half
        axes.errorbar(test.mean, place, xerr=error, fmt="o", color=colour, capsize=3, markersize=5)
    axes.set(xlim=(0, 1), ylim=(len(shown) - 0.5, -0.5), xlabel="worst-case test accuracy")
    _names(axes, [entry.defence for entry, _ in shown])
    _percent(axes.xaxis)
    _plain(axes)
    return figure


def tradeoff_chart(points: Sequence[Point]) -> Figure:
    """Worst case against time, the points numbered as in the leaderboard, the front as a line."""
    from matplotlib.ticker import LogLocator, NullLocator

    figure = new_figure(_WIDTH, 3.2)
    axes = figure.subplots()
    front = sorted((p.seconds, p.worst.mean) for p in points if p.front)
    axes.step(
        [1e3 * seconds for seconds, _ in front],
        [mean for _, mean in front],
        where="post",
        color=_BLUE,
        linewidth=1.2,
        zorder=1,
    )
    for point in points:
        colour = _BLUE if point.front else _GREY
        place = (1e3 * point.seconds, point.worst.mean)
        axes.errorbar(
            place[0],
            place[1],
            yerr=point.worst.half or 0.0,
            fmt="o" if point.front else "s",
            color=colour,
            markersize=6,
            markerfacecolor=colour if point.front else "white",
            elinewidth=0.8,
        )
        axes.annotate(
            str(point.rank), place, (6, 5), textcoords="offset points", fontsize=9, color=_BLACK
        )
    axes.set(xscale="log", ylim=(0, 1), xlabel="aggregation, ms a round (log)")
    axes.set_ylabel("worst-case test accuracy")
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.xaxis.set_minor_locator(NullLocator())
    times = [1e3 * point.seconds for point in points]
    axes.set_xlim(min(times) / 1.6, max(times) * 1.6)
    _percent(axes.yaxis)
    _plain(axes)
    return figure


def breakdown_chart(found: Sequence[Fall]) -> Figure:
    """Bars to the smallest f at which a defence falls, a mark an attack; arrows lie beyond."""
    figure = new_figure(_WIDTH, 1.0 + 0.42 * len(found))
    axes = figure.subplots()
    most = found[0].most
    for place, fall in enumerate(found):
        first = most + 1 if fall.first is None else fall.first
        axes.barh(place, first, height=0.5, color="#C9DCE8", edgecolor="none")
        seen: dict[int, int] = {}
        for _, f in fall.per_attack:
            at = most + 1 if f is None else f
            seen[at] = seen.get(at, 0) + 1
        for at, count in seen.items():
            marker = ">" if at > most else "o"
            axes.plot(at, place, marker, color=_BLUE, markersize=6, clip_on=False, zorder=3)
            if count > 1:
                axes.annotate(
                    f"×{count}", (at, place), (6, 4), textcoords="offset points", fontsize=8
                )
    axes.set(xlim=(0, most + 1.5), ylim=(len(found) - 0.5, -0.5), xlabel="f at which it falls")
    step = max(1, math.ceil(most / 10))
    ticks = [*range(0, most + 1, step)]
    axes.set_xticks([*ticks, most + 1], [*map(str, ticks), f"> {most}"])
    _names(axes, [fall.defence for fall in found])
    _plain(axes)
    return figure


# --- heat maps ------------------------------------------------------------------------------------


def heat_chart(heat: HeatMap) -> Figure:
    """The table as an image."""
    from matplotlib.patches import Rectangle

    names = [wrapped(name, 36) for name, _ in heat.rows]
    columns = [wrapped(column, 16) for column in heat.columns]
    tall = max((column.count("\n") + 1 for column in columns), default=1)
    figure = new_figure(3.2 + 1.0 * len(columns), 0.8 + 0.17 * tall + 0.42 * len(names))
    axes = figure.subplots()
    for y, (_, cells) in enumerate(heat.rows):
        for x, cell in enumerate(cells):
            if cell is None:
                continue
            box = Rectangle((x - 0.5, y - 0.5), 1, 1, facecolor=cell.background, edgecolor="white")
            axes.add_patch(box)
            text = cell.text if cell.whole or cell.share is None else f"{cell.text}*"
            axes.text(x, y, text, ha="center", va="center", color=cell.ink, fontsize=9)
    axes.set(xlim=(-0.5, len(columns) - 0.5), ylim=(len(names) - 0.5, -0.5))
    axes.set_title(wrapped(heat.title, 70), fontsize=10, parse_math=False)
    axes.set_ylabel(heat.down, fontsize=8, color=_GREY)
    axes.xaxis.tick_top()
    axes.set_xticks(range(len(columns)), columns, fontsize=8, parse_math=False)
    axes.set_yticks(range(len(names)), names, fontsize=8, parse_math=False)
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    return figure


# --- what they share ------------------------------------------------------------------------------


def _names(axes: Axes, names: Sequence[str]) -> None:
    axes.set_yticks(
        range(len(names)), [wrapped(name, 34) for name in names], fontsize=8, parse_math=False
    )


def _percent(axis: Any) -> None:
    axis.set_major_formatter(lambda value, _: f"{100 * value:.0f} %")


def _plain(axes: Axes) -> None:
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
