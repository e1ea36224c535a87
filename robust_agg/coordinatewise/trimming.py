"""What the rules that leave out f values of each coordinate, or 2f, have in common."""

from __future__ import annotations

from dataclasses import dataclass

from robust_agg.aggregator import Invariance
from robust_agg.coordinatewise.order_statistics import OrderStatistics
from robust_agg.errors import check_count, check_honest_majority


@dataclass(frozen=True, kw_only=True)
class Trimming(OrderStatistics):
    """A rule that bears f wrong values in each coordinate.

    Attributes:
        f: declared number of Byzantine rows; n >= 2f + 1 is required.
    """

    f: int

    def __post_init__(self) -> None:
        check_count(self.name, "f", self.f, minimum=0)

    @property
    def invariances(self) -> frozenset[Invariance]:
        # Where nothing is left out it is the mean, which follows rotations too.
        return frozenset(Invariance) - ({Invariance.ROTATION} if self.f > 0 else set())

    def check(self, n: int) -> None:
        check_honest_majority(self.name, n, self.f)

    def max_rejected(self, n: int) -> int:
        return self.f
