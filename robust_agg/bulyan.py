"""Bulyan: Krum chooses rows, of which each coordinate keeps what is nearest to the median."""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt
from typing import get_args

import torch
from torch import Tensor

from robust_agg.aggregator import Aggregator, Explanation, Invariance, explained
from robust_agg.coordinatewise.mean_around_median import MeanAroundMedian
from robust_agg.errors import ConstraintError, check_choice, check_count, check_rejected
from robust_agg.mixings.krum_selection import KrumSelection, Rounds
from robust_agg.shards import WHOLE, Shards
from robust_agg.span import measure


@dataclass(frozen=True, kw_only=True)
class Bulyan(Aggregator):
    """The mean of the β values of each coordinate nearest to their median, among θ selected rows.

    ``KrumSelection`` makes θ = n - 2f of the n rows, and β = θ - 2f values are kept. El Mhamdi,
    Guerraoui & Rouault, "The Hidden Vulnerability of Distributed Learning in Byzantium", ICML 2018,
    section 4, Bulyan of Krum, which needs n >= 4f + 3. Of two values as far from the median, one
    below and one above, the lower one is kept.

    Flower selects ``rounds="at once"``. ByzantineMomentum (El-Mhamdi et al., ICLR 2021) has
    θ = n - 2f - 2 means of Multi-Krum for the selected rows, which is not offered.

    Attributes:
        f: declared number of Byzantine rows; n >= 4f + 3 is required.
        rounds: of the selection, "one by one" or "at once"; see ``KrumSelection``.
    """

    f: int
    rounds: Rounds = "one by one"

    def __post_init__(self) -> None:
        check_count(self.name, "f", self.f, minimum=0)
        check_choice(self.name, "rounds", self.rounds, get_args(Rounds))

    @property
    def invariances(self) -> frozenset[Invariance]:
        # Where nothing is left out it is the mean, which follows rotations too.
        kept = KrumSelection(f=self.f, rounds=self.rounds).invariances
        return kept - ({Invariance.ROTATION} if self.f > 0 else set())

    @property
    def shardable(self) -> bool:
        return True

    def check(self, n: int) -> None:
        if n < 4 * self.f + 3:
            raise ConstraintError(f"{self.name}: n >= 4f + 3 is required, found n={n}, f={self.f}")

    def max_rejected(self, n: int) -> int:
        return self.f

    def kappa(self, n: int, f: int) -> float | None:
        """``(a + (√h + a √θ)/√(f+1))²`` with a = √(2h/(n-4f)), h = n - f; 0 for f = 0.

        Of any θ rows with f bad ones, whatever Krum has done. Per coordinate at least θ/2 - f of
        the honest values are as far from x̄ as the median m is, on its side: ‖m - x̄‖² <= a² V, V
        being the honest variance. At least β + f honest values are there, f + 1 of which are no
        nearer to m than the β-th nearest of all, nor than the mean of the β nearest: its squared
        distance from m is at most 1/(f+1) of the sum of the honest ones', over all coordinates
        (√(h V) + √θ ‖m - x̄‖)²/(f+1).
        """
        if f > self.f or n < 4 * self.f + 3:
            return None
        f = self.f
        if f == 0:
            return 0.0
        h, a = n - f, sqrt(2 * (n - f) / (n - 4 * f))
        return (a + (sqrt(h) + a * sqrt(n - 2 * f)) / sqrt(f + 1)) ** 2

    def _explain(
        self,
        rows: Tensor,
        generator: torch.Generator | None,
        *,
        distances: bool,
        shards: Shards = WHOLE,
    ) -> Explanation:
        original = measure(rows, shards=shards)[0]
        check_rejected(self.name, original.rejected_count, self.max_rejected(len(rows)), len(rows))
        selected = KrumSelection(f=self.f, rounds=self.rounds).mix(original, None)
        nearest = MeanAroundMedian(f=2 * self.f)  # of θ values, θ - 2f
        output = nearest.of_mixed(rows, selected.coefficients, shards=shards)
        return explained(
            output.to(rows.dtype),
            rows,
            distances=distances,
            rejected=~original.accepted,
            shards=shards,
        )
