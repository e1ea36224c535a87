"""The geometric median of the rows."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from robust_agg import kernels
from robust_agg.aggregator import Explanation, Invariance, Weighing, Weighted, explained
from robust_agg.errors import check_count, check_positive, check_rejected
from robust_agg.shards import WHOLE, Shards
from robust_agg.solvers import minimise_distances
from robust_agg.span import Geometry
from robust_agg.weiszfeld import weiszfeld_over_rows

GRAM_UP_TO = 256
"""Rows up to which the Gram matrix, n²d multiply-adds at the speed of a matrix product, costs less
than about ten Weiszfeld steps of 2nd at the speed of memory."""

_PASSES = 32
# Where so many do not do, the rows lie such that the Gram matrix is cheaper after all.


@dataclass(frozen=True, kw_only=True)
class GeometricMedian(Weighted):
    """``argmin_y Σ_i ‖y - x_i‖₂``, exact up to ``tolerance``.

    Solved in weight space, so that iterations cost n² and not n·d: Weiszfeld's algorithm with the
    treatment of a data point by Vardi & Zhang (PNAS 2000), and Newton steps where they help. Beyond
    256 rows, where a few steps over the rows cost less than their Gram matrix, over the rows as
    long as that converges. Where the rows are collinear and n is even the minimiser is not unique:
    the midpoint is returned.

    Attributes:
        tolerance: stop where ‖Σ_i (y - x_i)/‖y - x_i‖‖ <= tolerance · n; over the rows, where that
            is more, at what their precision can tell apart (2e-7 of float32).
        max_iterations: steps at most.
    """

    tolerance: float = 1e-13
    max_iterations: int = 200

    def __post_init__(self) -> None:
        check_positive(self.name, "tolerance", self.tolerance)
        check_count(self.name, "max_iterations", self.max_iterations, minimum=1)

    @property
    def invariances(self) -> frozenset[Invariance]:
        return frozenset(Invariance)

    def check(self, n: int) -> None:
        """Any n >= 1 will do; f does not enter."""

    def max_rejected(self, n: int) -> int:
        return (n - 1) // 2

    def kappa(self, n: int, f: int) -> float | None:
        """``4 (1 + f/(n-2f))²`` (Allouah et al., AISTATS 2023, Proposition on GM)."""
        return None if n <= 2 * f else 4 * (1 + f / (n - 2 * f)) ** 2

    def _explain(
        self,
        rows: Tensor,
        generator: torch.Generator | None,
        *,
        distances: bool,
        shards: Shards = WHOLE,
    ) -> Explanation:
        n = len(rows)
        if n > GRAM_UP_TO:
            weights, accepted, report = weiszfeld_over_rows(
                rows,
                tolerance=self.tolerance,
                max_passes=min(self.max_iterations, _PASSES),
                shards=shards,
            )
            check_rejected(self.name, int((~accepted).sum()), self.max_rejected(n), n)
            if report.converged:
                return explained(
                    kernels.combine(rows, weights),
                    rows,
                    distances=distances,
                    weights=weights,
                    rejected=~accepted,
                    solver=report,
                    shards=shards,
                )
        return super()._explain(rows, generator, distances=distances, shards=shards)

    def weigh(self, geometry: Geometry, generator: torch.Generator | None) -> Weighing:
        chosen, gram = geometry.accepted_gram()
        solution, report = minimise_distances(
            gram,
            torch.ones(len(chosen), dtype=torch.float64, device="cpu"),
            tolerance=self.tolerance,
            max_iterations=self.max_iterations,
        )
        weights = torch.zeros(len(geometry), dtype=torch.float64, device="cpu")
        weights[chosen] = solution
        return Weighing(weights, report)
