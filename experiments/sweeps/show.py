"""A sweep before the user's eyes: how far it is, when it will be done, and what it has found."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from math import isfinite
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from experiments.sweeps.carry_out import Result, Tally
from experiments.sweeps.cells import Cell, Point, label
from experiments.sweeps.config import SweepConfig
from experiments.sweeps.export import RESULTS
from experiments.sweeps.plan import Search
from experiments.sweeps.selection import Standing

_EVERY = 30.0
# Seconds between two lines where there is no terminal.
_LINES = 20
# Of the leaderboard.


class Shown:
    """What the person who waits sees: a bar on a terminal, now and then a line elsewhere."""

    def __init__(self, console: Console, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._console, self._clock = console, clock
        self._begun: tuple[float, int] | None = None
        self._last = 0.0
        self._bars = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}", markup=False),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task = self._bars.add_task("cells", total=None, left="")

    def look(self, tally: Tally) -> None:
        now = self._clock()
        if self._begun is None:
            self._begun, self._last = (now, tally.rounds), now
            self._bars.start()
        begun, before = self._begun
        rest = tally.total - tally.rounds
        left = spoken(time_left(tally.rounds - before, rest, now - begun))
        self._bars.update(
            self._task,
            description=counts(tally),
            total=tally.total,
            completed=tally.rounds,
            left=left,
        )
        if not self._console.is_terminal and now - self._last >= _EVERY:
            self._last = now
            self._console.print(f"{counts(tally)}; {left}", soft_wrap=True)

    def failed(self, cell: Cell, reason: str) -> None:
        self._console.print(failure(cell, reason), soft_wrap=True)

    def stop(self) -> None:
        """Give the terminal back."""
        self._bars.stop()


def counts(tally: Tally) -> str:
    """``"12/300 cells done, 1 failed, 2 running"``."""
    states = tally.states
    failed = f", {states['failed']} failed" if states["failed"] else ""
    total = sum(states.values())
    tested = f", {tally.tested} tested" if tally.tested else ""
    return f"{states['done']}/{total} cells done{failed}, {states['running']} running{tested}"


def time_left(done: int, rest: int, seconds: float) -> float | None:
    """Seconds that the rest of the rounds takes at the pace so far; None before the first one."""
    return rest * seconds / done if done > 0 else None


def spoken(seconds: float | None) -> str:
    """An estimate, no more precise than it is."""
    if seconds is None:
        return "time left not known yet"
    minutes = seconds / 60
    if minutes < 1.5:
        return f"about {max(10, 10 * round(seconds / 10))} s left"
    if minutes < 90:
        return f"about {round(minutes)} min left"
    return f"about {minutes / 60:.1f} h left"


def failure(cell: Cell, reason: str) -> str:
    """One line of a failed cell: its values, and the last line of its traceback."""
    point = cell.point
    what = [f"{name}={value}" for name, value in (*point.group, *point.tuned)]
    what += [f"attack={point.attack}"]
    what += [f"{name}={point.given[name]}" for name in ("f", "seed") if _is_told(point, name)]
    return f"failed: {', '.join(what)}: {reason.strip().splitlines()[-1]}"


def _is_told(point: Point, name: str) -> bool:
    return name in point.given and name not in dict(point.group)


def show(sweep: SweepConfig, result: Result, folder: Path, console: Console) -> None:
    """Leaderboard or breakdowns, failed cells, and where the numbers are."""
    if sweep.breakdown is None:
        console.print(board(sweep, result.leaderboard))
        tried = (row.cell for row in result.rows if row.cell.refuser != "attack")
        without = len({cell.point.group for cell in tried}) - len(result.leaderboard)
        if without:
            console.print(
                f"{without} groups of cells are not in the table: every setting that was tuned "
                "has a failed cell",
                soft_wrap=True,
            )
    else:
        console.print(breakdowns(sweep, result.searches))
    for row in result.failed:
        console.print(failure(row.cell, row.entry.reason or ""), soft_wrap=True)
    done = sum(row.entry.state == "done" for row in result.rows)
    console.print(f"{done} of {len(result.rows)} cells done: {folder / RESULTS}", soft_wrap=True)


def board(sweep: SweepConfig, lines: Sequence[Standing]) -> Table:
    """The leaderboard, the best worst case first."""
    more = len(lines) - _LINES
    caption = [
        "accuracy: on test data under the worst attack, mean over the seeds with its 95 % "
        "confidence interval",
        *(
            ["tuned: chosen on validation data, by the worst case over the attacks"]
            * bool(sweep.tune)
        ),
        *([f"and {more} lines more, in {RESULTS}"] if more > 0 else []),
    ]
    shown = Table(title=sweep.title, caption="\n".join(caption), caption_justify="left")
    names = sweep.varied or ("defence",)
    for name in names:
        shown.add_column(name)
    if sweep.tune:
        shown.add_column("tuned")
    shown.add_column("worst attack")
    shown.add_column("accuracy", justify="right")
    failed = any(line.failed for line in lines)
    if failed:
        shown.add_column("cells failed", justify="right")
    for line in lines[:_LINES]:
        given = line.setting.points[0].given
        shown.add_row(
            *(str(given[name]) for name in names),
            *([label(line.setting.tuned)] if sweep.tune else []),
            line.attack,
            accuracy(line),
            *([str(line.failed)] if failed else []),
        )
    return shown


def accuracy(line: Standing) -> str:
    """``"87.1 ± 1.3 %"``; of one seed there is no interval."""
    if line.mean is None:
        return "not ranked"
    half = f" ± {100 * line.half:.1f}" if isfinite(line.half) else ""
    return f"{100 * line.mean:.1f}{half} %"


def breakdowns(sweep: SweepConfig, searches: Sequence[Search]) -> Table:
    """The smallest f that is too many, by group and attack."""
    assert sweep.breakdown is not None, "a sweep that searches"
    most = sweep.breakdown.most
    attacks = list(dict.fromkeys(search.first.attack for search in searches))
    shown = Table(
        title=sweep.title,
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
