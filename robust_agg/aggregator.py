"""What an aggregator is, and the two kinds the library is made of.

An aggregator is a callable from rows ``(n, d)`` to one row ``(d,)``. A *weighted* rule decides in
weight space: it sees the geometry of the rows and answers with one coefficient per row. A
*coordinate-wise* rule treats each coordinate alone.
"""

from __future__ import annotations

import enum
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from robust_agg import kernels
from robust_agg.eager import eager
from robust_agg.errors import TooManyRejectedError, check_rejected, check_rows
from robust_agg.kernels.reference import chunks
from robust_agg.shards import WHOLE, Shards
from robust_agg.solvers import SolverReport
from robust_agg.span import Geometry, measure, measure_norms, too_far


class Invariance(enum.Enum):
    """A transformation of the rows that the result follows."""

    PERMUTATION = "permutation of the rows"
    TRANSLATION = "translation by a vector"
    SCALING = "multiplication by a positive number"
    ROTATION = "rotation of the space"


@dataclass(frozen=True)
class Explanation:
    """Why an aggregation came out as it did.

    Attributes:
        output: ``(d,)``, the aggregate.
        distances: ``(n,)`` float64, ‖x_i - output‖₂; non-finite where it cannot be measured.
        weights: ``(n,)`` float64 where the rule has weights.
        rejected: positions of the rows that are non-finite or too far to measure.
        solver: how the solver stopped, where there was one.
    """

    output: Tensor
    distances: Tensor
    weights: Tensor | None = None
    rejected: tuple[int, ...] = ()
    solver: SolverReport | None = None


class Aggregator(ABC):
    """A stateless rule ``(n, d) -> (d,)`` of the rows' dtype and device; the rows are not changed.

    Subclasses are frozen dataclasses of their parameters. A rule that draws random numbers takes
    them from ``generator`` alone and raises ``ValueError`` without one.
    """

    sees_distances: ClassVar[bool] = False
    """Whether it asks a geometry for more than which rows are accepted, and norms."""

    trusts: ClassVar[str | None] = None
    """The parameter that is the position of a row which the rule trusts, where it is an integer."""

    @property
    def name(self) -> str:
        """How the rule is called in error messages, ledgers and tables."""
        return type(self).__name__

    @property
    @abstractmethod
    def invariances(self) -> frozenset[Invariance]:
        """Exactly the transformations that the rule, with these parameters, follows."""

    @property
    def shardable(self) -> bool:
        """Whether holders of some columns each can apply it together: see ``robust_agg.shards``."""
        return False

    @property
    def separable(self) -> bool:
        """Whether it makes of some columns what it makes of them among all, whatever these are."""
        return False

    @abstractmethod
    def check(self, n: int) -> None:
        """Raise :class:`~robust_agg.errors.ConstraintError` if n rows are too few."""

    @abstractmethod
    def max_rejected(self, n: int) -> int:
        """How many of n rows may be non-finite before the rule raises."""

    def kappa(self, n: int, f: int) -> float | None:
        """The κ of (f, κ)-robustness, or None where no such constant holds.

        For any honest set H of n - f rows: ‖out - x̄_H‖² <= κ · mean_{i in H} ‖x_i - x̄_H‖²
        (Allouah et al., "Fixing by Mixing", AISTATS 2023, Definition 2).

        A constant for F bad rows is one for f < F. For x̄_H is the mean of the means of all sets of
        n - F rows in H, so ‖out - x̄_H‖² is at most the mean of the squared distances from these,
        thus κ times the mean of their variances, and that is no more than the variance of H. A rule
        with an f of its own has the constant of that many bad rows for fewer too.
        """
        return None

    @eager
    def __call__(self, rows: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """The aggregate of ``rows`` ``(n, d)``.

        Raises:
            ValueError: wrong shape or dtype, n too small for f, too many non-finite rows, or no
                generator for a random rule. One line: the rule, the constraint, what was found.
        """
        check_rows(self.name, rows)
        self.check(rows.shape[0])
        return self._explain(rows.detach(), generator, distances=False).output

    @eager
    def explain(self, rows: Tensor, *, generator: torch.Generator | None = None) -> Explanation:
        """The aggregate with weights, distances and rejections; costs one more pass over rows."""
        check_rows(self.name, rows)
        self.check(rows.shape[0])
        return self._explain(rows.detach(), generator, distances=True)

    @eager
    def weights(self, rows: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """``(n,)`` float64 coefficients of the original rows, 0 for rejected ones.

        They need not sum to 1: a clipped row counts less, and what is missing falls on the start
        of centered clipping or on the origin.

        Raises:
            TypeError: the rule acts coordinate by coordinate and has no weights.
        """
        check_rows(self.name, rows)
        self.check(rows.shape[0])
        weights = self._explain(rows.detach(), generator, distances=False).weights
        if weights is None:
            raise TypeError(f"{self.name}: a coordinate-wise rule has no weights")
        return weights

    def weights_from(
        self, geometry: Geometry, *, generator: torch.Generator | None = None
    ) -> Tensor | None:
        """:meth:`weights` of points of which the geometry alone is known; no pass over memory.

        ``(m,)`` float64, one per point of the geometry, or None for a rule that must see the rows.
        What is asked of many rounds that share their rows, an attacker's say, needs one Gram.

        Raises:
            ValueError: as a call with the points themselves.
        """
        return None

    @abstractmethod
    def _explain(
        self,
        rows: Tensor,
        generator: torch.Generator | None,
        *,
        distances: bool,
        shards: Shards = WHOLE,
    ) -> Explanation: ...


def explained(
    output: Tensor,
    rows: Tensor,
    *,
    distances: bool,
    weights: Tensor | None = None,
    rejected: Tensor | None = None,
    solver: SolverReport | None = None,
    shards: Shards = WHOLE,
) -> Explanation:
    """An explanation, its distances measured only where they are asked for."""
    gaps = torch.empty(0, dtype=torch.float64, device="cpu")
    if distances:
        gaps = shards.distances(rows, output)
        if rejected is None:
            rejected = ~(gaps <= too_far(torch.promote_types(rows.dtype, torch.float32)))
    return Explanation(
        output=output,
        distances=gaps,
        weights=weights,
        rejected=() if rejected is None else tuple(rejected.nonzero().flatten().tolist()),
        solver=solver,
    )


class Weighing(NamedTuple):
    """A weighting's answer: float64 weights over the points it saw, and how its solver stopped."""

    weights: Tensor
    solver: SolverReport | None = None


class Weighted(Aggregator):
    """A rule that answers with one coefficient per point, from their geometry alone.

    The output is ``Σ_i w_i x_i``. Two passes over memory whatever the number of iterations: one for
    the geometry, one for the combination.
    """

    sees_distances = True

    @property
    def shardable(self) -> bool:
        return True

    def loses_digits(self, geometry: Geometry) -> bool:
        """Whether ``geometry`` tells too little of norms that this rule goes by: see ``Mixing``."""
        return False

    @abstractmethod
    def weigh(self, geometry: Geometry, generator: torch.Generator | None) -> Weighing:
        """Weights ``(m,)`` of the geometry's m points; 0 for the rejected ones."""

    def weights_from(
        self, geometry: Geometry, *, generator: torch.Generator | None = None
    ) -> Tensor | None:
        n = len(geometry)
        self.check(n)
        check_rejected(self.name, geometry.rejected_count, self.max_rejected(n), n)
        if self.loses_digits(geometry):
            return None  # the rows would be measured anew
        return self.weigh(geometry, generator).weights

    def _explain(
        self,
        rows: Tensor,
        generator: torch.Generator | None,
        *,
        distances: bool,
        shards: Shards = WHOLE,
    ) -> Explanation:
        if self.sees_distances:
            geometry = measure(rows, shards=shards)[0]
        else:
            geometry = measure_norms(rows, shards=shards)
        check_rejected(
            self.name, geometry.rejected_count, self.max_rejected(len(geometry)), len(geometry)
        )
        if self.loses_digits(geometry):
            geometry = geometry.about_origin(rows, geometry.accepted, shards=shards)
        weights, solver = self.weigh(geometry, generator)
        output = kernels.combine(rows, weights)
        return explained(
            output,
            rows,
            distances=distances,
            weights=weights,
            rejected=~geometry.accepted,
            solver=solver,
            shards=shards,
        )


class Coordinatewise(Aggregator):
    """A rule that treats each coordinate alone: :meth:`of_rows` is all that a subclass adds.

    It needs no look at whole rows, so non-finite values cost no pass; each coordinate bears some.
    """

    @property
    def shardable(self) -> bool:
        return True

    @property
    def separable(self) -> bool:
        return True

    @abstractmethod
    def of_rows(self, rows: Tensor) -> Tensor:
        """``(d,)`` of the rows' dtype; not finite in a coordinate where too many values are not."""

    def _explain(
        self,
        rows: Tensor,
        generator: torch.Generator | None,
        *,
        distances: bool,
        shards: Shards = WHOLE,
    ) -> Explanation:
        output = self.finite(self.of_rows(rows), len(rows), shards)
        return explained(output, rows, distances=distances, shards=shards)

    def of_mixed(self, rows: Tensor, coefficients: Tensor, *, shards: Shards = WHOLE) -> Tensor:
        """The rule of the rows ``coefficients @ rows``, which are never all in memory.

        Args:
            rows: ``(n, d)``.
            coefficients: ``(m, n)``; a row of NaN makes a mixed row of NaN.
            shards: who holds the columns.

        Returns:
            ``(d,)`` in at least float32.
        """
        parts = chunks(rows, per_column=2 * sum(coefficients.shape))
        found = [self.of_rows(kernels.mix(rows[:, part], coefficients)) for part in parts]
        return self.finite(torch.cat(found), len(coefficients), shards)

    def finite(self, output: Tensor, n: int, shards: Shards) -> Tensor:
        """``output``, made of n rows.

        Raises:
            TooManyRejectedError: it is not finite, here or where the other columns are.
        """
        if not shards.finite(kernels.largest(output)):
            raise TooManyRejectedError(
                f"{self.name}: at most {self.max_rejected(n)} of the n={n} values of a coordinate "
                "may be non-finite, found more"
            )
        return output
