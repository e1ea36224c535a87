"""Heat maps: tables of worst cases, a number in every cell and a colour behind it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from experiments.sweeps.report import colours
from experiments.sweeps.report.cells import UNATTACKED
from experiments.sweeps.report.groups import Group, split, worst
from experiments.sweeps.report.leaderboard import percent, where
from experiments.sweeps.report.scenarios import ordered


@dataclass(frozen=True)
class HeatCell:
    """A number in a heat map.

    Attributes:
        text: the number as it is shown; a dash where there is none yet.
        share: of the colour's range; None where there is no number.
        hint: what it is of, in words.
        anchor: where its configurations are; empty where there are none.
        whole: whether nothing that belongs to it is missing.
    """

    text: str
    share: float | None
    hint: str
    anchor: str = ""
    whole: bool = True

    @property
    def background(self) -> str:
        return "#ffffff" if self.share is None else colours.cividis(self.share)

    @property
    def ink(self) -> str:
        return colours.ink(self.background)


@dataclass(frozen=True)
class HeatMap:
    """A table of them.

    Attributes:
        name: of its figure's file, and its place on the page.
        title: what it shows.
        across, down: what columns and rows are.
        columns: their headings.
        rows: headings and cells; None where nothing was asked for.
        key: what the darkest and the lightest colour stand for.
    """

    name: str
    title: str
    across: str
    down: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, tuple[HeatCell | None, ...]], ...]
    key: tuple[str, str] = ("0 %", "100 %")

    @property
    def whole(self) -> bool:
        return all(cell.whole for _, cells in self.rows for cell in cells if cell is not None)


def heat_map(
    name: str,
    title: str,
    groups: Iterable[Group],
    *,
    across: tuple[str, Callable[[Group], str]],
    down: tuple[str, Callable[[Group], str]],
    rows: Sequence[str] = (),
    cell: Callable[[Sequence[Group]], HeatCell] | None = None,
) -> HeatMap:
    """Mean test accuracies; where several groups meet in a cell, the lowest.

    Args:
        name: of its figure's file.
        title: what it shows.
        groups: what it is made of.
        across: what columns are, and a group's.
        down: what rows are, and a group's.
        rows: those to begin with, in this order.
        cell: what to show of the groups that meet in a cell instead.
    """
    groups = list(groups)
    columns = sorted(split(groups, across[1]), key=lambda column: column != UNATTACKED)
    lines = split(groups, down[1])
    order = [row for row in rows if row in lines]
    order += [row for row in lines if row not in order]
    show = cell or _tested

    def shown(row: str, column: str) -> HeatCell | None:
        met = split(lines[row], across[1]).get(column)
        return None if met is None else show(met)

    return HeatMap(
        name,
        title,
        across[0],
        down[0],
        tuple(columns),
        tuple((row, tuple(shown(row, column) for column in columns)) for row in order),
    )


def _tested(groups: Sequence[Group]) -> HeatCell:
    found = worst(groups)
    if found is None:
        failed = all(cell.state == "failed" for group in groups for cell in group.cells)
        why = "all trainings failed" if failed else "no test accuracy yet"
        hint = f"{groups[0].defence} under {where(groups[0])}: {why}"
        return HeatCell("failed" if failed else "–", None, hint, groups[0].anchor, False)
    seeds = "1 seed" if found.test.count == 1 else f"{found.test.count} seeds"
    hint = f"{found.group.defence} under {where(found.group)}: {percent(found.test)} %, {seeds}"
    return HeatCell(
        f"{100 * found.test.mean:.1f}", found.test.mean, hint, found.group.anchor, found.whole
    )


def defence_attack(groups: Sequence[Group], defences: Sequence[str]) -> list[HeatMap]:
    """Defence × attack: the worst over all scenarios, then each scenario alone."""

    def drawn(name: str, title: str, own: Sequence[Group]) -> HeatMap:
        return heat_map(
            name,
            title,
            own,
            across=("attack", lambda group: group.attack),
            down=("defence", lambda group: group.defence),
            rows=defences,
        )

    scenarios = split(groups, lambda group: group.scenario.label)
    alone = len(scenarios) == 1
    title = "Defence × attack" if alone else "Defence × attack, worst scenario of each"
    maps = [drawn("heatmap", title, groups)] if groups else []
    if not alone:
        for place, (label, own) in enumerate(scenarios.items(), 1):
            maps.append(drawn(f"heatmap-{place}", label, own))
    return maps


def defence_scenario(groups: Sequence[Group], defences: Sequence[str]) -> list[HeatMap]:
    """Defence × scenario, worst over attacks; none where there is one scenario."""
    if len({group.scenario for group in groups}) < 2:
        return []
    return [
        heat_map(
            "scenarios",
            "Defence × scenario, worst attack of each",
            groups,
            across=("scenario", lambda group: group.scenario.label),
            down=("defence", lambda group: group.defence),
            rows=defences,
        )
    ]


def f_partition(groups: Sequence[Group], defences: Sequence[str]) -> list[HeatMap]:
    """f × heterogeneity for every defence, worst over attacks; none unless both vary."""
    axes = [ordered(group.scenario.get(name) for group in groups) for name in ("f", "partition")]
    if any(len(axis) < 2 for axis in axes):
        return []
    own = split(groups, lambda group: group.defence)
    return [
        heat_map(
            f"heterogeneity-{place}",
            defence,
            own[defence],
            across=("partition", lambda group: str(group.scenario.get("partition"))),
            down=("f", lambda group: str(group.scenario.get("f"))),
        )
        for place, defence in enumerate((each for each in defences if each in own), 1)
    ]


def so_far(groups: Sequence[Group]) -> HeatMap:
    """Validation accuracies of what is done, while nothing is tested: the best setting of each."""
    return heat_map(
        "validation",
        "Validation accuracy so far",
        groups,
        across=("attack", lambda group: group.attack),
        down=("defence", lambda group: group.defence),
        cell=_validated,
    )


def _validated(groups: Sequence[Group]) -> HeatCell:
    """The lowest over scenarios of the best setting's mean over the seeds that are done."""
    means = []
    for group in groups:
        settings: dict[str, list[float]] = {}
        for cell in group.cells:
            if "accuracy" in cell.measured:
                settings.setdefault(cell.tuned, []).append(cell.measured["accuracy"])
        if settings:
            means.append((max(sum(own) / len(own) for own in settings.values()), group))
    cells = [cell for group in groups for cell in group.cells]
    done = sum(cell.state == "done" for cell in cells)
    hint = f"{groups[0].defence} under {groups[0].attack}: {done} of {len(cells)} cells are done"
    if not means:
        return HeatCell("–", None, hint, groups[0].anchor)
    value, group = min(means, key=lambda pair: pair[0])
    return HeatCell(f"{100 * value:.1f}", value, hint, group.anchor)
