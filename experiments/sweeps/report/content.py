"""What a sweep's report says, before it is a page, Markdown or images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from experiments.sweeps.report import charts, heat, tables, words
from experiments.sweeps.report.breakdown import Fall, breakdown_map, falls
from experiments.sweeps.report.cells import STATES, Cell, Sweep
from experiments.sweeps.report.colours import Style, style
from experiments.sweeps.report.curves import Panel, panels
from experiments.sweeps.report.groups import Group, comparable, groups_of, left_out, split
from experiments.sweeps.report.heat import HeatMap
from experiments.sweeps.report.leaderboard import Entry, leaderboard, verdict
from experiments.sweeps.report.scenarios import ordered
from experiments.sweeps.report.tables import Table
from experiments.sweeps.report.tradeoff import Point, tradeoff

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, kw_only=True)
class Content:
    """All of a report.

    Attributes:
        sweep: what it is about.
        groups: all trainings.
        entries: the leaderboard.
        said: what it says, in sentences.
        left_out: scenarios, or attacks in them, that compare no defences.
        styles: of the defences' lines, the best first.
        axes: what varies, and its values.
        constants: what does not, and its value.
        progress: the states of the cells, while some are missing.
        selection: the settings that were chosen.
        so_far: validation accuracies, while nothing is tested.
        attack_maps, scenario_maps, partition_maps: heat maps.
        panels: curves by the label of their scenario.
        falls, breakdown: where each defence falls.
        points: time against robustness.
        published: numbers of a source beside ours.
        measures: beyond accuracy, and ``meanings`` of its columns.
        failed: the cells that failed.
    """

    sweep: Sweep
    groups: Sequence[Group]
    entries: Sequence[Entry]
    said: Sequence[str]
    left_out: Sequence[str]
    styles: Mapping[str, Style]
    axes: Mapping[str, Sequence[str]]
    constants: Mapping[str, str]
    progress: Table | None
    selection: Table | None
    so_far: HeatMap | None
    attack_maps: Sequence[HeatMap]
    scenario_maps: Sequence[HeatMap]
    partition_maps: Sequence[HeatMap]
    panels: Mapping[str, Sequence[Panel]]
    falls: Sequence[Fall]
    breakdown: HeatMap | None
    points: Sequence[Point]
    published: Table | None
    measures: Sequence[Table]
    meanings: Sequence[str]
    failed: Sequence[Cell]

    @property
    def status(self) -> str:
        """How many cells there are in which state."""
        if not self.sweep.cells:
            return "no cell has been run yet"
        counts = {state: self.sweep.count(state) for state in STATES}
        return f"{len(self.sweep.cells)} cells: " + ", ".join(
            f"{count} {state}" for state, count in counts.items() if count
        )

    @property
    def source(self) -> str:
        """Of the published numbers."""
        return str(self.sweep.section("published").get("source") or "published")

    @property
    def known(self) -> bool:
        """Whether anything has a test accuracy."""
        return any(entry.worst is not None for entry in self.entries)

    def figures(self) -> dict[str, Figure]:
        """The images, by name."""
        found: dict[str, Figure] = {}
        if self.known:
            found["leaderboard"] = charts.leaderboard_chart(self.entries)
        maps = [*self.attack_maps, *self.scenario_maps, *self.partition_maps]
        if self.breakdown is not None:
            maps.append(self.breakdown)
        found |= {each.name: charts.heat_chart(each) for each in maps}
        for place, own in enumerate(self.panels.values(), 1):
            name = "curves" if len(self.panels) == 1 else f"curves-{place}"
            found[name] = charts.curve_sheet(own, self.styles)
        if self.falls:
            found["breakdown"] = charts.breakdown_chart(self.falls)
        if self.points:
            found["tradeoff"] = charts.tradeoff_chart(self.points)
        return found


def compose(sweep: Sweep) -> Content:
    """Everything that the report of a sweep says."""
    groups = groups_of(sweep)
    if "defence" in sweep.tuned:
        # What was not chosen is a value that was tried, no defence that is missing.
        chosen = {group.defence for group in groups if group.chosen}
        shown = [group for group in groups if group.defence in chosen]
    else:
        shown = groups
    fair = comparable(shown, finished=not sweep.unfinished)
    entries = leaderboard(fair)
    order = [entry.defence for entry in entries]
    order += [each for each in split(shown, lambda group: group.defence) if each not in order]
    known = any(entry.worst is not None for entry in entries)
    left = left_out(shown, fair)
    fallen = falls(sweep.breakdown)
    return Content(
        sweep=sweep,
        groups=groups,
        entries=entries,
        said=[*verdict(entries), *words.without(left)] if sweep.cells else [],
        left_out=left,
        styles={defence: style(place) for place, defence in enumerate(order)},
        axes=_axes(sweep),
        constants=_constants(sweep),
        progress=_progress(groups) if sweep.unfinished and sweep.cells else None,
        selection=tables.selection(shown),
        so_far=heat.so_far(groups) if groups and not known else None,
        attack_maps=heat.defence_attack(fair, order) if known else (),
        scenario_maps=heat.defence_scenario(fair, order) if known else (),
        partition_maps=heat.f_partition(fair, order) if known else (),
        panels=panels(shown, sweep.curves),
        falls=fallen,
        breakdown=breakdown_map(fallen),
        points=tradeoff(entries, fair),
        published=tables.published(sweep, shown),
        measures=tables.measures(sweep, shown),
        meanings=tables.meanings(sweep, shown),
        failed=[cell for cell in sweep.cells if cell.state == "failed"],
    )


_FOLLOWING = frozenset({"byzantine", "workers"})
# From f, and from whether there is an attack.


def _axes(sweep: Sweep) -> dict[str, list[str]]:
    """What differs between cells; not what only follows from it."""
    cells = sweep.cells
    asked = {*sweep.section("grid"), *sweep.tuned}
    found: dict[str, list[Any]] = {
        "defence": ordered(cell.defence for cell in cells),
        "attack": ordered(cell.attack for cell in cells),
    }
    for name in _names(cells):
        if name in asked or name not in _FOLLOWING:
            # A cell that was refused has no more than what was given.
            values = (cell.config.get(name) for cell in cells)
            found[name] = ordered(each for each in values if each is not None or name in asked)
    return {name: list(map(str, values)) for name, values in found.items() if len(values) > 1}


def _constants(sweep: Sweep) -> dict[str, str]:
    """What is the same in all cells, as far as is told."""
    given = {name: str(value) for name, value in sweep.section("base").items()}
    for name in _names(sweep.cells):
        values = {
            str(cell.config[name]) for cell in sweep.cells if cell.config.get(name) is not None
        }
        if len(values) == 1:
            given[name] = values.pop()
    for name in ("defence", "attack"):
        values = {str(getattr(cell, name)) for cell in sweep.cells}
        if len(values) == 1:
            given[name] = values.pop()
    varied = _axes(sweep)
    return {name: value for name, value in given.items() if name not in varied}


def _names(cells: Sequence[Cell]) -> list[str]:
    found = dict.fromkeys(name for cell in cells for name in cell.config)
    return [name for name in found if name not in ("aggregator", "estimator", "defence", "attack")]


def _progress(groups: Sequence[Group]) -> Table:
    """How far each defence is, and the validation accuracy of what is done."""
    lines = []
    for defence, own in split(groups, lambda group: group.defence).items():
        cells = list({cell.cell: cell for group in own for cell in group.cells}.values())
        counts = [str(sum(cell.state == state for cell in cells)) for state in STATES]
        found = [c.measured["accuracy"] for c in cells if "accuracy" in c.measured]
        lowest = f"{100 * min(found):.1f} to {100 * max(found):.1f}" if found else tables.NONE
        lines.append((defence, *counts, lowest))
    headings = ("defence", *STATES, "validation accuracy so far, %")
    return Table("", headings, tuple(lines))
