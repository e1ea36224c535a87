"""What mixings say of the points they make: how many, how many of them bad, and whose."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import robust_agg as ra
from robust_agg.span import measure

F = 2
seeds = st.integers(0, 2**31)
IN_PLACE = [ra.Clip(threshold=1.0), ra.AdaptiveClip(f=F), ra.NearestNeighborMixing(f=F)]
ELSEWHERE = [
    ra.KrumSelection(f=F),
    ra.KrumSelection(f=F, rounds="at once"),
    ra.Bucketing(s=1),
    ra.Bucketing(s=2),
    ra.Bucketing(s=3),
    ra.Resample(s=1),
    ra.Resample(s=2),
    ra.Resample(s=3),
]


def shares(mixing: ra.Mixing, rows: Tensor, seed: int) -> Tensor:
    """``(m, n)``: what each row has in each point."""
    return mixing.mix(measure(rows)[0], torch.Generator().manual_seed(seed)).coefficients


def draw(n: int, seed: int) -> Tensor:
    return torch.randn(n, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def spoiled(mixing: ra.Mixing, n: int, seed: int) -> int:
    """In how many points some of F bad rows is."""
    rows = draw(n, seed)
    # Of another seed than the mixing's own draw.
    bad = torch.randperm(n, generator=torch.Generator().manual_seed(seed + 1))[:F]
    rows[bad] += 3 * (seed % 3)
    found = shares(mixing, rows, seed)
    assert len(found) == mixing.check(n)
    return int((found[:, bad] != 0).any(dim=1).sum())


# A neighbour that is bad is in the points of honest rows too: near them, or it would be none.
@pytest.mark.parametrize("mixing", [*IN_PLACE[:2], *ELSEWHERE], ids=repr)
@settings(max_examples=40)
@given(seed=seeds, n=st.integers(7, 15))
def test_no_more_points_are_spoiled_than_is_said(mixing: ra.Mixing, seed: int, n: int) -> None:
    assert spoiled(mixing, n, seed) <= mixing.spoiled(F)


@pytest.mark.parametrize("mixing", [*IN_PLACE[:2], *ELSEWHERE], ids=repr)
def test_as_many_points_are_spoiled_as_is_said(mixing: ra.Mixing) -> None:
    assert max(spoiled(mixing, 12, seed) for seed in range(60)) == mixing.spoiled(F)


@pytest.mark.parametrize("mixing", [*IN_PLACE, *ELSEWHERE], ids=repr)
def test_point_i_is_made_of_row_i_where_that_is_said(mixing: ra.Mixing) -> None:
    places = [shares(mixing, draw(9, seed), seed) for seed in range(20)]
    own = [bool((found.diagonal() > 0).all()) and len(found) == 9 for found in places]
    assert all(own) == mixing.in_place


@pytest.mark.parametrize("mixing", IN_PLACE, ids=repr)
@settings(max_examples=30)
@given(seed=seeds)
def test_points_are_permuted_as_rows_are_where_these_keep_their_place(
    mixing: ra.Mixing, seed: int
) -> None:
    rows, order = draw(9, seed), torch.randperm(9, generator=torch.Generator().manual_seed(seed))
    expected = shares(mixing, rows, 0)[order][:, order]
    torch.testing.assert_close(shares(mixing, rows[order], 0), expected)


def test_a_neighbour_in_the_mean_of_an_honest_row_is_no_farther_than_honest_ones() -> None:
    for seed in range(20):
        rows = draw(9, seed)
        rows[:F] *= 10.0 ** (seed % 4)
        found = shares(ra.NearestNeighborMixing(f=F), rows, 0)[F:] @ rows
        honest = rows[F:]
        reach = torch.cdist(honest, honest).max()
        assert bool(((found - honest).norm(dim=1) <= reach).all())
