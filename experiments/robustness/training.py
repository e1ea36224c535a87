"""One training under attack, for studies of many."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

from experiments import assembly
from experiments.config import RunConfig
from experiments.data import Dataset, load
from experiments.metrics import Metrics
from experiments.simulation import Simulation
from robust_agg import Ledger

loaded: Callable[[str], Dataset] = lru_cache(load)
"""A dataset, read once a process."""


def train(config: RunConfig, tick: Callable[[float], None]) -> Metrics:
    """What the last evaluation of a run's only defence says; under attack, in this process.

    Raises:
        ConfigError, AttackError, ValueError: as a run.
    """
    (defence,) = config.defences
    data = loaded(config.dataset)
    model = assembly.ModelFactory.of(config, data)
    with (
        tempfile.TemporaryDirectory() as folder,
        assembly.transport(config, data, attacked=True) as transport,
        assembly.server(config, defence, model, Ledger(Path(folder) / "ledger.jsonl")) as server,
    ):
        simulation = Simulation(
            server=server,
            transport=transport,
            adversary=assembly.adversary(config, data),
            byzantine=assembly.byzantine(config),
            model=model(),
            test=data.test,
            folder=Path(folder),
            seed=config.seed,
        )
        last = None
        for metrics in simulation.run(config.rounds, evaluate_every=config.rounds):
            tick(server.round / config.rounds)
            last = metrics
    assert last is not None, "the last round is evaluated"
    return last
