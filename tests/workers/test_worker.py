"""Shards, batches and data attacks of one worker."""

from __future__ import annotations

import pickle
from collections import Counter

import pytest
import torch
from host_samples import CLASSES, shard
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from attacks import LabelFlip
from robust_agg.seeding import generator
from workers import LogicalWorker, Shard
from workers.worker import batches, sample


@given(st.integers(1, 60), st.data())
def test_a_sample_is_of_different_indices(size: int, data: st.DataObject) -> None:
    count = data.draw(st.integers(1, size))
    seed = data.draw(st.integers(0, 1000))
    chosen = sample(size, count, generator(seed, "test"))
    assert chosen.shape == (count,)
    assert chosen.dtype == torch.int64
    assert len(set(chosen.tolist())) == count
    assert set(chosen.tolist()) <= set(range(size))
    assert torch.equal(chosen, sample(size, count, generator(seed, "test")))


@pytest.mark.parametrize(("size", "count"), [(9, 2), (9, 5)])
def test_a_sample_is_uniform_in_every_place(size: int, count: int) -> None:
    """Both ways of drawing: by repetition where the sample is sparse, by shuffling else."""
    draw = generator(0, "test")
    rounds = 4000
    drawn = torch.stack([sample(size, count, draw) for _ in range(rounds)])
    for place in range(count):
        frequencies = Counter(drawn[:, place].tolist())
        expected = rounds / size
        chi_squared = sum((frequencies[i] - expected) ** 2 / expected for i in range(size))
        assert chi_squared < 26.1, "the 0.999 quantile for 8 degrees of freedom"


def test_a_batch_is_of_the_shard_and_of_its_round() -> None:
    worker = LogicalWorker(3, shard(3, 20))
    batches = {
        (round, step): worker.batch(8, seed=1, round=round, step=step)
        for round in range(2)
        for step in range(2)
    }
    seen = set()
    for inputs, targets in batches.values():
        matches = (inputs[:, None] == worker.shard.inputs[None]).all(dim=-1)
        assert torch.equal(matches.sum(dim=1), torch.ones(8, dtype=torch.int64))
        places = matches.int().argmax(dim=1)
        assert torch.equal(targets, worker.shard.targets[places])
        seen.add(tuple(places.tolist()))
    assert len(seen) == 4
    again = worker.batch(8, seed=1, round=1, step=0)
    assert torch.equal(again[0], batches[1, 0][0])
    assert not torch.equal(worker.batch(8, seed=2, round=1, step=0)[0], again[0])
    neighbour = LogicalWorker(4, worker.shard)
    assert not torch.equal(neighbour.batch(8, seed=1, round=1, step=0)[0], again[0])


@pytest.mark.parametrize("size", [None, 20, 50])
def test_a_batch_as_large_as_the_shard_is_the_shard(size: int | None) -> None:
    worker = LogicalWorker(0, shard(0, 20))
    inputs, targets = worker.batch(size, seed=1, round=0, step=0)
    assert torch.equal(inputs, worker.shard.inputs)
    assert torch.equal(targets, worker.shard.targets)


@pytest.mark.parametrize("attack", [None, LabelFlip(num_classes=CLASSES)])
@pytest.mark.parametrize("size", [None, 3, 8, 20])
def test_batches_are_each_workers_own(size: int | None, attack: LabelFlip | None) -> None:
    workers = [LogicalWorker(i, shard(i, 20)) for i in range(3)]
    workers.append(LogicalWorker(3, shard(3, 20), attack))
    drawn = {"seed": 1, "round": 4, "step": 2}
    inputs, targets = batches(workers, size, **drawn)
    for place, worker in enumerate(workers):
        own_inputs, own_targets = worker.batch(size, **drawn)
        assert torch.equal(inputs[place], own_inputs)
        assert torch.equal(targets[place], own_targets)


@pytest.mark.parametrize("size", [None, 3])
def test_inputs_with_a_gradient_are_data_all_the_same(size: int | None) -> None:
    plain = shard(0, 20)
    tracked = Shard(plain.inputs.clone().requires_grad_(), plain.targets)
    drawn = {"seed": 1, "round": 4, "step": 2}
    inputs, targets = batches([LogicalWorker(0, tracked)], size, **drawn)
    expected = batches([LogicalWorker(0, plain)], size, **drawn)
    assert not inputs.requires_grad
    assert torch.equal(inputs, expected[0])
    assert torch.equal(targets, expected[1])


def test_samples_are_what_they_were() -> None:
    """A run that is continued must draw what it would have drawn."""
    assert sample(20, 3, generator(0, "test")).tolist() == [4, 12, 10]
    assert sample(20, 5, generator(0, "test")).tolist() == [4, 12, 10, 2, 17]
    assert sample(20, 8, generator(0, "test")).tolist() == [4, 7, 18, 2, 10, 17, 11, 6]


def test_a_data_attack_changes_the_batch_and_not_the_shard() -> None:
    own = shard(0)
    before = own.targets.clone()
    honest, bad = LogicalWorker(0, own), LogicalWorker(0, own, LabelFlip(num_classes=CLASSES))
    inputs, targets = honest.batch(8, seed=1, round=0, step=0)
    same_inputs, flipped = bad.batch(8, seed=1, round=0, step=0)
    assert torch.equal(same_inputs, inputs)
    assert torch.equal(flipped, CLASSES - 1 - targets)
    assert torch.equal(own.targets, before)


class Blur:
    """A data attack that draws."""

    def __call__(
        self, inputs: Tensor, targets: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        return inputs + torch.randn(inputs.shape, generator=generator), targets


def test_a_data_attack_draws_anew_each_round_step_and_worker() -> None:
    own = shard(0)
    noises = []
    for i, round, step in ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (0, 0, 0)):
        worker = LogicalWorker(i, own, Blur())  # type: ignore[arg-type]  # one by its form
        noises.append(worker.batch(None, seed=1, round=round, step=step)[0] - own.inputs)
    assert torch.equal(noises[0], noises[4])
    for i in range(4):
        for j in range(i):
            assert not torch.allclose(noises[i], noises[j], atol=0.1)


def test_a_view_is_shipped_without_the_rest() -> None:
    everyones = torch.randn(10_000, 4, generator=generator(0, "test"))
    own = Shard(everyones[10:12], torch.arange(10_000)[10:12])
    block = pickle.dumps(LogicalWorker(0, own))
    assert len(block) < 5_000
    copy = pickle.loads(block).shard
    assert torch.equal(copy.inputs, own.inputs)
    assert torch.equal(copy.targets, own.targets)


def test_a_data_set_that_all_share_is_shipped_once() -> None:
    whole = shard(0, 1000)
    one, ten = (len(pickle.dumps([LogicalWorker(i, whole) for i in range(n)])) for n in (1, 10))
    assert ten < 1.1 * one


def test_errors_name_what_was_found() -> None:
    with pytest.raises(ValueError, match=r"Shard: .* N >= 1 .* found shapes \(3, 2\) and \(2,\)"):
        Shard(torch.zeros(3, 2), torch.zeros(2))
    with pytest.raises(ValueError, match=r"found shapes \(0, 2\) and \(0,\)"):
        Shard(torch.zeros(0, 2), torch.zeros(0))
    with pytest.raises(ValueError, match=r"found shapes \(\) and \(\)"):
        Shard(torch.zeros(()), torch.zeros(()))
    with pytest.raises(ValueError, match="LogicalWorker: id must be at least 0, found -1"):
        LogicalWorker(-1, shard(0))
