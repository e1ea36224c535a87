"""Which compiled program takes order statistics of so many rows, and what it must be given."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import cache, lru_cache

import torch
from torch import Tensor

from robust_agg.kernels import llvm, programs, tables
from robust_agg.kernels.reference import OrderMean
from robust_agg.kernels.vectors import Lanes

LARGEST_NETWORK = 64
"""Most values a straight-line network selects from; it compiles in 0.1 s, the next in more."""

LARGEST_TABLE = 2048
"""Most values a network in a table selects from; beyond, they leave the L2 cache."""

COMPILE_AFTER = 1 << 12
"""Numbers, times n², after whose sorting a network is compiled, which takes about as long."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Selection:
    """A program over columns, with the arguments that are the same for all columns.

    Attributes:
        program: to be compiled, alone or as a part of another.
        unit: the multiple that its `width` must be.
        room: numbers of the working precision that a task needs for itself, `values`.
        arguments: addresses and integers.
        tables: what is at those addresses.
    """

    program: llvm.Function
    unit: int
    room: int
    arguments: dict[str, int]
    tables: tuple[Tensor, ...] = ()


def order_mean(n: int, wanted: OrderMean, lanes: Lanes, numbers: int) -> Selection | None:
    """The program for ``reference.order_mean`` of `numbers` numbers; None if sorting is cheaper."""
    # A program with a table chooses between two values for each that is left out.
    if n > LARGEST_TABLE or (n > LARGEST_NETWORK and 2 * (wanted.far or 0) >= n):
        return None
    if n > LARGEST_NETWORK:
        return _by_table(n, wanted, lanes)
    return _straight(n, wanted, lanes) if _is_due((n, wanted, lanes), numbers) else None


def pulled_median(n: int, lanes: Lanes, numbers: int) -> Selection | None:
    """The program for ``reference.pulled_median``; the point and the offsets are to be added."""
    if n > LARGEST_TABLE:
        return None
    if n > LARGEST_NETWORK:
        return _pulled_by_table(n, lanes)
    return _straight(n, None, lanes) if _is_due((n, None, lanes), numbers) else None


_seen: Counter[tuple[int, OrderMean | None, Lanes]] = Counter()


def _is_due(key: tuple[int, OrderMean | None, Lanes], numbers: int) -> bool:
    _seen[key] += numbers
    return _seen[key] >= COMPILE_AFTER * key[0] ** 2


@lru_cache(maxsize=256)
def _straight(n: int, wanted: OrderMean | None, lanes: Lanes) -> Selection:
    if wanted is None:
        program = programs.pulled_median(n, lanes)
    else:
        program = programs.order_mean(n, wanted, lanes)
    return Selection(program=program, unit=lanes.width, room=0, arguments={})


@lru_cache(maxsize=256)
def _by_table(n: int, wanted: OrderMean, lanes: Lanes) -> Selection:
    dtype = torch.float64 if lanes.number == "double" else torch.float32
    constants = tables.constants(n, wanted, dtype)
    return _over_table(
        _table_program(lanes, wanted.far is not None),
        n,
        lanes,
        tables.runs(n, wanted),
        constants,
        constants=constants.data_ptr(),
        start=wanted.start,
        stop=wanted.stop,
        far=wanted.far or 0,
    )


@lru_cache(maxsize=256)
def _pulled_by_table(n: int, lanes: Lanes) -> Selection:
    return _over_table(_pulled_program(lanes), n, lanes, tables.runs(n, OrderMean(0, n)))


def _over_table(
    program: llvm.Function,
    n: int,
    lanes: Lanes,
    network: Tensor,
    *others: Tensor,
    **arguments: int,
) -> Selection:
    unit = tables.VECTORS * lanes.width
    arguments.update(n=n, network=network.data_ptr(), runs=len(network))
    return Selection(
        program=program,
        unit=unit,
        room=n * unit,
        arguments=arguments,
        tables=(network, *others),
    )


@cache
def _table_program(lanes: Lanes, around: bool) -> llvm.Function:
    return tables.order_mean(lanes, around=around)


@cache
def _pulled_program(lanes: Lanes) -> llvm.Function:
    return tables.pulled_median(lanes)
