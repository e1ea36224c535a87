"""Clipping of each row to a fixed norm."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from robust_agg.aggregator import Invariance
from robust_agg.errors import check_positive
from robust_agg.mixings.mixing import Mixed, Mixing
from robust_agg.span import Geometry

_ACCURACY = 1e-5
"""Relative error of a norm, twice which is that of its square, up to which it is clipped by."""


@dataclass(frozen=True, kw_only=True)
class Clip(Mixing):
    """``x_i · min(1, C/‖x_i‖₂)``: rows longer than C are scaled down to C.

    Attributes:
        threshold: C > 0.
    """

    threshold: float

    def __post_init__(self) -> None:
        check_positive(self.name, "threshold", self.threshold)

    @property
    def invariances(self) -> frozenset[Invariance]:
        return frozenset({Invariance.PERMUTATION, Invariance.ROTATION})

    def check(self, n: int) -> int:
        return n

    def max_rejected(self, n: int) -> int:
        return n - 1

    def loses_digits(self, geometry: Geometry) -> bool:
        # Of shorter points only what is left of others beside them matters, which is C long.
        relevant = geometry.squared_norms.sqrt().clamp(min=float(self.threshold)).square()
        doubtful = geometry.rounding > 2 * _ACCURACY * relevant
        return bool((doubtful & geometry.accepted).any())

    def mix(self, geometry: Geometry, generator: torch.Generator | None) -> Mixed:
        norms, limit = geometry.squared_norms.sqrt(), float(self.threshold)
        factors = torch.where(norms > limit, limit / norms, 1.0)
        factors = torch.where(geometry.accepted, factors, 0.0)
        return Mixed(torch.diag(factors), geometry.accepted)
