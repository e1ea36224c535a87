"""Ranks that share the columns find what one process finds that has all rows."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import rank_jobs
import torch
from dense import alike, check, check_close, dense, draw
from rank_processes import RankGroups
from rule_table import ESTIMATORS, RULES, Row, describe
from torch import Tensor

import robust_agg as ra

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
# d = 1, d below the number of ranks, slices that end unevenly or are empty, some of 16 and more.
CASES = {
    5: [
        *((d, torch.float32) for d in (1, 3, 37, 1003)),
        *((130, dtype) for dtype in DTYPES[1:]),
    ],
    7: [(4, torch.float64), (130, torch.float32), (37, torch.bfloat16)],
    9: [(d, torch.float32) for d in (1, 37, 1003)],
    11: [(37, torch.float32)],
}


@pytest.mark.parametrize("n", [5, 7])
@pytest.mark.parametrize("row", RULES, ids=str)
def test_every_rule_is_the_dense_one(ranks: RankGroups, row: Row, n: int) -> None:
    n = max(n, row.smallest)
    check(ranks, row.make(), [[draw(n, d, dtype)] for d, dtype in CASES[n]])


EXTRA: list[Callable[[], ra.OnlineMedian]] = [
    lambda: ra.Momentum(tau=0.3, fusion="sequential"),
    lambda: ra.OnlineMedian(divergence=ra.Huber(0.7), tau=1.5, fusion="sequential"),
]
SHARDABLE = [make for make in [*ESTIMATORS, *EXTRA] if make().shardable]
every_estimator = pytest.mark.parametrize("make", SHARDABLE, ids=describe)


@pytest.mark.parametrize("n", [5, 7])
@every_estimator
def test_every_estimator_steps_as_the_dense_one(
    ranks: RankGroups, make: Callable[[], ra.OnlineMedian], n: int
) -> None:
    check(ranks, make(), [[draw(n, d, dtype, seed) for seed in range(3)] for d, dtype in CASES[n]])


def for_any(n: int) -> list[ra.Aggregator | ra.OnlineMedian]:
    f = (n - 1) // 2
    return [
        ra.TrimmedMean(f=f),
        ra.chain(ra.NearestNeighborMixing(f=f), ra.CoordinateWiseMedian()),
        ra.chain(ra.Bucketing(s=2), ra.CenteredClipping()),
        ra.VClip(),
        ra.CClip(),
        ra.CClip(fusion="batch"),
    ]


@pytest.mark.parametrize("n", range(1, 9))
def test_any_number_of_ranks_will_do(ranks: RankGroups, n: int) -> None:
    for rule in for_any(n):
        check(ranks, rule, [[draw(n, d, seed=seed) for seed in range(2)] for d in (1, 2, 11, 257)])


@pytest.mark.parametrize("n", [2, 4, 6, 8])
def test_a_median_that_is_not_unique_is_as_good(ranks: RankGroups, n: int) -> None:
    """Of an even number of collinear points: any minimiser of the sum of distances."""
    runs = [[draw(n, d, torch.float64)] for d in (1, 2, 50)]
    answers = alike(ranks(n).run(rank_jobs.several, ra.GeometricMedian(), runs))
    for (rows,), (found,) in zip(runs, answers, strict=True):
        (expected,) = dense(ra.GeometricMedian(), [rows])
        least, value = ((rows - y).norm(dim=1).sum() for y in (expected, found))
        assert value <= least * (1 + 1e-12)


def test_many_rows_are_iterated_over(ranks: RankGroups) -> None:
    """Beyond so many rows that their Gram matrix costs more than passes over them."""
    rows = draw(5, 300, torch.float64)
    found = alike(ranks(5).run(rank_jobs.median_by_passes, rows))
    assert found[1] == "tolerance"
    check_close(found[0], ra.GeometricMedian()(rows))


def test_wide_rows_are_judged_by_some_columns(ranks: RankGroups) -> None:
    """The scale of ‖·‖₁ is read from 16,384 columns, the same ones whoever has them."""
    check(ranks, ra.CClip(), [[draw(3, 50_001, seed=seed) for seed in range(2)]])


@pytest.mark.parametrize("rule", [ra.VClip(), ra.CClip(), ra.TrimmedMean(f=1), ra.Krum(f=1)])
def test_tensors_of_several_dtypes_and_shapes_are_one_row(
    ranks: RankGroups, rule: ra.Aggregator | ra.OnlineMedian
) -> None:
    n, sizes = 5, (12, 0, 1, 5, 6, 7)
    steps = [draw(n, sum(sizes), torch.bfloat16, seed).double() for seed in range(3)]
    given = [[_parts(row, sizes) for row in rows] for rows in steps]
    answers = alike(ranks(n).run(rank_jobs.reduced, rule, given, {}))
    # Coordinates go by dtype, in the order in which these appear.
    order = (0, 1, 5, 2, 3, 4)
    flat = [
        torch.stack([torch.cat([row[i].reshape(-1).double() for i in order]) for row in rows])
        for rows in given
    ]
    for found, expected, (mine, *_) in zip(answers, dense(rule, flat), given, strict=True):
        assert [(t.shape, t.dtype) for t in found] == [(t.shape, t.dtype) for t in mine]
        wide = expected.split([sizes[place] for place in order])
        for place, part in zip(order, wide, strict=True):
            if part.numel():
                one = found[place].reshape(-1)
                check_close(one, part.to(one.dtype))


def _parts(row: Tensor, sizes: tuple[int, ...]) -> list[Tensor]:
    a, b, c, d, e, f = row.split(list(sizes))
    return [
        a.float().view(4, 3).T,
        b.float().view(2, 0),
        c.view(()),
        d.bfloat16(),
        torch.stack([e.half(), e.half()], dim=1)[:, 0].view(2, 3),
        f.float(),
    ]


def test_a_number_too_large_for_a_narrow_tensor_is_its_largest(ranks: RankGroups) -> None:
    given = [[torch.full((3,), 6e4).half(), torch.zeros(2)] for _ in range(3)]
    beyond = ra.OnlineMedian(divergence=ra.Squared(), method="subgradient", tau=1.9)
    (found,) = alike(ranks(3).run(rank_jobs.reduced, beyond, [given], {}))
    assert found[0].tolist() == [65504.0] * 3


def test_a_list_of_one_gives_a_list(ranks: RankGroups) -> None:
    rows = draw(3, 6)
    (found,) = alike(ranks(3).run(rank_jobs.reduced, ra.Mean(), [[[row] for row in rows]], {}))
    assert isinstance(found, list)
    check_close(found[0], rows.mean(dim=0))


def test_a_scalar_and_a_parameter_will_do(ranks: RankGroups) -> None:
    given = [torch.nn.Parameter(torch.tensor(float(rank))) for rank in range(3)]
    (found,) = alike(ranks(3).run(rank_jobs.reduced, ra.CoordinateWiseMedian(), [given], {}))
    assert found.shape == ()
    assert found.item() == 1.0
    assert not found.requires_grad


@pytest.mark.parametrize("seed", [0, 3])
def test_a_random_rule_draws_from_the_seed_and_the_step(ranks: RankGroups, seed: int) -> None:
    rule = ra.chain(ra.Bucketing(s=2), ra.CoordinateWiseMedian())
    steps = [draw(8, 20)] * 6
    found = alike(ranks(8).run(rank_jobs.reduced, rule, steps, {"seed": seed}))
    for one, expected in zip(found, dense(rule, steps, seed=seed), strict=True):
        check_close(one, expected)
    assert len({tuple(one.tolist()) for one in found}) > 1


@pytest.mark.parametrize("members", [None, [0, 2, 3], [4, 1, 2]], ids=str)
def test_the_function_counts_its_calls_in_a_group(
    ranks: RankGroups, members: list[int] | None
) -> None:
    rule = ra.chain(ra.Bucketing(s=2), ra.CoordinateWiseMedian())
    rows = draw(5 if members is None else len(members), 20)
    answers = ranks(5).run(rank_jobs.called, rule, [rows] * 4, members)
    found = alike([answers[rank] for rank in members or range(5)])
    assert all(answers[rank] == [] for rank in range(5) if members and rank not in members)
    for one, expected in zip(found, dense(rule, [rows] * 4), strict=True):
        check_close(one, expected, exact=False)


@pytest.mark.parametrize(
    "rule",
    [ra.GeometricMedian(), ra.CoordinateWiseMedian(), ra.VClip(), ra.Krum(f=1)],
    ids=lambda rule: rule.name,
)
def test_explanations_are_those_of_whole_rows(
    ranks: RankGroups, rule: ra.Aggregator | ra.OnlineMedian
) -> None:
    rows = draw(5, 100)
    rows[3, 99] = float("nan")
    if isinstance(rule, ra.Aggregator):
        expected = rule.explain(rows)
    else:
        expected, _ = rule.explain(rows, rule.init(rows[0]))
    answers = ranks(5).run(rank_jobs.explained, rule, rows)
    check_close(alike([found for found, _ in answers]), expected.output)
    for _, why in answers:
        assert len(why.output) == 0
        assert why.rejected == expected.rejected == (3,)
        gaps = expected.distances
        torch.testing.assert_close(why.distances, gaps, rtol=1e-6, atol=0, equal_nan=True)
        assert (why.weights is None) == (expected.weights is None)
        if why.weights is not None:
            torch.testing.assert_close(why.weights, expected.weights, rtol=1e-5, atol=1e-7)
