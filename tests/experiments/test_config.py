"""Configurations: what is refused, and that a file holds exactly what a run was started with."""

from __future__ import annotations

from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attacks import LabelFlip
from experiments.annotations import conforms, described, mismatch
from experiments.config import ConfigError, RunConfig
from robust_agg import Adaptive, Mixing, Momentum, NearestNeighborMixing, VClip


def test_the_defaults_are_a_run() -> None:
    config = RunConfig()
    assert (config.workers, config.byzantine, config.f) == (20, 4, 4)
    assert config.rows == 20
    assert config.defences == (*config.aggregator, "VClip")
    assert config.defence("VClip") == VClip()
    assert config.worker_estimator() == Momentum(beta=0.9)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"workers": 0}, "workers must be in [1, 1000000], found 0"),
        ({"workers": True}, "workers must be int, found True"),
        ({"workers": 20.0}, "workers must be int, found 20.0"),
        ({"workers": "20"}, "workers must be int, found '20'"),
        ({"rounds": 10**10}, "rounds must be in [1, 1000000000], found 10000000000"),
        ({"threads": 257}, "threads must be in [1, 256], found 257"),
        ({"sample": 0}, "sample must be in [1, 1000000000], found 0"),
        ({"sample": 21}, "sample must be at most the number of workers, 20, found 21"),
        ({"sample": 8}, "f must be >= 0 with 2f + 1 <= 8 rows a round, found 4"),
        ({"hosts": 21}, "hosts must be at most the number of workers, 20, found 21"),
        ({"sample": 10, "quorum": 11}, "quorum must be at most the number of rows, 10, found 11"),
        ({"byzantine": 20}, "byzantine must be >= 0 and below workers=20, found 20"),
        ({"byzantine": -1}, "byzantine must be >= 0 and below workers=20, found -1"),
        ({"f": 10}, "f must be >= 0 with 2f + 1 <= 20 rows a round, found 10"),
        ({"f": -1}, "f must be >= 0 with 2f + 1 <= 20 rows a round, found -1"),
        ({"lr": 0.0}, "lr must be a positive number, found 0.0"),
        ({"local_lr": float("nan")}, "local_lr must be a positive number, found nan"),
        ({"weight_decay": -0.1}, "weight_decay must be a number >= 0, found -0.1"),
        ({"deadline": 0}, "deadline must be in (0, "),
        ({"deadline": float("inf")}, " seconds, found inf"),
        ({"num_gpus": -0.5}, "num_gpus must be a number >= 0, found -0.5"),
        ({"num_gpus": float("nan")}, "num_gpus must be a number >= 0, found nan"),
        ({"transport": "tcp"}, "transport must be one of 'ray', 'inline', 'ranks', found 'tcp'"),
        ({"dataset": "cifar"}, "dataset must be one of 'digits', 'mnist', found 'cifar'"),
        ({"server": None}, "server must be one of 'driver', 'ray', found None"),
        ({"device": "gpu"}, "device must be auto, cpu, cuda or cuda:N, found 'gpu'"),
        ({"device": "cuda:4095"}, "device must exist, found 'cuda:4095' and "),
        ({"aggregator": "Mean"}, "aggregator must be tuple[str, ...], found 'Mean'"),
        ({"aggregator": ("Mean", 1)}, "aggregator must be tuple[str, ...], found ('Mean', 1)"),
        ({"aggregator": ("Krum(f=9)",)}, "aggregator: Krum: n >= 2f + 3 is required, found n=20"),
        ({"aggregator": ("Krum(f=3)",)}, "aggregator: Krum(f=3): rule must withstand f=4"),
        ({"aggregator": ("Clip(threshold=1.0) + TrimmedMean(f=1)",)}, "found TrimmedMean(f=1)"),
        (
            {"estimator": ("VClip(tau=Adaptive(quantile=0.9))",)},
            "estimator: VClip(tau=Adaptive(quantile=0.9)): the rule's quantile must be at most",
        ),
        ({"aggregator": (), "estimator": ("none",)}, "at least one defence is required"),
        ({"estimator": ("Krum",)}, "estimator: an online estimator is required, found 'Krum'"),
        ({"local_estimator": "Mean"}, "local_estimator: 'Mean': an estimator is required"),
        ({"attack": "Nothing"}, "attack: unknown name 'Nothing', known are "),
        ({"partition": "IID(x=1)"}, "partition: 'IID(x=1)': IID has no parameter 'x'"),
        ({"model": "MLP(hidden=())"}, "model: MLP: hidden must hold at least one number"),
        ({"seed": None}, "seed must be int, found None"),
    ],
    ids=str,
)
def test_what_cannot_be_is_refused_in_one_line(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        RunConfig(**changes)
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_f_and_the_number_of_byzantine_workers_are_independent() -> None:
    assert RunConfig(byzantine=0, f=9).f == 9
    assert RunConfig(byzantine=19, f=0, aggregator=("Mean",)).byzantine == 19


def test_none_is_no_defence_and_each_is_trained_once() -> None:
    config = RunConfig(aggregator=("Mean", "VClip", "Mean"), estimator=("VClip", "none"))
    assert config.defences == ("Mean", "VClip")
    assert RunConfig(local_estimator="None").worker_estimator() is None
    assert RunConfig(local_estimator=None).worker_estimator() is None


def test_an_attack_gets_the_classes_of_the_data() -> None:
    assert RunConfig(attack="LabelFlip").attack_on(num_classes=4) == LabelFlip(num_classes=4)


SIMPLE = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(),
    st.binary(),
    st.lists(st.none()),
)


@given(SIMPLE)
def test_values_conform_to_what_they_are(value: object) -> None:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    assert conforms(value, int) == (number and isinstance(value, int))
    assert conforms(value, float) == number
    assert conforms(value, str) == isinstance(value, str)
    assert conforms(value, int | None) == (conforms(value, int) or value is None)
    assert conforms((value, 1), tuple[int, ...]) == conforms(value, int)
    assert conforms((value, "a"), tuple[float, str]) == conforms(value, float)
    assert not conforms((value,), tuple[float, str])
    assert conforms({1: value}, dict[int, str]) == conforms(value, str)
    assert conforms(value, Literal["a"]) == (value == "a")
    assert conforms(value, Any)


def test_objects_conform_to_their_classes() -> None:
    assert conforms(Adaptive(), float | Adaptive | None)
    assert not conforms(VClip(), float | Adaptive | None)
    assert conforms((NearestNeighborMixing(f=1),), tuple[Mixing, ...])
    assert not conforms(10**400, float)
    assert conforms(10**300, float)


def test_annotations_are_described_without_their_modules() -> None:
    assert described(int) == "int"
    assert described(float | Adaptive | None) == "float | Adaptive | None"
    assert described(Literal["a", 1]) == "one of 'a', 1"
    assert described(tuple[Mixing, ...]) == "tuple[Mixing, ...]"


def test_parameters_without_a_known_annotation_are_taken_as_they_are() -> None:
    class Own:
        a: Missing  # type: ignore[name-defined]  # noqa: F821 - what cannot be resolved

    assert mismatch(Own, {"a": 1}) is None
    assert mismatch(RunConfig, {"nothing": 1}) is None
