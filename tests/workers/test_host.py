"""A host: grouping, local steps, local estimators and their states."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from host_samples import (
    CLASSES,
    batch_norm,
    cnn,
    dropout,
    mlp,
    parameters,
    shard,
    spec,
    workers,
)
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from attacks import LabelFlip
from robust_agg.messages import Schema, decode, unpack
from robust_agg.online.named import Momentum, VClip
from workers import HostSpec, LocalSGD, LogicalWorker

Model = Callable[[], nn.Module]


def compute(settings: HostSpec, round: int = 0, weights: Tensor | None = None) -> dict[int, Tensor]:
    weights = parameters(settings.model) if weights is None else weights
    return {u.sender: u.row for u in settings.build().compute(round, weights)}


def assert_close(a: dict[int, Tensor], b: dict[int, Tensor]) -> None:
    assert a.keys() == b.keys()
    for i in a:
        torch.testing.assert_close(a[i], b[i])


@pytest.mark.parametrize("local", [None, LocalSGD(steps=3, lr=0.1)])
@pytest.mark.parametrize("model", [mlp, cnn])
def test_chunks_hosts_and_vectorisation_change_rounding_only(
    model: Model, local: LocalSGD | None
) -> None:
    # Shards of 5, 20 and 8 samples: batches of 5, 8 and 8.
    settings: dict[str, Any] = {"model": model, "local": local}
    settings["workers"] = workers(7, lengths=(5, 20, 8))
    whole = compute(spec(**settings))
    assert list(whole) == list(range(7))
    assert_close(compute(spec(**settings, chunk=2)), whole)
    assert_close(compute(spec(**settings, vectorize=False)), whole)
    parts: dict[int, Tensor] = {}
    for part in spec(**settings).split(3):
        parts |= compute(part)
    assert_close(parts, whole)


@pytest.mark.parametrize("model", [batch_norm, dropout])
def test_looped_models_do_not_depend_on_the_grouping(model: Model) -> None:
    whole = compute(spec(model=model))
    for part in spec(model=model).split(3):
        for i, row in compute(part).items():
            assert torch.equal(row, whole[i])


@pytest.mark.parametrize("model", [mlp, batch_norm])
@pytest.mark.parametrize("steps", [1, 4])
def test_local_steps_are_those_of_sgd(model: Model, steps: int) -> None:
    lr, weights = 0.2, parameters(model)
    settings = spec(model=model, local=LocalSGD(steps=steps, lr=lr))
    found = compute(settings, round=5, weights=weights)
    for worker in settings.workers:
        module = model()
        vector_to_parameters(weights.clone(), module.parameters())
        optimizer = torch.optim.SGD(module.parameters(), lr=lr)
        for step in range(steps):
            inputs, targets = worker.batch(8, seed=7, round=5, step=step)
            optimizer.zero_grad()
            cross_entropy(module(inputs), targets).backward()
            optimizer.step()
        after = parameters_to_vector(module.parameters()).detach()
        torch.testing.assert_close(found[worker.id], weights - after, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("local", [None, LocalSGD(steps=3, lr=0.1)])
@pytest.mark.parametrize("model", [mlp, cnn, batch_norm])
def test_a_pure_model_has_the_same_rows_to_the_last_bit(
    model: Model, local: LocalSGD | None
) -> None:
    settings = spec(model=model, local=local, estimator=Momentum(beta=0.5))
    plain, pure = settings.build(), replace(settings, pure=True).build()
    weights = parameters(model)
    for number in range(5):
        pairs = zip(plain.compute(number, weights), pure.compute(number, weights), strict=True)
        assert all(torch.equal(own.row, other.row) for own, other in pairs)
        weights = weights * 0.9


def test_rows_are_of_their_round_and_views_of_one_block() -> None:
    host = spec().build()
    weights = parameters(mlp)
    before = weights.clone()
    first = host.compute(0, weights)
    assert [u.sender for u in first] == list(host.ids) == list(range(6))
    assert {u.round for u in first} == {0}
    assert len({u.row.untyped_storage().data_ptr() for u in first}) == 1
    second = host.compute(1, weights)
    assert not any(torch.equal(a.row, b.row) for a, b in zip(first, second, strict=True))
    again = host.compute(0, weights)
    assert all(torch.equal(a.row, b.row) for a, b in zip(first, again, strict=True))
    assert torch.equal(weights, before)


def test_active_workers_are_answered_for_in_their_order() -> None:
    host = spec().build()
    found = host.compute(0, parameters(mlp), active=[4, 1])
    assert [u.sender for u in found] == [4, 1]
    assert_close({u.sender: u.row for u in found}, {i: compute(spec())[i] for i in (4, 1)})


def test_a_reply_is_the_same_updates_as_bytes() -> None:
    weights = parameters(mlp)
    schema = Schema(round=2, dim=len(weights), dtype=torch.float32, senders=frozenset(range(6)))
    block = spec().build().reply(2, weights, [3, 0])
    found = [decode(message, schema) for message in unpack(block)]
    expected = spec().build().compute(2, weights, [3, 0])
    assert [(u.sender, u.round) for u in found] == [(3, 2), (0, 2)]
    assert all(torch.equal(a.row, b.row) for a, b in zip(found, expected, strict=True))


def test_a_worker_with_bad_data_runs_the_honest_path() -> None:
    attack = LabelFlip(num_classes=CLASSES)
    flipped = shard(1)
    flipped = type(flipped)(flipped.inputs, CLASSES - 1 - flipped.targets)
    attacked = spec(workers=(LogicalWorker(0, shard(0)), LogicalWorker(1, shard(1), attack)))
    by_hand = spec(workers=(LogicalWorker(0, shard(0)), LogicalWorker(1, flipped)))
    assert_close(compute(attacked), compute(by_hand))
    honest = spec(workers=(LogicalWorker(0, shard(0)), LogicalWorker(1, shard(1))))
    assert not torch.allclose(compute(attacked)[1], compute(honest)[1])


@pytest.mark.parametrize("estimator", [Momentum(beta=0.8), VClip(tau=0.05), VClip()])
def test_each_worker_has_an_estimator_of_its_own(estimator: Any) -> None:
    weights = parameters(mlp)
    plain, local = spec().build(), spec(estimator=estimator).build()
    assert local.state() == {}
    states = {i: estimator.init(weights) for i in range(6)}
    for round, active in enumerate([None, [0, 1], [1, 2, 3], None]):
        rows = {u.sender: u.row for u in plain.compute(round, weights, active)}
        found = {u.sender: u.row for u in local.compute(round, weights, active)}
        assert found.keys() == rows.keys()
        for i, row in rows.items():
            expected, states[i] = estimator.step(row[None], states[i])
            assert torch.equal(found[i], expected)


def test_states_are_loaded_exactly() -> None:
    weights = parameters(mlp)
    host = spec(estimator=Momentum(beta=0.8)).build()
    host.compute(0, weights)
    saved = host.state()
    expected = host.compute(1, weights)
    assert list(saved) == list(range(6))
    other = spec(estimator=Momentum(beta=0.8)).build()
    other.load_state(saved)
    for a, b in zip(other.compute(1, weights), expected, strict=True):
        assert torch.equal(a.row, b.row)
    other.load_state({2: saved[2]})
    assert list(other.state()) == [2]


def test_a_failed_round_leaves_the_states() -> None:
    weights = parameters(mlp)
    broken: list[bool] = []

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        if broken:
            raise ArithmeticError("the loss is lost")
        return cross_entropy(outputs, targets)

    host = spec(estimator=Momentum(beta=0.8), loss=loss, chunk=2).build()
    host.compute(0, weights)
    before = host.state()
    broken.append(True)
    with pytest.raises(ArithmeticError):
        host.compute(1, weights)
    assert all(host.state()[i] is before[i] for i in range(6))


def test_building_draws_nothing_and_shares_nothing() -> None:
    module = mlp()
    weights = parameters_to_vector(module.parameters()).detach().clone()
    state = torch.get_rng_state()
    host = spec(model=mlp).build()
    assert torch.equal(torch.get_rng_state(), state)
    module.eval()
    shared = spec(model=lambda: module).build()
    assert not module.training
    shared.compute(0, weights + 1)
    host.compute(0, weights)
    assert torch.equal(parameters_to_vector(module.parameters()), weights)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"workers": ()}, r"workers must not be empty, found \(\)"),
        ({"workers": (*workers(2), *workers(1))}, r"different ids, found \(0, 1, 0\)"),
        ({"batch_size": 0}, "batch_size must be an integer >= 1, found 0"),
        ({"chunk": 0}, "chunk must be an integer >= 1, found 0"),
        ({"threads": 0}, "threads must be an integer >= 1, found 0"),
    ],
)
def test_specifications_are_checked(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"HostSpec: .*{message}"):
        spec(**changes)


def test_unequal_samples_are_refused() -> None:
    odd = shard(1)
    odd = type(odd)(odd.inputs[:, :-1], odd.targets)
    with pytest.raises(ValueError, match="samples of one shape and dtype, found 2 kinds"):
        spec(workers=(LogicalWorker(0, shard(0)), LogicalWorker(1, odd)))


def test_arguments_are_checked() -> None:
    host = spec().build()
    with pytest.raises(ValueError, match=r"parameters must have shape \(83,\), found \(82,\)"):
        host.compute(0, parameters(mlp)[1:])
    with pytest.raises(ValueError, match=r"active must be among .* found \[8, 9\]"):
        host.compute(0, parameters(mlp), active=[9, 0, 8])
    for hosts in (0, 7):
        with pytest.raises(ValueError, match=rf"hosts must be in \[1, 6\], found {hosts}"):
            spec().split(hosts)
    with pytest.raises(ValueError, match="LocalSGD: steps must be an integer >= 1, found 0"):
        LocalSGD(steps=0, lr=1.0)
    with pytest.raises(ValueError, match="LocalSGD: lr must be a positive finite number, found 0"):
        LocalSGD(steps=1, lr=0)


def test_split_keeps_workers_in_order() -> None:
    assert [part.ids for part in spec().split(4)] == [(0,), (1, 2), (3,), (4, 5)]
    assert [part.ids for part in spec().split(1)] == [(0, 1, 2, 3, 4, 5)]
