"""Cells: every choice is in their name, and their command trains them again."""

from __future__ import annotations

import dataclasses
import shlex
from pathlib import Path
from typing import Any

import pytest
from sweep_samples import BASE

from experiments import data
from experiments.config import ConfigError, RunConfig
from experiments.sweeps.cells import Cells, Point, command, run_config

VALUES: dict[str, Any] = {**BASE, "defence": "Mean", "attack": "SignFlip", "seed": 3}


def point(values: dict[str, Any]) -> Point:
    return Point(tuple(values.items()), ())


def cell_id(values: dict[str, Any]) -> str:
    return Cells().of(point(values)).id


CHANGES: dict[str, Any] = {
    "honest": 6,
    "byzantine": 1,
    "identities": "last",
    "f": 1,
    "attack": "Mimic",
    "defence": "CoordinateWiseMedian",
    "local_estimator": "none",
    "codec": "ErrorFeedback",
    "delta": 1e-6,
    "dataset": "mnist",
    "partition": "IID",
    "model": "MLP",
    "rounds": 13,
    "batch_size": 9,
    "lr": 0.5,
    "weight_decay": 0.1,
    "local_steps": 2,
    "local_lr": 0.2,
    "sample": 6,
    "transport": "ray",
    "hosts": 2,
    "threads": 2,
    "deadline": 9.0,
    "quorum": 2,
    "server": "ray",
    "device": "auto",
    "evaluate_every": 5,
    "checkpoint_every": 6,
    "seed": 4,
}


def test_every_parameter_can_be_changed() -> None:
    names = {field.name for field in dataclasses.fields(RunConfig)}
    # num_gpus can be changed only where there is CUDA, and nobody chooses by test data.
    assert names - {"workers", "aggregator", "estimator", "num_gpus", "split"} == {*CHANGES} - {
        "honest",
        "defence",
    }


@pytest.mark.parametrize("name", CHANGES)
def test_any_change_is_another_cell(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    digits = data.load("digits")
    monkeypatch.setattr("experiments.sweeps.cells.loaded", lambda name: digits)
    assert cell_id({**VALUES, name: CHANGES[name]}) != cell_id(VALUES)


def test_a_cell_is_known_by_what_it_trains() -> None:
    assert len(cell_id(VALUES)) == 16
    shuffled = dict(reversed(VALUES.items()))
    assert cell_id(shuffled) == cell_id(VALUES)
    # Said otherwise.
    workers = {name: value for name, value in VALUES.items() if name != "honest"}
    assert cell_id({**workers, "workers": 7, "byzantine": 2}) == cell_id(VALUES)


def test_other_data_are_other_cells(monkeypatch: pytest.MonkeyPatch) -> None:
    before = cell_id(VALUES)
    digits = data.load("digits")
    other = dataclasses.replace(digits, validation=digits.test)
    monkeypatch.setattr("experiments.sweeps.cells.loaded", lambda name: other)
    assert cell_id(VALUES) != before


def test_the_code_of_an_own_attack_counts_and_its_place_does_not(tmp_path: Path) -> None:
    source = "from attacks import SignFlip\n\n\nclass Mine(SignFlip):\n    pass\n"
    ids = set()
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "mine.py").write_text(source)
        ids.add(cell_id({**VALUES, "attack": f"{tmp_path / folder / 'mine.py'}:Mine"}))
    assert len(ids) == 1
    (tmp_path / "b" / "mine.py").write_text(source + "# another\n")
    assert cell_id({**VALUES, "attack": f"{tmp_path / 'b' / 'mine.py'}:Mine"}) not in ids


def test_what_is_not_given_follows() -> None:
    attacked = run_config(VALUES)
    assert (attacked.workers, attacked.byzantine, attacked.f) == (7, 2, 2)
    assert (attacked.aggregator, attacked.estimator) == (("Mean",), ())
    assert (attacked.transport, attacked.hosts, attacked.identities) == ("inline", 1, "run")
    assert (attacked.deadline, attacked.device) == (None, "cpu")
    honest = run_config({**VALUES, "attack": "none"})
    assert (honest.workers, honest.byzantine, honest.f) == (5, 0, 2)
    online = run_config({**VALUES, "defence": "VClip(tau=0.1)"})
    assert (online.aggregator, online.estimator) == ((), ("VClip(tau=0.1)",))
    few = run_config({**VALUES, "byzantine": 1})
    assert (few.workers, few.byzantine, few.f) == (6, 1, 2)


def test_what_cannot_be_trained_is_a_cell_with_a_reason() -> None:
    cell = Cells().of(point({**VALUES, "defence": "Krum", "f": 3, "honest": 5}))
    assert cell.config is None
    assert cell.rounds == 0
    assert cell.refusal is not None
    assert cell.refusal.startswith("ConfigError: ")
    assert "n >= 2f + 3 is required, found n=8, f=3" in cell.refusal
    assert cell.id != cell_id({**VALUES, "defence": "Krum"})


@pytest.mark.parametrize(
    ("changes", "refuser"),
    [
        ({"defence": "Krum", "f": 3}, "defence"),
        ({"workers": 7, "f": 4}, "defence"),
        ({"workers": 7, "f": 20}, "defence"),  # more than there are, too
        ({"defence": "Krum", "f": 3, "attack": "ALittleIsEnough", "byzantine": 1}, "defence"),
        ({"f": 1, "attack": "ALittleIsEnough"}, "attack"),
        ({"rounds": -1}, "run"),
        ({"codec": "ErrorFeedback", "attack": "Crash"}, "run"),
        ({}, None),
    ],
    ids=str,
)
def test_a_refusal_is_the_defences_or_the_attacks(
    changes: dict[str, Any], refuser: str | None
) -> None:
    values = {**VALUES, **changes}
    if "workers" in changes:
        del values["honest"]
    assert Cells().of(point(values)).refuser == refuser


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"defence": "VClip(tau=0.1, fusion='batch')", "local_estimator": None, "lr": 0.1},
        {"attack": "none", "weight_decay": 1e-4, "sample": 4, "f": 1, "seed": -1},
    ],
    ids=str,
)
def test_the_command_trains_the_cell_again(
    changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from experiments import cli

    config = run_config({**VALUES, **changes})
    found: list[RunConfig] = []

    def caught(given: RunConfig, out: Path) -> None:
        found.append(given)
        raise ConfigError("enough")

    monkeypatch.setattr(cli.run_folder, "create", caught)
    words = shlex.split(command(config))
    assert words[:3] == ["env", f"OMP_NUM_THREADS={config.threads}", "robust-agg"]
    with pytest.raises(SystemExit):
        cli.main(words[3:])
    assert found[0] == dataclasses.replace(
        config,
        aggregator=config.aggregator or ("none",),
        estimator=config.estimator or ("none",),
        local_estimator=config.local_estimator or "none",
    )
