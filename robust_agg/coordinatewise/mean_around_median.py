"""The mean around the median (MeaMed)."""

from __future__ import annotations

from dataclasses import dataclass

from robust_agg.coordinatewise.trimming import Trimming


@dataclass(frozen=True, kw_only=True)
class MeanAroundMedian(Trimming):
    """The mean of the n - f values of each coordinate that are nearest to their median.

    Xie, Koyejo & Gupta, "Generalized Byzantine-tolerant SGD", 2018, definition 7 ("MeaMed"). Of two
    values as far from the median, one below and one above, the lower one is kept.

    Attributes:
        f: declared number of Byzantine rows; n >= 2f + 1 is required.
    """

    def kept(self, n: int) -> tuple[int, int]:
        return (n - 1) // 2, n // 2 + 1

    def far(self, n: int) -> int:
        return self.f
