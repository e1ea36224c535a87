"""Carrying out a sweep in its folder: what is left of it, then selection, test and export."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from experiments.config import ConfigError
from experiments.run_folder import locked
from experiments.stopping import InterruptedRun, Stop, stop_on_signals
from experiments.sweeps import folder as folders
from experiments.sweeps.cells import Cell, Cells
from experiments.sweeps.config import SweepConfig
from experiments.sweeps.export import export
from experiments.sweeps.known import Known, Result, Tally, refused
from experiments.sweeps.plan import wanted
from experiments.sweeps.pool import Finished, LostRayError, Pool
from experiments.sweeps.store import Entry, Store
from experiments.sweeps.work import MODEL, tested
from robust_agg.checkpoint import CheckpointError

_LOOK = 0.5
# Seconds between two looks at what runs.
_EXPORT = 0.05
# Of the time, at most, that goes into exports while cells run.


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


class Watcher(Protocol):
    """Who is told how a sweep goes."""

    def look(self, tally: Tally) -> None:
        """Called twice a second."""

    def failed(self, cell: Cell, reason: str) -> None:
        """A cell has failed; the others go on."""


def carry_out(sweep: SweepConfig, folder: Path, means: Means, *watchers: Watcher) -> Result:
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
            if means.retry:
                store.retry()
            return _Work(bound, folder, store, watchers).done(means, stop)


def _check_any(sweep: SweepConfig) -> None:
    """Refuse a sweep of which there is no cell, or no data, before a folder is made."""
    known = Cells()
    cells = [known.of(point) for point in wanted(sweep, lambda point: refused(known.of(point)))]
    if all(cell.config is None for cell in cells):
        raise ConfigError(f"every cell is refused, the first one by {cells[0].refusal}")


class _Work:
    """A sweep in progress."""

    def __init__(
        self, sweep: SweepConfig, folder: Path, store: Store, watchers: Sequence[Watcher]
    ) -> None:
        self._sweep, self._folder, self._store, self._watchers = sweep, folder, store, watchers
        self._known = Known(sweep, store)
        self._due = 0.0

    def done(self, means: Means, stop: Stop) -> Result:
        try:
            if self._known.pending():
                self._train(means, stop)
            self._test(stop)
        finally:
            self._known.read()
            self._export()
        return self._known.result()

    def _train(self, means: Means, stop: Stop) -> None:
        """All that is pending, and what the searches ask for meanwhile."""
        folders.sign(self._folder)
        configs = [cell.config for cell in self._known.pending() if cell.config is not None]
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
        todo = self._known.pending()
        while todo or pool.running:
            while todo and pool.free:
                self._begin(pool, todo.pop(0))
            self._look(pool.running)
            for finished in self._waited(pool, stop):
                if stop.signal and finished.outcome is None:
                    # The signal may have been for its process too.
                    self._store.put_back(finished.cell)
                    continue
                self._end(finished)
                self._known.plan()
                todo = self._known.pending()
            if stop.signal:
                raise InterruptedRun(stop.signal)
            if time.monotonic() >= self._due:
                self._export()
        self._look({})

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
        self._tell_failed(self._known.cell(finished.cell), reason)

    def _begin(self, pool: Pool, cell: Cell) -> None:
        assert cell.config is not None, "only such cells are pending"
        folder = self._folder / folders.CELLS / cell.id
        folder.mkdir(exist_ok=True)
        self._store.begin(cell.id)
        self._known.entries[cell.id] = Entry("running")
        pool.begin(cell.id, folder, cell.config)

    def _test(self, stop: Stop) -> None:
        """The test accuracy of every chosen cell that has none yet."""
        for cell in self._known.untested():
            self._test_cell(cell)
            self._look({})
            if stop.signal:
                raise InterruptedRun(stop.signal)

    def _test_cell(self, cell: Cell) -> None:
        assert cell.config is not None, "it was trained"
        entries = self._known.entries
        folder = self._folder / folders.CELLS / cell.id
        try:
            found = tested(folder, cell.config)
        except (CheckpointError, KeyError, OSError, RuntimeError) as error:
            reason = f"{type(error).__name__}: {error}"
            # Tried again, it is trained again.
            (folder / MODEL).unlink(missing_ok=True)
            self._store.fail_test(cell.id, reason)
            entries[cell.id] = replace(entries[cell.id], state="failed", reason=reason)
            self._tell_failed(cell, reason)
            return
        self._store.keep_test(cell.id, found)
        entries[cell.id] = replace(entries[cell.id], test_accuracy=found)

    def _look(self, running: dict[str, int]) -> None:
        tally = self._known.tally(running)
        for watcher in self._watchers:
            watcher.look(tally)

    def _tell_failed(self, cell: Cell, reason: str) -> None:
        for watcher in self._watchers:
            watcher.failed(cell, reason)

    def _export(self) -> None:
        begun = time.monotonic()
        export(self._folder, self._sweep, self._known.rows(), self._known.searches())
        now = time.monotonic()
        self._due = now + (now - begun) / _EXPORT
