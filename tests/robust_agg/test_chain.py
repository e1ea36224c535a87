"""A chain before a rule that needs the mixed rows: rejected rows are unread."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from oracles import rules as oracle
from torch import Tensor

import robust_agg as ra

F = 2
RULES = {
    "trimmed mean": ra.TrimmedMean(f=F),
    "median": ra.CoordinateWiseMedian(),
    "centered clipping": ra.CenteredClipping(),
}
every_rule = pytest.mark.parametrize("rule", RULES)
# Few numbers, and enough for the compiled kernels.
every_width = pytest.mark.parametrize("d", [1, 40, 9000])


def draw(n: int, d: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(d)).to(dtype)


def mixed(rule: ra.Aggregator) -> ra.Aggregator:
    return ra.chain(ra.NearestNeighborMixing(f=F), rule)


@every_rule
@every_width
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), 3e38])
def test_rejected_rows_are_not_read(rule: str, d: int, bad: float) -> None:
    rows = draw(9, d)
    rows[[0, 5]] = bad
    found = mixed(RULES[rule])(rows)
    # What is beyond measure is nobody's neighbour, as a row is that is very far.
    rows[[0, 5]] = 1e17
    points = oracle.nearest_neighbor_mixing(rows.double().numpy(), F)
    # A rejected point is clipped to nothing, or is the largest value of every coordinate.
    points[[0, 5]] = np.inf
    expected = {
        "trimmed mean": np.sort(points, axis=0)[F : 9 - F].mean(axis=0),
        "median": np.median(points, axis=0),
        "centered clipping": rows[[i for i in range(9) if i not in (0, 5)]].double().mean(dim=0),
    }
    np.testing.assert_allclose(found.double().numpy(), expected[rule], atol=1e-5)


@every_rule
def test_a_far_row_that_is_not_rejected_is_no_neighbour_either(rule: str) -> None:
    rows = draw(9, 9000)
    rows[[0, 5]] = 1e15
    honest = [i for i in range(9) if i not in (0, 5)]
    found = mixed(RULES[rule])(rows)
    centre = rows[honest].mean(dim=0)
    # The honest rows' means over themselves are all the same point.
    torch.testing.assert_close(found, centre, rtol=0.0, atol=1e-5)


@pytest.mark.parametrize("mixing", [ra.Bucketing(s=2), ra.Resample(s=2)], ids=lambda m: m.name)
@pytest.mark.parametrize("rule", [ra.GeometricMedian(), ra.MedoidMedian()], ids=lambda r: r.name)
@pytest.mark.parametrize(("far", "dtype"), [(3e38, torch.float64), (1e17, torch.float32)])
def test_far_rows_that_cancel_are_not_seen_where_their_rounding_is(
    mixing: ra.Mixing, rule: ra.Aggregator, far: float, dtype: torch.dtype
) -> None:
    """Where two opposite ones make one point, that is 0 with an error of 1e22 or 1e9."""
    for seed in range(60):
        g = torch.Generator().manual_seed(seed)
        rows = torch.randn(9, 6, generator=g, dtype=torch.float64)
        rows = (rows + torch.randn(6, generator=g, dtype=torch.float64)).to(dtype)
        first, second, *others = torch.randperm(9, generator=g).tolist()
        rows[first], rows[second] = far, -far
        found = ra.chain(mixing, rule)(rows, generator=torch.Generator().manual_seed(5))
        assert float((found - rows[others].mean(dim=0)).norm()) < 5


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("column", [[2, 0, 0, -2, 2], [0, 0, 0, -2, 2, 100], [0, 0, 0, 0, 0]])
def test_rows_whose_mixtures_are_where_the_centre_is_are_no_far_rows(
    column: list[int], dtype: torch.dtype
) -> None:
    """Their mixtures have no spread, and no error to speak of."""
    rows = torch.tensor(column).to(dtype)[:, None]
    for rule in (ra.Krum(f=1), ra.GeometricMedian(), ra.TrimmedMean(f=1)):
        for moved in (rows, rows + 1, rows * 1e10):
            why = ra.chain(ra.NearestNeighborMixing(f=1), rule).explain(moved)
            assert why.rejected == ()
            assert float(why.output.min()) >= float(moved.min())
            assert float(why.output.max()) <= float(moved.sort(dim=0).values[-2])


@every_rule
def test_a_setting_that_rounds_products_does_not_reach_the_mixed_rows(rule: str) -> None:
    rows = 100 + draw(9, 700)
    expected = mixed(RULES[rule])(rows)
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        assert torch.equal(mixed(RULES[rule])(rows), expected)
    finally:
        torch.set_float32_matmul_precision(before)
