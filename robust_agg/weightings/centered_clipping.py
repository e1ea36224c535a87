"""Centered clipping from a robust start."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, sqrt
from numbers import Integral
from typing import Literal, TypeAlias, get_args

import numpy as np
import torch
from torch import Tensor

from robust_agg import kernels
from robust_agg.aggregator import Aggregator, Explanation, Invariance, explained
from robust_agg.clipping_steps import clip_in_weight_space, clip_over_rows
from robust_agg.errors import (
    ConstraintError,
    TooManyRejectedError,
    check_count,
    check_positive,
    check_rejected,
    shown,
)
from robust_agg.shards import WHOLE, Shards
from robust_agg.solvers import Vector
from robust_agg.span import measure

GRAM_UP_TO = 64
"""Rows for each iteration up to which the Gram matrix, n²d multiply-adds at the speed of a matrix
product, costs less than to read the rows twice in every iteration."""

Start: TypeAlias = Literal["median", "mean", "zero"]


@dataclass(frozen=True, kw_only=True, eq=False)  # a tensor among the fields has no ==
class CenteredClipping(Aggregator):
    """Iterate ``v ← v + (1/n) Σ_i min(1, r/‖x_i - v‖₂) (x_i - v)`` from a start v₀.

    Karimireddy, He & Jaggi, "Learning from History for Byzantine Robust Optimization", ICML 2021,
    equation (CClip). There v₀ is the result of the round before; this rule is stateless and starts
    from the coordinate-wise median of the rows. To carry v from round to round, use
    ``OnlineMedian(fusion="averaged")``. In weight space, or over the rows where these are so many
    that a few readings cost less than their Gram matrix.

    ByzFL starts from zero (and then from its own last result), with r = 100 and 1 iteration; ByzPy
    from the mean, the median or zero, the mean by default, with 10. A process of a network of peers
    starts from its own row (He, Karimireddy & Jaggi, "Byzantine-Robust Decentralized Learning via
    ClippedGossip", 2022). From a mean, a far row has moved v₀ as far as it likes, and an iteration
    takes v back by no more than r.

    A rejected row is clipped to nothing and still counts in n; the mean to start from is that of
    the others. Weights sum to at most 1; the remainder is the share of the start.

    Attributes:
        radius: r > 0; if None, in each iteration the ⌈n/2⌉-th smallest distance ‖x_i - v‖₂, which
            no minority can move and which makes the rule follow a scaling of the rows.
        iterations: how often to clip.
        start: v₀: the coordinate-wise "median", the "mean" or "zero"; or the position of a row,
            below n, which must not be rejected, and in a ``Server`` is the number of the sender
            that is trusted (see ``MoNNA``); or a tensor ``(d,)``.
    """

    trusts = "start"

    radius: float | None = None
    iterations: int = 3
    start: Start | int | Tensor = "median"

    def __post_init__(self) -> None:
        if self.radius is not None:
            check_positive(self.name, "radius", self.radius)
        check_count(self.name, "iterations", self.iterations, minimum=1)
        start = self.start
        if isinstance(start, Tensor):
            if start.dim() != 1 or not bool(start.isfinite().all()):
                raise ValueError(
                    f"{self.name}: start must be a finite (d,) tensor, found shape "
                    f"{tuple(start.shape)}"
                )
        elif not _is_position(start) and not _is_named(start):
            raise ValueError(
                f"{self.name}: start must be 'median', 'mean', 'zero', the position of a row or a "
                f"(d,) tensor, found {shown(start)}"
            )

    @property
    def invariances(self) -> frozenset[Invariance]:
        # A given start stays where it is when the rows move, and zero does; a coordinate-wise
        # median does not follow rotations, nor a fixed radius a scaling.
        if isinstance(self.start, Tensor):
            return frozenset({Invariance.PERMUTATION})
        lost = {
            "median": {Invariance.ROTATION},
            "mean": set[Invariance](),
            "zero": {Invariance.TRANSLATION},
        }
        kept = set(Invariance) - lost.get(str(self.start), {Invariance.PERMUTATION})
        return frozenset(kept if self.radius is None else kept - {Invariance.SCALING})

    @property
    def shardable(self) -> bool:
        """Unless a tensor is given: nobody knows which of its columns are here."""
        return not isinstance(self.start, Tensor)

    def check(self, n: int) -> None:
        """Any n >= 1 will do that the start is below, if that is a position; f does not enter."""
        if not isinstance(self.start, Tensor | str) and self.start >= n:
            raise ConstraintError(
                f"{self.name}: start < n is required, found start={shown(self.start)}, n={n}"
            )

    def max_rejected(self, n: int) -> int:
        return (n - 1) // 2

    def kappa(self, n: int, f: int) -> float | None:
        """For the radius by quantile and the median start, by induction over the iterations.

        With ‖v - x̄‖² <= k V, the ⌈n/2⌉-th smallest distance is at most that of the honest rows,
        whose larger ones, h - ⌈n/2⌉ + 1 of them, are at least as large: r² <= h (1 + k) V /
        (h - ⌈n/2⌉ + 1). A step is at most r, so k ← (√k + r/√V)². None for a fixed radius, where
        the error is at most that of the start plus iterations · radius; and for the other starts,
        whose own error has no bound in terms of V.
        """
        if n <= 2 * f or self.radius is not None or not self._from("median"):
            return None
        h, middle = n - f, ceil(n / 2)
        k = 4 * (1 + f / (n - 2 * f)) ** 2
        for _ in range(self.iterations):
            k = (sqrt(k) + sqrt(h * (1 + k) / (h - middle + 1))) ** 2
        return k

    def _from(self, *named: Start) -> bool:
        return isinstance(self.start, str) and self.start in named

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
        base: Tensor | None
        if n > GRAM_UP_TO * self.iterations and wide and self._from("median", "zero"):
            base, weights, accepted = self._over_rows(rows, shards)
        else:
            base, weights, accepted = self._in_weight_space(rows, shards)
        check_rejected(self.name, int((~accepted).sum()), self.max_rejected(n), n)
        output = kernels.combine(rows, weights, base)
        return explained(
            output,
            rows,
            distances=distances,
            weights=weights,
            rejected=~accepted,
            shards=shards,
        )

    def _in_weight_space(
        self, rows: Tensor, shards: Shards
    ) -> tuple[Tensor | None, Tensor, Tensor]:
        """The point that the weights lack, None if they sum to 1, the weights, the accepted."""
        base: Tensor | None
        if isinstance(self.start, Tensor) or self._from("zero"):
            base, gram, accepted = self._about_given(rows, shards)
            first = np.zeros(len(rows))
        else:
            geometry, centre = measure(rows, shards=shards)
            gram, accepted = geometry.deviations, geometry.accepted
            base = centre if self._from("median") else None
            first = self._first_weights(accepted)
        weights = clip_in_weight_space(
            gram, accepted, first, radius=self.radius, iterations=self.iterations
        )
        return base, weights, accepted

    def _first_weights(self, accepted: Tensor) -> Vector:
        """Those of the start, the rest of which is the rows' centre."""
        first = np.zeros(len(accepted))
        if isinstance(self.start, str):
            if self.start == "mean":
                first[accepted.numpy()] = 1 / max(1, int(accepted.sum()))
            return first
        position = int(self.start)
        if not bool(accepted[position]):
            raise TooManyRejectedError(
                f"{self.name}: start must be a row that is finite and near enough to measure, "
                f"found row {position} rejected"
            )
        first[position] = 1
        return first

    def _about_given(self, rows: Tensor, shards: Shards) -> tuple[Tensor, Tensor, Tensor]:
        """v₀, the Gram matrix of the deviations from it, and the accepted rows."""
        wide = torch.promote_types(rows.dtype, torch.float32)
        if isinstance(self.start, Tensor):
            if self.start.shape != rows.shape[1:]:
                raise ValueError(
                    f"{self.name}: start must have shape {tuple(rows.shape[1:])}, "
                    f"found {tuple(self.start.shape)}"
                )
            start = self.start.to(rows.device, wide)
        else:
            start = rows.new_zeros(rows.shape[1], dtype=wide)
        geometry = measure(rows, start, shards=shards)[0]
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

    def _over_rows(self, rows: Tensor, shards: Shards) -> tuple[Tensor, Tensor, Tensor]:
        """As :meth:`_in_weight_space`, from starts that need no geometry."""
        if self._from("zero"):
            start = torch.zeros_like(rows[0])
        else:
            n = len(rows)
            median = kernels.sorted_mean(rows, (n - 1) // 2, n // 2 + 1)
            start = median.nan_to_num_(nan=0.0, posinf=0.0, neginf=0.0)
        weights, accepted = clip_over_rows(
            rows, start, radius=self.radius, iterations=self.iterations, shards=shards
        )
        return start, weights, accepted


def _is_named(start: object) -> bool:
    return isinstance(start, str) and start in get_args(Start)


def _is_position(start: object) -> bool:
    return not isinstance(start, bool) and isinstance(start, Integral) and int(start) >= 0
