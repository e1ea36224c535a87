"""Clipped clustering: rows clipped to a usual length, and the larger of two clusters of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from robust_agg import kernels
from robust_agg.aggregator import Explanation, Invariance, explained
from robust_agg.errors import check_count, check_rejected, check_rows
from robust_agg.filters.clusters import cosine_distances, larger_of_two
from robust_agg.online.estimator import ESTIMATE, Estimator
from robust_agg.shards import WHOLE, Shards
from robust_agg.span import too_far
from robust_agg.types import State

NORMS = "norms"
SEEN = "norms seen"


@dataclass(frozen=True, kw_only=True)
class ClippedClustering(Estimator):
    """``(1/|S|) Σ_{i∈S} min(1, τ/‖x_i‖₂) x_i``, τ the median of all norms so far, S a cluster.

    Li, Ngai & Voigt, "An Experimental Study of Byzantine-Robust Aggregation Schemes in Federated
    Learning", IEEE Transactions on Big Data 2023. τ is the median of the norms of
    this round and of earlier ones, of an even number the midpoint. S is the larger of the two
    clusters into which the rows fall by average linkage of their cosine distances
    ``1 - cos(x_i, x_j)``; as large, the one with the first row. A row of 0 has distance 1 to all
    others.

    A rejected row is in no cluster, and its norm is not kept. It is neither coordinate-wise nor in
    weight space: the rows' Gram matrix about the origin, in float64, and one pass. There is no
    known κ. To be used for f < n/2: more rejected rows are an error.

    Attributes:
        window: how many norms are remembered (the paper's server remembers all).
    """

    window: int = 10_000

    def __post_init__(self) -> None:
        check_count(self.name, "window", self.window, minimum=1)

    @property
    def invariances(self) -> frozenset[Invariance]:
        """Of a step as a map of rows and remembered norms together."""
        return frozenset({Invariance.PERMUTATION, Invariance.SCALING, Invariance.ROTATION})

    @property
    def shardable(self) -> bool:
        return True

    def init(self, like: Tensor) -> State:
        """No norm is remembered (NaN marks a place not yet used), and the estimate is 0."""
        if like.dim() != 1 or not like.is_floating_point():
            raise ValueError(
                f"{self.name}: like must be a floating (d,) tensor, "
                f"found {like.dtype} of shape {tuple(like.shape)}"
            )
        return {
            # Not read: a state is what holders of some columns each deal out by its estimate.
            ESTIMATE: torch.zeros_like(like, dtype=torch.promote_types(like.dtype, torch.float32)),
            NORMS: torch.full((self.window,), torch.nan, dtype=torch.float64, device="cpu"),
            SEEN: torch.zeros((), dtype=torch.int64, device="cpu"),
        }

    def explain(
        self,
        rows: Tensor,
        state: State,
        *,
        senders: Sequence[int] | None = None,
        generator: torch.Generator | None = None,
        distances: bool = True,
        shards: Shards = WHOLE,
    ) -> tuple[Explanation, State]:
        check_rows(self.name, rows)
        n, d = len(rows), len(state[ESTIMATE])
        if rows.shape[1] != d:
            raise ValueError(f"{self.name}: rows must have d={d} columns, found {rows.shape[1]}")
        rows = rows.detach()
        wide = torch.promote_types(rows.dtype, torch.float32)
        gram = shards.sum(kernels.gram(rows))
        norms = gram.diagonal().sqrt()
        accepted = norms <= too_far(wide)
        check_rejected(self.name, int((~accepted).sum()), (n - 1) // 2, n)

        remembered, seen = remember(norms[accepted], state[NORMS], int(state[SEEN]))
        middle = float(np.nanmedian(remembered.numpy()))
        places = accepted.nonzero().flatten()
        together = places[larger_of_two(cosine_distances(gram[places][:, places].numpy()))]
        lengths = norms[together]
        weights = torch.zeros(n, dtype=torch.float64, device="cpu")
        weights[together] = torch.where(lengths > middle, middle / lengths, 1.0) / len(together)
        estimate = kernels.combine(rows, weights, dtype=wide)
        new = {ESTIMATE: estimate, NORMS: remembered, SEEN: torch.full_like(state[SEEN], seen)}
        explanation = explained(
            estimate.to(rows.dtype, copy=True),
            rows,
            distances=distances,
            weights=weights,
            rejected=~accepted,
            shards=shards,
        )
        return explanation, new


def remember(norms: Tensor, remembered: Tensor, seen: int) -> tuple[Tensor, int]:
    """The norms ``(window,)``, this round's in the places of the oldest; and how many were seen.

    A round's norms enter from its extremes to its middle. Of the oldest round, remembered in part,
    the middle is what is left: where less than half of a round's norms are too large, or too small,
    at most half of these are.
    """
    window, count = len(remembered), len(norms)
    outward = (2 * torch.arange(count, device="cpu") - (count - 1)).abs()
    entering = norms.sort().values[outward.argsort(descending=True, stable=True)]
    places = (seen + torch.arange(count, device="cpu")) % window
    new = remembered.clone()
    new[places[-window:]] = entering[-window:]
    return new, seen + count
