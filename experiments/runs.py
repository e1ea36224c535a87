"""A run: its trainings one after another, interruption and resumption."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from experiments import assembly
from experiments.progress import Progress
from experiments.run_folder import DONE, Run, Training, locked
from experiments.simulation import CHECKPOINT, LEDGER, Metrics, Simulation, read_metrics
from robust_agg import Ledger
from workers.transport import HostError, Transport


class InterruptedRun(Exception):  # noqa: N818 - the user's wish, no error
    """The run was asked to stop, by ``signal``; everything done so far is on disk."""

    def __init__(self, signal: int) -> None:
        super().__init__(signal)
        self.signal = signal


def execute(run: Run, progress: Progress) -> dict[Training, list[Metrics]]:
    """Do what is left of ``run``; a finished one is only read.

    In the main thread, the first SIGINT (Ctrl-C) or SIGTERM lets the round in progress end and
    saves it; the second one does not wait.

    Returns:
        The evaluated rounds of every training, those of earlier calls included.

    Raises:
        InterruptedRun: after such a signal.
        ConfigError: the run cannot start, or another process is working on it.
        AttackError: the attack has failed.
        HostError: a host cannot be built, or the server's actor has died.
    """
    progress.start(run.config, sum(not run.is_done(cell) for cell in run.trainings))
    if not all(map(run.is_done, run.trainings)):
        with locked(run.folder), _stop_on_signals() as stop:
            _train_all(run, progress, stop)
    return {cell: read_metrics(run.path(cell)) for cell in run.trainings}


class _Stop:
    """Which signal has asked to stop; 0 if none has."""

    signal = 0


@contextmanager
def _stop_on_signals() -> Iterator[_Stop]:
    stop = _Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop  # Signals are the main thread's.
        return

    def ask(number: int, _frame: FrameType | None) -> None:
        stop.signal = number
        for each in before:
            signal.signal(each, signal.default_int_handler)

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number in before:
        signal.signal(number, ask)
    try:
        yield stop
    except KeyboardInterrupt:
        raise InterruptedRun(stop.signal or signal.SIGINT) from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _train_all(run: Run, progress: Progress, stop: _Stop) -> None:
    for attacked in (False, True):
        cells = [c for c in run.trainings if c.attacked == attacked and not run.is_done(c)]
        with _Workers(run, attacked=attacked) as workers:
            for cell in cells:
                _train(run, cell, workers.ready(), progress, stop)


class _Workers:
    """The transport of several trainings: hosts take seconds to start, so one lasts for all.

    Unless a host dies or hangs: then the next training gets a new one.
    """

    def __init__(self, run: Run, *, attacked: bool) -> None:
        self._run, self._attacked = run, attacked
        self._transport: Transport | None = None

    def ready(self) -> Transport:
        """Workers that all answer and remember nothing."""
        if self._transport is not None:
            try:
                self._transport.load_state({})
            except HostError:
                self._close()
        if self._transport is None:
            self._transport = assembly.transport(
                self._run.config, self._run.data, attacked=self._attacked
            )
        return self._transport

    def _close(self) -> None:
        if self._transport is not None:
            self._transport.close()
            self._transport = None

    def __enter__(self) -> _Workers:
        return self

    def __exit__(self, *_: object) -> None:
        self._close()


def _train(run: Run, cell: Training, transport: Transport, progress: Progress, stop: _Stop) -> None:
    config, folder = run.config, run.path(cell)
    folder.mkdir(exist_ok=True)
    model = assembly.ModelFactory.of(config, run.data)
    with assembly.server(config, cell.defence, model, Ledger(folder / LEDGER)) as server:
        simulation = Simulation(
            server=server,
            transport=transport,
            adversary=assembly.adversary(config, run.data) if cell.attacked else None,
            byzantine=assembly.byzantine(config) if cell.attacked else frozenset(),
            model=model(),
            test=run.data.test,
            folder=folder,
            seed=config.seed,
            sample=config.sample,
        )
        simulation.restore()
        progress.begin(cell.defence, cell.attacked, server.round)
        for metrics in simulation.run(config.rounds, evaluate_every=config.evaluate_every):
            progress.advance(server.round, metrics)
            if stop.signal or server.round % config.checkpoint_every == 0:
                _save(simulation, progress)
            if stop.signal:
                raise InterruptedRun(stop.signal)
    (folder / DONE).touch()
    # From here on the training is its metrics and its ledger.
    (folder / CHECKPOINT).unlink(missing_ok=True)
    progress.end()


def _save(simulation: Simulation, progress: Progress) -> None:
    """A checkpoint; where a host keeps its workers' states back, the last one stays."""
    try:
        simulation.save()
    except HostError as error:
        round_ = simulation.server.round
        progress.console.print(f"no checkpoint of round {round_}: {error}", soft_wrap=True)
