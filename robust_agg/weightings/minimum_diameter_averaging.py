"""The mean of the n - f rows that are nearest together."""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from robust_agg.aggregator import Invariance, Weighing, Weighted
from robust_agg.budget import Budget
from robust_agg.errors import check_count, check_honest_majority
from robust_agg.solvers import SolverReport
from robust_agg.span import Geometry
from robust_agg.vertex_covers import CoverSearch, first_independent_set

MOST_STEPS = 10_000_000
"""Looks at a row, of one search at most: some seconds. 30 rows, 10 of them bad, take 2000."""

_TIE = 1e-9
# Squared distances nearer than that, of themselves, are the same: of mixed rows many are equal.


def smallest_diameter(distances: Tensor, count: int, *, who: str) -> tuple[list[int], int]:
    """The ``count`` rows with the least largest distance between two of them.

    Of several such sets, to one part in 10⁹, the lexicographically lowest. A diameter t is possible
    where leaving out m - ``count`` rows, a vertex cover of the pairs farther apart than t, leaves
    no such pair; the least one is found by bisection over the distances that there are.

    Args:
        distances: ``(m, m)``, squared, finite.
        count: how many, 1 <= ``count`` <= m.
        who: whose search it is, to begin an error message with.

    Returns:
        The set, ascending, and the number of search nodes.

    Raises:
        SearchLimitError: more than ``MOST_STEPS`` looks at a row are needed.
    """
    table = distances.numpy()
    if count == len(table):
        return list(range(count)), 0
    table = np.maximum(table, table.T)  # the two may be rounded apart
    search = CoverSearch(Budget(who, MOST_STEPS))
    everyone, spare = (1 << len(table)) - 1, len(table) - count
    thresholds = np.unique(table)  # 0, on the diagonal, among them
    low, high = 0, len(thresholds) - 1  # at the largest there is no conflict
    while low < high:
        middle = (low + high) // 2
        if search.exists(_conflicts(table, thresholds[middle]), everyone, spare):
            high = middle
        else:
            low = middle + 1
    chosen = first_independent_set(search, _conflicts(table, thresholds[low]), count)
    return chosen, search.nodes


def _conflicts(table: NDArray[np.float64], threshold: float) -> list[int]:
    """The graph of the pairs that are farther apart."""
    bits = np.packbits(table > threshold * (1 + _TIE), axis=1, bitorder="little")
    return [int.from_bytes(line.tobytes(), "little") for line in bits]


@dataclass(frozen=True, kw_only=True)
class MinimumDiameterAveraging(Weighted):
    """The mean of the n - f rows S that have the smallest diameter ``max_{i,j in S} ‖x_i - x_j‖₂``.

    MDA: Rousseeuw, "Multivariate Estimation with High Breakdown Point", 1985; El-Mhamdi, Guerraoui,
    Guirguis, Hoang & Rouault, "Genuinely Distributed Byzantine Machine Learning", PODC 2020. Exact,
    by search in the graph of the pairs that are too far apart: 30 rows of which 20 are kept take a
    millisecond, where there are 30 million sets. One pair often decides, so that several sets have
    the smallest diameter: the lexicographically lowest is taken.

    Attributes:
        f: declared number of Byzantine rows; n >= 2f + 1 is required. A search of more than some
            seconds, which rows chosen for that may need from about f = 30 on, is an error.
    """

    f: int

    def __post_init__(self) -> None:
        check_count(self.name, "f", self.f, minimum=0)

    @property
    def invariances(self) -> frozenset[Invariance]:
        # Not permutation, by which another of the sets of one diameter is the lowest.
        return frozenset(Invariance) - ({Invariance.PERMUTATION} if self.f > 0 else set())

    def check(self, n: int) -> None:
        check_honest_majority(self.name, n, self.f)

    def max_rejected(self, n: int) -> int:
        return self.f

    def kappa(self, n: int, f: int) -> float | None:
        """``(f √(2/h) + √(f/(n-2f)))²`` with h = n - f.

        Some k <= f of the honest rows H are not in S, of which n - 2f or more are in H; those have
        the mean z. The k others in S are no farther from z than the diameter of S, which is at most
        that of H, at most √(2 h V) with the honest variance V; and the k rows that are missing move
        the mean of H by ‖z - x̄‖ <= √(k/(h-k) V). So ‖out - x̄‖ <= (k/h) √(2 h V) + √(k/(h-k) V).
        In terms of the diameter itself, ‖out - x̄‖ <= 2f/h times that of H (Farhadkhani et al.,
        ICML 2022: (f, λ)-resilient averaging with λ = 2f/(n-f)).
        """
        if f > self.f or n <= 2 * self.f:
            return None
        f = self.f
        return (f * sqrt(2 / (n - f)) + sqrt(f / (n - 2 * f))) ** 2

    def weigh(self, geometry: Geometry, generator: torch.Generator | None) -> Weighing:
        places = geometry.accepted.nonzero().flatten()
        count = len(geometry) - self.f
        chosen, nodes = smallest_diameter(
            geometry.squared_distances[places][:, places], count, who=self.name
        )
        weights = torch.zeros(len(geometry), dtype=torch.float64, device="cpu")
        weights[places[chosen]] = 1 / count
        return Weighing(weights, SolverReport(nodes, 0.0, True, "exhausted"))
