"""Cells side by side in processes of Ray, each alone with its crash or its hang."""

from __future__ import annotations

import os
import time
import traceback
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from experiments.config import ConfigError, RunConfig
from experiments.memory import keep_freed
from experiments.simulation import LEDGER
from experiments.sweeps.outcome import Outcome
from experiments.sweeps.work import STARTED, train
from workers import ray_compat, ray_connection
from workers.transport import HostError

_PATIENCE = 10.0
# Seconds for a process to end that was told to.
_START = 600.0
# Seconds, or as many as may pass without a round, in which one of the cells must begin.


@dataclass(frozen=True)
class Finished:
    """A cell that nobody works on any more: its outcome, or why there is none."""

    cell: str
    outcome: Outcome | None
    reason: str | None = None


class LostRayError(HostError):
    """Ray itself has failed, a node of it say: that is no cell's fault."""


class Pool:
    """At most ``jobs`` cells at a time, a process each, which Ray uses again for the next one.

    A process that dies (it exits, is killed, or the memory is full) costs its own cell. So does one
    whose ledger does not grow for ``stall`` seconds after it has begun to work: it is killed. Where
    Ray lets none of the cells begin for ten minutes, they have failed.

    Args:
        jobs: how many cells.
        stall: seconds.
        cpus: that a local cluster must have.
        gpus: that any one cell reserves.

    Raises:
        ConfigError: the cluster has not so many GPUs.
        ImportError: Ray is not installed.
    """

    def __init__(self, *, jobs: int, stall: float, cpus: float, gpus: float = 0.0) -> None:
        self._ray = ray_compat.require()
        ray_connection.connect(cpus=cpus)
        has = self._ray.cluster_resources().get("GPU", 0.0)
        if gpus > has:
            ray_connection.disconnect()
            raise ConfigError(f"num_gpus must be at most what Ray has, {has:g}, found {gpus:g}")
        self._quiet = ExitStack()
        self._quiet.enter_context(ray_compat.hushed())
        self._jobs, self._stall, self._start = jobs, stall, max(stall, _START)
        self._idle: float | None = None
        self._remote = self._ray.remote(_attempt)
        errors = self._ray.exceptions
        self._own_faults = (errors.WorkerCrashedError, errors.OutOfMemoryError, errors.RayTaskError)
        self._running: dict[Any, Watch] = {}

    @property
    def free(self) -> int:
        """How many more cells can be begun now."""
        return self._jobs - len(self._running)

    @property
    def running(self) -> dict[str, int]:
        """The cells in progress, and how many rounds of each are done."""
        return {watch.cell: watch.rounds for watch in self._running.values()}

    def begin(self, cell: str, folder: Path, config: RunConfig) -> None:
        """Have a process work on a cell in ``folder``, a path that all machines know."""
        (folder / STARTED).unlink(missing_ok=True)
        on_ray = config.transport == "ray"
        cpus = config.threads * (1 if on_ray else config.hosts)
        # Actors reserve their own.
        gpus = 0 if on_ray else config.num_gpus
        task = self._remote.options(max_retries=0, num_cpus=cpus, num_gpus=gpus)
        needs = f"CPU: {cpus:g}, GPU: {gpus:g}"
        self._running[task.remote(str(folder), config)] = Watch(cell, folder, needs)

    def wait(self, timeout: float) -> list[Finished]:
        """The cells that have come to an end by now; waits for one for ``timeout`` seconds.

        Raises:
            LostRayError: Ray has failed.
        """
        try:
            return self._wait(timeout)
        except self._ray.exceptions.RayError as error:
            reason, _ = ray_compat.reason(error)
            raise LostRayError(
                f"Ray has failed; the same command goes on with the sweep: {reason}"
            ) from error

    def _wait(self, timeout: float) -> list[Finished]:
        done, _ = self._ray.wait(list(self._running), num_returns=len(self._running), timeout=0)
        if not done:
            done, _ = self._ray.wait(list(self._running), num_returns=1, timeout=timeout)
        found = [self._fetched(ref) for ref in done]
        now = time.monotonic()
        for ref, watch in [*self._running.items()]:
            if watch.look(now) > self._stall:
                found.append(Finished(watch.cell, None, f"Stalled: no round in {self._stall:g} s"))
                self._kill(ref)
        return found + self._never_begun(now)

    def _never_begun(self, now: float) -> list[Finished]:
        """All cells, when none has begun for long: where one works, the others may wait for it."""
        if not self._running or any(watch.begun for watch in self._running.values()):
            self._idle = None
            return []
        self._idle = now if self._idle is None else self._idle
        if now - self._idle <= self._start:
            return []
        self._idle = None
        has = {k: self._ray.available_resources().get(k, 0.0) for k in ("CPU", "GPU")}
        found = []
        for ref, watch in [*self._running.items()]:
            reason = f"Not begun in {self._start:g} s: {watch.needs} is needed, Ray has {has} free"
            found.append(Finished(watch.cell, None, reason))
            self._kill(ref)
        return found

    def close(self) -> None:
        """End what is in progress; it goes on from its checkpoints another time."""
        try:
            if self._ray.is_initialized():
                for ref in [*self._running]:
                    self._kill(ref, wait=False)
        finally:
            ray_connection.disconnect()
            self._quiet.close()

    def _fetched(self, ref: Any) -> Finished:
        cell = self._running[ref].cell
        try:
            outcome, reason = self._ray.get(ref)
        except self._own_faults as error:
            outcome, reason = None, f"its process died: {ray_compat.reason(error)[0]}"
        del self._running[ref]
        return Finished(cell, outcome, reason)

    def _kill(self, ref: Any, *, wait: bool = True) -> None:
        del self._running[ref]
        self._ray.cancel(ref, force=True)
        if wait:
            self._ray.wait([ref], timeout=_PATIENCE)

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _attempt(folder: str, config: RunConfig) -> tuple[Outcome | None, str | None]:
    """In the cell's process: its outcome, or the traceback."""
    keep_freed()
    try:
        return train(Path(folder), config), None
    except (Exception, SystemExit):
        return None, traceback.format_exc()


@dataclass
class Watch:
    """A cell in progress, seen from outside by its ledger."""

    cell: str
    folder: Path
    needs: str = ""
    rounds: int = 0
    _size: int = field(default=0, repr=False)
    _grown: float | None = field(default=None, repr=False)

    def look(self, now: float) -> float:
        """Count the rounds; seconds since the last one, 0 while its process has not begun."""
        if self._grown is None:
            if (self.folder / STARTED).exists():
                self._grown = now
            return 0.0
        size = self._count()
        if size != self._size:
            self._size, self._grown = size, now
        return now - self._grown

    @property
    def begun(self) -> bool:
        """Whether its process has been seen to work on it."""
        return self._grown is not None

    def _count(self) -> int:
        """Add the rounds that are new; the ledger's size."""
        try:
            with (self.folder / LEDGER).open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                if size < self._size:  # resumed: rounds after its checkpoint are done again
                    self._size = self.rounds = 0
                file.seek(self._size)
                self.rounds += file.read(size - self._size).count(b"\n")
        except FileNotFoundError:  # it comes, and may go before a training begins anew
            self.rounds = 0
            return 0
        return size
