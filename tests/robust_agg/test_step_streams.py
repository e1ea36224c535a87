"""Streams side by side: what they would be one by one, to rounding, and nothing shared."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from rule_table import ESTIMATORS, describe
from torch import Tensor

import robust_agg as ra
from robust_agg.aggregator import Explanation
from robust_agg.kernels import llvm
from robust_agg.online import streams
from robust_agg.online.estimator import ESTIMATE, STEPS
from robust_agg.types import State

K = 5
LARGE = 20_011  # of K rows: compiled, and no multiple of a vector
BAD = {1: torch.nan, 2: torch.inf, 3: 3e38}


def messages(round: int, d: int, dtype: torch.dtype = torch.float32) -> Tensor:
    draw = torch.Generator().manual_seed(round)
    return torch.randn(K, d, generator=draw).to(dtype)


def generator(place: int) -> torch.Generator:
    return torch.Generator().manual_seed(100 + place)


def side_by_side(
    estimator: ra.Estimator, rows: Tensor, states: list[State]
) -> tuple[Tensor, list[State]]:
    out = torch.full_like(rows, 7.0)
    before, kept = rows.clone(), [{k: v.clone() for k, v in state.items()} for state in states]
    new = estimator.step_streams(rows, states, senders=range(K), generators=generator, out=out)
    torch.testing.assert_close(rows, before, rtol=0, atol=0, equal_nan=True)
    for state, same in zip(states, kept, strict=True):
        torch.testing.assert_close(dict(state), same, rtol=0, atol=0, equal_nan=True)
    return out, new


def one_by_one(
    estimator: ra.Estimator, rows: Tensor, states: list[State]
) -> tuple[Tensor, list[State]]:
    steps = [
        estimator.step(rows[i][None], states[i], senders=(i,), generator=generator(i))
        for i in range(K)
    ]
    return torch.stack([estimate for estimate, _ in steps]), [state for _, state in steps]


def assert_same_rounds(
    estimator: ra.Estimator, d: int, dtype: torch.dtype = torch.float32
) -> list[State]:
    """Four rounds, in the third of which most rows are no numbers, or too far."""
    together = alone = [estimator.init(row) for row in messages(0, d, dtype)]
    for round in range(4):
        rows = messages(round, d, dtype)
        if round == 2:
            for place, value in BAD.items():
                rows[place, -1] = value
        found, together = side_by_side(estimator, rows, together)
        expected, alone = one_by_one(estimator, rows, alone)
        torch.testing.assert_close(found, expected)
        for a, b in zip(together, alone, strict=True):
            torch.testing.assert_close(dict(a), dict(b), equal_nan=True)
    return together


@pytest.mark.parametrize("make", ESTIMATORS, ids=describe)
def test_streams_are_steps_one_by_one(make: Any) -> None:
    assert_same_rounds(make(), 6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("beta", [0.9, 0.5, 0.1])
@pytest.mark.parametrize("method", ["subgradient", "prox"])
def test_long_momenta_round_as_one_by_one(dtype: torch.dtype, beta: float, method: Any) -> None:
    assert_same_rounds(ra.Momentum(beta=beta, method=method), LARGE, dtype)


@pytest.mark.skipif(not llvm.available(), reason="kernels cannot be compiled here")
@pytest.mark.parametrize("d", [LARGE, 2 * 2**18 + 11])
def test_long_rows_are_worked_through_together(d: int) -> None:
    """The test above is not one of the plain path against itself."""
    rows = messages(0, d)
    rows[3, 5] = torch.nan
    out = torch.empty_like(rows)
    points = list(messages(1, d))
    points[4][0] = torch.nan
    found = streams.approach(rows, points, 0.1, out)
    assert [m is None for m in found] == [False, False, False, True, True]
    for row, point, m, copied in zip(rows, points, found, out, strict=True):
        if m is not None:
            torch.testing.assert_close(m, torch.lerp(point, row, 0.1))
            assert torch.equal(m, copied)
            assert m.untyped_storage().nbytes() == 4 * d  # no state keeps another's memory


def test_a_share_counts_as_it_is_rounded() -> None:
    """From 0.5 on the step begins at the row: this one would end in 0 from the other side."""
    row, point = torch.full((LARGE,), -1 + 2**-24), torch.ones(LARGE)
    share = 0.499999999
    expected = torch.lerp(point, row, share)
    assert bool((expected == 2**-24).all())
    estimator = ra.OnlineMedian(divergence=ra.Squared(), tau=share, method="subgradient")
    states = [estimator.init(point, start=point) for _ in range(K)]
    found, _ = side_by_side(estimator, row.repeat(K, 1), states)
    assert torch.equal(found, expected.repeat(K, 1))


def test_rows_that_have_no_memory_are_rows_of_zeros() -> None:
    estimator = ra.Momentum(beta=0.9)
    _, states = side_by_side(estimator, *started(estimator))
    zeros = torch._efficientzerotensor((K, LARGE))
    out = torch.empty(K, LARGE)
    estimator.step_streams(zeros, states, senders=range(K), generators=generator, out=out)
    torch.testing.assert_close(out, torch.stack([0.9 * state[ESTIMATE] for state in states]))


def started(estimator: ra.Estimator) -> tuple[Tensor, list[State]]:
    rows = messages(0, LARGE)
    return rows, [estimator.init(row) for row in rows]


def test_a_row_that_is_no_number_leaves_its_momentum() -> None:
    estimator = ra.Momentum(beta=0.9)
    rows = messages(0, LARGE)
    _, states = side_by_side(estimator, rows, [estimator.init(row) for row in rows])
    for place, value in BAD.items():
        rows[place, 0] = value
    out, new = side_by_side(estimator, rows, states)
    for place in range(K):
        kept = torch.equal(new[place][ESTIMATE], states[place][ESTIMATE])
        assert kept == (place in BAD)
        assert torch.equal(out[place], new[place][ESTIMATE])
        assert int(new[place][STEPS]) == 2


@dataclass(frozen=True, kw_only=True)
class Halved(ra.Momentum):
    """A step of its own: half the momentum."""

    def explain(self, *args: Any, **options: Any) -> tuple[Explanation, State]:
        found, state = super().explain(*args, **options)
        return Explanation(found.output / 2, found.distances), state


def test_a_step_of_ones_own_is_taken() -> None:
    assert_same_rounds(Halved(beta=0.9), LARGE)


class Near(ra.Squared):
    """A factor of its own, of the same name."""

    def factors(self, r: Tensor, tau: float, method: Any) -> Tensor:
        return torch.full_like(r, 0.01)


class Shrunk(ra.Squared):
    """An average of its own."""

    def averaged(self, *args: Any, **options: Any) -> tuple[Tensor, Tensor | None]:
        moved, weights = super().averaged(*args, **options)
        return moved / 2, weights


@pytest.mark.parametrize("divergence", [Near(), Shrunk()], ids=lambda d: type(d).__name__)
def test_a_divergence_of_ones_own_is_taken(divergence: ra.Divergence) -> None:
    assert_same_rounds(ra.OnlineMedian(divergence=divergence, tau=0.1), LARGE)


@pytest.mark.parametrize("d", [6, LARGE])
@pytest.mark.parametrize("states", [K - 1, K + 1])
def test_there_is_a_state_for_every_row(d: int, states: int) -> None:
    estimator = ra.Momentum(beta=0.9)
    rows = messages(0, d)
    held = [estimator.init(rows[0]) for _ in range(states)]
    out = torch.empty_like(rows)
    with pytest.raises(ValueError, match="zip"):
        estimator.step_streams(rows, held, senders=range(K), generators=generator, out=out)


def test_rows_of_another_length_are_refused() -> None:
    estimator = ra.Momentum(beta=0.9)
    states = [estimator.init(row) for row in messages(0, LARGE)]
    with pytest.raises(ValueError, match="rows must have d=20011 columns, found 20010"):
        side_by_side(estimator, messages(0, LARGE - 1), states)
