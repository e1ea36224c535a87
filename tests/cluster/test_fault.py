"""Bits flip as often as they are said to, and as reproducibly."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from experiments.cluster.fault import BitFlips, flipped
from robust_agg.seeding import generator


def changed_bits(a: torch.Tensor, b: torch.Tensor) -> list[int]:
    """How many bits differ, of each number."""
    words = (a.view(torch.int32) ^ b.view(torch.int32)).flatten().tolist()
    return [bin(word & 0xFFFFFFFF).count("1") for word in words]


def test_of_a_number_that_is_hit_one_bit_flips() -> None:
    numbers = torch.randn(100, 1000, generator=generator(0, "numbers"))
    before = numbers.clone()
    found = flipped(numbers, 0.01, generator(0, "flips"))
    assert torch.equal(numbers, before)
    counts = changed_bits(numbers, found)
    assert set(counts) == {0, 1}
    assert 850 < sum(counts) < 1150


def test_every_bit_is_as_likely() -> None:
    zeros = torch.zeros(200_000)
    words = flipped(zeros, 0.1, generator(0, "flips")).view(torch.int32)
    hits = [int(((words >> bit) & 1).sum()) for bit in range(32)]
    assert min(hits) > 0.8 * 20_000 / 32
    assert max(hits) < 1.2 * 20_000 / 32
    # The top bit of the exponent makes 2 of a zero.
    assert float(words.view(torch.float32).max()) == 2.0


def test_the_flips_are_those_of_the_step_in_all_parameters() -> None:
    def gradients(step: int | None, hit: float = 0.2) -> list[torch.Tensor]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(20, 30), nn.TransformerEncoderLayer(30, 2, 40, dropout=0.0))
        if step is not None:
            fault = BitFlips(model, probability=hit, seed=0)
            for earlier in (0, step):
                model.zero_grad()
                fault.at(earlier)
                model(torch.ones(5, 3, 20)).square().sum().backward()
        else:
            model(torch.ones(5, 3, 20)).square().sum().backward()
        return [p.grad for p in model.parameters() if p.grad is not None]

    clean, hit = gradients(None), gradients(3)
    for one, other in zip(clean, hit, strict=True):
        assert sum(changed_bits(one, other)) > 0
    for one, other in zip(hit, gradients(3), strict=True):
        assert changed_bits(one, other) == [0] * one.numel()
    assert any(sum(changed_bits(a, b)) for a, b in zip(hit, gradients(4), strict=True))
    for one, other in zip(clean, gradients(3, hit=0.0), strict=True):
        assert torch.equal(one, other)


def test_a_probability_is_one() -> None:
    with pytest.raises(ValueError, match="BitFlips: probability must be"):
        BitFlips(nn.Linear(2, 2), probability=1.0, seed=0)


def test_bad_ranks_flip_different_bits() -> None:
    def gradient(stream: int) -> torch.Tensor:
        torch.manual_seed(0)
        model = nn.Linear(40, 30, bias=False)
        fault = BitFlips(model, probability=0.2, seed=0, stream=stream)
        fault.at(3)
        model(torch.ones(5, 40)).square().sum().backward()
        assert model.weight.grad is not None
        return model.weight.grad

    first, second = gradient(0), gradient(1)
    assert sum(changed_bits(first, second)) > 100
    assert changed_bits(first, gradient(0)) == [0] * first.numel()
    # What kept results were drawn from.
    torch.manual_seed(0)
    model = nn.Linear(40, 30, bias=False)
    model(torch.ones(5, 40)).square().sum().backward()
    assert model.weight.grad is not None
    expected = flipped(model.weight.grad, 0.2, generator(0, "bit flips", 3))
    assert changed_bits(first, expected) == [0] * first.numel()
