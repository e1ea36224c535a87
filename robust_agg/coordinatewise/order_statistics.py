"""What the rules that average some of the sorted values of each coordinate have in common."""

from __future__ import annotations

from abc import abstractmethod

from torch import Tensor

from robust_agg import kernels
from robust_agg.aggregator import Coordinatewise
from robust_agg.shards import WHOLE, Shards


class OrderStatistics(Coordinatewise):
    """A rule that averages some of the sorted values of each coordinate, NaN ordered as +Inf.

    A subclass says which, by :meth:`kept` and :meth:`far`, and nothing else: a chain asks for them.
    Non-finite values are discarded with the other extremes.
    """

    @abstractmethod
    def kept(self, n: int) -> tuple[int, int]:
        """``(start, stop)``: the order statistics, from 0, whose mean is the result."""

    def far(self, n: int) -> int | None:
        """How many values are left out for being farthest from that mean, for a mean of the rest.

        None where the first mean is the result.
        """
        return None

    def of_rows(self, rows: Tensor) -> Tensor:
        n = rows.shape[0]
        far = self.far(n)
        if far is None:
            return kernels.sorted_mean(rows, *self.kept(n))
        return kernels.mean_around(rows, *self.kept(n), far)

    def of_mixed(self, rows: Tensor, coefficients: Tensor, *, shards: Shards = WHOLE) -> Tensor:
        m = len(coefficients)
        found = kernels.mixed_order_mean(rows, coefficients, *self.kept(m), self.far(m))
        return self.finite(found, m, shards)
