"""The coordinate-wise median."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from robust_agg.aggregator import Invariance
from robust_agg.coordinatewise.order_statistics import OrderStatistics
from robust_agg.errors import check_choice

Even = Literal["midpoint", "lower"]
"""The median of an even number of values; see :class:`CoordinateWiseMedian`."""


@dataclass(frozen=True, kw_only=True)
class CoordinateWiseMedian(OrderStatistics):
    """The median of each coordinate.

    Yin et al., "Byzantine-Robust Distributed Learning: Towards Optimal Statistical Rates",
    ICML 2018, definition 1.

    Attributes:
        even: of an even n, the ``"midpoint"`` of the two middle values (numpy, ByzFL), or the
            ``"lower"`` one (``torch.median``, and so ByzPy), which is a value that some row has.
    """

    even: Even = "midpoint"

    def __post_init__(self) -> None:
        check_choice(self.name, "even", self.even, get_args(Even))

    @property
    def invariances(self) -> frozenset[Invariance]:
        return frozenset(Invariance) - {Invariance.ROTATION}

    def check(self, n: int) -> None:
        """Any n >= 1 will do; f does not enter."""

    def max_rejected(self, n: int) -> int:
        return (n - 1) // 2

    def kappa(self, n: int, f: int) -> float | None:
        """``4 (1 + f/(n-2f))²`` (Allouah et al., AISTATS 2023, Proposition on CWMed).

        Of either middle value: at least half of n - 2f honest values lie on each side of it.
        """
        return None if n <= 2 * f else 4 * (1 + f / (n - 2 * f)) ** 2

    def kept(self, n: int) -> tuple[int, int]:
        lower = (n - 1) // 2
        return lower, (n // 2 if self.even == "midpoint" else lower) + 1
