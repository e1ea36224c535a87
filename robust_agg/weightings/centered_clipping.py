"""Centered clipping from a robust start."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, sqrt

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from robust_agg import kernels
from robust_agg.aggregator import Aggregator, Explanation, Invariance, explained
from robust_agg.errors import check_count, check_instance, check_positive, check_rejected
from robust_agg.shards import WHOLE, Shards
from robust_agg.span import measure, too_far

GRAM_UP_TO = 64
"""Rows for each iteration up to which the Gram matrix, n²d multiply-adds at the speed of a matrix
product, costs less than to read the rows twice in every iteration."""


@dataclass(frozen=True, kw_only=True, eq=False)  # a tensor among the fields has no ==
class CenteredClipping(Aggregator):
    """Iterate ``v ← v + (1/n) Σ_i min(1, r/‖x_i - v‖₂) (x_i - v)`` from a start v₀.

    Karimireddy, He & Jaggi, "Learning from History for Byzantine Robust Optimization", ICML 2021,
    equation (CClip). Stateless: it starts from the coordinate-wise median of the rows. To carry v
    from round to round, use ``OnlineMedian(fusion="averaged")``. In weight space, or over the rows
    where these are so many that a few readings cost less than their Gram matrix.

    A rejected row is clipped to nothing and still counts in n. Weights sum to at most 1; the
    remainder is the share of the start.

    Attributes:
        radius: r > 0; if None, in each iteration the ⌈n/2⌉-th smallest distance ‖x_i - v‖₂, which
            no minority can move and which makes the rule follow a scaling of the rows.
        iterations: how often to clip.
        start: v₀, ``(d,)``; the coordinate-wise median if None.
    """

    radius: float | None = None
    iterations: int = 3
    start: Tensor | None = None

    def __post_init__(self) -> None:
        if self.radius is not None:
            check_positive(self.name, "radius", self.radius)
        check_count(self.name, "iterations", self.iterations, minimum=1)
        if self.start is None:
            return
        check_instance(self.name, "start", self.start, Tensor)
        if self.start.dim() != 1 or not bool(self.start.isfinite().all()):
            raise ValueError(
                f"{self.name}: start must be a finite (d,) tensor, found shape "
                f"{tuple(self.start.shape)}"
            )

    @property
    def invariances(self) -> frozenset[Invariance]:
        # A coordinate-wise median does not follow rotations, a fixed radius no scaling, and a
        # given start stays where it is when the rows move.
        kept = {Invariance.PERMUTATION}
        if self.start is None:
            kept.add(Invariance.TRANSLATION)
            if self.radius is None:
                kept.add(Invariance.SCALING)
        return frozenset(kept)

    @property
    def shardable(self) -> bool:
        """Unless a start is given: nobody knows which of its columns are here."""
        return self.start is None

    def check(self, n: int) -> None:
        """Any n >= 1 will do; f does not enter."""

    def max_rejected(self, n: int) -> int:
        return (n - 1) // 2

    def kappa(self, n: int, f: int) -> float | None:
        """For the radius by quantile and the median start, by induction over the iterations.

        With ‖v - x̄‖² <= k V, the ⌈n/2⌉-th smallest distance is at most that of the honest rows,
        whose larger ones, h - ⌈n/2⌉ + 1 of them, are at least as large: r² <= h (1 + k) V /
        (h - ⌈n/2⌉ + 1). A step is at most r, so k ← (√k + r/√V)². None for a fixed radius, where
        the error is at most that of the start plus iterations · radius.
        """
        if n <= 2 * f or self.radius is not None or self.start is not None:
            return None
        h, middle = n - f, ceil(n / 2)
        k = 4 * (1 + f / (n - 2 * f)) ** 2
        for _ in range(self.iterations):
            k = (sqrt(k) + sqrt(h * (1 + k) / (h - middle + 1))) ** 2
        return k

    def _explain(
        self,
        rows: Tensor,
        generator: torch.Generator | None,
        *,
        distances: bool,
        shards: Shards = WHOLE,
    ) -> Explanation:
        n = rows.shape[0]
        # The median of shorter numbers would be rounded to them.
        wide = rows.dtype in {torch.float32, torch.float64}
        if n > GRAM_UP_TO * self.iterations and wide and self.start is None:
            start, weights, accepted = _clip_over_rows(rows, self.radius, self.iterations, shards)
        else:
            start, gram, accepted = self._start(rows, shards)
            weights = _clip_towards(gram, accepted, self.radius, self.iterations)
        check_rejected(self.name, int((~accepted).sum()), self.max_rejected(n), n)
        output = kernels.combine(rows, weights, start)
        return explained(
            output,
            rows,
            distances=distances,
            weights=weights,
            rejected=~accepted,
            shards=shards,
        )

    def _start(self, rows: Tensor, shards: Shards) -> tuple[Tensor, Tensor, Tensor]:
        """v₀, the Gram matrix of the deviations from it, and the accepted rows."""
        if self.start is None:
            geometry, centre = measure(rows, shards=shards)
            return centre, geometry.deviations, geometry.accepted
        if self.start.shape != rows.shape[1:]:
            raise ValueError(
                f"{self.name}: start must have shape {tuple(rows.shape[1:])}, "
                f"found {tuple(self.start.shape)}"
            )
        start = self.start.to(rows.device, torch.promote_types(rows.dtype, torch.float32))
        geometry, _ = measure(rows, start, shards=shards)
        if not bool(geometry.accepted[-1]):
            distance = float(shards.distances(start[None], rows.new_zeros(rows.shape[1])))
            raise ValueError(
                f"{self.name}: start must be near enough to the rows to be measured, "
                f"found a norm of {distance:.3g}"
            )
        gram, accepted = geometry.deviations, geometry.accepted[:-1]
        shifted = gram[:-1, :-1] - gram[:-1, -1:] - gram[-1:, :-1] + gram[-1, -1]
        both = accepted[:, None] & accepted[None, :]
        return start, torch.where(both, shifted, 0.0), accepted


def _clip_towards(gram: Tensor, accepted: Tensor, radius: float | None, iterations: int) -> Tensor:
    """The weights of the rows after clipping ``iterations`` times, the rest being the start's."""
    # In numpy, which takes a fraction of torch's time to begin an operation on so few numbers.
    products, kept, n = gram.numpy(), accepted.numpy(), len(accepted)
    lengths = products.diagonal()
    weights = np.zeros(n)
    for _ in range(iterations):
        along = products @ weights
        squares = np.maximum(lengths - 2 * along + weights @ along, 0.0)
        factors = _factors(np.sqrt(squares), kept, radius)
        weights = weights * (1 - factors.mean()) + factors / n
    return torch.from_numpy(weights)


def _clip_over_rows(
    rows: Tensor, radius: float | None, iterations: int, shards: Shards
) -> tuple[Tensor, Tensor, Tensor]:
    """The coordinate-wise median to start from, the weights, and the rows that are accepted.

    Each iteration reads the rows twice, where their Gram matrix takes n²d multiply-adds once.
    """
    n = len(rows)
    median = kernels.sorted_mean(rows, (n - 1) // 2, n // 2 + 1)
    start = v = median.nan_to_num_(nan=0.0, posinf=0.0, neginf=0.0)
    distances = shards.distances(rows, v)
    accepted = distances <= too_far(rows.dtype)
    weights = torch.zeros(n, dtype=torch.float64, device="cpu")
    for iteration in range(iterations):
        if iteration > 0:
            v = kernels.combine(rows, weights, start)
            distances = shards.distances(rows, v)
        factors = torch.from_numpy(_factors(distances.numpy(), accepted.numpy(), radius))
        weights = weights * (1 - factors.mean()) + factors / n
    return start, weights, accepted


def _factors(
    distances: NDArray[np.float64], kept: NDArray[np.bool_], radius: float | None
) -> NDArray[np.float64]:
    """``min(1, r/‖x_i - v‖)``, and 0 for the rows that are not kept."""
    distances = np.where(kept, distances, np.inf)
    middle = ceil(len(distances) / 2) - 1
    r = float(np.sort(distances)[middle]) if radius is None else float(radius)
    with np.errstate(divide="ignore", invalid="ignore"):  # of rows that are where v is
        factors = np.where(distances > r, r / distances, 1.0)
    return np.where(kept, factors, 0.0)
