"""FLAME: its oracle, the majority beside scikit-learn's HDBSCAN, the noise."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import filters as oracle
from sklearn.cluster import HDBSCAN

import robust_agg as ra
from robust_agg.filters.clusters import cosine_distances, first_majority

Array = npt.NDArray[np.float64]
seeds = st.integers(0, 2**31)
kinds = st.sampled_from(["normal", "two ways", "integers", "twins"])


def draw(seed: int, n: int, d: int, kind: str) -> Array:
    rng = np.random.default_rng(seed)
    if kind == "integers":
        return rng.integers(-2, 3, size=(n, d)).astype(np.float64)
    rows = rng.normal(size=(n, d)) + 2 * rng.normal(size=d)
    if kind == "two ways":
        rows[: n // 3] *= -20
    if kind == "twins":
        rows[n // 2 :] = rows[0]
    return rows[rng.permutation(n)]


@settings(max_examples=100)
@given(seed=seeds, n=st.integers(1, 12), d=st.integers(1, 12), kind=kinds)
def test_flame_without_noise_is_its_oracle(seed: int, n: int, d: int, kind: str) -> None:
    rows = draw(seed, n, d, kind)
    found = ra.FLAME(noise=0.0)(torch.from_numpy(rows)).numpy()
    np.testing.assert_allclose(found, oracle.flame(rows), atol=1e-9 * np.abs(rows).max())


def test_by_hand() -> None:
    rows = torch.tensor([[1.0, 0.1], [0.1, 9.0], [3.0, 0.0], [2.0, 0.3], [0.0, 1.0]])
    weights = ra.FLAME(noise=0.0).weights(rows)
    # Norms 1.005, 9.001, 3, 2.022, 1: the median is 2.022, which the row of 3 is clipped to.
    median = math.hypot(2.0, 0.3)
    torch.testing.assert_close(weights * 3, torch.tensor([1, 0, median / 3, 1, 0]).double())


@settings(max_examples=80)
@given(seed=seeds, n=st.integers(3, 30), d=st.integers(1, 5), far=st.booleans())
def test_the_majority_is_that_of_hdbscan_in_scikit_learn(
    seed: int, n: int, d: int, far: bool
) -> None:
    points = np.random.default_rng(seed).normal(size=(n, d))
    points[: n // 4] += 5 * far
    distances = np.linalg.norm(points[:, None] - points, axis=2)
    size = n // 2 + 1
    peers = HDBSCAN(
        min_cluster_size=size,
        min_samples=1,
        metric="precomputed",
        allow_single_cluster=True,
        copy=True,
    )
    labels = peers.fit_predict(distances)
    assert first_majority(distances, size) == np.flatnonzero(labels == 0).tolist()


@settings(max_examples=60)
@given(seed=seeds, n=st.integers(1, 12))
def test_links_as_long_come_at_once(seed: int, n: int) -> None:
    distances = np.triu(np.random.default_rng(seed).integers(1, 4, size=(n, n)) / 7, 1)
    distances += distances.T
    assert first_majority(distances, n // 2 + 1) == oracle.first_majority(distances)


@given(seed=seeds, n=st.integers(1, 8), d=st.integers(1, 4))
def test_cosine_distances_are_the_oracle_s(seed: int, n: int, d: int) -> None:
    rows = draw(seed, n, d, "integers")
    np.testing.assert_allclose(
        cosine_distances(rows @ rows.T), oracle.cosine_distances(rows), atol=1e-12
    )


def test_the_noise_is_normal_with_a_deviation_of_the_median_norm() -> None:
    rows = torch.from_numpy(draw(1, 9, 40_000, "normal"))
    plain = ra.FLAME(noise=0.0)(rows)
    g = torch.Generator()
    noisy = ra.FLAME(noise=0.01)(rows, generator=g.manual_seed(4))
    scaled = (noisy - plain) / (0.01 * float(rows.norm(dim=1).median()))
    assert abs(float(scaled.mean())) < 5 / 200
    assert abs(float(scaled.std()) - 1) < 5 / 200
    assert abs(float((scaled.abs() < 1).double().mean()) - 0.6827) < 5 * 0.47 / 200
    assert torch.equal(noisy, ra.FLAME(noise=0.01)(rows, generator=g.manual_seed(4)))
    assert not torch.equal(noisy, ra.FLAME(noise=0.01)(rows, generator=g.manual_seed(5)))
    why = ra.FLAME(noise=0.01).explain(rows, generator=g)
    assert why.weights is not None
    assert torch.equal(why.weights, ra.FLAME(noise=0.0).weights(rows))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 3e38, 1e20, 0.0])
def test_bad_rows_leave_a_finite_result(dtype: torch.dtype, bad: float) -> None:
    for seed in range(5):
        rows = torch.from_numpy(draw(seed, 7, 6, "normal")).to(dtype)
        rows[:3] = bad
        longest = float(rows[3:].double().norm(dim=1).max())
        found = ra.FLAME(noise=1e3)(rows, generator=torch.Generator().manual_seed(seed))
        assert found.dtype == dtype
        assert bool(found.isfinite().all())
        plain = ra.FLAME(noise=0.0)(rows)
        assert float(plain.double().norm()) <= longest * 1.01


def test_what_it_needs_is_named() -> None:
    with pytest.raises(ValueError, match=r"^FLAME: generator is required, found None$"):
        ra.FLAME()(torch.ones(5, 2))
    assert ra.FLAME(noise=0.0).shardable
    assert not ra.FLAME().shardable
    assert ra.Invariance.ROTATION not in ra.FLAME().invariances
