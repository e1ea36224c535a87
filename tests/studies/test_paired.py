"""Means, intervals and paired tests, against the formulas and scipy."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
from scipy import stats

from experiments.studies.paired import below, difference, interval, p_value

OURS = (0.90, 0.88, 0.92, 0.91)
THEIRS = (0.80, 0.85, 0.81, 0.79)


def test_an_interval_is_student_s() -> None:
    middle, half = interval(OURS)
    low, high = stats.t.interval(0.95, 3, loc=np.mean(OURS), scale=stats.sem(OURS))
    assert middle == pytest.approx(np.mean(OURS))
    assert (middle - half, middle + half) == (pytest.approx(low), pytest.approx(high))


def test_one_value_has_no_interval() -> None:
    assert interval([0.5]) == (0.5, math.inf)


def test_intervals_cover_the_mean_as_often_as_they_say() -> None:
    draw = random.Random(0)
    covered = 0
    for _ in range(2000):
        middle, half = interval([draw.gauss(3.0, 2.0) for _ in range(4)])
        covered += abs(middle - 3.0) <= half
    assert 0.93 <= covered / 2000 <= 0.97


def test_a_paired_test_is_one_of_the_differences() -> None:
    gaps = np.subtract(OURS, THEIRS)
    statistic = gaps.mean() / (gaps.std(ddof=1) / 2)
    expected = 2 * stats.t.sf(abs(statistic), 3)
    found = p_value(OURS, THEIRS)
    assert found == pytest.approx(expected)
    assert found == pytest.approx(p_value(THEIRS, OURS))


def test_the_interval_and_the_test_agree() -> None:
    draw = random.Random(1)
    for _ in range(200):
        ours, theirs = ([draw.random() for _ in range(5)] for _ in range(2))
        gap, half = difference(ours, theirs)
        p = p_value(ours, theirs)
        assert p is not None
        assert (p < 0.05) == (abs(gap) > half) == (below(gap, half) is not None)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ([0.5], [0.4]),
        ([], []),
        ([0.5, 0.6], [0.5, 0.6]),
        # The same difference but for rounding.
        ([0.3, 0.7, 0.9], [0.2, 0.6, 0.8]),
    ],
)
def test_without_differences_that_vary_nothing_is_tested(
    ours: list[float], theirs: list[float]
) -> None:
    assert p_value(ours, theirs) is None


def test_seeds_are_paired_one_to_one() -> None:
    with pytest.raises(ValueError, match="argument 2"):
        p_value([0.1, 0.2], [0.1])
