"""Carrying out a sweep in its folder: what is left of it, then selection, test and export."""

from __future__ import annotations

import time
from contextlib import closing
from dataclasses import dataclass, replace
from math import inf
from pathlib import Path
from typing import Protocol

from experiments.config import ConfigError, RunConfig
from experiments.run_folder import locked
from experiments.stopping import InterruptedRun, Stop, stop_on_signals
from experiments.sweeps import folder as folders
from experiments.sweeps import selection
from experiments.sweeps.cells import Cell, Cells, Point
from experiments.sweeps.config import SweepConfig
from experiments.sweeps.export import Row, export
from experiments.sweeps.plan import Search, searched, wanted
from experiments.sweeps.pool import Finished, LostRayError, Pool
from experiments.sweeps.store import Entry, Store
from experiments.sweeps.work import MODEL, tested
from robust_agg.checkpoint import CheckpointError

_LOOK = 0.5
# Seconds between two looks at what runs.
_EXPORT = 30.0
# Seconds between two exports.


@dataclass(frozen=True, kw_only=True)
class Means:
    """What a sweep is carried out with; changes no number but those of the clock.

    Attributes:
        jobs: cells at a time.
        stall: seconds without a round after which a cell has failed.
        retry: whether cells that have failed before are tried again.
        command: how to go on, for the folder.
        preset: which of the file's was read, for the folder.
    """

    jobs: int
    stall: float
    command: str
    preset: str = "default"
    retry: bool = False

    def __post_init__(self) -> None:
        if self.jobs < 1:
            raise ConfigError(f"jobs must be at least 1, found {self.jobs}")
        if not 0 < self.stall < float("inf"):
            raise ConfigError(f"stall must be a positive number of seconds, found {self.stall}")


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


class Watcher(Protocol):
    """Who is told how a sweep goes."""

    def look(self, tally: Tally) -> None:
        """Called twice a second."""

    def failed(self, cell: Cell, reason: str) -> None:
        """A cell has failed; the others go on."""


@dataclass(frozen=True)
class Result:
    """What a finished sweep has found.

    Attributes:
        rows: all cells.
        leaderboard: of the chosen settings, by test accuracy; empty where breakdowns are searched.
        searches: for breakdowns.
    """

    rows: list[Row]
    leaderboard: list[selection.Standing]
    searches: list[Search]

    @property
    def failed(self) -> list[Row]:
        return [row for row in self.rows if row.entry.state == "failed"]


def carry_out(sweep: SweepConfig, folder: Path, means: Means, watcher: Watcher) -> Result:
    """Do what is left of ``sweep`` in ``folder``; a finished one is only read.

    A cell that fails stops nothing. Training sees validation data; the test data is read when all
    cells are finished, with the parameters of the chosen ones.

    Raises:
        InterruptedRun: a signal asked to stop; what is done is kept, cells in progress go on from
            their checkpoints.
        ConfigError: the folder is another's, cannot be written, or another process is in it.
        DataError: the data is not there.
        HostError: Ray has failed; cells in progress go on from their checkpoints.
        ImportError: there is no Ray.
    """
    _check_any(sweep)
    folders.check_free(folder)
    try:
        (folder / folders.CELLS).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        found = f"{error.strerror} at {error.filename}"
        raise ConfigError(f"out: a folder that can be written is required, found {found}") from None
    folder = folder.resolve()
    with locked(folder), stop_on_signals() as stop:
        bound = folders.bind(sweep, folder, preset=means.preset, command=means.command)
        with closing(Store(folder)) as store:
            return _Work(bound, folder, store, watcher).done(means, stop)


def _check_any(sweep: SweepConfig) -> None:
    """Refuse a sweep of which there is no cell, or no data, before a folder is made."""
    known = Cells()

    cells = [known.of(point) for point in wanted(sweep, lambda point: _refused(known.of(point)))]
    if all(cell.config is None for cell in cells):
        raise ConfigError(f"every cell is refused, the first one by {cells[0].refusal}")


def _refused(cell: Cell) -> float | None:
    """What a search knows of a cell of which there is no run."""
    if cell.refuser == "defence":
        return 0.0
    return inf if cell.refuser == "attack" else None


class _Work:
    """A sweep in progress: its points, their cells, and what the store knows of these."""

    def __init__(self, sweep: SweepConfig, folder: Path, store: Store, watcher: Watcher) -> None:
        self._sweep, self._folder, self._store, self._watcher = sweep, folder, store, watcher
        self._cells = Cells()
        self._points: dict[str, Point] = {}
        self._entries: dict[str, Entry] = {}
        self._exported = time.monotonic()

    def done(self, means: Means, stop: Stop) -> Result:
        self._plan()
        if means.retry:
            self._store.retry()
            self._plan()
        try:
            if self._pending():
                self._train(means, stop)
            self._test(stop)
        finally:
            self._entries = self._store.entries()
            self._export()
        # Of a search it would be a mean over different f.
        chosen = self._chosen() if self._sweep.breakdown is None else []
        return Result(
            self._rows(), selection.leaderboard(chosen, self._test_accuracy), self._searches()
        )

    def _train(self, means: Means, stop: Stop) -> None:
        """All that is pending, and what the searches ask for meanwhile."""
        configs = [cell.config for cell in self._pending() if cell.config is not None]
        cpus = means.jobs * max(config.threads * config.hosts for config in configs)
        gpus = max(config.num_gpus for config in configs)
        with Pool(jobs=means.jobs, stall=means.stall, cpus=cpus, gpus=gpus) as pool:
            try:
                self._train_in(pool, stop)
            finally:
                for cell, entry in self._store.entries().items():
                    if entry.state == "running":
                        self._store.put_back(cell)

    def _train_in(self, pool: Pool, stop: Stop) -> None:
        todo = self._pending()
        while todo or pool.running:
            while todo and pool.free:
                self._begin(pool, todo.pop(0))
            for finished in self._waited(pool, stop):
                if stop.signal and finished.outcome is None:
                    # The signal may have been for its process too.
                    self._store.put_back(finished.cell)
                    continue
                self._end(finished)
                self._plan()
                todo = self._pending()
            self._watcher.look(self._tally(pool.running))
            if stop.signal:
                raise InterruptedRun(stop.signal)
            if time.monotonic() - self._exported > _EXPORT:
                self._export()

    @staticmethod
    def _waited(pool: Pool, stop: Stop) -> list[Finished]:
        try:
            return pool.wait(_LOOK)
        except LostRayError:
            # The signal may have been for all of Ray.
            if stop.signal:
                raise InterruptedRun(stop.signal) from None
            raise

    def _end(self, finished: Finished) -> None:
        if finished.outcome is not None:
            self._store.finish(finished.cell, finished.outcome)
            return
        reason = finished.reason or "no reason was given"
        self._store.fail(finished.cell, reason)
        self._watcher.failed(self._cells.of(self._points[finished.cell]), reason)

    def _begin(self, pool: Pool, cell: Cell) -> None:
        assert cell.config is not None, "only such cells are pending"
        folder = self._folder / folders.CELLS / cell.id
        folder.mkdir(exist_ok=True)
        self._store.begin(cell.id)
        self._entries[cell.id] = Entry("running")
        pool.begin(cell.id, folder, cell.config)

    def _test(self, stop: Stop) -> None:
        """The test accuracy of every chosen cell that has none yet."""
        for setting in self._chosen():
            for cell in map(self._cells.of, setting.points):
                entry = self._entries[cell.id]
                if entry.state == "done" and entry.test_accuracy is None:
                    assert cell.config is not None, "it was trained"
                    self._test_cell(cell, cell.config, entry)
                    self._watcher.look(self._tally({}))
                if stop.signal:
                    raise InterruptedRun(stop.signal)

    def _test_cell(self, cell: Cell, config: RunConfig, entry: Entry) -> None:
        folder = self._folder / folders.CELLS / cell.id
        try:
            found = tested(folder, config)
        except (CheckpointError, KeyError, OSError, RuntimeError) as error:
            reason = f"{type(error).__name__}: {error}"
            # Tried again, it is trained again.
            (folder / MODEL).unlink(missing_ok=True)
            self._store.fail_test(cell.id, reason)
            self._entries[cell.id] = replace(entry, state="failed", reason=reason)
            self._watcher.failed(cell, reason)
            return
        self._store.keep_test(cell.id, found)
        self._entries[cell.id] = replace(entry, test_accuracy=found)

    def _plan(self) -> None:
        """Ask which cells are wanted, by all that is known."""
        self._entries = self._store.entries()
        points = wanted(self._sweep, self._finished)
        cells = [self._cells.of(point) for point in points]
        self._points = {}
        for cell in cells:
            self._points.setdefault(cell.id, cell.point)
        if any(cell.id not in self._entries for cell in cells):
            self._store.add(cells)
            self._entries = self._store.entries()

    def _wanted(self) -> list[Cell]:
        return [self._cells.of(point) for point in self._points.values()]

    def _pending(self) -> list[Cell]:
        return [cell for cell in self._wanted() if self._entries[cell.id].state == "pending"]

    def _finished(self, point: Point) -> float | None:
        """The validation accuracy, as a search asks for it."""
        cell = self._cells.of(point)
        if cell.config is None:
            return _refused(cell)
        entry = self._entries.get(cell.id)
        return None if entry is None or entry.outcome is None else entry.outcome.accuracy

    def _validation_accuracy(self, point: Point) -> float | None:
        outcome = self._entries[self._cells.of(point).id].outcome
        return None if outcome is None else outcome.accuracy

    def _test_accuracy(self, point: Point) -> float | None:
        cell = self._cells.of(point)
        return 0.0 if cell.refuser == "defence" else self._entries[cell.id].test_accuracy

    def _all_points(self) -> list[Point]:
        return wanted(self._sweep, self._finished)

    def _chosen(self) -> list[selection.Setting]:
        points = [p for p in self._all_points() if self._cells.of(p).refuser != "attack"]
        return selection.chosen(points, self._validation_accuracy)

    def _searches(self) -> list[Search]:
        return [] if self._sweep.breakdown is None else searched(self._sweep, self._finished)

    def _rows(self) -> list[Row]:
        finished = all(self._entries[c.id].state in ("done", "failed") for c in self._wanted())
        chosen = {
            self._cells.of(point).id
            for setting in (self._chosen() if finished else ())
            for point in setting.points
        }
        return [Row(cell, self._entries[cell.id], cell.id in chosen) for cell in self._wanted()]

    def _tally(self, running: dict[str, int]) -> Tally:
        states = dict.fromkeys(("done", "failed", "running", "pending"), 0)
        rounds = total = 0
        for cell in self._wanted():
            state = self._entries[cell.id].state
            states[state] += 1
            total += cell.rounds
            rounds += cell.rounds if state in ("done", "failed") else 0
        tested = sum(self._entries[c.id].test_accuracy is not None for c in self._wanted())
        return Tally(states, rounds + sum(running.values()), total, running, tested)

    def _export(self) -> None:
        export(self._folder, self._sweep, self._rows(), self._searches())
        self._exported = time.monotonic()
