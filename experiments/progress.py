"""Live progress on a terminal, plain log lines elsewhere."""

from __future__ import annotations

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as Bars

from experiments.config import RunConfig
from experiments.metrics import Metrics
from workers import ray_connection

_LINES = 4
# Log lines per training where there is no terminal.


class Progress:
    """What the person who waits sees: trainings done, rounds done, accuracy so far."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._bars: Bars | None = None
        self._total: TaskID | None = None
        self._current: TaskID | None = None
        self._label = ""
        self._rounds = 0
        self._next_line = 0

    def start(self, config: RunConfig, trainings: int) -> None:
        """Begin a run of which so many trainings are left."""
        self._rounds = config.rounds
        if trainings and "ray" in (config.transport, config.server):
            self.console.print(f"Ray: {ray_connection.target()}", soft_wrap=True, markup=False)
        if self.console.is_terminal:
            self._bars = Bars(
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[accuracy]}", markup=False),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                console=self.console,
                transient=True,
            )
            self._total = self._bars.add_task(
                "all trainings", total=trainings * config.rounds, accuracy=""
            )
            self._bars.start()

    def begin(self, defence: str, attacked: bool, done: int) -> None:
        """A training starts, or continues after ``done`` rounds."""
        self._label = f"{defence}, {'under attack' if attacked else 'no attack'}"
        self._next_line = done
        if self._bars is not None:
            assert self._total is not None
            self._bars.advance(self._total, done)
            self._current = self._bars.add_task(
                self._label, total=self._rounds, completed=done, accuracy=""
            )

    def advance(self, done: int, metrics: Metrics | None) -> None:
        if self._bars is not None:
            assert self._current is not None
            assert self._total is not None
            self._bars.update(self._current, completed=done)
            self._bars.advance(self._total)
            if metrics is not None:
                self._bars.update(self._current, accuracy=f"{metrics.accuracy:6.1%}")
        elif metrics is not None and (done >= self._next_line or done == self._rounds):
            self._next_line = done + max(1, self._rounds // _LINES)
            self.console.print(
                f"{self._label}: round {done}/{self._rounds}, accuracy {metrics.accuracy:.1%}",
                soft_wrap=True,
            )

    def end(self) -> None:
        if self._bars is not None and self._current is not None:
            self._bars.remove_task(self._current)
            self._current = None

    def stop(self) -> None:
        """Give the terminal back."""
        if self._bars is not None:
            self._bars.stop()
            self._bars = None
