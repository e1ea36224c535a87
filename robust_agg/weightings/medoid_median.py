"""The medoid of the rows."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from robust_agg.aggregator import Invariance, Weighing, Weighted
from robust_agg.span import Geometry


@dataclass(frozen=True, kw_only=True)
class MedoidMedian(Weighted):
    """The row with the least sum of distances ``Σ_j ‖x_i - x_j‖₂``, ties to the lowest index.

    The geometric median among the rows themselves, which El Mhamdi, Guerraoui & Rouault, "The
    Hidden Vulnerability of Distributed Learning in Byzantium", ICML 2018, section 2, call GeoMed.
    Of an even number of rows in one dimension the two in the middle have the same sum. A rejected
    row is left out of the sums. ``GeometricMedian`` looks at all points of the space, and follows
    the rows continuously.
    """

    @property
    def invariances(self) -> frozenset[Invariance]:
        # Not permutation: of an even number of rows along a line, two are always as good.
        return frozenset(Invariance) - {Invariance.PERMUTATION}

    def check(self, n: int) -> None:
        """Any n >= 1 will do; f does not enter."""

    def max_rejected(self, n: int) -> int:
        return (n - 1) // 2

    def kappa(self, n: int, f: int) -> float | None:
        """``2h(h-1)/(n-2f)²`` with h = n - f.

        Let A be the sum of the medoid's distances to the honest rows. Its sum over all rows is at
        most that of an honest row x_i, and ‖x_i - x_b‖ <= ‖x_i - x_k‖ + ‖x_k - x_b‖ for the others,
        so A <= Σ_j ‖x_i - x_j‖ + f ‖x_i - x_k‖ with j honest. On average over the honest x_i this
        is A (h-f)/h <= √(2 h (h-1) V), V being the honest variance; and h ‖x_k - x̄‖ <= A.
        """
        h = n - f
        return None if n <= 2 * f else 2 * h * (h - 1) / (n - 2 * f) ** 2

    def weigh(self, geometry: Geometry, generator: torch.Generator | None) -> Weighing:
        places = geometry.accepted.nonzero().flatten()
        distances = geometry.squared_distances[places][:, places].sqrt()
        # Added in ascending order, so that equal distances in another order have the same sum.
        sums = distances.sort(dim=1).values.cumsum(dim=1)[:, -1]
        weights = torch.zeros(len(geometry), dtype=torch.float64, device="cpu")
        weights[places[sums.numpy().argmin()]] = 1  # torch's may be any of the least
        return Weighing(weights)
