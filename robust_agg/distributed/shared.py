"""The columns of the rows, shared out among ranks."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite

import torch
from torch import Tensor

from robust_agg import kernels
from robust_agg.distributed.ranks import Ranks
from robust_agg.shards import Shards, evenly_spaced, randomly_drawn


class SharedColumns(Shards):
    """Every rank has some columns of all rows; what is measured of them is summed over the ranks.

    What ranks then decide by the sums they decide by themselves, and alike: on the same kind of
    processor, with the same torch. One that rounds otherwise could take another turn in a rule that
    iterates, and the others would wait for it until their time is up.

    Args:
        ranks: who has columns.
        counts: how many each rank has.
    """

    def __init__(self, ranks: Ranks, counts: Sequence[int]) -> None:
        self._ranks, self._counts = ranks, counts

    def sum(self, part: Tensor) -> Tensor:
        return self._ranks.sum(part)

    def largest(self, value: float) -> float:
        return self._ranks.largest(value)

    def finite(self, value: float) -> bool:
        return isfinite(self._ranks.largest(value))

    def columns(self, here: int) -> int:
        return sum(self._counts)

    def distances(self, rows: Tensor, point: Tensor) -> Tensor:
        return self._ranks.sum(kernels.row_distances(rows, point).square()).sqrt()

    def spread(self, here: int, count: int) -> Tensor | slice:
        total = sum(self._counts)
        return self._own(torch.arange(total) if total <= count else evenly_spaced(total, count))

    def drawn(self, here: int, count: int, generator: torch.Generator) -> Tensor:
        total = sum(self._counts)
        every = total <= count
        return self._own(torch.arange(total) if every else randomly_drawn(total, count, generator))

    def join(self, part: Tensor) -> Tensor:
        n, here = part.shape
        own = torch.zeros(self._ranks.size, dtype=torch.float64)
        own[self._ranks.rank] = here
        counts = [int(count) for count in self._ranks.sum(own)]
        padded = part.new_zeros(n, max(counts))
        padded[:, :here] = part
        parts = self._ranks.gather(padded, "the joining of columns")
        return torch.cat([p[:, :count] for p, count in zip(parts, counts, strict=True)], dim=1)

    def _own(self, chosen: Tensor) -> Tensor:
        """Of the places among all columns those that are here, as they are counted here."""
        start = sum(self._counts[: self._ranks.rank])
        stop = start + self._counts[self._ranks.rank]
        return chosen[(chosen >= start) & (chosen < stop)] - start
