"""Nearest-neighbour mixing."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from robust_agg.aggregator import Invariance
from robust_agg.errors import check_count, check_honest_majority
from robust_agg.mixings.mixing import Kappa, Mixed, Mixing
from robust_agg.span import Geometry


@dataclass(frozen=True, kw_only=True)
class NearestNeighborMixing(Mixing):
    """``y_i``: the mean of the n - f rows nearest to x_i, x_i itself among them.

    Ties go to the lowest index. A rejected row is nobody's neighbour and stays rejected.
    Allouah et al., "Fixing by Mixing: A Recipe for Optimal Byzantine ML under Heterogeneity",
    AISTATS 2023, algorithm 1 (NNM). Bad rows that are near honest ones are in their means too, but
    f of the points at most are not made for an honest row: the rule that follows needs the same f.

    Attributes:
        f: declared number of Byzantine rows; n >= 2f + 1 is required.
    """

    in_place = True

    f: int

    def __post_init__(self) -> None:
        check_count(self.name, "f", self.f, minimum=0)

    @property
    def invariances(self) -> frozenset[Invariance]:
        return frozenset(Invariance)

    def check(self, n: int) -> int:
        check_honest_majority(self.name, n, self.f)
        return n

    def max_rejected(self, n: int) -> int:
        return self.f

    def kappa(self, n: int, f: int, following: Kappa) -> float | None:
        """``8f/(n-f) · (κ + 1)`` (Allouah et al., AISTATS 2023, Lemma on NNM)."""
        constant = following(n, self.f) if f <= self.f else None
        return None if constant is None else 8 * self.f / (n - self.f) * (constant + 1)

    def mix(self, geometry: Geometry, generator: torch.Generator | None) -> Mixed:
        n = len(geometry)
        # -1 puts a row first among its own neighbours, before any twin at distance 0.
        distances = geometry.squared_distances.clone().fill_diagonal_(-1)
        nearest = distances.argsort(dim=1, stable=True)[:, : n - self.f]
        coefficients = torch.zeros(n, n, dtype=torch.float64, device="cpu")
        coefficients.scatter_(1, nearest, 1 / (n - self.f))
        return Mixed(coefficients * geometry.accepted[:, None], geometry.accepted)
