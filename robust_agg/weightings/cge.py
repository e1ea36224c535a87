"""Comparative gradient elimination (CGE)."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from robust_agg.aggregator import Invariance, Weighing, Weighted
from robust_agg.errors import check_count, check_honest_majority
from robust_agg.span import Geometry


@dataclass(frozen=True, kw_only=True)
class CGE(Weighted):
    """The mean of the n - f rows with the smallest norms ‖x_i‖₂, ties to the lowest index.

    Gupta & Vaidya, "Fault-Tolerance in Distributed Optimization: The Case of Redundancy",
    PODC 2020, whose filter adds these rows up; their mean, which steps n - f times less far, is
    what ByzPy takes. A Byzantine row that is no longer than the honest ones stays in.

    Attributes:
        f: declared number of Byzantine rows; n >= 2f + 1 is required.
    """

    sees_distances = False

    f: int

    def __post_init__(self) -> None:
        check_count(self.name, "f", self.f, minimum=0)

    @property
    def invariances(self) -> frozenset[Invariance]:
        return frozenset(Invariance) - ({Invariance.TRANSLATION} if self.f > 0 else set())

    def check(self, n: int) -> None:
        check_honest_majority(self.name, n, self.f)

    def max_rejected(self, n: int) -> int:
        return self.f

    def kappa(self, n: int, f: int) -> float | None:
        """None but for f = 0: honest rows that are all equal do not outvote f rows of zeros."""
        return 0.0 if self.f == f == 0 else None

    def loses_digits(self, geometry: Geometry) -> bool:
        return geometry.loses_norms(1e-3)  # means of rows are near enough to it

    def weigh(self, geometry: Geometry, generator: torch.Generator | None) -> Weighing:
        count = len(geometry) - self.f
        weights = torch.zeros(len(geometry), dtype=torch.float64, device="cpu")
        weights[geometry.squared_norms.argsort(stable=True)[:count]] = 1 / count
        return Weighing(weights)
