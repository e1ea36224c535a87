"""The mean of the rows nearest to one that is trusted."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from robust_agg.aggregator import Invariance, Weighing, Weighted
from robust_agg.errors import (
    ConstraintError,
    TooManyRejectedError,
    check_count,
    check_honest_majority,
)
from robust_agg.span import Geometry


@dataclass(frozen=True, kw_only=True)
class MoNNA(Weighted):
    """The mean of the n - f rows nearest to row ``reference``, itself among them.

    Ties go to the lowest index. Farhadkhani, Guerraoui, Gupta, Hoang, Pinot & Stephan, "Robust
    Collaborative Learning with Linear Gradient Overhead", ICML 2023 (nearest-neighbour averaging of
    momentums). For a process that aggregates with its own row for the reference, which it trusts:
    a bad reference brings its neighbours with it.

    Attributes:
        f: declared number of Byzantine rows; n >= 2f + 1 is required.
        reference: position of the trusted row, below n; a round in which it is rejected fails. In a
            ``Server`` the number of the trusted sender, wherever its row is among those that
            arrive. Nothing that puts rows elsewhere may be declared before this rule in a chain.
    """

    trusts = "reference"

    f: int
    reference: int = 0

    def __post_init__(self) -> None:
        check_count(self.name, "f", self.f, minimum=0)
        check_count(self.name, "reference", self.reference, minimum=0)

    @property
    def invariances(self) -> frozenset[Invariance]:
        # Not permutation, which puts another row in the place of the reference.
        return frozenset(Invariance) - ({Invariance.PERMUTATION} if self.f > 0 else set())

    def check(self, n: int) -> None:
        check_honest_majority(self.name, n, self.f)
        if self.reference >= n:
            raise ConstraintError(
                f"{self.name}: reference < n is required, found reference={self.reference}, n={n}"
            )

    def max_rejected(self, n: int) -> int:
        return self.f

    def kappa(self, n: int, f: int) -> float | None:
        """None but for f = 0: κ is for any honest rows, and the reference may be none of them."""
        return 0.0 if self.f == f == 0 else None

    def weigh(self, geometry: Geometry, generator: torch.Generator | None) -> Weighing:
        if not bool(geometry.accepted[self.reference]):
            raise TooManyRejectedError(
                f"{self.name}: the reference must be finite and near enough to measure, "
                f"found row {self.reference} rejected"
            )
        distances = geometry.squared_distances[self.reference].clone()
        distances[self.reference] = -1  # before any twin at distance 0
        count = len(geometry) - self.f
        weights = torch.zeros(len(geometry), dtype=torch.float64, device="cpu")
        weights[distances.argsort(stable=True)[:count]] = 1 / count
        return Weighing(weights)
