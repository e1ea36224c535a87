"""Online estimators: the paper's formulas, numerical argmins, invariances, purity, robustness."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import online as oracle
from rule_table import ESTIMATORS, describe
from torch import Tensor

import robust_agg as ra
from robust_agg import Invariance
from robust_agg.online.divergence import Method
from robust_agg.online.estimator import ESTIMATE, Fusion

Array = npt.NDArray[np.float64]
D = 6
seeds = st.integers(0, 2**31)
taus = st.floats(-4, 4).map(lambda e: 10.0**e)
every_estimator = pytest.mark.parametrize("make", ESTIMATORS, ids=describe)

DIVERGENCES: dict[oracle.Divergence, ra.Divergence] = {
    "squared": ra.Squared(),
    "l2": ra.L2(),
    "l1": ra.L1(),
}


def draw(
    seed: int, n: int, d: int = D, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor]:
    """Rows, and an estimate that is not at their centre."""
    g = torch.Generator().manual_seed(seed)
    rows = torch.randn(n, d, generator=g, dtype=torch.float64) + 1
    m = torch.randn(d, generator=g, dtype=torch.float64)
    return rows.to(dtype), m.to(dtype)


def step(estimator: ra.OnlineMedian, rows: Tensor, m: Tensor) -> Tensor:
    state = estimator.init(rows[0], start=m)
    return estimator.step(rows, state, generator=torch.Generator().manual_seed(7))[0]


# --- one message: equations 7, 11, 12, 15 and appendix B -----------------------------------------


@pytest.mark.parametrize(
    ("make", "formula"),
    [
        (lambda tau: ra.Momentum(tau=tau), oracle.momentum_subgradient),
        (lambda tau: ra.Momentum(tau=tau, method="prox"), oracle.momentum_proximal),
        (lambda tau: ra.VClip(tau=tau), oracle.vclip),
        (lambda tau: ra.CClip(tau=tau), oracle.cclip),
        (lambda tau: ra.AdaptiveMomentum(tau=tau), oracle.adaptive_momentum),
        (lambda tau: ra.SignedIncrement(tau=tau), oracle.signed_increment),
    ],
    ids=["eq7", "eq11", "eq12", "eq15", "adaptive momentum", "signed increment"],
)
@settings(max_examples=40)
@given(seed=seeds, tau=st.floats(0.001, 1.0))
def test_one_message_moves_by_the_papers_formula(
    make: Callable[[float], ra.OnlineMedian],
    formula: Callable[[Array, Array, float], Array],
    seed: int,
    tau: float,
) -> None:
    rows, m = draw(seed, 1)
    expected = formula(rows[0].numpy(), m.numpy(), tau)
    np.testing.assert_allclose(step(make(tau), rows, m).numpy(), expected, atol=1e-12)


@pytest.mark.parametrize("name", DIVERGENCES)
@settings(max_examples=60)
@given(seed=seeds, tau=taus)
def test_the_proximal_point_step_is_the_argmin_of_eq_8(
    name: oracle.Divergence, seed: int, tau: float
) -> None:
    rows, m = draw(seed, 1, d=4)
    found = DIVERGENCES[name].prox(rows[0], m, tau).numpy()
    expected = oracle.prox_argmin(rows.numpy(), m.numpy(), tau, name)
    np.testing.assert_allclose(found, expected, atol=1e-8)
    # A step of twice the size is not the argmin, unless both land on the row.
    doubled = DIVERGENCES[name].prox(rows[0], m, 2 * tau).numpy()
    arrived = np.abs(expected - rows[0].numpy()).max() < 1e-6
    assert arrived or np.abs(doubled - expected).max() > 1e-6 * min(1.0, tau)


@pytest.mark.parametrize("name", DIVERGENCES)
@settings(max_examples=60)
@given(seed=seeds, tau=taus, n=st.integers(1, 9), d=st.integers(1, 4))
def test_the_batch_step_is_the_argmin_of_the_rounds_average(
    name: oracle.Divergence, seed: int, tau: float, n: int, d: int
) -> None:
    rows, m = draw(seed, n, d)
    estimator = ra.OnlineMedian(divergence=DIVERGENCES[name], tau=tau, fusion="batch")
    found = step(estimator, rows, m).numpy()
    expected = oracle.prox_argmin(rows.numpy(), m.numpy(), tau, name)
    # F is 1/τ-strongly convex, so its values settle flat directions as well.
    least = oracle.round_prox_objective(expected, rows.numpy(), m.numpy(), tau, name)
    value = oracle.round_prox_objective(found, rows.numpy(), m.numpy(), tau, name)
    assert value <= least * (1 + 1e-11) + 1e-13
    np.testing.assert_allclose(found, expected, atol=1e-6)


@settings(max_examples=40)
@given(seed=seeds, n=st.integers(1, 9))
def test_a_large_tau_makes_batch_the_median_of_the_round(seed: int, n: int) -> None:
    rows, m = draw(seed, n, 3)
    cclip = step(ra.CClip(tau=1e9, fusion="batch"), rows, m)
    low = rows.sort(dim=0).values[(n - 1) // 2]
    high = rows.sort(dim=0).values[n // 2]
    # For even n the minimiser nearest m: m clamped to the median interval.
    torch.testing.assert_close(cclip, m.clamp(low, high), atol=1e-6, rtol=0)
    if n != 2:
        vclip = step(ra.VClip(tau=1e9, fusion="batch"), rows, m)
        torch.testing.assert_close(vclip, ra.GeometricMedian()(rows), atol=1e-5, rtol=0)


@pytest.mark.parametrize("fusion", ["averaged", "sequential"])
@pytest.mark.parametrize("method", ["prox", "subgradient"])
@pytest.mark.parametrize("name", DIVERGENCES)
@settings(max_examples=20)
@given(seed=seeds, tau=st.floats(0.01, 0.9), n=st.integers(1, 9))
def test_fusions_equal_their_oracles(
    name: oracle.Divergence, method: Method, fusion: str, seed: int, tau: float, n: int
) -> None:
    rows, m = draw(seed, n)
    estimator = ra.OnlineMedian(divergence=DIVERGENCES[name], method=method, tau=tau, fusion=fusion)
    named = "proximal" if method == "prox" else "subgradient"
    if fusion == "averaged":
        expected = oracle.averaged(rows.numpy(), m.numpy(), tau, name, named)
    else:
        order = torch.randperm(n, generator=torch.Generator().manual_seed(7)).tolist()
        expected = oracle.sequential(rows.numpy(), m.numpy(), tau, name, named, order)
    np.testing.assert_allclose(step(estimator, rows, m).numpy(), expected, atol=1e-11)


def test_repeated_averaging_is_centered_clipping_from_the_estimate() -> None:
    rows, m = draw(3, 9)
    found = step(ra.VClip(tau=0.6, iterations=4), rows, m)
    expected = ra.CenteredClipping(radius=0.6, iterations=4, start=m)(rows)
    torch.testing.assert_close(found, expected, atol=1e-10, rtol=0)


def test_one_block_is_l2_and_single_coordinates_are_l1() -> None:
    rows, m = draw(5, 7)
    whole = step(ra.OnlineMedian(divergence=ra.BlockL2((D,)), tau=0.4), rows, m)
    torch.testing.assert_close(whole, step(ra.VClip(tau=0.4), rows, m))
    for fusion in ("averaged", "batch"):
        apart = ra.OnlineMedian(divergence=ra.BlockL2((1,) * D), tau=0.4, fusion=fusion)
        cclip = step(ra.CClip(tau=0.4, fusion=fusion), rows, m)
        torch.testing.assert_close(step(apart, rows, m), cclip, atol=1e-7, rtol=0)


@settings(max_examples=30)
@given(seed=seeds, tau=taus, n=st.integers(1, 6))
def test_huber_goes_from_momentum_to_clipping(seed: int, tau: float, n: int) -> None:
    rows, m = draw(seed, n)
    for fusion in ("averaged", "batch"):
        wide = ra.OnlineMedian(divergence=ra.Huber(1e6), tau=tau, fusion=fusion)
        squared = ra.OnlineMedian(divergence=ra.Squared(), tau=tau, fusion=fusion)
        torch.testing.assert_close(step(wide, rows, m), step(squared, rows, m), atol=1e-7, rtol=0)
    # δ·‖·‖ for small δ: a clip to τδ.
    narrow = ra.OnlineMedian(divergence=ra.Huber(1e-6), tau=tau)
    clipped = step(ra.VClip(tau=tau * 1e-6), rows, m)
    torch.testing.assert_close(step(narrow, rows, m), clipped, atol=2e-6, rtol=0)


class LogCosh(ra.Divergence):
    """A divergence of one's own: prox by bisection per coordinate, and the subgradient."""

    @property
    def invariances(self) -> frozenset[Invariance]:
        return frozenset({Invariance.PERMUTATION, Invariance.TRANSLATION})

    def prox(self, row: Tensor, m: Tensor, tau: float) -> Tensor:
        low, high = torch.minimum(row, m), torch.maximum(row, m)
        for _ in range(100):
            y = (low + high) / 2
            above = torch.tanh(y - row) + (y - m) / tau > 0
            low, high = torch.where(above, low, y), torch.where(above, y, high)
        return (low + high) / 2

    def subgradient(self, row: Tensor, m: Tensor) -> Tensor:
        return torch.tanh(m - row)


def test_a_divergence_of_ones_own_needs_prox_and_subgradient_alone() -> None:
    rows, m = draw(1, 5)
    for method in ("prox", "subgradient"):
        estimator = ra.OnlineMedian(divergence=LogCosh(), method=method, tau=0.3)
        singles = [step(estimator, row[None], m) for row in rows]
        torch.testing.assert_close(step(estimator, rows, m), torch.stack(singles).mean(dim=0))
        sequential = ra.OnlineMedian(
            divergence=LogCosh(), method=method, tau=0.3, fusion="sequential"
        )
        assert bool(step(sequential, rows, m).isfinite().all())
    rows[2] = math.nan
    for fusion in ("averaged", "sequential"):
        estimator = ra.OnlineMedian(divergence=LogCosh(), tau=0.3, fusion=fusion)
        assert bool(step(estimator, rows, m).isfinite().all())
    with pytest.raises(ValueError, match="LogCosh: fusion='batch' needs a divergence with a batch"):
        step(ra.OnlineMedian(divergence=LogCosh(), tau=0.3, fusion="batch"), rows, m)


# --- properties of every estimator ---------------------------------------------------------------


def transformed(
    estimator: ra.OnlineMedian, invariance: Invariance, rows: Tensor, m: Tensor, seed: int
) -> bool:
    g = torch.Generator().manual_seed(seed)
    out = step(estimator, rows, m)
    tolerance = {torch.float64: 1e-7, torch.float32: 1e-4, torch.bfloat16: 6e-2}[rows.dtype]

    def close(a: Tensor) -> bool:
        return float((a.double() - out.double()).abs().max()) <= tolerance * float(
            1 + rows.double().abs().max()
        )

    if invariance is Invariance.PERMUTATION:
        return close(step(estimator, rows[torch.randperm(len(rows), generator=g)], m))
    if invariance is Invariance.SCALING:
        factor = 64.0 if seed % 2 else 1 / 64
        return close(step(estimator, rows * factor, m * factor) / factor)
    if invariance is Invariance.TRANSLATION:
        shift = torch.randint(-2, 3, (D,), generator=g).to(rows.dtype)
        return close(step(estimator, rows + shift, m + shift) - shift)
    turn = torch.linalg.qr(torch.randn(D, D, generator=g, dtype=torch.float64)).Q
    turned = step(
        estimator, (rows.double() @ turn.T).to(rows.dtype), (turn @ m.double()).to(m.dtype)
    )
    return close(turn.T @ turned.double())


@every_estimator
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@settings(max_examples=10)
@given(seed=seeds, n=st.integers(1, 9))
def test_declared_invariances_hold(
    make: Callable[[], ra.OnlineMedian], dtype: torch.dtype, seed: int, n: int
) -> None:
    estimator = make()
    rows, m = draw(seed, n, dtype=dtype)
    for invariance in estimator.invariances:
        assert transformed(estimator, invariance, rows, m, seed), invariance


@every_estimator
def test_what_is_not_declared_does_not_hold(make: Callable[[], ra.OnlineMedian]) -> None:
    estimator = make()
    for invariance in set(Invariance) - estimator.invariances:
        held = (transformed(estimator, invariance, *draw(s, 7), s) for s in range(30))
        assert not all(held), invariance


@every_estimator
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("n", [1, 2, 7])
def test_steps_are_pure_and_keep_the_dtype(
    make: Callable[[], ra.OnlineMedian], dtype: torch.dtype, n: int
) -> None:
    estimator = make()
    rows, m = draw(n, n, dtype=dtype)
    state = estimator.init(rows[0], start=m)
    before, copy = rows.clone(), {k: v.clone() for k, v in state.items()}
    g = torch.Generator().manual_seed(1)
    out, new = estimator.step(rows, state, generator=g)
    again, _ = estimator.step(rows, state, generator=torch.Generator().manual_seed(1))
    assert torch.equal(out, again)
    assert out.dtype == dtype
    assert torch.equal(rows, before)
    assert all(torch.equal(state[k], copy[k]) or bool(copy[k].isnan().all()) for k in copy)
    assert new["estimate"].dtype == torch.promote_types(dtype, torch.float32)
    out.zero_()  # the caller owns the output: the state does not alias it
    assert bool(new["estimate"].any())


@every_estimator
def test_rows_at_the_estimate_leave_it_there(make: Callable[[], ra.OnlineMedian]) -> None:
    _, m = draw(2, 1)
    torch.testing.assert_close(step(make(), m.repeat(5, 1), m), m, atol=1e-12, rtol=0)


BAD = [math.nan, math.inf, -math.inf, 3e38, -3e38, 1e20]


@every_estimator
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@settings(max_examples=15)
@given(seed=seeds, bad=st.lists(st.sampled_from(BAD), min_size=1, max_size=3))
def test_bad_rows_never_make_the_estimate_non_finite(
    make: Callable[[], ra.OnlineMedian], dtype: torch.dtype, seed: int, bad: list[float]
) -> None:
    estimator = make()
    rows, m = draw(seed, 7, dtype=dtype)
    for i, value in enumerate(bad):
        rows[i] = value
    state = estimator.init(rows[0], start=m)
    for _ in range(3):
        out, state = estimator.step(rows, state, generator=torch.Generator().manual_seed(0))
        assert bool(out.isfinite().all())
        assert bool(state["estimate"].isfinite().all())


@every_estimator
def test_a_round_of_nothing_but_nan_leaves_a_finite_estimate_or_raises(
    make: Callable[[], ra.OnlineMedian],
) -> None:
    estimator = make()
    rows, m = draw(0, 5)
    try:
        out = step(estimator, torch.full_like(rows, math.nan), m)
    except ra.TooManyRejectedError:
        assert estimator.adaptive is not None
        return
    assert bool(out.isfinite().all())


@pytest.mark.parametrize("tau", [0.01, 0.3, 5.0])
@settings(max_examples=40)
@given(
    seed=seeds,
    n=st.integers(1, 9),
    value=st.one_of(st.sampled_from(BAD), st.floats(-1e6, 1e6)),
)
def test_one_row_moves_averaged_clipping_by_at_most_two_tau_over_n(
    tau: float, seed: int, n: int, value: float
) -> None:
    rows, m = draw(seed, n)
    other = rows.clone()
    other[seed % n] = value
    for estimator, norm in ((ra.VClip(tau=tau), 2.0), (ra.CClip(tau=tau), math.inf)):
        gap = step(estimator, rows, m) - step(estimator, other, m)
        assert float(torch.linalg.vector_norm(gap, ord=norm)) <= 2 * tau / n * (1 + 1e-9) + 1e-12


def test_small_steps_add_up_in_bfloat16() -> None:
    # A thousand steps of 1e-3 from 1 leave 1 in bfloat16.
    estimator = ra.SignedIncrement(tau=1e-3)
    like = torch.ones(1, dtype=torch.bfloat16)
    state = estimator.init(like, start=like)
    for _ in range(1000):
        _, state = estimator.step(torch.full((1, 1), 9.0, dtype=torch.bfloat16), state)
    assert abs(float(state["estimate"]) - 2) < 1e-3


def test_small_steps_have_no_bias_in_float32() -> None:
    # m + s(g - m) with s = 1e-5 settles at g; (1 - s)m + s g with 1 - s rounded would not.
    estimator = ra.Momentum(tau=1e-5)
    m = torch.full((1,), 0.7)
    state = estimator.init(m, start=m)
    for _ in range(2000):
        out, state = estimator.step(m[None], state)
    assert abs(float(out) - 0.7) < 1e-6


# --- adaptive τ ----------------------------------------------------------------------------------


def test_adaptive_tau_of_a_round_is_a_quantile_no_minority_moves() -> None:
    rows, m = draw(4, 9)
    clean = step(ra.VClip(), rows, m)
    distances = (rows - m).norm(dim=1).sort().values
    torch.testing.assert_close(clean, step(ra.VClip(tau=float(distances[4])), rows, m))
    rows[:4] = 1e15
    pushed = step(ra.VClip(), rows, m)
    assert float((pushed - m).norm()) <= float((rows[4:] - m).norm(dim=1).max())


@pytest.mark.parametrize("d", [1, 7, 100, 1003])
def test_the_scale_of_l1_is_within_reach_of_all_but_a_hundredth_of_the_coordinates(d: int) -> None:
    rows, m = draw(5, 6, d)
    rows[1, ::2] = m[::2]
    rows[2] = m
    rows[3, :] = math.nan
    gaps = (rows - m).abs().nan_to_num(nan=math.inf).numpy()
    expected = []
    for gap in gaps:
        positive = np.sort(gap[gap != 0])
        share = len(positive) - len(positive) // 100 - 1
        expected.append(positive[share] if len(positive) else 0.0)
    np.testing.assert_array_equal(ra.L1().gaps(rows, m).numpy(), expected)


def test_the_scale_of_l1_of_a_message_that_is_alone_is_its_median() -> None:
    rows, m = draw(6, 1, 1003)
    rows[0, :500] = m[:500]
    positive = np.sort((rows - m).abs().numpy()[0, 500:])
    assert float(ra.L1().gaps(rows, m)) == positive[251]


def test_adaptive_tau_of_single_messages_follows_their_history() -> None:
    estimator = ra.VClip(tau=ra.Adaptive(window=5))
    rows, m = draw(6, 40)
    state = estimator.init(m)
    gaps: list[float] = []
    for row in rows:
        gaps.append(float((row - state["estimate"]).norm()))
        recent = sorted(gaps[-5:])
        tau = 0.1 * recent[math.ceil(0.5 * len(recent)) - 1]
        expected = oracle.vclip(row.numpy(), state["estimate"].numpy(), tau)
        out, state = estimator.step(row[None], state)
        np.testing.assert_allclose(out.numpy(), expected, atol=1e-12)


def test_a_single_non_finite_message_is_neither_a_step_nor_history() -> None:
    estimator = ra.VClip()
    rows, m = draw(8, 3)
    _, state = estimator.step(rows[:1], estimator.init(m))
    bad = torch.full((1, D), math.nan, dtype=torch.float64)
    out, after = estimator.step(bad, state)
    assert torch.equal(out, state["estimate"])
    assert torch.equal(after["distances"].isnan(), state["distances"].isnan())


def test_heavy_tails_are_averaged_by_a_small_rho() -> None:
    g = torch.Generator().manual_seed(0)
    cauchy = torch.tan(math.pi * (torch.rand(4000, 10, generator=g, dtype=torch.float64) - 0.5))
    target = torch.ones(10, dtype=torch.float64)

    def error(estimator: ra.OnlineMedian) -> float:
        state = estimator.init(target)
        for noise in cauchy:
            out, state = estimator.step((target + noise)[None], state)
        return float((out - target).norm() / target.norm())

    small, large = (error(ra.VClip(tau=ra.Adaptive(rho=rho))) for rho in (0.01, 1.0))
    assert small < 0.3 < 0.8 < large


# --- bad parameters ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ra.VClip(tau=-0.1), "VClip: tau must be a positive finite number, found -0.1"),
        (lambda: ra.CClip(tau=math.nan), "CClip: tau must be a positive finite number, found nan"),
        (lambda: ra.VClip(fusion="sum"), "VClip: fusion must be 'sequential', 'averaged' or"),
        (lambda: ra.OnlineMedian(method="newton"), "OnlineMedian: method must be 'prox' or"),
        (lambda: ra.SignedIncrement(fusion="batch"), "fusion='batch' is a proximal step"),
        (lambda: ra.VClip(iterations=0), "VClip: iterations must be an integer >= 1, found 0"),
        (lambda: ra.VClip(iterations=2, fusion="batch"), "iterations > 1 needs fusion='averaged'"),
        (lambda: ra.Momentum(), "Momentum: exactly one of tau and beta is required"),
        (lambda: ra.Momentum(tau=0.1, beta=0.9), "Momentum: exactly one of tau and beta"),
        (lambda: ra.Momentum(beta=1.0), r"Momentum: beta must be in \[0, 1\), found 1.0"),
        (lambda: ra.Momentum(beta=0.0, method="prox"), r"beta must be in \(0, 1\), found 0.0"),
        (lambda: ra.Momentum(tau=1.5), "Momentum: tau must be at most 1"),
        (lambda: ra.OnlineMedian(divergence=ra.Squared()), "has no adaptive tau"),
        (lambda: ra.Adaptive(rho=0.0), "Adaptive: rho must be a positive finite number"),
        (lambda: ra.Adaptive(quantile=1.0), r"Adaptive: quantile must be in \(0, 1\), found 1.0"),
        (lambda: ra.Huber(-1.0), "Huber: delta must be a positive finite number, found -1.0"),
        (lambda: ra.BlockL2((3, 0)), "BlockL2: every size must be an integer >= 1, found 0"),
    ],
)
def test_bad_parameters_are_named(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("given", [None, {}, [1.0], torch.zeros(3), {"estimate": torch.zeros(3)}])
def test_what_is_no_state_is_named(given: Any) -> None:
    with pytest.raises(ValueError, match="VClip: state must ") as caught:
        ra.VClip(tau=0.1).step(torch.zeros(2, 3), given)
    assert "\n" not in str(caught.value)


def test_a_state_without_what_an_adaptive_tau_remembers_is_named() -> None:
    state = ra.VClip(tau=0.1).init(torch.zeros(3))
    expected = r"must have \['distances', 'estimate', 'steps'\], found \['estimate', 'steps'\]"
    with pytest.raises(ValueError, match=expected):
        ra.VClip().step(torch.zeros(2, 3), state)


@pytest.mark.parametrize("like", [None, 3, [0.0], torch.zeros(2, 3)])
def test_what_cannot_be_like_rows_is_named(like: Any) -> None:
    with pytest.raises(ValueError, match=r"VClip: like must be a"):
        ra.VClip().init(like)


def test_bad_rows_are_named() -> None:
    estimator = ra.VClip(tau=0.1)
    state = estimator.init(torch.zeros(3))
    with pytest.raises(ValueError, match="VClip: rows must have d=3 columns, found 4"):
        estimator.step(torch.zeros(2, 4), state)
    with pytest.raises(ValueError, match=r"VClip: rows must have shape .* found \(3,\)"):
        estimator.step(torch.zeros(3), state)
    with pytest.raises(ValueError, match="VClip: rows must have a floating dtype"):
        estimator.step(torch.zeros(2, 3, dtype=torch.int32), state)
    with pytest.raises(ValueError, match="like must be a floating"):
        estimator.init(torch.zeros(3, dtype=torch.int64))
    with pytest.raises(ValueError, match="start must be finite of shape"):
        estimator.init(torch.zeros(3), start=torch.full((3,), math.inf))
    sequential = ra.VClip(tau=0.1, fusion="sequential")
    with pytest.raises(ValueError, match="generator is required for fusion='sequential'"):
        sequential.step(torch.zeros(2, 3), state)
    blocks = ra.OnlineMedian(divergence=ra.BlockL2((2, 2)), tau=1.0)
    with pytest.raises(ValueError, match="BlockL2: sizes must sum to d=3, found a sum of 4"):
        blocks.step(torch.zeros(2, 3), state)


# --- scales --------------------------------------------------------------------------------------


@pytest.mark.parametrize("fusion", ["averaged", "batch"])
def test_mostly_zero_gradients_still_have_a_scale(fusion: Fusion) -> None:
    # Embeddings: most coordinates of a gradient are zero in every row.
    rows, _ = draw(5, 16, 1000)
    rows[:, 400:] = 0
    truth = rows.mean(dim=0)
    for divergence in (ra.L1(), ra.BlockL2((100,) * 10)):
        estimator = ra.OnlineMedian(divergence=divergence, fusion=fusion)
        state = estimator.init(truth)
        for _ in range(20):
            out, state = estimator.step(rows, state)
        assert float((out - truth).norm() / truth.norm()) < 0.5


@pytest.mark.parametrize("tau", [5e-324, 1e-310, 1e39, 1e300])
def test_extreme_taus_are_steps_too(tau: float) -> None:
    rows, m = draw(6, 5, dtype=torch.float32)
    for make in (ra.VClip, ra.CClip):
        for fusion in ("averaged", "sequential", "batch"):
            out = step(make(tau=tau, fusion=fusion), rows, m)
            assert bool(out.isfinite().all())
            if tau < 1e-300:
                torch.testing.assert_close(out, m)


@pytest.mark.parametrize("fusion", ["averaged", "batch"])
def test_tiny_float32_rows_keep_their_digits(fusion: Fusion) -> None:
    rows, m = draw(7, 7, dtype=torch.float32)
    tiny = 2.0**-80
    found = step(ra.VClip(tau=0.5 * tiny, fusion=fusion), rows * tiny, m * tiny) / tiny
    torch.testing.assert_close(found, step(ra.VClip(tau=0.5, fusion=fusion), rows, m))


def test_a_row_too_far_to_measure_is_reported_by_an_estimator() -> None:
    rows, m = draw(8, 5, dtype=torch.float32)
    rows[1] = 3e38
    estimator = ra.VClip()
    why, _ = estimator.explain(rows, estimator.init(m))
    assert why.rejected == (1,)
    assert why.weights is not None
    assert float(why.weights[1]) == 0


def test_a_start_that_overflows_the_state_is_named() -> None:
    start = torch.full((3,), 1e300, dtype=torch.float64)
    with pytest.raises(ValueError, match="VClip: start must be finite"):
        ra.VClip().init(torch.zeros(3), start=start)


LONG_STEPS = {
    "adaptive momentum": ra.AdaptiveMomentum,
    "signed increment": ra.SignedIncrement,
    "huber": lambda **k: ra.OnlineMedian(divergence=ra.Huber(0.7), method="subgradient", **k),
    "wide huber": lambda **k: ra.OnlineMedian(divergence=ra.Huber(1e9), method="subgradient", **k),
    "blocks": lambda **k: ra.OnlineMedian(
        divergence=ra.BlockL2((1, 3, 2)), method="subgradient", **k
    ),
}


@pytest.mark.parametrize("name", LONG_STEPS)
@pytest.mark.parametrize("fusion", ["averaged", "sequential"])
@pytest.mark.parametrize("tau", [1e5, 1e37, 1e39, 1e300])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_a_step_beyond_every_number_is_refused_and_never_an_infinite_estimate(
    name: str, fusion: Fusion, tau: float, dtype: torch.dtype
) -> None:
    rows, _ = draw(9, 4, dtype=dtype)
    estimator = LONG_STEPS[name](tau=tau, fusion=fusion)
    state = estimator.init(rows[0])
    refusal = f"{estimator.name}: tau must be so small that the estimate is finite in"
    refused = False
    for round in range(5):
        try:
            out, state = estimator.step(rows, state, generator=torch.Generator().manual_seed(round))
        except ValueError as error:
            if not str(error).startswith(refusal):
                raise
            refused = True
            break
        assert bool(out.isfinite().all())
        assert bool(state[ESTIMATE].isfinite().all())
        # What does not fit the rows' dtype is its largest number.
        limit = torch.finfo(dtype).max
        expected = state[ESTIMATE].double().clamp(-limit, limit)
        torch.testing.assert_close(out.double(), expected, rtol=1e-2, atol=0.0)
    assert not refused or tau > 1e6 or name == "wide huber"
