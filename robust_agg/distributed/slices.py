"""How the coordinates of a vector are dealt out to the ranks."""

from __future__ import annotations

from dataclasses import dataclass

_ALIGNED = 16
# Numbers: a slice begins where a vector register may, whatever the dtype.


@dataclass(frozen=True)
class Slices:
    """Coordinates 0 … d-1 in consecutive slices, one a rank, as even as their alignment allows.

    All slices have ``width`` coordinates but the last ones, which are shorter or empty: side by
    side, in buffers of ``width``, they are the vector, and what pads them stands at its end.

    Attributes:
        d: coordinates of the vector.
        ranks: n, how many share them.
    """

    d: int
    ranks: int

    @property
    def width(self) -> int:
        """Of the longest slice: ``⌈d/n⌉``, rounded up where that leaves no rank without."""
        even = -(-self.d // self.ranks)
        aligned = -(-even // _ALIGNED) * _ALIGNED
        return aligned if aligned * (self.ranks - 1) < self.d else even

    def size(self, rank: int) -> int:
        """How many coordinates the rank has."""
        return max(0, min(self.width, self.d - rank * self.width))

    @property
    def sizes(self) -> list[int]:
        """Those of all ranks; they sum to d."""
        return [self.size(rank) for rank in range(self.ranks)]

    def of(self, rank: int) -> slice:
        """The rank's coordinates."""
        start = min(self.d, rank * self.width)
        return slice(start, start + self.size(rank))
