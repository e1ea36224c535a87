"""Krum and Multi-Krum: the rows whose neighbours are nearest."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import sqrt
from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor

from robust_agg.aggregator import Invariance, Weighing, Weighted
from robust_agg.errors import ConstraintError, check_choice, check_count
from robust_agg.span import Geometry

Neighbours: TypeAlias = Literal["n-f-2", "n-f-1"]
Distances: TypeAlias = Literal["squared", "plain"]


def krum_scores(distances: Tensor, neighbours: int) -> Tensor:
    """``s_i``: the sum of row i's smallest distances to so many other rows; ``(m,)``.

    Args:
        distances: ``(m, m)``, squared or not; Inf to rejected rows, whose own score is Inf.
        neighbours: how many, 1 <= ``neighbours``; all others where there are fewer.

    Source: Blanchard et al., "Machine Learning with Adversaries", NeurIPS 2017, section 4.
    """
    # "Other" is by index: a row's twin is a neighbour at distance 0, the row itself is none.
    others = distances.clone().fill_diagonal_(torch.inf)
    nearest = others.sort(dim=1).values[:, :neighbours]
    # Added in ascending order on every machine, so that ranks break ties alike.
    return nearest.cumsum(dim=1)[:, -1]


@dataclass(frozen=True, kw_only=True)
class MultiKrum(Weighted):
    """The mean of the m rows with the lowest Krum scores, ties to the lowest index.

    The score of row i is ``Σ ‖x_i - x_j‖²`` over its q nearest other rows j. Blanchard et al.
    (NeurIPS 2017) take q = n - f - 2, which needs n >= 2f + 3, and so does Flower. ByzFL and ByzPy
    take q = n - f - 1; ByzantineMomentum (El-Mhamdi et al., ICLR 2021) does that with distances
    that are not squared, and m = n - f - 2.

    Attributes:
        f: declared number of Byzantine rows.
        m: number of rows averaged, at most n - f; n - f if None.
        neighbours: q, "n-f-2" or "n-f-1"; with the latter n >= 2f + 1 is enough.
        distances: "squared" or "plain", what is summed.
    """

    f: int
    m: int | None = None
    neighbours: Neighbours = "n-f-2"
    distances: Distances = "squared"

    def __post_init__(self) -> None:
        check_count(self.name, "f", self.f, minimum=0)
        if self.m is not None:
            check_count(self.name, "m", self.m, minimum=1)
        check_choice(self.name, "neighbours", self.neighbours, get_args(Neighbours))
        check_choice(self.name, "distances", self.distances, get_args(Distances))

    @property
    def invariances(self) -> frozenset[Invariance]:
        # Not permutation where two rows have the same score whatever they are, and one may be
        # selected: the nearest two, if a score is one distance; and if it is a sum of plain ones,
        # of k rows along a line and their distances to each other, k even, those in the middle.
        all_rows = self.f == 0 and self.m is None
        more = self.f + self._spare()  # q = n - more, which is 1 for some n if more is 1 or 2
        plain = self.distances == "plain" and more > 1 and not all_rows
        tied = plain or (self.m == 1 and more <= 2)
        return frozenset(Invariance) - ({Invariance.PERMUTATION} if tied else set())

    def check(self, n: int) -> None:
        spare = self._spare()
        if n < 2 * self.f + 2 * spare - 1:
            raise ConstraintError(
                f"{self.name}: n >= 2f + {2 * spare - 1} is required, found n={n}, f={self.f}"
            )
        if self.m is not None and self.m > n - self.f:
            raise ConstraintError(
                f"{self.name}: m <= n - f is required, found m={self.m}, n={n}, f={self.f}"
            )

    def max_rejected(self, n: int) -> int:
        return self.f

    def kappa(self, n: int, f: int) -> float | None:
        """``2h/s · (1 + 2q/(h-1))`` with h = n - f and s = q - f + 1; 6h/(n-2f) for q = n - f - 1.

        V being the honest variance: at least s of a selected row's neighbourhood (itself included,
        if honest) are honest, so ‖x_k - x̄‖² <= (2/s)(score_k + h V); the selected scores are on
        average at most those of the honest rows, which average at most 2 h V q/(h-1), for all
        h - 1 distances of an honest row to the others are on average 2 h V in sum.

        Of plain distances, ``(q/s · √(2h/(h-1)) + √(h/s))²``: likewise s ‖x_k - x̄‖ <=
        score_k + √(s h V), and the honest scores average at most q √(2 h V/(h-1)).
        """
        q = n - self.f - self._spare()
        if f > self.f or n < 2 * self.f + 2 * self._spare() - 1 or q < 1:
            return None
        f = self.f
        h, s = n - f, q - f + 1
        if self.distances == "plain":
            return (q / s * sqrt(2 * h / (h - 1)) + sqrt(h / s)) ** 2
        return 2 * h / s * (1 + 2 * q / (h - 1))

    def weigh(self, geometry: Geometry, generator: torch.Generator | None) -> Weighing:
        n = len(geometry)
        distances = geometry.squared_distances
        if self.distances == "plain":
            distances = distances.sqrt()
        scores = krum_scores(distances, max(1, n - self.f - self._spare()))
        count = n - self.f if self.m is None else self.m
        best = scores.argsort(stable=True)[:count]
        weights = torch.zeros(n, dtype=torch.float64, device="cpu")
        weights[best] = 1 / count
        return Weighing(weights)

    def _spare(self) -> int:
        """How many of the n - f rows that may be honest are no neighbours."""
        return 2 if self.neighbours == "n-f-2" else 1


@dataclass(frozen=True, kw_only=True)
class Krum(MultiKrum):
    """The row with the lowest Krum score: Multi-Krum with m = 1 (Blanchard et al., NeurIPS 2017).

    Attributes:
        f: declared number of Byzantine rows; n >= 2f + 3 is required.
        neighbours: see :class:`MultiKrum`; n >= 2f + 1 is enough for "n-f-1".
        distances: see :class:`MultiKrum`.
    """

    m: int | None = field(default=1, init=False)
