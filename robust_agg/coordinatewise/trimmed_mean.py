"""The coordinate-wise trimmed mean."""

from __future__ import annotations

from dataclasses import dataclass

from robust_agg.coordinatewise.trimming import Trimming


@dataclass(frozen=True, kw_only=True)
class TrimmedMean(Trimming):
    """The mean of each coordinate without its f smallest and f largest values.

    Yin et al., "Byzantine-Robust Distributed Learning: Towards Optimal Statistical Rates",
    ICML 2018, definition 2, with the trimmed number given as f rather than as a fraction.

    Attributes:
        f: declared number of Byzantine rows; n >= 2f + 1 is required.
    """

    def kappa(self, n: int, f: int) -> float | None:
        """``6f/(n-2f) · (1 + f/(n-2f))`` (Allouah et al., AISTATS 2023, Proposition on CWTM)."""
        if f > self.f or n <= 2 * self.f:
            return None
        f = self.f
        return 6 * f / (n - 2 * f) * (1 + f / (n - 2 * f))

    def kept(self, n: int) -> tuple[int, int]:
        return self.f, n - self.f
