"""The coordinate-wise trimmed mean that leaves out a share of the values."""

from __future__ import annotations

from dataclasses import dataclass
from math import floor

from robust_agg.aggregator import Invariance
from robust_agg.coordinatewise.order_statistics import OrderStatistics
from robust_agg.coordinatewise.trimmed_mean import TrimmedMean
from robust_agg.errors import check_share


@dataclass(frozen=True, kw_only=True)
class BetaTrimmedMean(OrderStatistics):
    """The mean of each coordinate without its ⌊βn⌋ smallest and ⌊βn⌋ largest values.

    Yin et al., "Byzantine-Robust Distributed Learning: Towards Optimal Statistical Rates",
    ICML 2018, definition 2. It is ``TrimmedMean(f=⌊βn⌋)`` whatever n turns out to be, and bears as
    many bad rows. Flower trims ``int(β·n)``, which is 28 for 0.29 · 100; here that is 29.

    Attributes:
        beta: β in [0, 1/2), the share of the n values that is left out at either end.
    """

    beta: float

    def __post_init__(self) -> None:
        check_share(self.name, "beta", self.beta, zero=True, end=0.5)

    @property
    def invariances(self) -> frozenset[Invariance]:
        return frozenset(Invariance) - ({Invariance.ROTATION} if self.beta > 0 else set())

    def check(self, n: int) -> None:
        """Any n >= 1 will do: some value is always left."""

    def max_rejected(self, n: int) -> int:
        return self.trimmed(n)

    def kappa(self, n: int, f: int) -> float | None:
        return TrimmedMean(f=self.trimmed(n)).kappa(n, f)

    def kept(self, n: int) -> tuple[int, int]:
        return self.trimmed(n), n - self.trimmed(n)

    def trimmed(self, n: int) -> int:
        """⌊βn⌋, as large as β allows where βn is a little less than a whole number by rounding."""
        return min(floor(self.beta * n * (1 + 1e-12)), (n - 1) // 2)
