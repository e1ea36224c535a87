"""What a finished sweep has found, for the terminal: the first things that its report says."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from experiments.sweeps.config import SweepConfig
from experiments.sweeps.known import Result
from experiments.sweeps.plan import Search
from experiments.sweeps.report import tables, words
from experiments.sweeps.report.content import Content

_LINES = 20
# Of a table.


def tell(sweep: SweepConfig, result: Result, content: Content, console: Console) -> None:
    """What the report says first, or breakdowns."""
    if sweep.breakdown is None:
        put(tables.entries_table(content.entries), sweep.title, console)
        if content.selection is not None:
            put(content.selection, "Chosen on validation data", console)
        tested = any(entry.gap is not None and entry.gap.p is not None for entry in content.entries)
        for said in (*content.said, *([words.P] if tested else ())):
            console.print(said, markup=False)
    else:
        console.print(breakdowns(sweep, result.searches))


def put(found: tables.Table, title: str, console: Console) -> None:
    """A table of the report, its first lines where it is long."""
    shown = Table(title=escape(title))
    for place, heading in enumerate(found.headings):
        shown.add_column(escape(heading), justify="left" if place < found.names else "right")
    for line in found.lines[:_LINES]:
        shown.add_row(*map(escape, line))
    console.print(shown)
    more = len(found.lines) - _LINES
    if more > 0:
        console.print(f"and {more} lines more, in the report")


def breakdowns(sweep: SweepConfig, searches: Sequence[Search]) -> Table:
    """The smallest f that is too many, by group and attack."""
    assert sweep.breakdown is not None, "a sweep that searches"
    most = sweep.breakdown.most
    attacks = list(dict.fromkeys(search.first.attack for search in searches))
    shown = Table(
        title=escape(sweep.title),
        caption=f"the smallest f at which the mean validation accuracy is below "
        f"{sweep.breakdown.accuracy:.0%}; > {most}: at none up to {most}"
        + ("" if all(search.finished for search in searches) else "; ?: a cell has failed"),
        caption_justify="left",
    )
    names = sweep.varied or ("defence",)
    for name in names:
        shown.add_column(name)
    for attack in attacks:
        shown.add_column(attack, justify="right")
    lines: dict[tuple[str, ...], dict[str, str]] = {}
    for search in searches:
        key = tuple(str(search.first.given[name]) for name in names)
        found = f"> {most}" if search.found is None else str(search.found)
        found = found if search.finished else "?"
        lines.setdefault(key, {})[search.first.attack] = found
    for key, found_by in lines.items():
        shown.add_row(*key, *(found_by.get(attack, "") for attack in attacks))
    return shown
