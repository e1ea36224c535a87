"""The arithmetic mean: the baseline that one bad row can drag anywhere."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from robust_agg import kernels
from robust_agg.aggregator import Explanation, Invariance, Weighing, Weighted, explained
from robust_agg.errors import check_rejected
from robust_agg.shards import WHOLE, Shards
from robust_agg.span import Geometry


@dataclass(frozen=True, kw_only=True)
class Mean(Weighted):
    """``(1/n) Σ_i x_i`` over the rows that are finite, and whose norm is.

    It tolerates no Byzantine row; non-finite rows are left out only so that the result is finite.
    """

    sees_distances = False

    @property
    def invariances(self) -> frozenset[Invariance]:
        return frozenset(Invariance)

    def check(self, n: int) -> None:
        """Any n >= 1 will do."""

    def max_rejected(self, n: int) -> int:
        return n - 1

    def kappa(self, n: int, f: int) -> float | None:
        return 0.0 if f == 0 else None

    def weigh(self, geometry: Geometry, generator: torch.Generator | None) -> Weighing:
        return Weighing(_uniform(geometry.accepted))

    def _explain(
        self,
        rows: Tensor,
        generator: torch.Generator | None,
        *,
        distances: bool,
        shards: Shards = WHOLE,
    ) -> Explanation:
        output, largest = kernels.mean(rows)
        limit = torch.finfo(torch.promote_types(rows.dtype, torch.float32)).max
        columns = shards.columns(rows.shape[1])
        if shards.largest(largest) <= limit / (2 * columns**0.5):
            n = len(rows)
            weights = torch.full((n,), 1 / n, dtype=torch.float64, device="cpu")
            return explained(output, rows, distances=distances, weights=weights, shards=shards)
        # Some row may be too far: norms tell. The mean needs no other geometry, no Gram is formed.
        norms = shards.distances(rows, rows.new_zeros(rows.shape[1]))
        accepted = norms <= limit
        check_rejected(self.name, int((~accepted).sum()), self.max_rejected(len(rows)), len(rows))
        weights = _uniform(accepted)
        # Of halves, because weights whose sum is rounded up carry the largest numbers beyond.
        end = torch.finfo(rows.dtype).max / 2
        wide = torch.promote_types(rows.dtype, torch.float32)
        half = kernels.combine(rows, weights / 2, dtype=wide).clamp(-end, end)
        output = (2 * half).to(rows.dtype)
        return explained(
            output,
            rows,
            distances=distances,
            weights=weights,
            rejected=~accepted,
            shards=shards,
        )


def _uniform(accepted: Tensor) -> Tensor:
    return accepted.double() / accepted.sum()
