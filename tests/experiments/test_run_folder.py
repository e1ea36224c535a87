"""A run's folder: it holds exactly what the run was started with, for one process at a time."""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
from pathlib import Path
from typing import Any

import pytest
from run_samples import OWN_ATTACK, quiet, tiny

from experiments import data, runs
from experiments.config import ConfigError, RunConfig
from experiments.run_folder import CONFIG, LOCK, create, locked, reopen


@pytest.mark.parametrize(
    "config",
    [
        RunConfig(),
        RunConfig(aggregator=(), estimator=("CClip(tau=1e-3)",), sample=9, deadline=None, seed=-3),
        RunConfig(local_estimator=None, lr=1 / 3, model="SmallCNN(channels=(2,))", seed=2**70),
    ],
    ids=["defaults", "options", "more"],
)
def test_a_file_gives_the_configuration_back(config: RunConfig, tmp_path: Path) -> None:
    assert reopen(create(config, tmp_path).folder).config == config


CHANGES: dict[str, Any] = {
    "workers": 21,
    "byzantine": 3,
    "identities": "run",
    "f": 3,
    "attack": "SignFlip",
    "aggregator": ["Mean"],
    "estimator": ["CClip"],
    "local_estimator": None,
    "codec": "ErrorFeedback",
    "delta": 1e-6,
    "dataset": "mnist",
    "partition": "IID",
    "model": "LogisticRegression",
    "rounds": 201,
    "batch_size": 31,
    "lr": 0.5,
    "weight_decay": 0.1,
    "local_steps": 2,
    "local_lr": 0.2,
    "sample": 15,
    "transport": "inline",
    "hosts": 3,
    "threads": 2,
    "num_gpus": 1.0,
    "deadline": None,
    "quorum": 2,
    "server": "ray",
    "device": "cpu",
    "evaluate_every": 11,
    "split": "validation",
    "checkpoint_every": 49,
    "seed": 1,
}


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(RunConfig)])
def test_a_file_that_was_changed_is_refused(name: str, tmp_path: Path) -> None:
    path = create(RunConfig(), tmp_path).folder / CONFIG
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, name: CHANGES[name]}))
    with pytest.raises(ConfigError, match=r"config\.json: the parameters .* cannot be changed"):
        reopen(path.parent)
    del content[name]
    path.write_text(json.dumps(content))
    with pytest.raises(ConfigError, match=rf"config\.json: missing parameters {name}$"):
        reopen(path.parent)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "config.json: JSON is required, found Expecting value"),
        (b"\xff\xfe", "config.json: JSON is required, found 'utf-8' codec"),
        (b"[" * 100_000, "config.json: JSON is required, found maximum recursion depth"),
        (b"[]", "config.json: a JSON object is required, found list"),
        (b'{"a": 1}', "config.json: unknown parameters a"),
        (b"{}", "config.json: missing parameters aggregator, attack, "),
    ],
    ids=lambda content: str(content)[:12],
)
def test_a_file_that_is_no_configuration_is_refused(
    content: bytes, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as raised:
        reopen(path.parent)
    assert message in str(raised.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"workers": "20"}, "config.json: workers must be int, found '20'"),
        ({"aggregator": "Mean"}, "config.json: aggregator must be tuple"),
        ({"aggregator": [["Mean"]]}, "config.json: aggregator must be tuple"),
        ({"rounds": None}, "config.json: rounds must be int, found None"),
        ({"attack": {}}, "config.json: attack must be str, found {}"),
        ({"digest": 3}, "config.json: the parameters of a run, and an attack's file"),
    ],
    ids=str,
)
def test_a_file_with_wrong_values_is_refused(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    path = create(RunConfig(), tmp_path).folder / CONFIG
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    with pytest.raises(ConfigError) as raised:
        reopen(path.parent)
    assert message in str(raised.value)


def test_a_missing_file_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder" / CONFIG).mkdir(parents=True)
    for name, found in (
        ("nothing", "No such file"),
        ("file", "Not a directory"),
        ("folder", "Is a directory"),
    ):
        with pytest.raises(ConfigError, match=rf"that 'robust-agg run' wrote .* found {found}"):
            reopen(tmp_path / name)


def test_an_own_attack_travels_with_the_folder(tmp_path: Path) -> None:
    mine = tmp_path / "mine.py"
    mine.write_text(OWN_ATTACK)
    run = create(tiny(attack=f"{mine}:Drift(step=0.25)", rounds=2), tmp_path / "runs")
    assert run.config.attack_label == "mine.py:Drift(step=0.25)"
    mine.unlink()
    digest = run.config.digest
    moved = run.folder.rename(tmp_path / "elsewhere")
    again = reopen(moved)
    assert again.config.digest == digest
    assert {len(metrics) for metrics in runs.execute(again, quiet()).values()} == {1}


def test_a_run_goes_on_with_its_own_data_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = create(tiny(), tmp_path)
    other = dataclasses.replace(run.data, train=run.data.validation)
    assert other.fingerprint != run.data.fingerprint == data.load("digits").fingerprint
    monkeypatch.setattr(data, "_digits", lambda: other)
    with pytest.raises(ConfigError, match=r"config\.json: the data of a run cannot be changed"):
        reopen(run.folder)


def test_two_processes_do_not_work_on_one_run(tmp_path: Path) -> None:
    run = create(tiny(rounds=2), tmp_path)
    context = multiprocessing.get_context("spawn")
    inside, leave = context.Event(), context.Event()
    other = context.Process(target=_work, args=(run.folder, inside, leave))
    other.start()
    assert inside.wait(120)
    with pytest.raises(ConfigError, match="another process is working in it") as refused:
        runs.execute(run, quiet())
    assert str(run.folder) in str(refused.value)
    assert sorted(path.name for path in run.folder.iterdir()) == [LOCK, CONFIG]
    leave.set()
    other.join()
    runs.execute(run, quiet())


def _work(folder: Path, inside: Any, leave: Any) -> None:
    with locked(folder):
        inside.set()
        leave.wait(120)
