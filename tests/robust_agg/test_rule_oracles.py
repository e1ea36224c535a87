"""Every rule against its naive float64 oracle."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import filters
from oracles import rules as oracle
from torch import Tensor

import robust_agg as ra
from robust_agg import kernels
from robust_agg.span import measure
from robust_agg.weightings import centered_clipping
from robust_agg.weightings.geometric_median import GRAM_UP_TO
from robust_agg.weiszfeld import weiszfeld_over_rows

F = 2
Array = npt.NDArray[np.float64]
seeds = st.integers(0, 2**31)


def draw(seed: int, n: int, d: int, *, kind: str) -> Array:
    rng = np.random.default_rng(seed)
    if kind == "integers":
        # Small integers: distances are exact, so ties are ties in every order of summation.
        return rng.integers(-2, 3, size=(n, d)).astype(np.float64)
    rows = rng.normal(size=(n, d)) + 5 * rng.normal(size=d)
    if kind == "outliers":
        rows[rng.permutation(n)[:F]] += 1e3
    if kind == "twins":
        rows[1 % n] = rows[0]
    return rows


def bucketed(rows: Array) -> Array:
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(5)).tolist()
    return oracle.bucketing(rows, 2, order)


def resampled(rows: Array) -> Array:
    places = torch.randperm(2 * len(rows), generator=torch.Generator().manual_seed(5)).tolist()
    return oracle.resample(rows, 2, places)


PAIRS: list[tuple[ra.Aggregator, Callable[[Array], Array]]] = [
    (ra.Mean(), oracle.mean),
    (ra.CoordinateWiseMedian(), oracle.coordinate_median),
    (ra.TrimmedMean(f=F), lambda x: oracle.trimmed_mean(x, F)),
    (ra.MeanAroundMedian(f=F), lambda x: oracle.mean_around_median(x, F)),
    (ra.Phocas(f=F), lambda x: oracle.phocas(x, F)),
    (ra.CoordinateWiseMedian(even="lower"), filters.lower_median),
    (ra.BetaTrimmedMean(beta=0.3), lambda x: filters.beta_trimmed_mean(x, 3, 10)),
    (ra.SignMajority(), filters.sign_majority),
    (ra.Krum(f=F), lambda x: oracle.krum(x, F)),
    (ra.MultiKrum(f=F), lambda x: oracle.multi_krum(x, F, len(x) - F)),
    (ra.MultiKrum(f=F, m=3), lambda x: oracle.multi_krum(x, F, 3)),
    (
        ra.MultiKrum(f=F, neighbours="n-f-1"),
        lambda x: oracle.multi_krum(x, F, len(x) - F, neighbours=len(x) - F - 1),
    ),
    (ra.MoNNA(f=F), lambda x: oracle.nearest_to_reference(x, F, 0)),
    (ra.MoNNA(f=F, reference=4), lambda x: oracle.nearest_to_reference(x, F, 4)),
    (ra.CGE(f=F), lambda x: oracle.comparative_gradient_elimination(x, F)),
    (ra.SMEA(f=F), lambda x: oracle.smea(x, F)),
    (ra.Bulyan(f=1), lambda x: oracle.bulyan(x, 1)),
    (
        ra.Bulyan(f=1, rounds="at once"),
        lambda x: oracle.near_median(x[oracle.krum_order(x, 1)[: len(x) - 2]], 2),
    ),
    (
        ra.SmoothedGeometricMedian(),
        lambda x: oracle.smoothed_weiszfeld(x, 1e-6, 3, oracle.mean(x)),
    ),
    (
        ra.SmoothedGeometricMedian(nu=1.0, iterations=5, start="zero"),
        lambda x: oracle.smoothed_weiszfeld(x, 1.0, 5, np.zeros(x.shape[1])),
    ),
    (ra.CenteredClipping(), lambda x: oracle.centered_clipping(x, iterations=3)),
    (
        ra.CenteredClipping(start="mean"),
        lambda x: oracle.centered_clipping(x, iterations=3, start=oracle.mean(x)),
    ),
    (
        ra.CenteredClipping(start="zero", radius=3.0, iterations=2),
        lambda x: oracle.centered_clipping(x, 3.0, iterations=2, start=np.zeros(x.shape[1])),
    ),
    (
        ra.CenteredClipping(start=2),
        lambda x: oracle.centered_clipping(x, iterations=3, start=x[2]),
    ),
    (
        ra.CenteredClipping(radius=0.7, iterations=5),
        lambda x: oracle.centered_clipping(x, 0.7, iterations=5),
    ),
    (
        ra.chain(ra.Clip(threshold=2.0), ra.CoordinateWiseMedian()),
        lambda x: oracle.coordinate_median(oracle.clip(x, 2.0)),
    ),
    (
        ra.chain(ra.Clip(threshold=2.0), ra.Krum(f=F)),
        lambda x: oracle.krum(oracle.clip(x, 2.0), F),
    ),
    (ra.chain(ra.AdaptiveClip(f=F), ra.Mean()), lambda x: oracle.mean(oracle.adaptive_clip(x, F))),
    (
        ra.chain(ra.AdaptiveClip(f=F), ra.NearestNeighborMixing(f=F), ra.CoordinateWiseMedian()),
        lambda x: oracle.coordinate_median(
            oracle.nearest_neighbor_mixing(oracle.adaptive_clip(x, F), F)
        ),
    ),
    (
        ra.chain(ra.NearestNeighborMixing(f=F), ra.TrimmedMean(f=F)),
        lambda x: oracle.trimmed_mean(oracle.nearest_neighbor_mixing(x, F), F),
    ),
    (
        ra.chain(ra.NearestNeighborMixing(f=F), ra.CenteredClipping(iterations=1)),
        lambda x: oracle.centered_clipping(oracle.nearest_neighbor_mixing(x, F), iterations=1),
    ),
    (
        ra.chain(ra.NearestNeighborMixing(f=F), ra.CGE(f=F)),
        lambda x: oracle.comparative_gradient_elimination(oracle.nearest_neighbor_mixing(x, F), F),
    ),
    (
        ra.chain(ra.KrumSelection(f=F), ra.Mean()),
        lambda x: oracle.mean(x[oracle.krum_selection(x, F)]),
    ),
    (
        ra.chain(ra.Resample(s=2), ra.CoordinateWiseMedian()),
        lambda x: oracle.coordinate_median(resampled(x)),
    ),
    (ra.chain(ra.Bucketing(s=2), ra.Mean()), lambda x: oracle.mean(bucketed(x))),
    (
        ra.chain(ra.Bucketing(s=2), ra.CoordinateWiseMedian()),
        lambda x: oracle.coordinate_median(bucketed(x)),
    ),
]


def run(rule: ra.Aggregator, rows: Array, dtype: torch.dtype) -> Array:
    out = rule(torch.from_numpy(rows).to(dtype), generator=torch.Generator().manual_seed(5))
    return out.double().numpy()


@pytest.mark.parametrize(("rule", "expected"), PAIRS, ids=lambda p: getattr(p, "name", ""))
@pytest.mark.parametrize("kind", ["normal", "outliers", "twins", "integers"])
@settings(max_examples=20)
@given(seed=seeds, n=st.integers(7, 16), d=st.integers(1, 30))
def test_rule_equals_its_oracle(
    rule: ra.Aggregator, expected: Callable[[Array], Array], kind: str, seed: int, n: int, d: int
) -> None:
    rows = draw(seed, n, d, kind=kind)
    scale = np.abs(rows).max() + 1e-300
    np.testing.assert_allclose(run(rule, rows, torch.float64), expected(rows), atol=1e-9 * scale)


@pytest.mark.parametrize(("rule", "expected"), PAIRS, ids=lambda p: getattr(p, "name", ""))
@pytest.mark.parametrize("d", [5, 6001])
def test_rule_equals_its_oracle_in_float32(
    rule: ra.Aggregator, expected: Callable[[Array], Array], d: int
) -> None:
    # So many numbers that the compiled kernels, with their sums in float32, are taken too.
    rows = draw(3, 13, d, kind="normal").astype(np.float32).astype(np.float64)
    np.testing.assert_allclose(run(rule, rows, torch.float32), expected(rows), atol=2e-5)


@settings(max_examples=60)
@given(
    seed=seeds,
    n=st.integers(1, 16),
    d=st.integers(1, 12),
    kind=st.sampled_from(["normal", "outliers", "twins", "integers"]),
)
def test_geometric_median_reaches_the_least_sum_of_distances(
    seed: int, n: int, d: int, kind: str
) -> None:
    rows = draw(seed, n, d, kind=kind)
    why = ra.GeometricMedian().explain(torch.from_numpy(rows))
    assert why.solver is not None
    assert why.solver.converged
    exact = oracle.geometric_median(rows)
    least = oracle.geometric_median_objective(rows, exact)
    found = oracle.geometric_median_objective(rows, why.output.numpy())
    assert found <= least * (1 + 1e-12) + 1e-12


def weiszfeld(rows: Array) -> Array:
    """Weiszfeld's iteration to convergence: the oracle's Newton steps need (d, d) matrices."""
    y = np.median(rows, axis=0)
    for _ in range(500):
        weights = 1 / np.linalg.norm(rows - y, axis=1)
        following = weights @ rows / weights.sum()
        if np.linalg.norm(following - y) <= 1e-13 * np.linalg.norm(y):
            return following
        y = following
    raise AssertionError("no convergence")


@pytest.mark.parametrize("far", [0.0, 1e3, 1e8])
def test_geometric_median_in_float32_is_that_of_float64(far: float) -> None:
    rows = draw(11, 32, 6000, kind="normal")
    rows[:10] += far
    exact = weiszfeld(rows.astype(np.float32).astype(np.float64))
    found = run(ra.GeometricMedian(), rows, torch.float32)
    assert np.linalg.norm(found - exact) <= 1e-6 * np.linalg.norm(exact)


def test_krum_selects_by_index_among_ties() -> None:
    rows = torch.tensor([[0.0], [1.0], [1.0], [0.0], [1.0], [0.0], [1.0], [0.0]])
    weights = ra.Krum(f=1).weights(rows)
    assert weights.tolist() == [1.0] + [0.0] * 7


def test_multi_krum_of_one_row_is_krum() -> None:
    rows = torch.from_numpy(draw(5, 11, 4, kind="normal"))
    assert torch.equal(ra.MultiKrum(f=F, m=1)(rows), ra.Krum(f=F)(rows))


def test_centered_clipping_from_a_given_start() -> None:
    rows = draw(7, 9, 5, kind="normal")
    start = np.linspace(-1, 1, 5)
    rule = ra.CenteredClipping(radius=2.0, iterations=2, start=torch.from_numpy(start))
    expected = oracle.centered_clipping(rows, 2.0, iterations=2, start=start)
    np.testing.assert_allclose(run(rule, rows, torch.float64), expected, atol=1e-12)


def test_bucketing_needs_a_generator() -> None:
    with pytest.raises(ValueError, match="Bucketing: generator is required"):
        ra.chain(ra.Bucketing(s=2), ra.Mean())(torch.ones(4, 2))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ra.Krum(f=-1), "Krum: f must be an integer >= 0, found -1"),
        (lambda: ra.TrimmedMean(f=1.5), "TrimmedMean: f must be an integer >= 0, found 1.5"),
        (lambda: ra.MultiKrum(f=1, m=0), "MultiKrum: m must be an integer >= 1, found 0"),
        (lambda: ra.Clip(threshold=0.0), "Clip: threshold must be a positive finite number"),
        (lambda: ra.Bucketing(s=0), "Bucketing: s must be an integer >= 1, found 0"),
        (lambda: ra.CenteredClipping(radius=-1), "CenteredClipping: radius must be a positive"),
        (lambda: ra.GeometricMedian(tolerance=0), "GeometricMedian: tolerance must be a positive"),
        (lambda: ra.chain(ra.Clip(threshold=1.0)), "chain: the last stage must be an aggregator"),
        (lambda: ra.chain(ra.Mean(), ra.Mean()), "chain: all stages but the last must be mixings"),
        (lambda: ra.chain(), "chain: the last stage must be an aggregator, found nothing"),
    ],
)
def test_bad_parameters_are_named(make: Callable[[], object], message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        make()


def test_multi_krum_cannot_average_more_than_the_honest_rows() -> None:
    with pytest.raises(ra.ConstraintError, match="m <= n - f is required, found m=6, n=7, f=2"):
        ra.MultiKrum(f=2, m=6)(torch.randn(7, 3))


@pytest.mark.parametrize("far", [0.0, 1e3, 1e12])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_many_rows_are_iterated_over_with_the_same_result(far: float, dtype: torch.dtype) -> None:
    rows = torch.from_numpy(draw(2, GRAM_UP_TO + 44, 50, kind="normal")).to(dtype)
    rows[:90] += far
    rule = ra.GeometricMedian()
    weights, accepted, report = weiszfeld_over_rows(rows, tolerance=1e-12, max_passes=100)
    assert report.converged
    assert bool(accepted.all())
    geometry, _ = measure(rows)
    in_weight_space = rule.weigh(geometry, None).weights
    torch.testing.assert_close(weights, in_weight_space, atol=1e-6, rtol=0)
    exact = weiszfeld(rows.double().numpy())
    np.testing.assert_allclose(rule(rows).double().numpy(), exact, atol=2e-6 * np.abs(exact).max())


def test_many_rows_in_two_places_need_no_gram(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = torch.from_numpy(draw(2, GRAM_UP_TO + 44, 50, kind="normal"))
    rows[:100] += 5
    measured: list[int] = []
    row_distances = kernels.row_distances

    def watched(rows: Tensor, point: Tensor) -> Tensor:
        measured.append(len(rows))
        return row_distances(rows, point)

    monkeypatch.setattr(kernels, "row_distances", watched)
    monkeypatch.delattr(kernels, "centred_gram")
    ra.GeometricMedian()(rows)
    assert 20 < measured.count(len(rows)) < 32
    # Beside each pass over the rows, the length of the step.
    assert measured.count(1) == measured.count(len(rows))


@pytest.mark.parametrize(
    ("radius", "start"), [(None, "median"), (3.0, "median"), (None, "zero"), (3.0, "zero")]
)
@pytest.mark.parametrize("iterations", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_many_rows_are_clipped_over_the_rows_with_the_same_result(
    dtype: torch.dtype,
    iterations: int,
    radius: float | None,
    start: Literal["median", "zero"],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rows = torch.from_numpy(draw(2, 201, 30, kind="normal")).to(dtype)
    rows[:40] += 1e3
    rows[40:50], rows[50], rows[51] = torch.nan, torch.inf, torch.finfo(dtype).max
    rule = ra.CenteredClipping(radius=radius, iterations=iterations, start=start)
    measured: list[int] = []
    monkeypatch.setattr(centered_clipping, "measure", lambda *given: measured.append(1))
    over_rows = rule.explain(rows)
    assert not measured
    monkeypatch.setattr(centered_clipping, "measure", measure)
    monkeypatch.setattr(centered_clipping, "GRAM_UP_TO", 1000)
    in_weight_space = rule.explain(rows)
    assert over_rows.rejected == in_weight_space.rejected == tuple(range(40, 52))
    assert over_rows.weights is not None
    near = 1e-12 if dtype == torch.float64 else 1e-6
    torch.testing.assert_close(over_rows.weights, in_weight_space.weights, atol=near, rtol=0)
    torch.testing.assert_close(over_rows.output, in_weight_space.output, atol=9 * near, rtol=near)


def test_of_many_rows_too_many_that_cannot_be_measured_are_named() -> None:
    rows = torch.from_numpy(draw(2, 201, 30, kind="normal"))
    rows[:101] = torch.nan
    with pytest.raises(ra.TooManyRejectedError, match="CenteredClipping: at most 100 of the n=201"):
        ra.CenteredClipping()(rows)


def test_many_rows_whose_median_is_a_row_fall_back_to_weight_space() -> None:
    rows = torch.from_numpy(draw(4, 400, 10, kind="normal"))
    rows[:230] = rows[0].clone()
    why = ra.GeometricMedian().explain(rows)
    torch.testing.assert_close(why.output, rows[0])
    assert why.solver is not None
    assert why.solver.reason == "data point"


def test_many_rows_with_bad_ones_among_them() -> None:
    rows = torch.from_numpy(draw(4, 300, 10, kind="normal")).float()
    clean = ra.GeometricMedian()(rows[20:])
    rows[:10] = float("nan")
    rows[10:20] = float("inf")
    why = ra.GeometricMedian().explain(rows)
    torch.testing.assert_close(why.output, clean)
    assert why.rejected == tuple(range(20))
    rows[:150] = float("nan")
    with pytest.raises(ra.TooManyRejectedError, match="GeometricMedian: at most 149 of the n=300"):
        ra.GeometricMedian()(rows)


@pytest.mark.parametrize("scale", [1e3, 1e5, 1e7])
def test_a_median_of_rows_clipped_from_afar(scale: float) -> None:
    rows = draw(1, 9, 50, kind="normal") * scale
    found = run(ra.chain(ra.Clip(threshold=1.0), ra.GeometricMedian()), rows, torch.float64)
    clipped = oracle.clip(rows, 1.0)
    np.testing.assert_allclose(found, weiszfeld(clipped), atol=1e-9)


def test_two_far_rows_at_one_place_do_not_overflow_the_solver() -> None:
    rows = torch.from_numpy(draw(2, 9, 5, kind="normal"))
    for far in (0.7e154, 1.0e154, 1.2e154, 1e200):
        rows[:2] = far
        out = ra.GeometricMedian()(rows)
        assert float((out - rows[2:].mean(dim=0)).norm()) < 10


def test_long_rows_that_differ_little() -> None:
    g = torch.Generator().manual_seed(0)
    rows = (1 + 1e-3 * torch.randn(10, 3000, generator=g)) * 1e18
    rule = ra.chain(ra.Bucketing(s=2), ra.NearestNeighborMixing(f=1), ra.GeometricMedian())
    out = rule(rows, generator=g)
    assert float((out - rows.mean(dim=0)).norm() / rows.mean(dim=0).norm()) < 1e-3


def test_a_far_row_does_not_take_the_digits_of_tiny_ones() -> None:
    rows = draw(3, 11, 5, kind="normal")
    rows -= rows.mean(axis=0)
    tiny = rows * 1e-25
    tiny[0], tiny[1] = 1.0, 3e-24
    for rule in (ra.Krum(f=2), ra.GeometricMedian()):
        exact = run(rule, tiny, torch.float64)
        np.testing.assert_allclose(run(rule, tiny, torch.float32), exact, atol=1e-30)


def test_a_start_too_far_to_measure_is_named() -> None:
    rule = ra.CenteredClipping(start=torch.full((4,), 1e25))
    with pytest.raises(ValueError, match="CenteredClipping: start must be near enough"):
        rule(torch.randn(5, 4))


def test_the_mean_of_long_float16_rows() -> None:
    rows = torch.full((4, 1_000_000), 100.0, dtype=torch.float16)
    assert torch.equal(ra.Mean()(rows), rows[0])
