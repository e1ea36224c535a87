"""Rules by signs, scores and trust: their oracles, ties, bad rows, errors."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from oracles import filters as oracle
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import squareform
from sklearn.cluster import MeanShift, estimate_bandwidth
from torch import Tensor

import robust_agg as ra
from robust_agg import kernels
from robust_agg.filters.clusters import larger_of_two, mean_shift, neighbour_bandwidth
from robust_agg.shards import randomly_drawn
from robust_agg.span import measure

Array = npt.NDArray[np.float64]
F = 2
seeds = st.integers(0, 2**31)
kinds = st.sampled_from(["normal", "outliers", "twins", "integers", "one way"])


def draw(seed: int, n: int, d: int, kind: str) -> Array:
    rng = np.random.default_rng(seed)
    if kind == "integers":
        return rng.integers(-2, 3, size=(n, d)).astype(np.float64)
    rows = rng.normal(size=(n, d)) + rng.normal(size=d)
    if kind == "outliers":
        rows[rng.permutation(n)[:F]] *= 1e3
    if kind == "twins":
        rows[1 % n] = rows[n // 2] = rows[0]
    if kind == "one way":
        rows = rng.normal(size=d) + 0.1 * rows
    return rows


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(5)


def drawn(d: int, count: int, times: int = 1) -> list[list[int]]:
    """The coordinates that rules draw with :func:`generator`."""
    g = generator()
    draws = [range(d) if d <= count else randomly_drawn(d, count, g).tolist() for _ in range(times)]
    return [list(places) for places in draws]


def run(rule: ra.Aggregator, rows: Array | Tensor) -> Array:
    return rule(torch.as_tensor(rows), generator=generator()).double().numpy()


# --- draws ---------------------------------------------------------------------------------------


@given(d=st.integers(1, 300), share=st.floats(0, 1), seed=seeds)
def test_drawn_places_are_different_and_as_many_as_asked_for(
    d: int, share: float, seed: int
) -> None:
    count = round(share * d)
    places = randomly_drawn(d, count, torch.Generator().manual_seed(seed))
    assert len(places) == count
    assert places.tolist() == sorted(set(places.tolist()))
    assert all(0 <= place < d for place in places.tolist())


@pytest.mark.parametrize("count", [2, 5, 7])
def test_every_place_is_drawn_as_often(count: int) -> None:
    d, times, g = 9, 4000, torch.Generator().manual_seed(0)
    often = torch.zeros(d)
    for _ in range(times):
        often[randomly_drawn(d, count, g)] += 1
    share = count / d
    # Five standard deviations.
    assert float((often / times - share).abs().max()) < 5 * (share * (1 - share) / times) ** 0.5


# --- divide and conquer --------------------------------------------------------------------------


def gap(rows: Array, draws: list[list[int]]) -> float:
    """How far the two largest singular values are apart: with equal ones v is anything."""
    gaps = []
    for places in draws:
        some = rows[:, places] - rows[:, places].mean(axis=0)
        values = np.linalg.svd(some, compute_uv=False)
        second = values[1] if len(values) > 1 else 0.0
        gaps.append((values[0] - second) / values[0] if values[0] > 0 else 1.0)
    return min(gaps)


@pytest.mark.parametrize(
    ("iterations", "coordinates", "c"), [(1, 5, 1.0), (3, 4, 0.5), (2, 7, 1.6), (4, 1000, 1.0)]
)
@settings(max_examples=60)
@given(seed=seeds, n=st.integers(5, 14), d=st.integers(1, 20), kind=kinds)
def test_divide_and_conquer_is_its_oracle(
    iterations: int, coordinates: int, c: float, seed: int, n: int, d: int, kind: str
) -> None:
    rows = draw(seed, n, d, kind)
    draws = drawn(d, coordinates, iterations)
    assume(gap(rows, draws) > 1e-4)
    rule = ra.DivideAndConquer(f=F, iterations=iterations, coordinates=coordinates, filtering=c)
    try:
        expected = oracle.divide_and_conquer(rows, F, c, draws)
    except ValueError:
        with pytest.raises(ra.ConstraintError, match="must have a row in common, found none"):
            run(rule, rows)
        return
    np.testing.assert_allclose(run(rule, rows), expected, atol=1e-9 * np.abs(rows).max())


def test_divide_and_conquer_leaves_out_who_sticks_out_together() -> None:
    """What distances do not show: bad rows nearer to the mean than most, all on one side of it."""
    rows = np.random.default_rng(0).normal(size=(20, 1000))
    rows[:4] = rows[4:].mean(axis=0) + 0.9
    rule = ra.DivideAndConquer(f=4, coordinates=500, iterations=3)
    weights = rule.weights(torch.from_numpy(rows), generator=generator())
    assert weights[:4].tolist() == [0.0] * 4
    assert float(weights.sum()) == pytest.approx(1)


def test_equal_scores_go_to_the_lowest_index() -> None:
    rows = torch.tensor([[1.0], [-1.0], [1.0], [-1.0], [1.0], [-1.0]])
    weights = ra.DivideAndConquer(f=2).weights(rows, generator=generator())
    assert weights.tolist() == [0.25] * 4 + [0.0] * 2


def test_iterations_without_a_row_in_common_are_an_error() -> None:
    rows = torch.randn(5, 400, generator=torch.Generator().manual_seed(1))
    rule = ra.DivideAndConquer(f=2, iterations=50, coordinates=2)
    with pytest.raises(
        ra.ConstraintError,
        match=r"^DivideAndConquer: the iterations must have a row in common, found none with n=5, "
        r"f=2, iterations=50, filtering=1\.0$",
    ):
        rule(rows, generator=generator())


def test_a_row_that_is_bad_where_nobody_looks_has_no_weight() -> None:
    rows = torch.randn(7, 100, generator=torch.Generator().manual_seed(2))
    (places,) = drawn(100, 3)
    unseen = next(j for j in range(100) if j not in places)
    for value in (math.nan, math.inf, 3e38):
        rows[4, unseen] = value
        why = ra.DivideAndConquer(f=1, coordinates=3, filtering=0.5).explain(
            rows, generator=generator()
        )
        assert why.rejected == (4,)
        assert why.weights is not None
        assert why.weights[4] == 0
        assert why.output.isfinite().all()


def test_filtering_more_than_all_is_named() -> None:
    with pytest.raises(
        ra.ConstraintError,
        match=r"^DivideAndConquer: n > c·f is required, found n=5, f=2, filtering=3\.0$",
    ):
        ra.DivideAndConquer(f=2, filtering=3.0).check(5)


# --- sign guard ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"share": 1.0},
        {"share": 0.6, "bandwidth": 0.25},
        {"share": 0.5, "lower": 0.9, "upper": 1.2},
    ],
    ids=str,
)
@settings(max_examples=60)
@given(seed=seeds, n=st.integers(1, 14), d=st.integers(1, 40), kind=kinds)
def test_sign_guard_is_its_oracle(
    options: dict[str, float], seed: int, n: int, d: int, kind: str
) -> None:
    rows = draw(seed, n, d, kind)
    rule = ra.SignGuard(**options)
    (places,) = drawn(d, math.ceil(Fraction(str(rule.share)) * d))
    expected = oracle.sign_guard(
        rows, places, lower=rule.lower, upper=rule.upper, bandwidth=rule.bandwidth
    )
    np.testing.assert_allclose(run(rule, rows), expected, atol=1e-9 * np.abs(rows).max())


def test_sign_guard_leaves_out_other_lengths_and_other_signs() -> None:
    rows = np.random.default_rng(0).normal(size=(12, 500)) + 0.5
    rows[0] *= 4
    rows[1] *= 0.05
    rows[2] *= -1
    rows[3] = 0
    weights = ra.SignGuard().weights(torch.from_numpy(rows), generator=generator())
    assert weights[:4].tolist() == [0.0] * 4
    lengths = np.linalg.norm(rows, axis=1)
    median = np.sort(lengths)[5]
    expected = np.minimum(1, median / lengths[4:]) / 8
    np.testing.assert_allclose(weights[4:].numpy(), expected)


def test_bad_rows_of_one_mind_do_not_leave_sign_guard_empty() -> None:
    """Far too long, and the largest cluster of all: the others are of more minds than they."""
    rows = torch.tensor([[1.0, 1, 1], [1, -1, 1], [-1, -1, 1], [-9, -9, -9], [-9, -9, -9]])
    found = ra.SignGuard(share=1.0, bandwidth=1e-3)(rows, generator=generator())
    assert found.tolist() == [-1.0, -1.0, 1.0]  # the first in the order of the features


def test_a_length_of_zero_is_usual_among_rows_of_zero() -> None:
    rows = torch.zeros(5, 3)
    rows[0] = 7.0
    found = ra.SignGuard()(rows, generator=generator())
    assert found.tolist() == [0.0] * 3


# --- FLTrust -------------------------------------------------------------------------------------


@settings(max_examples=100)
@given(seed=seeds, n=st.integers(1, 12), d=st.integers(1, 30), kind=kinds)
def test_fl_trust_is_its_oracle(seed: int, n: int, d: int, kind: str) -> None:
    rows = draw(seed, n + 1, d, kind)
    reference, rows = rows[-1], rows[:-1]
    found = run(ra.FLTrust(reference=torch.from_numpy(reference)), rows)
    expected = oracle.fl_trust(rows, reference)
    np.testing.assert_allclose(found, expected, atol=1e-9 * np.abs(reference).max() + 1e-300)


REFERENCE = torch.tensor([3.0, 4.0, 0.0])


def test_trust_by_hand() -> None:
    rows = torch.tensor([[30.0, 40, 0], [0, 0, 9], [-3, -4, 0], [0, 2, 0]])
    why = ra.FLTrust(reference=REFERENCE).explain(rows)
    # Trusts 1, 0, 0, 0.8, with lengths 50 and 2 brought to 5.
    assert why.weights is not None
    np.testing.assert_allclose(why.weights, [1 / 1.8 / 10, 0, 0, 0.8 / 1.8 * 2.5])
    np.testing.assert_allclose(why.output, [3 / 1.8, (4 + 0.8 * 5) / 1.8, 0], rtol=1e-6)


BAD = [math.nan, math.inf, -math.inf, 3e38, -3e38, 1e20, 0.0, 1e-45, 1e-30]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@settings(max_examples=40)
@given(seed=seeds, bad=st.lists(st.sampled_from(BAD), max_size=7), long=st.floats(1e-3, 1e15))
def test_any_rows_leave_a_finite_result_no_longer_than_the_reference(
    dtype: torch.dtype, seed: int, bad: list[float], long: float
) -> None:
    rows = torch.from_numpy(draw(seed, 7, 4, "normal")).to(dtype)
    for i, value in enumerate(bad):
        rows[i] = value
    reference = torch.ones(4) * long
    before = rows.clone()
    found = ra.FLTrust(reference=reference)(rows)
    assert found.dtype == dtype
    assert bool(found.isfinite().all())
    assert float(found.double().norm()) <= float(reference.norm()) * 1.01
    assert torch.equal(rows.nan_to_num(), before.nan_to_num())


def test_where_no_row_is_trusted_the_reference_is_the_result() -> None:
    rule = ra.FLTrust(reference=REFERENCE)
    for rows in (-REFERENCE.repeat(3, 1), torch.full((3, 3), math.nan), torch.zeros(3, 3)):
        why = rule.explain(rows)
        assert torch.equal(why.output, REFERENCE)
        assert why.weights is not None
        assert not bool(why.weights.any())
    assert not bool(ra.FLTrust(reference=torch.zeros(3))(torch.ones(2, 3)).any())


def test_fl_trust_does_not_depend_on_order_or_length() -> None:
    rows = torch.from_numpy(draw(4, 9, 3, "normal"))
    rule = ra.FLTrust(reference=rows[2])
    factors = torch.logspace(-5, 5, 9, dtype=torch.float64)[:, None]
    torch.testing.assert_close(rule(rows.flip(0) * factors), rule(rows))
    assert rule.invariances == {ra.Invariance.PERMUTATION}
    assert not rule.shardable


def test_fl_trust_after_a_mixing_has_weights_over_the_rows() -> None:
    rows = torch.from_numpy(draw(4, 9, 3, "normal"))
    why = ra.chain(ra.NearestNeighborMixing(f=2), ra.FLTrust(reference=rows[2])).explain(rows)
    assert why.weights is not None
    assert bool(why.weights.any())
    torch.testing.assert_close(why.weights @ rows, why.output)


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        (torch.ones(4), r"reference must have shape \(3,\), found \(4,\)"),
        (torch.full((3,), 1e25), "reference must be short enough to be measured, found a norm of"),
    ],
)
def test_a_reference_that_does_not_fit_is_named(reference: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=f"^FLTrust: {message}"):
        ra.FLTrust(reference=reference)(torch.ones(5, 3))


# --- what draws needs a generator ----------------------------------------------------------------


@pytest.mark.parametrize("rule", [ra.DivideAndConquer(f=1), ra.SignGuard()], ids=lambda r: r.name)
def test_a_generator_is_required(rule: ra.Aggregator) -> None:
    with pytest.raises(ValueError, match=f"^{rule.name}: generator is required, found None$"):
        rule(torch.ones(5, 2))


# --- votes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_votes_of_ties_nothing_and_infinity(dtype: torch.dtype) -> None:
    nan, inf = math.nan, math.inf
    rows = torch.tensor(
        [
            [1.0, nan, -inf, 0.0, nan, 0.0],
            [-1.0, nan, -inf, 5.0, 2.0, 0.0],
            [3.0, -2.0, 1.0, 0.0, -3.0, 0.0],
            [-7.0, -1.0, 2.0, -0.0, 0.0, 0.0],
            [0.0, 4.0, -1.0, 0.0, 1.0, 0.0],
        ]
    ).to(dtype)
    assert ra.SignMajority()(rows).tolist() == [0.0, -1.0, -1.0, 1.0, 1.0, 0.0]
    with pytest.raises(TypeError, match="SignMajority: a coordinate-wise rule has no weights"):
        ra.SignMajority().weights(rows)


@pytest.mark.parametrize("rows", [9, 40])
def test_votes_of_mixed_rows_some_columns_at_a_time(rows: int) -> None:
    given = torch.randn(rows, 20_011, generator=torch.Generator().manual_seed(3))
    mixing = ra.NearestNeighborMixing(f=3)
    found = ra.chain(mixing, ra.SignMajority())(given)
    coefficients = mixing.mix(measure(given)[0], None).coefficients
    assert torch.equal(found, ra.SignMajority()(kernels.mix(given, coefficients)))
    given[:3] = math.nan
    assert set(ra.chain(mixing, ra.SignMajority())(given).unique().tolist()) <= {-1.0, 0.0, 1.0}


@pytest.mark.parametrize(
    ("beta", "n", "trimmed"),
    [(0.29, 100, 29), (0.3, 10, 3), (0.1, 9, 0), (0.49, 3, 1), (0.0, 7, 0)],
)
def test_a_share_is_a_number_of_values(beta: float, n: int, trimmed: int) -> None:
    rule = ra.BetaTrimmedMean(beta=beta)
    rows = torch.from_numpy(draw(n, n, 5, "normal"))
    assert rule.max_rejected(n) == trimmed
    assert torch.equal(rule(rows), ra.TrimmedMean(f=trimmed)(rows))
    assert rule.kappa(n, trimmed) == ra.TrimmedMean(f=trimmed).kappa(n, trimmed)
    assert rule.kappa(n, trimmed + 1) is None


@settings(max_examples=40)
@given(seed=seeds, n=st.integers(1, 20), d=st.integers(1, 30), kind=kinds)
def test_the_lower_median_is_that_of_torch(seed: int, n: int, d: int, kind: str) -> None:
    rows = torch.from_numpy(draw(seed, n, d, kind))
    found = ra.CoordinateWiseMedian(even="lower")(rows)
    assert torch.equal(found, rows.median(dim=0).values + 0.0)


# --- clusterings, beside the libraries that have them --------------------------------------------


def shares(seed: int, n: int) -> Array:
    """Rows of three shares, in up to three groups."""
    rng = np.random.default_rng(seed)
    middles = rng.dirichlet(np.ones(3), size=3)
    return np.array([rng.dirichlet(1 + 300 * middles[rng.integers(3)]) for _ in range(n)])


@settings(max_examples=60)
@given(seed=seeds, n=st.integers(2, 30))
def test_the_bandwidth_is_that_of_scikit_learn(seed: int, n: int) -> None:
    points = shares(seed, n)
    assert neighbour_bandwidth(points) == pytest.approx(estimate_bandwidth(points, quantile=0.5))


@settings(max_examples=40)
@given(seed=seeds, n=st.integers(4, 30), bandwidth=st.floats(0.15, 0.5))
def test_clusters_are_those_of_mean_shift_in_scikit_learn(
    seed: int, n: int, bandwidth: float
) -> None:
    """Of groups that are apart: it stops a thousandth of the bandwidth before the peaks."""
    rng = np.random.default_rng(seed)
    corners = np.array([[0.8, 0.1, 0.1], [0.1, 0.8, 0.1], [0.1, 0.1, 0.8]])
    points = corners[rng.integers(3, size=n)] + rng.uniform(-0.04, 0.04, size=(n, 3))
    found = mean_shift(points, bandwidth)
    peers = MeanShift(bandwidth=bandwidth, seeds=points).fit(points).labels_
    assert np.array_equal(found[:, None] == found, peers[:, None] == peers)
    sizes = np.bincount(found)
    assert sizes.tolist() == sorted(sizes.tolist(), reverse=True)  # from the densest on


@settings(max_examples=60)
@given(seed=seeds, n=st.integers(2, 14), whole=st.booleans())
def test_mean_shift_is_its_oracle_in_any_order(seed: int, n: int, whole: bool) -> None:
    rng = np.random.default_rng(seed)
    points = rng.integers(0, 4, size=(n, 3)).astype(float) if whole else shares(seed, n)
    bandwidth = float(rng.choice([0.0, 1.0, 2**0.5])) if whole else 0.2
    found = mean_shift(points, bandwidth)
    assert found.tolist() == oracle.mean_shift(points, bandwidth)
    order = rng.permutation(n)
    assert mean_shift(points[order], bandwidth).tolist() == found[order].tolist()


@settings(max_examples=100)
@given(seed=seeds, n=st.integers(2, 25))
def test_the_larger_cluster_is_that_of_average_linkage_in_scipy(seed: int, n: int) -> None:
    points = np.random.default_rng(seed).normal(size=(n, 3))
    distances = np.linalg.norm(points[:, None] - points, axis=2)
    labels = fcluster(linkage(squareform(distances), "average"), 2, "maxclust")
    sizes = np.bincount(labels)
    if (sizes == sizes.max()).sum() == 1:
        assert larger_of_two(distances) == np.flatnonzero(labels == sizes.argmax()).tolist()
    assert larger_of_two(distances) == oracle.larger_of_two(distances)


@settings(max_examples=60)
@given(seed=seeds, n=st.integers(1, 12))
def test_tied_distances_are_joined_by_the_lowest_index(seed: int, n: int) -> None:
    distances = np.triu(np.random.default_rng(seed).integers(1, 4, size=(n, n)) / 7, 1)
    distances += distances.T
    assert larger_of_two(distances) == oracle.larger_of_two(distances)
