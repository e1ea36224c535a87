"""``robust-agg bench collectives``: what it counts, what it computes on paper, how it judges."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from collective_counts import counted

from experiments.bench import collectives_paper as paper
from experiments.bench.collectives import ALONE, Collectives, measured_here
from experiments.bench.collectives_forms import ALL_REDUCE, GRAM, MEDIAN, bytes_sent
from experiments.processes import on_ranks
from robust_agg.kernels.networks import odd_even_merge_sort


@pytest.mark.parametrize(("n", "d"), [(2, 64), (4, 1001), (4, 3)])
def test_the_bytes_by_formula_are_those_that_the_collectives_are_given(n: int, d: int) -> None:
    found = on_ranks(n, counted, d)
    average = {form: sum(each[form] for each in found) / n for form in found[0]}
    assert average == pytest.approx({**bytes_sent(n, d), **dict.fromkeys(ALONE, 0.0)})


def test_a_robust_all_reduce_sends_what_an_all_reduce_does() -> None:
    for n in (2, 8, 64):
        sent = bytes_sent(n, 10**7)
        for form in ("CoordinateWiseMedian", "GeometricMedian", "VClip"):
            assert sent[form] == pytest.approx(sent[ALL_REDUCE], rel=0.01)
    assert paper.sent(64, 10**7) == pytest.approx(bytes_sent(64, 10**7, itemsize=2)[ALL_REDUCE])


@pytest.mark.parametrize("n", [4, 16, 64, 256])
def test_comparisons_are_those_of_the_sorting_network(n: int) -> None:
    assert paper.comparisons(n, d=n) == len(list(odd_even_merge_sort(n)))


def test_groups_begin_where_something_costs_too_much() -> None:
    machine = replace(paper.H100, bandwidth=1e9, multiply_adds=1e12)
    arithmetic, memory, sums = paper.groups_from(machine, d=10**9).values()

    def slower(n: int) -> bool:
        return n * 10**9 / 1e12 > paper.sent(n, 10**9) / 1e9

    assert slower(arithmetic)
    assert not slower(arithmetic - 1)
    assert 8 * memory**2 <= 2**30 < 8 * (memory + 1) ** 2
    assert 16 * (sums + 1) ** 2 > 0.1 * 4 * 10**9 >= 16 * sums**2


def row(form: str, ms: float, *, ranks: int = 4, d: int = 1000) -> dict[str, Any]:
    sent = bytes_sent(ranks, d).get(form)
    common = {"form": form, "ranks": ranks, "d": d, "repeats": 3}
    return {**common, "ms": ms, "ratio": ms / 2.0, "sent_bytes": sent}


def measured(**changed: float) -> list[dict[str, Any]]:
    usual = dict.fromkeys(bytes_sent(4, 1000), 2.0) | {GRAM: 0.5, MEDIAN: 0.25}
    return [row(form, ms) for form, ms in {**usual, **changed}.items()]


@pytest.mark.parametrize(
    ("changed", "verdicts"),
    [
        ({}, [True, True]),
        ({"VClip": 5.1}, [False, True]),
        ({"TrimmedMean": 5.0}, [True, True]),
        ({"CoordinateWiseMedian": 9.0}, [False, True]),
        ({"function, GeometricMedian": 9.0}, [True, False]),
        ({"GeometricMedian": 6.1}, [True, False]),
        ({"NNM + TrimmedMean": 90.0}, [True, True]),
    ],
    ids=str,
)
def test_verdicts_follow_the_numbers(changed: dict[str, float], verdicts: list[bool]) -> None:
    claims = Collectives.preset("default").claims(measured(**changed))
    assert [claim.holds for claim in claims] == verdicts


def test_the_machine_s_constants_are_of_its_longest_rows() -> None:
    rows = [*measured(), *(row(form, 1.0, ranks=8, d=10) for form in bytes_sent(8, 10))]
    rows += [row(GRAM, 0.1, ranks=8, d=10), row(MEDIAN, 0.1, ranks=8, d=10)]
    machine = measured_here(rows)
    assert machine.source == "measured: 8 ranks, d = 10"
    assert machine.bandwidth == pytest.approx(2 * 40 * 7 / 8 / 1e-3)
    assert machine.multiply_adds == pytest.approx(8 * 10 / 1e-4)
