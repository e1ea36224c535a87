"""``robust-agg paper``: one figure of the paper, from its preset to its page."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from experiments.paper.carry_out import Outcome, carry_out
from experiments.paper.fig1 import Outliers
from experiments.paper.fig2 import StableNoise
from experiments.paper.fig34 import PTB, WikiText
from experiments.paper.study import Preset, Study, Tick
from experiments.paper.training import Training
from experiments.provenance import where

FigureName = Literal["fig1", "fig2", "fig3", "fig4", "training"]
STUDIES: Mapping[FigureName, type[Study]] = {
    "fig1": Outliers,
    "fig2": StableNoise,
    "fig3": PTB,
    "fig4": WikiText,
    "training": Training,
}


def run(
    name: FigureName, preset: Preset, device: str, folder: Path, console: Console, command: str
) -> None:
    """Do the study, or what is left of it in ``folder``, and show its claims."""
    study = STUDIES[name].preset(preset).on(device)
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
    console.print(_claims(outcome))
    for note in outcome.notes:
        console.print(f"- {note}", soft_wrap=True)
    console.print(f"page: {outcome.page}", soft_wrap=True)


def _claims(outcome: Outcome) -> Table:
    shown = Table()
    for heading in ("claim", "by", "measured", "holds"):
        shown.add_column(heading)
    for claim in outcome.claims:
        verdict = {True: "yes", False: "NO", None: "not decided here"}[claim.holds]
        shown.add_row(claim.statement, claim.source, claim.measured, verdict)
    return shown
