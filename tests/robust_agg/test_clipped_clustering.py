"""Clipped clustering: its oracle over rounds, its memory, bad rows, purity."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import filters as oracle
from torch import Tensor

import robust_agg as ra
from robust_agg import Invariance
from robust_agg.filters.clipped_clustering import NORMS, SEEN, remember
from robust_agg.online.estimator import ESTIMATE

Array = npt.NDArray[np.float64]
seeds = st.integers(0, 2**31)
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


def draw(seed: int, n: int, d: int = 6, *, whole: bool = False) -> Array:
    rng = np.random.default_rng(seed)
    if whole:
        return rng.integers(-2, 3, size=(n, d)).astype(np.float64)
    rows = rng.normal(size=(n, d)) + 2 * rng.normal(size=d)
    rows[: n // 4] *= -30
    return rows[rng.permutation(n)]


@settings(max_examples=60)
@given(
    seed=seeds, n=st.lists(st.integers(1, 12), min_size=1, max_size=4), d=st.integers(1, 9),
    whole=st.booleans(),
)  # fmt: skip
def test_rounds_are_those_of_the_oracle(seed: int, n: list[int], d: int, whole: bool) -> None:
    rule = ra.ClippedClustering()
    state = rule.init(torch.zeros(d, dtype=torch.float64))
    norms: list[float] = []
    for place, count in enumerate(n):
        rows = draw(seed + place, count, d, whole=whole)
        found, state = rule.step(torch.from_numpy(rows), state)
        expected, norms = oracle.clipped_clustering(rows, norms)
        np.testing.assert_allclose(found.numpy(), expected, atol=1e-9 * np.abs(rows).max())
        assert torch.equal(state[ESTIMATE], found)
    assert int(state[SEEN]) == len(norms)
    kept = state[NORMS][~state[NORMS].isnan()]
    np.testing.assert_allclose(kept.sort().values.numpy(), sorted(norms))


def test_by_hand() -> None:
    rows = torch.tensor([[4.0, 0.0], [2.0, 0.0], [0.0, -9.0], [6.0, 0.0], [0.0, -1.0]])
    rule = ra.ClippedClustering()
    why, state = rule.explain(rows, rule.init(rows[0]))
    # The median norm is 4: the row of 6 is clipped to it, as is the one of 9 in the other cluster.
    assert why.weights is not None
    torch.testing.assert_close(why.weights * 3, torch.tensor([1, 1, 0, 2 / 3, 0]).double())
    torch.testing.assert_close(why.output, torch.tensor([10 / 3, 0.0]))
    # With the earlier norms 1, 2, 4, 6, 9 the median of the next round is (2 + 4)/2; of rows of one
    # direction the first two are a cluster.
    later, _ = rule.step(torch.tensor([[8.0, 0.0], [0.5, 0.0], [0.2, 0.0]]), state)
    torch.testing.assert_close(later, torch.tensor([(3 + 0.5) / 2, 0.0]))


def test_two_clusters_as_large_and_rows_of_zero() -> None:
    rule = ra.ClippedClustering()
    rows = torch.tensor([[1.0, 0.0], [0.0, 1.0], [2.0, 0.0], [0.0, 2.0]])
    found, _ = rule.step(rows, rule.init(rows[0]))
    assert found[1] == 0  # the one with the first row
    zeros = torch.zeros(4, 2)
    assert not bool(rule.step(zeros, rule.init(zeros[0]))[0].any())


BAD = [math.nan, math.inf, -math.inf, 3e38, -3e38, 1e20, 1e6, 0.0]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@settings(max_examples=40)
@given(seed=seeds, bad=st.lists(st.sampled_from(BAD), max_size=3))
def test_a_minority_of_bad_rows_leaves_a_finite_result_of_a_usual_length(
    dtype: torch.dtype, seed: int, bad: list[float]
) -> None:
    rule = ra.ClippedClustering()
    state = rule.init(torch.zeros(6, dtype=dtype))
    longest = 0.0
    for place in range(4):
        rows = torch.from_numpy(draw(seed + place, 7)).to(dtype)
        longest = max(longest, float(rows.double().norm(dim=1).max()))
        for i, value in enumerate(bad):
            rows[i] = value
        out, state = rule.step(rows, state)
        assert out.dtype == dtype
        assert bool(out.isfinite().all())
        assert float(out.double().norm()) <= longest * 1.01


def test_most_rows_bad_is_an_error_and_a_minority_is_named() -> None:
    rule = ra.ClippedClustering()
    rows = torch.from_numpy(draw(0, 7))
    rows[2:5] = math.nan
    why, _ = rule.explain(rows, rule.init(rows[0]))
    assert why.rejected == (2, 3, 4)
    assert why.weights is not None
    assert why.weights[2:5].tolist() == [0.0] * 3
    rows[5] = math.inf
    with pytest.raises(
        ra.TooManyRejectedError, match=r"^ClippedClustering: at most 3 of the n=7 rows .* found 4$"
    ):
        rule.step(rows, rule.init(rows[0]))


@settings(max_examples=60)
@given(
    seed=seeds, window=st.integers(7, 40), rounds=st.integers(1, 12), large=st.booleans(),
    n=st.sampled_from([3, 5, 6, 7]),
)  # fmt: skip
def test_no_minority_moves_the_median_of_what_is_remembered(
    seed: int, window: int, rounds: int, large: bool, n: int
) -> None:
    rng = np.random.default_rng(seed)
    bad = (n - 1) // 2
    remembered, seen = torch.full((window,), torch.nan, dtype=torch.float64), 0
    for _ in range(rounds):
        norms = 1 + rng.random(n)
        norms[n - bad :] = 1e9 if large else 0.0
        remembered, seen = remember(torch.from_numpy(norms), remembered, seen)
    known = remembered[~remembered.isnan()].numpy()
    assert len(known) == min(window, n * rounds)
    assert 1 <= np.median(known) <= 2


def test_the_oldest_norms_are_forgotten() -> None:
    remembered, seen = remember(torch.arange(5.0).double(), torch.full((8,), torch.nan).double(), 0)
    remembered, seen = remember(torch.arange(10.0, 15.0).double(), remembered, seen)
    assert sorted(remembered.tolist()) == [1, 2, 3, 10, 11, 12, 13, 14]
    remembered, seen = remember(torch.arange(20.0, 40.0).double(), remembered, seen)
    assert sorted(remembered.tolist()) == list(range(26, 34))
    assert seen == 30


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_steps_are_pure_and_follow_what_is_declared(dtype: torch.dtype) -> None:
    rule = ra.ClippedClustering()
    rows = torch.from_numpy(draw(3, 9)).to(dtype)
    _, state = rule.step(rows, rule.init(rows[0]))
    kept, before = {k: v.clone() for k, v in state.items()}, rows.clone()

    def after(changed: Tensor, factor: float = 1.0) -> Tensor:
        scaled = {**state, NORMS: state[NORMS] * factor}
        return rule.step(changed, scaled)[0].double()

    out = after(rows)
    g = torch.Generator().manual_seed(0)
    near = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 0.1, torch.float16: 0.02}
    turn = torch.linalg.qr(torch.randn(6, 6, generator=g, dtype=torch.float64)).Q
    moved = {
        Invariance.PERMUTATION: after(rows[torch.randperm(9, generator=g)]),
        Invariance.SCALING: after(rows * 4, 4.0) / 4,
        Invariance.ROTATION: after((rows.double() @ turn.T).to(dtype)) @ turn,
        Invariance.TRANSLATION: after(rows + 50) - 50,
    }
    for invariance, found in moved.items():
        close = torch.allclose(found, out, rtol=0, atol=near[dtype])
        assert close == (invariance in rule.invariances), invariance
    result = rule.step(rows, state)[0]
    result.zero_()
    assert torch.equal(rows, before)
    torch.testing.assert_close(state, kept, equal_nan=True)


@pytest.mark.parametrize(
    ("rows", "like", "message"),
    [
        (torch.ones(3, 4), torch.ones(5), "rows must have d=5 columns, found 4"),
        (
            torch.ones(4),
            torch.ones(4),
            r"rows must have shape \(n, d\) with n, d >= 1, found \(4,\)",
        ),
        (torch.ones(3, 4), torch.ones(3, 4), r"like must be a floating \(d,\) tensor, found"),
        (torch.ones(3, 4), torch.ones(4).long(), r"like must be a floating \(d,\) tensor, found"),
    ],
)
def test_what_does_not_fit_is_named(rows: Tensor, like: Tensor, message: str) -> None:
    rule = ra.ClippedClustering()
    with pytest.raises(ValueError, match=f"^ClippedClustering: {message}"):
        rule.step(rows, rule.init(like))


def test_torch_s_default_device_does_not_matter() -> None:
    rows = torch.from_numpy(draw(1, 9))
    rule = ra.ClippedClustering()
    expected, _ = rule.step(rows, rule.init(rows[0]))
    with torch.device("meta"):
        state = rule.init(rows[0])
        for _ in range(2):
            found, state = rule.step(rows, state)
    torch.testing.assert_close(found, expected)
