"""Adaptive robust clipping (ARC)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from robust_agg.aggregator import Invariance
from robust_agg.errors import check_count, check_honest_majority
from robust_agg.mixings.clipping import Clipping
from robust_agg.span import Geometry


@dataclass(frozen=True, kw_only=True)
class AdaptiveClip(Clipping):
    """The k longest rows are scaled down to the length of the next one, ``k = ⌊2 (f/n) (n-f)⌋``.

    Allouah, Guerraoui, Gupta, Jellouli, Rizk & Stephan, "Adaptive Gradient Clipping for Robust
    Federated Learning", ICLR 2025, algorithm 2 (ARC); ByzFL and ByzPy clip as many. A rejected row
    counts as one of the longest and stays rejected.

    Attributes:
        f: declared number of Byzantine rows; n >= 2f + 1 is required.
    """

    f: int

    def __post_init__(self) -> None:
        check_count(self.name, "f", self.f, minimum=0)

    @property
    def invariances(self) -> frozenset[Invariance]:
        if self.f == 0:  # nothing is clipped
            return frozenset(Invariance)
        return frozenset({Invariance.PERMUTATION, Invariance.ROTATION, Invariance.SCALING})

    def check(self, n: int) -> int:
        check_honest_majority(self.name, n, self.f)
        return n

    def max_rejected(self, n: int) -> int:
        return self.f

    def limit(self, geometry: Geometry) -> Tensor:
        n = len(geometry)
        clipped = 2 * self.f * (n - self.f) // n
        # At least f of them, so that this is the length of an accepted row.
        return geometry.squared_norms.sort().values[n - clipped - 1].sqrt()
