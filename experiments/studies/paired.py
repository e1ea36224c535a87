"""Means and differences of what was measured with the same seeds, and what they decide."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf
from statistics import mean, stdev

from scipy.stats import t as student_t
from scipy.stats import ttest_rel


def interval(values: Sequence[float]) -> tuple[float, float]:
    """The mean, and half the length of its 95 % confidence interval, by Student's t."""
    if len(values) < 2:
        return mean(values), inf
    quantile = float(student_t.ppf(0.975, len(values) - 1))
    return mean(values), quantile * stdev(values) / len(values) ** 0.5


def difference(ours: Sequence[float], theirs: Sequence[float]) -> tuple[float, float]:
    """The mean difference by seed, and half the length of its 95 % confidence interval."""
    return interval([a - b for a, b in zip(ours, theirs, strict=True)])


def below(gap: float, error: float) -> bool | None:
    """Whether a difference is below 0; None if the interval has both."""
    if gap + error < 0:
        return True
    return False if gap - error > 0 else None


def p_value(ours: Sequence[float], theirs: Sequence[float]) -> float | None:
    """The two-sided p of the paired t-test: how often chance alone, with no difference in the mean,
    sets the two at least so far apart.

    None where there is nothing to test by: fewer than two pairs, or differences that do not vary.
    """
    gaps = [a - b for a, b in zip(ours, theirs, strict=True)]
    size = max(map(abs, (*ours, *theirs)), default=0.0)
    if len(gaps) < 2 or stdev(gaps) <= _ROUNDING * size:
        return None
    return float(ttest_rel(ours, theirs).pvalue)


_ROUNDING = 1e-12
# Differences that spread less, relative to what was measured, do not vary.
