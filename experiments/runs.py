"""A run: its trainings one after another, interruption and resumption."""

from __future__ import annotations

from experiments import assembly
from experiments.metrics import METRICS, Metrics, read_metrics
from experiments.progress import Progress
from experiments.run_folder import DONE, Run, Training, locked
from experiments.simulation import CHECKPOINT, Simulation, clean
from experiments.stopping import InterruptedRun, Stop, stop_on_signals
from robust_agg.checkpoint import CheckpointError
from workers.transport import HostError, Transport


def execute(run: Run, progress: Progress) -> dict[Training, list[Metrics]]:
    """Do what is left of ``run``; a finished one is only read.

    In the main thread, the first SIGINT (Ctrl-C), SIGTERM or SIGHUP lets the round in progress end
    and saves it; the second one does not wait. While Ray starts, its own code may end at once.

    Returns:
        The evaluated rounds of every training, those of earlier calls included.

    Raises:
        InterruptedRun: after such a signal.
        ConfigError: the run cannot start, or another process is working on it.
        CheckpointError: what an earlier process left is damaged.
        AttackError: the attack has failed.
        HostError: a host cannot be built, or the server's actor has died.
        OSError: the folder cannot be written.
    """
    progress.start(run.config, sum(not run.is_done(cell) for cell in run.trainings))
    if not all(map(run.is_done, run.trainings)):
        with locked(run.folder), stop_on_signals() as stop, assembly.cluster(run.config):
            _train_all(run, progress, stop)
    return {cell: _metrics(run, cell) for cell in run.trainings}


def _metrics(run: Run, cell: Training) -> list[Metrics]:
    found = read_metrics(run.path(cell))
    last = found[-1].round if found else 0
    if last != run.config.rounds:
        raise CheckpointError(
            f"{run.path(cell) / METRICS}: metrics of round {run.config.rounds} are required, "
            f"found round {last} as the last"
        )
    return found


def _train_all(run: Run, progress: Progress, stop: Stop) -> None:
    with _Workers(run) as workers:
        for cell in run.trainings:
            if not run.is_done(cell):
                _train(run, cell, workers.ready(attacked=cell.attacked), progress, stop)
            # A process may have died before it could.
            clean(run.path(cell))
            (run.path(cell) / CHECKPOINT).unlink(missing_ok=True)


class _Workers:
    """The transport of several trainings: hosts take seconds to start, so one lasts for many.

    Until a host dies or hangs, or the workers' data turns bad: then there is a new one.
    """

    def __init__(self, run: Run) -> None:
        self._run = run
        self._transport: Transport | None = None
        self._bad_data = False

    def ready(self, *, attacked: bool) -> Transport:
        """Workers that all answer, and whose estimators remember nothing."""
        bad_data = attacked and assembly.attacks_data(self._run.config)
        if self._transport is not None:
            try:
                self._transport.load_state({})
            except HostError:
                self._close()
        if bad_data != self._bad_data:
            self._close()
        if self._transport is None:
            self._transport = assembly.transport(
                self._run.config, self._run.data, attacked=attacked
            )
            self._bad_data = bad_data
        return self._transport

    def _close(self) -> None:
        if self._transport is not None:
            self._transport.close()
            self._transport = None

    def __enter__(self) -> _Workers:
        return self

    def __exit__(self, *_: object) -> None:
        self._close()


def _train(run: Run, cell: Training, transport: Transport, progress: Progress, stop: Stop) -> None:
    config, folder = run.config, run.path(cell)
    folder.mkdir(exist_ok=True)
    with assembly.training(
        config, cell.defence, run.data, transport, folder, attacked=cell.attacked
    ) as simulation:
        server = simulation.server
        simulation.restore()
        progress.begin(cell.defence, cell.attacked, server.round)
        for metrics in simulation.run(config.rounds, evaluate_every=config.evaluate_every):
            progress.advance(server.round, metrics)
            if stop.signal or server.round % config.checkpoint_every == 0:
                # A host may have died of the same signal: its workers' states are in the last one.
                _save(simulation, progress, complete=bool(stop.signal))
            if stop.signal:
                raise InterruptedRun(stop.signal)
    # From here on the training is its metrics and its ledger.
    (folder / DONE).touch()
    progress.end()


def _save(simulation: Simulation, progress: Progress, *, complete: bool) -> None:
    """A checkpoint; where a host keeps its workers' states back, the last one stays."""
    try:
        simulation.save(complete=complete)
    except HostError as error:
        round_ = simulation.server.round
        progress.console.print(f"no checkpoint of round {round_}: {error}", soft_wrap=True)
