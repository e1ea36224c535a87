"""Columns of rows as compiled functions take them: contiguous, in multiples, a range to a task."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import repeat
from typing import Any, TypeAlias

from numpy.typing import NDArray
from torch import Tensor

from robust_agg.kernels.pages import advised
from robust_agg.kernels.reference import compute_dtype
from robust_agg.kernels.threads import ranges

Array: TypeAlias = NDArray[Any]

SMALLEST_COMPILED = 1 << 16
"""Numbers from which on kernels are compiled that do not depend on how many rows there are."""

TASK_NUMBERS = 1 << 18
"""Numbers a thread takes at a time; fixed, so that sums do not depend on the number of threads."""

MOST_TASKS = 64
"""Most tasks with memory of their own."""

SCRATCH_SHARE = 20
"""That memory is at most one 20th of the rows, …"""

LEAST_SCRATCH = 1 << 21
"""… or 2 MiB, or what a single task needs."""

COPIED_NUMBERS = 1 << 20
"""Numbers copied at a time where columns are not contiguous: what a cache holds."""


def contiguous(rows: Tensor, unit: int) -> Iterator[tuple[int, Tensor]]:
    """First column, and columns that are contiguous and a multiple of `unit`: padded at the end.

    All at once where the rows are so in memory, else copies, each in the place of the one before.
    """
    n, d = rows.shape
    whole = d - d % unit
    if rows.stride(-1) != 1:
        width = max(1, COPIED_NUMBERS // n // unit) * unit
        copy = rows.new_empty(n, min(width, whole))
        for lo, hi in ranges(whole, width):
            yield lo, copy[:, : hi - lo].copy_(rows[:, lo:hi])
    elif whole:
        yield 0, rows if whole == d else rows[:, :whole]
    if whole < d:
        yield whole, padded(rows, whole, d, unit)


@dataclass(frozen=True)
class Tasks:
    """`width` columns, at least 1, in ranges of `each`, the last one perhaps shorter."""

    width: int
    each: int

    def __len__(self) -> int:
        return (self.width + self.each - 1) // self.each

    @property
    def widths(self) -> list[int]:
        """How many columns a task has."""
        before = len(self) - 1
        return [*repeat(self.each, before), self.width - before * self.each]

    def columns(self, tensor: Tensor, first: int = 0) -> range:
        """Where a task's columns begin in memory, the first task's being column `first`."""
        return _addresses(tensor, first, len(self), self.each)


def tasks(block: Tensor, unit: int, *, each: int = 0) -> Tasks:
    """Ranges of columns, multiples of `unit`; how many depends on the shape alone.

    Where each needs so many bytes for itself, no more than their share of the memory allows.
    """
    n, width = block.shape
    columns = TASK_NUMBERS // n // unit
    if each:
        able = max(LEAST_SCRATCH, block.numel() * block.element_size() // SCRATCH_SHARE) // each
        columns = max(columns, -(-width // unit // max(1, min(MOST_TASKS, able))))
    return Tasks(width, max(1, columns) * unit)


def padded(tensor: Tensor, lo: int, hi: int, unit: int) -> Tensor:
    """Columns lo .. hi - 1, contiguous, then zeros up to a multiple of `unit`; a view if able."""
    block = tensor[..., lo:hi]
    width = -(-(hi - lo) // unit) * unit
    if width == hi - lo and block.stride(-1) == 1:
        return block
    copied = block.new_empty(*block.shape[:-1], width)
    copied[..., : hi - lo] = block
    copied[..., hi - lo :] = 0
    return copied


def output(rows: Tensor, unit: int, *count: int) -> Tensor:
    """Room for a number a column, up to a multiple of `unit`; zeros beyond the columns."""
    d = rows.shape[1]
    out = advised(rows.new_empty(*count, -(-d // unit) * unit, dtype=compute_dtype(rows.dtype)))
    if d % unit:
        out[..., d:] = 0.0
    return out


def own(tensor: Tensor) -> range:
    """Where each ``tensor[i]`` begins in memory, which task i has to itself."""
    return _addresses(tensor, 0, len(tensor), tensor.stride(0))


def _addresses(tensor: Tensor, first: int, count: int, pitch: int) -> range:
    size = tensor.element_size()
    begin, step = tensor.data_ptr() + first * size, pitch * size
    return range(begin, begin + count * step, step)
