"""Differences of what was measured with the same seeds, and what they decide."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf
from statistics import mean, stdev

from scipy.stats import t as student_t


def difference(ours: Sequence[float], theirs: Sequence[float]) -> tuple[float, float]:
    """The mean difference by seed, and half the length of its 95 % confidence interval."""
    gaps = [a - b for a, b in zip(ours, theirs, strict=True)]
    if len(gaps) < 2:
        return mean(gaps), inf
    quantile = float(student_t.ppf(0.975, len(gaps) - 1))
    return mean(gaps), quantile * stdev(gaps) / len(gaps) ** 0.5


def below(gap: float, error: float) -> bool | None:
    """Whether a difference is below 0; None if the interval has both."""
    if gap + error < 0:
        return True
    return False if gap - error > 0 else None
