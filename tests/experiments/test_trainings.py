"""One training, assembled for runs, studies and sweeps alike; what is measured of its rounds."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from run_samples import STATEFUL, tiny

from experiments import assembly
from experiments.config import RunConfig
from experiments.data import SplitName, loaded
from experiments.metrics import Metrics
from experiments.robustness.training import train
from experiments.simulation import Simulation


@contextmanager
def training(config: RunConfig, folder: Path, *, attacked: bool = True) -> Iterator[Simulation]:
    data = loaded(config.dataset)
    (defence,) = config.defences
    with (
        assembly.transport(config, data, attacked=attacked) as workers,
        assembly.training(config, defence, data, workers, folder, attacked=attacked) as simulation,
    ):
        yield simulation


def last(config: RunConfig, folder: Path) -> Metrics:
    with training(config, folder) as simulation:
        (*_, found) = simulation.run(config.rounds, evaluate_every=config.rounds)
    assert found is not None
    return found


@pytest.mark.parametrize("split", ["validation", "test"])
def test_the_model_is_evaluated_on_the_split_that_was_asked_for(
    split: SplitName, tmp_path: Path
) -> None:
    config = tiny(attack="Backdoor", rounds=5, split=split)
    with training(config, tmp_path) as simulation:
        (*_, found) = simulation.run(5, evaluate_every=5)
        model, samples = simulation.model, getattr(loaded("digits"), split)
        with torch.inference_mode():
            logits = model(samples.inputs)
        assert found is not None
        assert found.accuracy == float((logits.argmax(1) == samples.targets).double().mean())
        goal = assembly.goal(config, loaded("digits"), samples)
        assert goal is not None
        assert simulation.goal is not None
        assert torch.equal(simulation.goal[0], goal[0])


def test_a_study_trains_what_a_run_does(tmp_path: Path) -> None:
    """With sampled workers, a codec and an attack that has a goal, too."""
    config = tiny(**{**STATEFUL, "attack": "Backdoor", "rounds": 4})
    config = RunConfig(**{**vars(config), "codec": "Clip21(tau=0.5)"})
    found, run = train(config, lambda share: None), last(config, tmp_path)
    assert found.success is not None
    for name in ("accuracy", "loss", "error", "kappa", "missing", "bytes", "success"):
        assert getattr(found, name) == getattr(run, name)


ROWS: dict[str, Any] = {
    "an estimator": {"attack": "SignFlip"},
    "a weighting that leaves rows out": {"estimator": ("none",), "aggregator": ("MultiKrum(m=3)",)},
    "a rule without weights": {"estimator": ("none",), "aggregator": ("TrimmedMean",)},
    "rejected rows": {"attack": "NonFinite", "estimator": ("none",), "aggregator": ("Krum",)},
}


@pytest.mark.parametrize("name", ROWS)
def test_kappa_and_accepted_are_what_they_say(name: str, tmp_path: Path) -> None:
    config = tiny(**ROWS[name])
    with training(config, tmp_path) as simulation:
        honest, record = simulation.one_round()
        found = simulation._evaluate(honest, record)
        estimate = simulation.server.estimate
        bad = simulation.byzantine.at(0)
    assert estimate is not None
    rows = np.stack([update.row.double().numpy() for update in honest])
    assert len(rows) == 5
    mean = rows.mean(axis=0)
    spread = np.mean([np.sum((row - mean) ** 2) for row in rows])
    gap = np.sum((estimate.double().numpy() - mean) ** 2)
    assert found.kappa == pytest.approx(gap / spread, rel=1e-12)
    assert found.error == pytest.approx(gap**0.5 / np.linalg.norm(mean), rel=1e-12)
    if record.weights is None:
        assert found.accepted is None
        return
    weights = dict(zip(record.senders, record.weights, strict=True))
    assert found.accepted == sum(weights[sender] != 0 for sender in bad) / 2


def test_accepted_is_a_share(tmp_path: Path) -> None:
    """Of a rule that takes all rows all, of one that rejects them none, of nobody nothing."""
    mean = tiny(estimator=("none",), aggregator=("Mean",), rounds=1, attack="SignFlip")
    krum = tiny(estimator=("none",), aggregator=("Krum",), rounds=1, attack="NonFinite")
    nobody = tiny(estimator=("none",), aggregator=("Mean",), rounds=1, byzantine=0)
    found = [last(config, tmp_path) for config in (mean, krum, nobody)]
    assert [metrics.accepted for metrics in found] == [1.0, 0.0, None]


def test_rows_that_are_all_one_have_no_kappa(tmp_path: Path) -> None:
    config = tiny(workers=2, byzantine=1, f=0, rounds=1, attack="SignFlip", estimator=("CClip",))
    assert last(config, tmp_path).kappa is None


def test_weight_decay_shrinks_the_parameters(tmp_path: Path) -> None:
    """By lr · decay a round, beside the estimate's step."""
    plain = tiny(rounds=1, lr=0.5)
    decayed = tiny(rounds=1, lr=0.5, weight_decay=0.1)
    before = assembly.ModelFactory.of(plain, loaded("digits"))()
    start = torch.nn.utils.parameters_to_vector(before.parameters()).detach()
    ends = []
    for config in (plain, decayed):
        with training(config, tmp_path) as simulation:
            simulation.one_round()
            ends.append(simulation.server.parameters())
    torch.testing.assert_close(ends[1], ends[0] - 0.05 * start)
    assert not torch.equal(ends[1], ends[0])
