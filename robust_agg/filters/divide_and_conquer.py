"""Divide and conquer (DnC): rows that stick out along the main direction of drawn coordinates."""

from __future__ import annotations

from dataclasses import dataclass
from math import floor

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from robust_agg import kernels
from robust_agg.aggregator import Aggregator, Explanation, Invariance, explained
from robust_agg.errors import (
    ConstraintError,
    check_count,
    check_honest_majority,
    check_positive,
    check_rejected,
)
from robust_agg.shards import WHOLE, Shards
from robust_agg.span import Geometry, measure, too_far

_QUANTUM = 2.0**-30
# Of the largest score: scores that differ by less are ties, as those of equal rows are.


@dataclass(frozen=True, kw_only=True)
class DivideAndConquer(Aggregator):
    """The mean of the rows that are no outlier in any of several draws of coordinates (DnC).

    Shejwalkar & Houmansadr, "Manipulating the Byzantine: Optimizing Model Poisoning Attacks and
    Defenses for Federated Learning", NDSS 2021, algorithm 2. Each iteration draws b coordinates,
    scores each row by the square of its projection, centred, on the top right singular vector of
    the centred rows, and keeps the n - ⌊c·f⌋ rows with the lowest scores, ties to the lowest index.
    The result is the mean of the rows that every iteration has kept.

    It is neither coordinate-wise nor in weight space, for it measures the rows in drawn coordinates
    alone: 2b·n numbers for each Gram matrix. Where d <= b nothing is drawn, and all iterations are
    one. There is no known κ, nor any bound: a row that is far in coordinates that are not drawn is
    in the mean.

    Attributes:
        f: declared number of Byzantine rows; n >= 2f + 1 is required.
        iterations: the paper's niters. Each leaves out ⌊c·f⌋ rows, which may be others each time:
            where none is left in common, :class:`~robust_agg.ConstraintError` is raised.
        coordinates: b, drawn in each iteration without replacement.
        filtering: the filtering fraction c > 0; n > ⌊c·f⌋ is required.

    The paper tunes niters, b and c; Blades takes 10,000 coordinates, once or five times, and c = 1.
    """

    f: int
    iterations: int = 1
    coordinates: int = 10_000
    filtering: float = 1.0

    def __post_init__(self) -> None:
        check_count(self.name, "f", self.f, minimum=0)
        check_count(self.name, "iterations", self.iterations, minimum=1)
        check_count(self.name, "coordinates", self.coordinates, minimum=1)
        check_positive(self.name, "filtering", self.filtering)

    @property
    def invariances(self) -> frozenset[Invariance]:
        # Rotations change what is drawn, but where nothing is left out or all is drawn anyway.
        return frozenset(Invariance) - ({Invariance.ROTATION} if self.left_out > 0 else set())

    @property
    def shardable(self) -> bool:
        return True

    @property
    def left_out(self) -> int:
        """⌊c·f⌋, the rows that an iteration leaves out."""
        return floor(self.filtering * self.f * (1 + 1e-12))

    def check(self, n: int) -> None:
        check_honest_majority(self.name, n, self.f)
        if n <= self.left_out:
            raise ConstraintError(
                f"{self.name}: n > c·f is required, found n={n}, f={self.f}, "
                f"filtering={self.filtering}"
            )

    def max_rejected(self, n: int) -> int:
        return self.f

    def _explain(
        self,
        rows: Tensor,
        generator: torch.Generator | None,
        *,
        distances: bool,
        shards: Shards = WHOLE,
    ) -> Explanation:
        if generator is None:
            raise ValueError(f"{self.name}: generator is required, found None")
        n, d = len(rows), rows.shape[1]
        norms = shards.distances(rows, rows.new_zeros(d))
        accepted = norms <= too_far(torch.promote_types(rows.dtype, torch.float32))
        kept = accepted.clone()
        for _ in range(self.iterations if shards.columns(d) > self.coordinates else 1):
            geometry = _measure_some(rows, shards.drawn(d, self.coordinates, generator), shards)
            accepted &= geometry.accepted
            check_rejected(self.name, int((~accepted).sum()), self.max_rejected(n), n)
            places = accepted.nonzero().flatten()
            scores = torch.full((n,), torch.inf, dtype=torch.float64, device="cpu")
            scores[places] = outlier_scores(geometry.deviations[places][:, places])
            kept &= _lowest(scores, n - self.left_out)
        kept &= accepted
        if not bool(kept.any()):
            raise ConstraintError(
                f"{self.name}: the iterations must have a row in common, found none with n={n}, "
                f"f={self.f}, iterations={self.iterations}, filtering={self.filtering}"
            )
        weights = kept.double() / kept.sum()
        return explained(
            kernels.combine(rows, weights),
            rows,
            distances=distances,
            weights=weights,
            rejected=~accepted,
            shards=shards,
        )


def outlier_scores(gram: Tensor) -> Tensor:
    """``⟨x_i - x̄, v⟩²``, v the top right singular vector of the centred rows, up to a factor.

    With λ and u the largest eigenvalue and its unit eigenvector of the centred rows' Gram matrix
    that is ``λ u_i²``.

    Args:
        gram: ``(m, m)`` float64, of the rows about any centre.
    """
    # By a common factor, so that sums of the largest numbers are numbers.
    products: NDArray[np.float64] = gram.numpy() / (float(gram.diagonal().max()) or 1.0)
    middle = products.mean(axis=0)
    values, vectors = np.linalg.eigh(products - middle - middle[:, None] + middle.mean())
    return torch.from_numpy(max(values[-1], 0.0) * np.square(vectors[:, -1]))


def _measure_some(rows: Tensor, columns: Tensor | slice, shards: Shards) -> Geometry:
    """The geometry of the rows in some columns, of which perhaps none is here."""
    if isinstance(columns, Tensor):
        some = rows[:, columns.to(rows.device)]
        rows = some if some.shape[1] else rows.new_zeros(len(rows), 1)
    return measure(rows, shards=shards)[0]


def _lowest(scores: Tensor, count: int) -> Tensor:
    """``(n,)`` bool: the ``count`` lowest, ties to the lowest index."""
    largest = scores[scores.isfinite()].max()
    quanta = (scores / (largest * _QUANTUM)).round() if largest > 0 else scores
    kept = torch.zeros(len(scores), dtype=torch.bool, device="cpu")
    kept[quanta.argsort(stable=True)[:count]] = True
    return kept
