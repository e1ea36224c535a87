"""Clipping towards the origin where the rows' centre is far from it: norms keep their digits."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import numpy as np
import pytest
import torch
from oracles import rules as oracle
from torch import Tensor

import robust_agg as ra
from robust_agg import kernels, span

N, F, THRESHOLD = 9, 2, 1.0
RATIOS = [0.01, 1.0, 10.0, 1e2, 1e3, 1e4, 1e6, 1e8]
"""Norms of the honest rows over the threshold."""

every_ratio = pytest.mark.parametrize("ratio", RATIOS)
every_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
# Few columns, more than a block of the compiled kernel's sums, and enough for it to be compiled.
every_width = pytest.mark.parametrize("d", [1, 3, 1100, 9000])


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def draw(d: int, ratio: float, dtype: torch.dtype, *, seed: int = 0) -> Tensor:
    """N - F rows of one direction and norm about ``ratio``; the last F have a norm about 2."""
    g = generator(seed)
    rows = torch.randn(d, generator=g, dtype=torch.float64).expand(N, d) + 0.1 * torch.randn(
        N, d, generator=g, dtype=torch.float64
    )
    rows = rows / rows[0].norm() * ratio
    near = torch.randn(F, d, generator=g, dtype=torch.float64)
    rows[N - F :] = 2 * near / near.norm(dim=1, keepdim=True)
    return rows.to(dtype)


def clipped(points: Tensor) -> Tensor:
    """The exact factors of the rows ``points``, in float64."""
    return (THRESHOLD / points.double().norm(dim=1)).clamp(max=1.0)


class SeeingMean(ra.Mean):
    """A mean for which all of the geometry is measured, about the rows' centre."""

    sees_distances = True


every_mean = pytest.mark.parametrize("mean", [ra.Mean(), SeeingMean()], ids=["Mean", "SeeingMean"])


@every_ratio
@every_dtype
@every_width
@every_mean
def test_rows_near_the_origin_are_clipped_by_their_own_norm(
    ratio: float, dtype: torch.dtype, d: int, mean: ra.Mean
) -> None:
    rows = draw(d, ratio, dtype)
    weights = ra.chain(ra.Clip(threshold=THRESHOLD), mean).weights(rows)
    torch.testing.assert_close(weights * N, clipped(rows), rtol=1e-5, atol=0.0)


@every_ratio
@every_width
@every_mean
def test_rows_far_from_a_centre_near_the_origin_are_too(
    ratio: float, d: int, mean: ra.Mean
) -> None:
    rows = draw(d, 2.0, torch.float32)
    rows[-F:] *= ratio
    weights = ra.chain(ra.Clip(threshold=THRESHOLD), mean).weights(rows)
    torch.testing.assert_close(weights * N, clipped(rows), rtol=1e-5, atol=0.0)


@pytest.mark.parametrize("ratio", [1.0, 10.0, 1e2, 1e3, 1e4])
@every_width
@pytest.mark.parametrize("balanced", [False, True], ids=["far centre", "centre near 0"])
def test_means_of_rows_that_cancel_are_clipped_by_their_own_norm(
    ratio: float, d: int, balanced: bool
) -> None:
    rows = draw(d, ratio, torch.float32)
    order = torch.randperm(N, generator=generator(5))
    pairs = [(0, 1)] if not balanced else [(0, 1), (2, 3), (4, 5)]
    for left, right in pairs:
        # Opposite rows in one bucket: its mean is near the origin although neither row is.
        rows[order[right]] = -rows[order[left]] + torch.randn(d, generator=generator(left))
    rule = ra.chain(ra.Bucketing(s=2), ra.Clip(threshold=THRESHOLD), ra.Mean())
    weights = rule.weights(rows, generator=generator(5))
    means = rows.double()[order].split(2)
    factors = clipped(torch.stack([bucket.mean(dim=0) for bucket in means]))
    expected = torch.empty(N, dtype=torch.float64)
    for members, factor in zip(order.split(2), factors, strict=True):
        expected[members] = factor / len(members) / len(factors)
    torch.testing.assert_close(weights, expected, rtol=1e-5, atol=0.0)


@every_ratio
@every_dtype
@pytest.mark.parametrize("d", [40, 9000])
def test_distances_between_clipped_rows_are_those_of_an_oracle(
    ratio: float, dtype: torch.dtype, d: int
) -> None:
    rows = draw(d, ratio, dtype, seed=1)
    expected = oracle.krum_scores(oracle.clip(rows.double().numpy(), THRESHOLD), F)
    seen: list[Tensor] = []

    class Watched(ra.Krum):
        def weigh(self, geometry, generator):  # type: ignore[no-untyped-def]
            seen.append(geometry.squared_distances)
            return super().weigh(geometry, generator)

    weights = ra.chain(ra.Clip(threshold=THRESHOLD), Watched(f=F)).weights(rows)
    assert weights.nonzero().item() == expected.argmin()
    points = torch.from_numpy(oracle.clip(rows.double().numpy(), THRESHOLD))
    exact = torch.cdist(points, points, compute_mode="donot_use_mm_for_euclid_dist").square()
    scale = min(ratio, THRESHOLD) ** 2
    torch.testing.assert_close(seen[0], exact, rtol=2e-5, atol=1e-6 * scale)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 3e38])
@every_mean
def test_rejected_rows_stay_out_where_the_rows_are_measured_again(
    bad: float, mean: ra.Mean
) -> None:
    rows = draw(50, 1e4, torch.float32)
    rows[0, 3] = bad
    why = ra.chain(ra.Clip(threshold=THRESHOLD), mean).explain(rows)
    assert why.weights is not None
    if bad == 3e38 and not mean.sees_distances:  # too far from others, but its norm is a number
        assert why.rejected == ()
        torch.testing.assert_close(why.weights * N, clipped(rows), rtol=1e-5, atol=0.0)
        return
    assert why.rejected == (0,)
    assert why.weights[0] == 0
    torch.testing.assert_close(why.weights[1:] * (N - 1), clipped(rows[1:]), rtol=1e-5, atol=0.0)


@pytest.mark.parametrize("ratio", [0.3, 1.0, 3.0, 1e4])
@pytest.mark.parametrize("d", [1, 50, 9000])
def test_the_rows_are_measured_once_in_the_ordinary_case(
    ratio: float, d: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    g = generator(0)
    rows = torch.randn(N, d, generator=g) / d**0.5
    # Twice as far from the origin as from one another: no row lies at the origin itself.
    rows += 2 * rows.norm(dim=1).max() * torch.randn(d, generator=g).sign() / d**0.5
    rows[:F] *= 1e3

    def again(rows: Tensor) -> Tensor:
        raise AssertionError("measured again")

    monkeypatch.setattr(kernels, "gram", again)
    clip, nearest = ra.Clip(threshold=1 / ratio), ra.NearestNeighborMixing(f=F)
    found = ra.chain(clip, nearest, ra.CoordinateWiseMedian())(rows)
    clipped_rows = oracle.clip(rows.double().numpy(), 1 / ratio)
    expected = oracle.coordinate_median(oracle.nearest_neighbor_mixing(clipped_rows, F))
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-5 / ratio)


@pytest.mark.parametrize(
    ("mixings", "rule", "sees"),
    [
        ([ra.Clip(threshold=1.0)], ra.Mean(), False),
        ([ra.Clip(threshold=1.0), ra.AdaptiveClip(f=F)], ra.TrimmedMean(f=F), False),
        ([ra.AdaptiveClip(f=F)], ra.CenteredClipping(), False),
        ([ra.Clip(threshold=1.0)], ra.Krum(f=F), True),
        ([ra.Clip(threshold=1.0), ra.NearestNeighborMixing(f=F)], ra.Mean(), True),
        ([ra.NearestNeighborMixing(f=F), ra.Clip(threshold=1.0)], ra.Mean(), True),
    ],
    ids=str,
)
def test_distances_are_measured_only_where_someone_sees_them(
    mixings: list[ra.Mixing], rule: ra.Aggregator, sees: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = draw(50, 1e4, torch.float32)
    chained = ra.chain(*mixings, rule)
    expected = chained(rows)

    def measured(rows: Tensor, **given: Any) -> tuple[span.Geometry, Tensor]:
        calls.append(len(rows))
        return span.measure(rows, **given)

    calls: list[int] = []
    monkeypatch.setattr(import_module("robust_agg.chain"), "measure", measured)
    assert torch.equal(chained(rows), expected)
    assert bool(calls) == sees


@every_mean
def test_rows_of_any_float32_norm_are_accepted(mean: ra.Mean) -> None:
    rows = torch.randn(N, 1000, generator=generator(0)) + 1e20
    chained = ra.chain(ra.AdaptiveClip(f=F), mean)
    torch.testing.assert_close(chained(rows), torch.full((1000,), 1e20))
