"""Clipping of each row to a norm that is given."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from robust_agg.aggregator import Invariance
from robust_agg.errors import check_positive
from robust_agg.mixings.clipping import Clipping
from robust_agg.span import Geometry


@dataclass(frozen=True, kw_only=True)
class Clip(Clipping):
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

    def limit(self, geometry: Geometry) -> torch.Tensor:
        return torch.tensor(float(self.threshold), dtype=torch.float64, device="cpu")
