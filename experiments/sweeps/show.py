"""A sweep before the user's eyes while it runs: how far it is, and when it will be done."""

from __future__ import annotations

import time
from collections.abc import Callable

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

from experiments.sweeps.cells import Cell, Point
from experiments.sweeps.known import Tally

_EVERY = 30.0
# Seconds between two lines where there is no terminal.


class Shown:
    """What the person who waits sees: a bar on a terminal, now and then a line elsewhere.

    Attributes:
        told: the cells of which it was said that they have failed.
    """

    def __init__(self, console: Console, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._console, self._clock = console, clock
        self.told: set[str] = set()
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
        self.told.add(cell.id)
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
