"""What is known of a sweep's cells: which are wanted by that, and which of them were chosen."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf

from experiments.sweeps import selection
from experiments.sweeps.cells import Cell, Cells, Point
from experiments.sweeps.config import SweepConfig
from experiments.sweeps.export import Row
from experiments.sweeps.plan import Search, searched, wanted
from experiments.sweeps.store import Entry, Store


@dataclass(frozen=True)
class Tally:
    """How far a sweep has come.

    Attributes:
        states: of all cells that are wanted so far.
        rounds: done of those cells.
        total: rounds that those cells have.
        running: rounds of the cells in progress.
        tested: how many of the cells have a test accuracy.
    """

    states: dict[str, int]
    rounds: int
    total: int
    running: dict[str, int]
    tested: int = 0


@dataclass(frozen=True)
class Result:
    """What a finished sweep has found.

    Attributes:
        rows: all cells.
        searches: for breakdowns.
    """

    rows: list[Row]
    searches: list[Search]

    @property
    def failed(self) -> list[Row]:
        return [row for row in self.rows if row.entry.state == "failed"]


def refused(cell: Cell) -> float | None:
    """What a search knows of a cell of which there is no run."""
    if cell.refuser == "defence":
        return 0.0
    return inf if cell.refuser == "attack" else None


class Known:
    """The points that are wanted, their cells, and what the store says of these.

    Attributes:
        entries: by the cells' ids, as they were when they were last read.
    """

    def __init__(self, sweep: SweepConfig, store: Store) -> None:
        self._sweep, self._store = sweep, store
        self._cells = Cells()
        self._points: dict[str, Point] = {}
        self.entries: dict[str, Entry] = {}
        self.plan()

    def plan(self) -> None:
        """Ask which cells are wanted, by all that is known; new ones are put into the store."""
        self.read()
        cells = [self._cells.of(point) for point in wanted(self._sweep, self._finished)]
        self._points = {}
        for cell in cells:
            self._points.setdefault(cell.id, cell.point)
        if any(cell.id not in self.entries for cell in cells):
            self._store.add(cells)
            self.read()

    def read(self) -> None:
        """Ask the store anew."""
        self.entries = self._store.entries()

    def cell(self, cell: str) -> Cell:
        """One that is wanted, by its id."""
        return self._cells.of(self._points[cell])

    def pending(self) -> list[Cell]:
        """The cells that nobody has begun, in the order to begin them in."""
        return [cell for cell in self._wanted() if self.entries[cell.id].state == "pending"]

    def untested(self) -> list[Cell]:
        """The chosen cells that are done, and of which there is no test accuracy yet."""
        cells = [self._cells.of(point) for each in self._chosen() for point in each.points]
        known = {cell.id: self.entries[cell.id] for cell in cells}
        return [
            cell
            for cell in dict.fromkeys(cells)
            if known[cell.id].state == "done" and known[cell.id].test_accuracy is None
        ]

    def rows(self) -> list[Row]:
        """All cells; chosen ones are so when there is nothing left to choose among."""
        finished = all(self.entries[c.id].state in ("done", "failed") for c in self._wanted())
        chosen = {
            self._cells.of(point).id
            for setting in (self._chosen() if finished else ())
            for point in setting.points
        }
        return [Row(cell, self.entries[cell.id], cell.id in chosen) for cell in self._wanted()]

    def searches(self) -> list[Search]:
        """For breakdowns."""
        return [] if self._sweep.breakdown is None else searched(self._sweep, self._finished)

    def result(self) -> Result:
        """When all is done."""
        return Result(self.rows(), self.searches())

    def tally(self, running: dict[str, int]) -> Tally:
        """How far it is, with ``running`` rounds of cells in progress."""
        states = dict.fromkeys(("done", "failed", "running", "pending"), 0)
        rounds = total = 0
        for cell in self._wanted():
            state = self.entries[cell.id].state
            states[state] += 1
            total += cell.rounds
            rounds += cell.rounds if state in ("done", "failed") else 0
        tested = sum(self.entries[c.id].test_accuracy is not None for c in self._wanted())
        return Tally(states, rounds + sum(running.values()), total, running, tested)

    def _wanted(self) -> list[Cell]:
        return [self._cells.of(point) for point in self._points.values()]

    def _chosen(self) -> list[selection.Setting]:
        points = wanted(self._sweep, self._finished)
        fit = [point for point in points if self._cells.of(point).refuser != "attack"]
        return selection.chosen(fit, self._validation_accuracy)

    def _finished(self, point: Point) -> float | None:
        """The validation accuracy, as a search asks for it."""
        cell = self._cells.of(point)
        if cell.config is None:
            return refused(cell)
        entry = self.entries.get(cell.id)
        return None if entry is None or entry.outcome is None else entry.outcome.accuracy

    def _validation_accuracy(self, point: Point) -> float | None:
        outcome = self.entries[self._cells.of(point).id].outcome
        return None if outcome is None else outcome.accuracy
