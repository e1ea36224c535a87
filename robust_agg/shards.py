"""Who holds the columns of the rows: this process alone, or others too.

A rule is written once, for the columns ``(n, k)`` that are here. Whatever it must know of whole
rows (a Gram matrix, distances, whether a number is finite) adds up over the columns, so it asks for
the sum; those who hold the other columns ask for the same sums in the same order.
"""

from __future__ import annotations

from math import isfinite

import torch
from torch import Tensor

from robust_agg import kernels


class Shards:
    """All columns are here: a sum over their holders is what was measured.

    Where the columns are shared out, a subclass overrides all of this. Its answers must be the same
    to the bit for all holders, for they decide by them.
    """

    def sum(self, part: Tensor) -> Tensor:
        """The sum of the holders' ``part``, a small float64 tensor on the CPU."""
        return part

    def largest(self, value: float) -> float:
        """The largest of the holders' ``value``, which is not NaN."""
        return value

    def finite(self, value: float) -> bool:
        """Whether the ``value`` of every holder, which is not NaN, is finite."""
        return isfinite(value)

    def join(self, part: Tensor) -> Tensor:
        """The holders' ``(n, k)`` side by side, in the order of their columns."""
        return part

    def columns(self, here: int) -> int:
        """How many columns there are where ``here`` of them are here."""
        return here

    def spread(self, here: int, count: int) -> Tensor | slice:
        """Of ``count`` evenly spaced columns among all, those among the ``here`` that are here.

        All columns where they are not more.
        """
        return slice(None) if here <= count else evenly_spaced(here, count)

    def drawn(self, here: int, count: int, generator: torch.Generator) -> Tensor | slice:
        """Of ``count`` columns drawn among all, those among the ``here`` that are here.

        All columns where they are not more; nothing is drawn then.
        """
        return slice(None) if here <= count else randomly_drawn(here, count, generator)

    def distances(self, rows: Tensor, point: Tensor) -> Tensor:
        """``‖x_i - p‖₂`` of whole rows, ``(n,)`` float64 on the CPU; ``rows`` and p as here."""
        return kernels.row_distances(rows, point)


WHOLE = Shards()
"""All columns are here."""


def evenly_spaced(d: int, count: int) -> Tensor:
    """``(count,)`` places in 0 … d-1, ascending, from the first to the last."""
    return torch.linspace(0, d - 1, count, dtype=torch.float64, device="cpu").long()


def randomly_drawn(d: int, count: int, generator: torch.Generator) -> Tensor:
    """``(count,)`` different places in 0 … d-1, ascending, each set of them as likely.

    In the memory of as many numbers, not of a permutation of all.
    """
    few = min(count, d - count)
    places = torch.empty(0, dtype=torch.int64, device="cpu")
    while len(places) < few:
        more = torch.randint(d, (few - len(places),), generator=generator, device="cpu")
        places = torch.cat([places, more]).unique()
    if few == count:
        return places
    left = torch.ones(d, dtype=torch.bool, device="cpu")
    left[places] = False
    return left.nonzero().flatten()
