"""FLAME: rows of a majority that points one way, clipped to a usual length, and noise."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from robust_agg import kernels
from robust_agg.aggregator import Aggregator, Explanation, Invariance, explained
from robust_agg.errors import check_positive, check_rejected
from robust_agg.filters.clusters import cosine_distances, first_majority
from robust_agg.shards import WHOLE, Shards
from robust_agg.span import too_far


@dataclass(frozen=True, kw_only=True)
class FLAME(Aggregator):
    """``(1/|S|) Σ_{i∈S} min(1, M/‖x_i‖₂) x_i + N(0, (λM)²)``, M the median of the norms.

    Nguyen et al., "FLAME: Taming Backdoors in Federated Learning", USENIX Security 2022, algorithm
    1. S are the ⌊n/2⌋ + 1 rows or more that HDBSCAN finds by cosine distance, with that least
    cluster size and, as public implementations have it, one sample and a single cluster allowed:
    the first cluster of single linkage that is a majority of the rows. M is the midpoint of an even
    n; a rejected row is in no cluster, and as long as can be.

    Public implementations take the angles between the workers' models, the present one plus a row;
    here they are between the rows, which are all that a rule sees.

    The noise is drawn for every coordinate, and is in no weight. λ = 0.001 is the default of public
    implementations too; (ε, δ)-differential privacy needs ``λ = √(2 ln(1.25/δ))/ε``, far more.

    It is neither coordinate-wise nor in weight space: the rows' Gram matrix about the origin, in
    float64, and one pass. There is no known κ; but for the noise, the result is no longer than the
    longest honest row while fewer than n/2 are bad.

    Attributes:
        noise: λ >= 0; without noise nothing is drawn.
    """

    noise: float = 0.001

    def __post_init__(self) -> None:
        check_positive(self.name, "noise", self.noise, zero=True)

    @property
    def invariances(self) -> frozenset[Invariance]:
        kept = {Invariance.PERMUTATION, Invariance.SCALING}
        # The same draw is no other one when the rows are turned.
        return frozenset(kept if self.noise > 0 else {*kept, Invariance.ROTATION})

    @property
    def shardable(self) -> bool:
        """Without noise: who holds some columns would have to draw for all."""
        return self.noise == 0

    def check(self, n: int) -> None:
        """Any n >= 1 will do; f does not enter."""

    def max_rejected(self, n: int) -> int:
        return (n - 1) // 2

    def _explain(
        self,
        rows: Tensor,
        generator: torch.Generator | None,
        *,
        distances: bool,
        shards: Shards = WHOLE,
    ) -> Explanation:
        if generator is None and self.noise > 0:
            raise ValueError(f"{self.name}: generator is required, found None")
        n = len(rows)
        wide = torch.promote_types(rows.dtype, torch.float32)
        gram = shards.sum(kernels.gram(rows))
        norms = gram.diagonal().sqrt()
        accepted = norms <= too_far(wide)
        check_rejected(self.name, int((~accepted).sum()), self.max_rejected(n), n)

        lengths = torch.where(accepted, norms, torch.inf)
        middle = float(np.median(lengths.numpy()))
        places = accepted.nonzero().flatten()
        apart = cosine_distances(gram[places][:, places].numpy())
        together = places[first_majority(apart, n // 2 + 1)]
        factors = torch.where(lengths > middle, middle / lengths, 1.0)
        weights = torch.zeros(n, dtype=torch.float64, device="cpu")
        weights[together] = factors[together] / len(together)
        found = kernels.combine(rows, weights, dtype=wide)
        if generator is not None and self.noise > 0:
            draw = torch.randn(len(found), generator=generator, dtype=wide, device="cpu")
            end = torch.finfo(rows.dtype).max
            found = (found + self.noise * middle * draw.to(found.device)).clamp(-end, end)
        return explained(
            found.to(rows.dtype),
            rows,
            distances=distances,
            weights=weights,
            rejected=~accepted,
            shards=shards,
        )
