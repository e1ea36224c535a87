"""Phocas: the mean around the trimmed mean."""

from __future__ import annotations

from dataclasses import dataclass

from robust_agg.coordinatewise.trimming import Trimming


@dataclass(frozen=True, kw_only=True)
class Phocas(Trimming):
    """The mean of the n - f values of each coordinate that are nearest to their f-trimmed mean.

    Xie, Koyejo & Gupta, "Phocas: dimensional Byzantine-resilient stochastic gradient descent",
    2018, definition 8. Of two values as far from it, one below and one above, the lower is kept.

    Attributes:
        f: declared number of Byzantine rows; n >= 2f + 1 is required.
    """

    def kept(self, n: int) -> tuple[int, int]:
        return self.f, n - self.f

    def far(self, n: int) -> int:
        return self.f
