"""A study carried out before the user's eyes: progress, then tables, claims and notes."""

from __future__ import annotations

from pathlib import Path

from rich import table as rich_table
from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from experiments.provenance import where
from experiments.studies.carry_out import Outcome, carry_out
from experiments.studies.study import Preset, Study, Table, Tick


def run(study: Study, preset: Preset, folder: Path, console: Console, command: str) -> None:
    """Do the study, or what is left of it in ``folder``, and show what came out."""
    bars = Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    with bars:
        total = bars.add_task("all", total=1.0)

        def on_piece(piece: str, place: int, count: int, kept: bool) -> Tick:
            if place == 0:
                console.print(f"{study.title}, {preset}", soft_wrap=True)
            if not console.is_terminal:
                before = " (kept from before)" if kept else ""
                console.print(f"{place + 1}/{count}: {piece}{before}", soft_wrap=True)
            task = bars.add_task(piece, total=1.0)

            def tick(share: float) -> None:
                bars.update(task, completed=share, visible=share < 1)
                bars.update(total, completed=(place + share) / count)

            return tick

        outcome = carry_out(study, folder, command=command, where=where(), on_piece=on_piece)
    for title, table in outcome.tables.items():
        console.print(_shown(title, table))
    if outcome.claims:
        console.print(_shown(None, _claims(outcome)))
    for note in outcome.notes:
        console.print(f"- {note}", soft_wrap=True)
    console.print(f"page: {outcome.page}", soft_wrap=True)


def _shown(title: str | None, table: Table) -> rich_table.Table:
    shown = rich_table.Table(title=title, title_justify="left")
    for place, heading in enumerate(table[0]):
        # What a line is about is read whole.
        shown.add_column(heading, no_wrap=title is not None and place == 0)
    for line in table[1:]:
        shown.add_row(*line)
    return shown


def _claims(outcome: Outcome) -> Table:
    verdict = {True: "yes", False: "NO", None: "not decided here"}
    lines = [(c.statement, c.source, c.measured, verdict[c.holds]) for c in outcome.claims]
    return [("claim", "by", "measured", "holds"), *lines]
