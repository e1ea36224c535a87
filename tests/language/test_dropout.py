"""Dropout masks: what they depend on, and that they have the rate they say."""

from __future__ import annotations

import math

import pytest
import torch

from experiments.language import dropout
from experiments.language.dropout import Site

SITES = {
    "first": Site(shape=(5, 3), rate=0.2),
    "all": Site(shape=(7,), rate=0.4, shared=True),
    "none": Site(shape=(4,), rate=0.0),
    "second": Site(shape=(2, 2, 3), rate=0.5),
}


def test_shapes_and_values() -> None:
    masks = dropout.draw(SITES, range(6), seed=1)
    assert {name: tuple(mask.shape) for name, mask in masks.items()} == {
        "first": (6, 5, 3),
        "second": (6, 2, 2, 3),
        "all": (1, 7),
    }
    for name, mask in masks.items():
        assert mask.dtype == torch.float32
        values = mask.unique().tolist()
        assert values == pytest.approx([0, 1 / (1 - SITES[name].rate)], rel=1e-4)


def test_a_column_has_its_masks_whatever_its_company() -> None:
    together = dropout.draw(SITES, range(9), seed=4)
    for columns in (range(9), range(3, 7), [8], [5, 0]):
        some = dropout.draw(SITES, columns, seed=4)
        for name in ("first", "second"):
            assert torch.equal(some[name], together[name][list(columns)])
        assert torch.equal(some["all"], together["all"])


@pytest.mark.parametrize("rate", [0.1, 0.2, 0.5, 0.9, 1e-3, 0.999])
def test_rate_and_mean(rate: float) -> None:
    """Within five standard deviations, over columns and over seeds."""
    site = {"it": Site(shape=(1000,), rate=rate)}
    for masks in (
        dropout.draw(site, range(200), seed=9)["it"],
        torch.cat([dropout.draw(site, [3], seed=seed)["it"] for seed in range(200)]),
    ):
        deviation = math.sqrt(rate * (1 - rate) / masks.numel())
        assert abs((masks == 0).double().mean().item() - rate) < 5 * deviation
        assert abs(masks.double().mean().item() - 1) < 5 * deviation / (1 - rate)


def test_rate_next_to_one_leaves_finite_masks() -> None:
    mask = dropout.draw({"it": Site(shape=(99,), rate=1 - 1e-9)}, range(9), seed=0)["it"]
    assert mask.isfinite().all()


def test_sites_columns_and_seeds_are_independent() -> None:
    sites = {name: Site(shape=(4000,), rate=0.5) for name in ("a", "b")}
    sites["c"] = Site(shape=(4000,), rate=0.5, shared=True)
    rows = torch.cat(
        [mask for seed in (0, 1) for mask in dropout.draw(sites, range(4), seed).values()]
    )
    correlations = torch.corrcoef(rows) - torch.eye(len(rows))
    assert correlations.abs().max() < 5 / math.sqrt(4000)


def test_no_global_random_state() -> None:
    torch.manual_seed(5)
    state = torch.random.get_rng_state()
    first = dropout.draw(SITES, range(3), seed=2)
    assert torch.equal(state, torch.random.get_rng_state())
    torch.manual_seed(6)
    second = dropout.draw(SITES, range(3), seed=2)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_drop_multiplies_where_there_is_a_mask() -> None:
    values = torch.arange(6.0, dtype=torch.float64).view(2, 3)
    masks = {"here": torch.tensor([[0.0, 2.0, 2.0]])}
    assert dropout.drop(values, masks, "elsewhere") is values
    dropped = dropout.drop(values, masks, "here")
    assert dropped.dtype == torch.float64
    assert dropped.tolist() == [[0, 2, 4], [0, 8, 10]]


@pytest.mark.parametrize("rate", [1.0, -0.1, float("nan")])
def test_rate_is_checked(rate: float) -> None:
    with pytest.raises(ValueError, match=r"^Site: rate must be in \[0, 1\), found "):
        Site(shape=(2,), rate=rate)
