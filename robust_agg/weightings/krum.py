"""Krum and Multi-Krum: the rows whose neighbours are nearest."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from robust_agg.aggregator import Invariance, Weighing, Weighted
from robust_agg.errors import ConstraintError, check_count
from robust_agg.span import Geometry


def krum_scores(squared_distances: Tensor, f: int) -> Tensor:
    """``s_i``: the sum of row i's m - f - 2 smallest squared distances to the other rows.

    Args:
        squared_distances: ``(m, m)``; Inf to rejected rows, whose own score is Inf.
        f: declared number of Byzantine rows.

    Source: Blanchard et al., "Machine Learning with Adversaries", NeurIPS 2017, section 4.
    """
    m = squared_distances.shape[0]
    # "Other" is by index: a row's twin is a neighbour at distance 0, the row itself is none.
    others = squared_distances.clone().fill_diagonal_(torch.inf)
    return others.sort(dim=1).values[:, : m - f - 2].sum(dim=1)


@dataclass(frozen=True, kw_only=True)
class MultiKrum(Weighted):
    """The mean of the m rows with the lowest Krum scores, ties to the lowest index.

    The score of row i is ``Σ ‖x_i - x_j‖²`` over its n - f - 2 nearest other rows j, as in
    Blanchard et al. (NeurIPS 2017), which needs n >= 2f + 3.

    Attributes:
        f: declared number of Byzantine rows.
        m: number of rows averaged, at most n - f; n - f if None.
    """

    f: int
    m: int | None = None

    def __post_init__(self) -> None:
        check_count(self.name, "f", self.f, minimum=0)
        if self.m is not None:
            check_count(self.name, "m", self.m, minimum=1)

    @property
    def invariances(self) -> frozenset[Invariance]:
        return frozenset(Invariance)

    def check(self, n: int) -> None:
        if n < 2 * self.f + 3:
            raise ConstraintError(f"{self.name}: n >= 2f + 3 is required, found n={n}, f={self.f}")
        if self.m is not None and self.m > n - self.f:
            raise ConstraintError(
                f"{self.name}: m <= n - f is required, found m={self.m}, n={n}, f={self.f}"
            )

    def max_rejected(self, n: int) -> int:
        return self.f

    def kappa(self, n: int, f: int) -> float | None:
        """``2h/s · (1 + 2(h-2)/(h-1))`` with h = n - f and s = n - 2f - 1.

        At least s of a selected row's neighbourhood (itself included, if honest) are honest, so
        ‖x_k - x̄‖² <= (2/s)(score_k + h V); the selected scores are on average at most those of the
        honest rows, which average at most 2 h V (h-2)/(h-1), V being the honest variance.
        """
        if f != self.f or n < 2 * f + 3:
            return None
        h, s = n - f, n - 2 * f - 1
        return 2 * h / s * (1 + 2 * (h - 2) / (h - 1))

    def weigh(self, geometry: Geometry, generator: torch.Generator | None) -> Weighing:
        scores = krum_scores(geometry.squared_distances, self.f)
        count = len(geometry) - self.f if self.m is None else self.m
        best = scores.argsort(stable=True)[:count]
        weights = torch.zeros(len(geometry), dtype=torch.float64, device="cpu")
        weights[best] = 1 / count
        return Weighing(weights)


@dataclass(frozen=True, kw_only=True)
class Krum(MultiKrum):
    """The row with the lowest Krum score: Multi-Krum with m = 1 (Blanchard et al., NeurIPS 2017).

    Attributes:
        f: declared number of Byzantine rows; n >= 2f + 3 is required.
    """

    m: int | None = field(default=1, init=False)
