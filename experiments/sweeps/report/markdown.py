"""The report as Markdown, its figures as files beside it."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable

from experiments.sweeps.report import tables, words
from experiments.sweeps.report.content import Content
from experiments.sweeps.report.heat import HeatMap
from experiments.sweeps.report.leaderboard import percent
from experiments.sweeps.report.tables import Table

FIGURES = "figures"


def markdown(content: Content, figures: Collection[str]) -> str:
    """The whole text.

    Args:
        content: what to say.
        figures: names of the images in the folder of figures.
    """
    lines = [f"# {plain(content.sweep.title)}", ""]
    lines += _items((*content.sweep.notes, *content.sweep.data))
    lines += [f"**{content.status}.**", ""]
    if content.sweep.unfinished:
        lines += ["The sweep has not finished: what follows may change.", ""]
    if len(content.sweep.versions) > 1:
        lines += [plain(words.versions(content.sweep.versions)), ""]
    lines += [*(plain(said) for said in content.said), ""]
    lines += _run(content)
    if content.known:
        lines += ["## Leaderboard", "", *_items(words.LEADERBOARD)]
        lines += _image("leaderboard", "Worst cases with intervals", figures)
        lines += _table(tables.entries_table(content.entries))
    for title, maps, said in (
        ("Defence × attack", content.attack_maps, words.HEAT),
        ("Defence × scenario", content.scenario_maps, words.SCENARIOS),
        ("f × heterogeneity", content.partition_maps, words.PARTITIONS),
    ):
        lines += [f"## {title}", "", said, ""] if maps else []
        for each in maps:
            lines += [*_heat(each), *_image(each.name, each.title, figures)]
    lines += _rest(content, figures)
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).rstrip() + "\n"


def _run(content: Content) -> list[str]:
    lines = ["## What was run", ""]
    lines += _items(f"{name}: {'; '.join(values)}" for name, values in content.axes.items())
    if content.constants:
        fixed = ", ".join(f"{name}={value}" for name, value in content.constants.items())
        lines += _items([f"the same in all: {fixed}"])
    if content.sweep.command:
        lines += _items([f"carried out by: {content.sweep.command}"])
    if content.sweep.where:
        lines += _items([f"on: {'; then '.join(content.sweep.where)}"])
    if content.left_out:
        lines += [plain(words.left_out(content.left_out)), ""]
    if content.progress is not None:
        lines += _table(content.progress)
    if content.so_far is not None:
        lines += [words.SO_FAR, "", *_heat(content.so_far)]
    if content.selection is not None:
        lines += ["### Chosen on the validation split", "", words.SELECTION, ""]
        lines += _table(content.selection)
    if content.failed:
        lines += ["### Failed", ""]
        failed = [
            (
                cell.defence,
                cell.attack,
                "–" if cell.f is None else str(cell.f),
                str(cell.seed),
                cell.reason,
                cell.command,
            )
            for cell in content.failed
        ]
        headings = ("defence", "attack", "f", "seed", "reason", "command")
        lines += _table(Table("", headings, tuple(failed)))
    return lines


def _rest(content: Content, figures: Collection[str]) -> list[str]:
    lines: list[str] = []
    if content.panels:
        lines += ["## Curves", "", words.CURVES, ""]
        for place, label in enumerate(content.panels, 1):
            lines += [f"### {plain(label)}", ""] if label else []
            name = "curves" if len(content.panels) == 1 else f"curves-{place}"
            lines += _image(name, "Validation accuracy against rounds", figures)
    if content.breakdown is not None:
        lines += ["## Breakdown", "", words.breakdown(content.sweep), ""]
        lines += _heat(content.breakdown)
        lines += _image("breakdown", "Smallest f at which each defence falls", figures)
    if content.points:
        lines += ["## Time against robustness", "", words.TRADEOFF, ""]
        lines += _table(points_table(content))
        lines += _image("tradeoff", "Worst case against time of aggregation", figures)
    if content.published is not None:
        lines += ["## Published numbers", "", f"{plain(content.source)}. {words.PUBLISHED}", ""]
        lines += _table(content.published)
    if content.measures:
        lines += ["## Beyond accuracy", "", *_items(content.meanings)]
        for table in content.measures:
            lines += [f"### {plain(table.title)}", ""] if table.title else []
            lines += _table(table)
    if content.groups:
        lines += [words.COMMANDS, ""]
    return lines


def points_table(content: Content) -> Table:
    """Time and worst case of every ranked defence."""
    headings = ("", "defence", "aggregation, ms a round", "worst case, %", "Pareto front")
    return Table(
        "",
        headings,
        tuple(
            (
                *(str(point.rank), point.defence, tables.milliseconds(point.seconds)),
                *(percent(point.worst), "yes" if point.front else "no"),
            )
            for point in content.points
        ),
        names=2,
    )


def _heat(heat: HeatMap) -> list[str]:
    lines = tuple(
        (name, *("" if cell is None else _starred(cell.text, cell.whole) for cell in cells))
        for name, cells in heat.rows
    )
    headings = (f"{heat.down} \\ {heat.across}", *heat.columns)
    return [f"**{plain(heat.title)}**", "", *_table(Table("", headings, lines))]


def _starred(text: str, whole: bool) -> str:
    return text if whole or not text[:1].isdigit() else f"{text}*"


def _image(name: str, alt: str, figures: Collection[str]) -> list[str]:
    return [f"![{plain(alt)}]({FIGURES}/{name}.png)", ""] if name in figures else []


def _items(texts: Iterable[str]) -> list[str]:
    return [*(f"- {plain(text)}" for text in texts), ""]


def _table(table: Table) -> list[str]:
    lines = [
        f"| {' | '.join(plain(cell) for cell in line)} |" for line in (table.headings, *table.lines)
    ]
    return [lines[0], f"|{' --- |' * len(table.headings)}", *lines[1:], ""]


def plain(text: str) -> str:
    """A text that is no markup, in one line."""
    return re.sub(r"([\\`*_<>\[\]|&])", r"\\\1", " ".join(text.split()))
