"""What a mixing is: coefficients of new points over the points it sees."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar, NamedTuple, TypeAlias

import torch
from torch import Tensor

from robust_agg.aggregator import Invariance
from robust_agg.span import Geometry

Kappa: TypeAlias = Callable[[int, int], float | None]
"""Of how many points, and how many bad ones of them, to a κ: see ``Aggregator.kappa``."""


class Mixed(NamedTuple):
    """A mixing's answer.

    Attributes:
        coefficients: ``(m', m)`` float64; row i makes the new point i, zero for rejected points.
        accepted: ``(m',)`` bool; False for a new point that is rejected.
    """

    coefficients: Tensor
    accepted: Tensor


class Mixing(ABC):
    """A pre-aggregator, a frozen dataclass of its parameters. f is not changed by mixing.

    That is, a stage of a chain goes by its own f, whatever was mixed before it. Where a mixing
    leaves fewer points, or more of them bad, it takes a rule that bears these: :meth:`check` says
    how many points there are, :meth:`spoiled` how many may be bad, and ``check_declared`` walks a
    chain with both.
    """

    sees_distances: ClassVar[bool] = True
    """False for what multiplies each row by a number and asks for no more than norms, which are
    measured in half the time; combined rows have norms that depend on their distances."""

    in_place: ClassVar[bool] = False
    """Whether point i is made of row i and of what is near it, so that to trust one is to trust the
    other."""

    @property
    def name(self) -> str:
        """How the mixing is called in error messages and in the name of its chain."""
        return type(self).__name__

    @property
    @abstractmethod
    def invariances(self) -> frozenset[Invariance]:
        """The transformations that the mixed rows follow (as a set, for permutations)."""

    @abstractmethod
    def check(self, n: int) -> int:
        """The number of mixed rows; raises ``ConstraintError`` if n rows are too few."""

    @abstractmethod
    def max_rejected(self, n: int) -> int:
        """How many of n rows may be rejected before a chain raises."""

    def spoiled(self, f: int) -> int:
        """How many points f bad rows can make bad at most, whatever is drawn."""
        return f

    def kappa(self, n: int, f: int, following: Kappa) -> float | None:
        """κ of this mixing and what follows, whose own is ``following``; None where unknown."""
        return None

    def loses_digits(self, geometry: Geometry) -> bool:
        """Whether ``geometry`` tells too little of what this mixing does about the origin.

        Differences of points do not depend on the centre; their norms are differences of larger
        numbers where the centre is far and a point near the origin. The chain then measures the
        rows again, about the origin.
        """
        return False

    @abstractmethod
    def mix(self, geometry: Geometry, generator: torch.Generator | None) -> Mixed:
        """The new points over the geometry's points."""
