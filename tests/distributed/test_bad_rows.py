"""Ranks that send anything: what one process makes of the same rows, or one error on all ranks."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import rank_jobs
import torch
from dense import alike, check, check_close, dense, draw
from rank_processes import RankGroups
from rule_table import ESTIMATORS, RULES, F, Row, describe
from test_dense import EXTRA
from torch import Tensor

import robust_agg as ra
from robust_agg.errors import TooManyRejectedError
from robust_agg.seeding import generator

D = 45
"""Coordinates: of seven ranks each has some."""


def nothing_else(value: float) -> Callable[[Tensor], None]:
    def spoil(row: Tensor) -> None:
        row.fill_(value)

    return spoil


def one_number(value: float, place: int) -> Callable[[Tensor], None]:
    """Only one rank sees it."""

    def spoil(row: Tensor) -> None:
        row[place] = value

    return spoil


def flipped_bits(row: Tensor) -> None:
    """One bit in sixteen, anywhere in the row."""
    g = generator(0, "flipped bits")
    numbers = row.view(torch.int32 if row.dtype == torch.float32 else torch.int16)
    for bit in range(8 * row.dtype.itemsize):
        hit = torch.rand(len(row), generator=g) < 1 / 16
        mask = torch.tensor(1 << bit).to(numbers.dtype)
        numbers[hit] ^= mask


FAULTS: dict[str, Callable[[Tensor], None]] = {
    "NaN": nothing_else(float("nan")),
    "-3e38": nothing_else(-3e38),
    "one NaN": one_number(float("nan"), D - 1),
    "one -Inf": one_number(float("-inf"), 20),
    "one 3e38": one_number(3e38, 0),
    "flipped bits": flipped_bits,
}


def spoilt(n: int, bad: int, fault: str, dtype: torch.dtype, seed: int = 0) -> Tensor:
    rows = draw(n, D, torch.float64, seed).to(dtype)
    for row in rows[n - bad :]:
        FAULTS[fault](row)
    return rows


TRIED = [
    *((fault, torch.float32) for fault in FAULTS),
    ("flipped bits", torch.bfloat16),
]


@pytest.mark.parametrize("row", RULES, ids=str)
def test_a_rule_makes_of_bad_rows_what_it_does_in_one_process(ranks: RankGroups, row: Row) -> None:
    n = max(7, row.smallest)
    check(ranks, row.make(), [[spoilt(n, F, fault, dtype)] for fault, dtype in TRIED])


@pytest.mark.parametrize(
    "make", [make for make in [*ESTIMATORS, *EXTRA] if make().shardable], ids=describe
)
def test_an_estimator_makes_of_bad_rows_what_it_does_in_one_process(
    ranks: RankGroups, make: Callable[[], ra.OnlineMedian]
) -> None:
    runs = [[draw(5, D, dtype, seed=1), spoilt(5, F, fault, dtype)] for fault, dtype in TRIED]
    check(ranks, make(), runs)


def describe_any(rule: ra.Aggregator | ra.OnlineMedian) -> str:
    return rule.name if isinstance(rule, ra.Aggregator) else describe(lambda: rule)


MANY: list[ra.Aggregator | ra.OnlineMedian] = [
    ra.GeometricMedian(),
    ra.CoordinateWiseMedian(),
    ra.TrimmedMean(f=F),
    ra.chain(ra.NearestNeighborMixing(f=F), ra.TrimmedMean(f=F)),
    ra.VClip(),
    ra.CClip(),
    ra.VClip(fusion="batch"),
]


@pytest.mark.parametrize("rule", MANY, ids=describe_any)
def test_too_many_are_one_error_everywhere_and_no_step(
    ranks: RankGroups, rule: ra.Aggregator | ra.OnlineMedian
) -> None:
    """A step that fails changes no state: the good one after it is the second."""
    runs = [
        [draw(5, D), spoilt(5, 4, fault, torch.float32), draw(5, D, seed=1)]
        for fault in ("NaN", "one NaN", "one -Inf")
    ]
    assert all(isinstance(dense(rule, run)[1], TooManyRejectedError) for run in runs[:1])
    check(ranks, rule, runs)


@pytest.mark.parametrize("rule", [ra.CoordinateWiseMedian(), ra.VClip()], ids=describe_any)
def test_a_declared_f_counts_rows_that_are_none(
    ranks: RankGroups, rule: ra.Aggregator | ra.OnlineMedian
) -> None:
    """Three of seven, which these rules bear: f = 2 was declared."""
    steps = [draw(7, D), spoilt(7, 3, "one NaN", torch.float32), draw(7, D, seed=1)]
    found = alike(ranks(7).run(rank_jobs.reduced, rule, steps, {"f": F}))
    assert type(found[1]) is TooManyRejectedError
    assert "at most 2 of the n=7 rows" in str(found[1])
    check_close(found[2], dense(rule, [steps[0], steps[2]])[1])
