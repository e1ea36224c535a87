"""Columns of rows as compiled functions take them: contiguous, in multiples, a range to a task."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, TypeAlias

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
"""Most tasks with memory of their own, beside that of the columns beyond the last whole vector."""

SCRATCH_SHARE = 20
"""That memory is at most one 20th of the rows, …"""

LEAST_SCRATCH = 1 << 21
"""… or 2 MiB, or what a single task of each block needs."""

COPIED_NUMBERS = 1 << 20
"""Numbers copied at a time where columns are not contiguous: what a cache holds."""


class Block(NamedTuple):
    """Columns of rows from `first` on, contiguous and a multiple of a unit."""

    first: int
    rows: Tensor


def contiguous(rows: Tensor, unit: int) -> Iterator[list[Block]]:
    """All columns as blocks, those together that are there at the same time; padded at the end.

    All at once where the rows are contiguous, else copies, each in the place of the one before.
    """
    n, d = rows.shape
    whole = d - d % unit
    rest = [Block(whole, padded(rows, whole, d, unit))] if whole < d else []
    if rows.stride(-1) != 1:
        width = max(1, COPIED_NUMBERS // n // unit) * unit
        copy = rows.new_empty(n, min(width, whole))
        for lo, hi in ranges(whole, width):
            yield [Block(lo, copy[:, : hi - lo].copy_(rows[:, lo:hi]))]
    elif whole:
        rest.insert(0, Block(0, rows if whole == d else rows[:, :whole]))
    if rest:
        yield rest


@dataclass(frozen=True)
class Tasks:
    """Columns of blocks in ranges of `each`, at least one of a block, its last perhaps shorter."""

    blocks: Sequence[Block]
    each: int

    @cached_property
    def _begins(self) -> list[tuple[int, int]]:
        """Of every task: its block's place, and its first column there."""
        widths = enumerate(block.rows.shape[-1] for block in self.blocks)
        return [(place, lo) for place, width in widths for lo in range(0, width, self.each)]

    def __len__(self) -> int:
        return len(self._begins)

    @property
    def widths(self) -> list[int]:
        """How many columns a task has."""
        return [
            min(self.each, self.blocks[place].rows.shape[-1] - lo) for place, lo in self._begins
        ]

    @property
    def strides(self) -> list[int]:
        """From a row to the next, in numbers."""
        return self.same([block.rows.stride(0) for block in self.blocks])

    @property
    def rows(self) -> list[int]:
        """Where a task's columns of the blocks' rows begin in memory."""
        return self.among([block.rows for block in self.blocks])

    def among(self, tensors: Sequence[Tensor]) -> list[int]:
        """Where a task's columns begin in a tensor for each block that has the block's columns."""
        found = [(tensor.data_ptr(), tensor.element_size()) for tensor in tensors]
        return [found[place][0] + lo * found[place][1] for place, lo in self._begins]

    def columns(self, tensor: Tensor) -> list[int]:
        """Where a task's columns begin in a tensor that has all columns."""
        begin, size = tensor.data_ptr(), tensor.element_size()
        return [begin + (self.blocks[place].first + lo) * size for place, lo in self._begins]

    def same(self, values: Sequence[int]) -> list[int]:
        """What is the same for all tasks of a block."""
        return [values[place] for place, _ in self._begins]


def tasks(together: Sequence[Block], unit: int, *, each: int = 0) -> Tasks:
    """Ranges of columns, multiples of `unit`; how many depends on the shapes alone.

    Where each needs so many bytes for itself, no more than their share of the memory allows.
    """
    n, width = together[0].rows.shape
    columns = TASK_NUMBERS // n // unit
    if each:
        share = together[0].rows.nbytes // SCRATCH_SHARE
        able = max(LEAST_SCRATCH, share) // each - len(together) + 1
        columns = max(columns, -(-width // unit // max(1, min(MOST_TASKS, able))))
    return Tasks(together, max(1, columns) * unit)


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


def beside(together: Sequence[Block], tensor: Tensor, unit: int) -> list[Tensor]:
    """The columns of the blocks, as :func:`padded`, of a tensor that has all but the padding."""
    d = tensor.shape[-1]
    ends = [min(first + rows.shape[-1], d) for first, rows in together]
    return [padded(tensor, b.first, end, unit) for b, end in zip(together, ends, strict=True)]


def output(rows: Tensor, unit: int, *count: int) -> Tensor:
    """Room for a number a column, up to a multiple of `unit`; zeros beyond the columns."""
    d = rows.shape[1]
    out = advised(rows.new_empty(*count, -(-d // unit) * unit, dtype=compute_dtype(rows.dtype)))
    if d % unit:
        out[..., d:] = 0.0
    return out


def own(tensor: Tensor) -> range:
    """Where each ``tensor[i]`` begins in memory, which task i has to itself."""
    begin, step = tensor.data_ptr(), tensor.stride(0) * tensor.element_size()
    return range(begin, begin + len(tensor) * step, step)
