"""One training under attack, for studies of many."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

from experiments import assembly
from experiments.config import RunConfig
from experiments.data import loaded
from experiments.metrics import Metrics


def train(config: RunConfig, tick: Callable[[float], None]) -> Metrics:
    """What the last evaluation of a run's only defence says; under attack, in this process.

    Raises:
        ConfigError, AttackError, ValueError: as a run.
    """
    (defence,) = config.defences
    data = loaded(config.dataset)
    with (
        tempfile.TemporaryDirectory() as folder,
        assembly.transport(config, data, attacked=True) as workers,
        assembly.training(config, defence, data, workers, Path(folder)) as simulation,
    ):
        last = None
        for metrics in simulation.run(config.rounds, evaluate_every=config.rounds):
            tick(simulation.server.round / config.rounds)
            last = metrics
    assert last is not None, "the last round is evaluated"
    return last
