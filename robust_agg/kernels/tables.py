"""Order statistics of so many rows that a network in straight-line code would leave the caches.

The comparators come from a table instead, and the values lie in a buffer: slower than registers,
but the code is small and the same for any number of rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import count as count_from
from itertools import groupby

import torch
from torch import Tensor

from robust_agg.kernels.llvm import Function
from robust_agg.kernels.networks import selection_network
from robust_agg.kernels.reference import OrderMean
from robust_agg.kernels.vectors import (
    Lanes,
    broadcast,
    element,
    larger,
    load,
    multiply_add,
    nearer,
    smaller,
    store,
    where_finite,
    without_nan,
)

VECTORS = 2
"""Vectors of columns for which a comparator is read once; their values should fit the L1 cache."""


def runs(n: int, wanted: OrderMean) -> Tensor:
    """Comparators of a network that puts the values which are wanted in their places.

    (runs, 4) int64: first low place, gap to the high one, step from one low to the next, count.
    """
    whole = wanted.far is not None
    start, stop = (0, n) if whole else (wanted.start, wanted.stop)
    lines: list[tuple[int, int, int, int]] = []
    network = selection_network(n, start, stop)
    # Those of one gap in a row touch no value twice: their order is free.
    for gap, level in groupby(network, lambda each: each.high - each.low):
        lows = [each.low for each in level]
        together, apart = (_progressions(lows, gap, step) for step in (1, 2 * gap))
        lines += together if len(together) < len(apart) else apart
    return torch.tensor(lines, dtype=torch.int64, device="cpu").reshape(-1, 4)


def _progressions(lows: list[int], gap: int, step: int) -> list[tuple[int, int, int, int]]:
    left, lines = set(lows), []
    for first in sorted(lows):
        if first in left:
            count = next(k for k in count_from(1) if first + k * step not in left)
            left.difference_update(range(first, first + count * step, step))
            lines.append((first, gap, step, count))
    return lines


def constants(n: int, wanted: OrderMean, dtype: torch.dtype) -> Tensor:
    """For the mean, and for the one around it: of how many values, 1/scale and scale.

    The scale is a power of two by which values are made so small that their sum is a number.
    """
    counts = [wanted.stop - wanted.start, *([] if wanted.far is None else [n - wanted.far])]
    scales = [2.0 ** count.bit_length() for count in counts]
    lines = [(count, 1 / scale, scale) for count, scale in zip(counts, scales, strict=True)]
    return torch.tensor(lines, dtype=dtype, device="cpu")


def order_mean(lanes: Lanes, *, around: bool) -> Function:
    """`programs.order_mean` of any number of rows; `around` the mean, without `far`, or the mean.

    `network` holds `runs` of comparators, `constants` a line for each mean, and `values` is room
    for n times `VECTORS` vectors.
    """
    f = _function("order_mean_by_table", ["constants"], ["start", "stop", "far"])
    with _sorted_columns(f, lanes) as column:
        means = _centres(f, lanes)
        _store(f, lanes, column, _means_around(f, lanes, means) if around else means)
    return f


def pulled_median(lanes: Lanes) -> Function:
    """`programs.pulled_median` of any number of rows."""
    plain = Lanes(storage=lanes.number, width=lanes.width)
    f = _function("pulled_median_by_table", ["point", "offsets"], [])
    with _sorted_columns(f, lanes) as column:
        source = element(f, lanes.number, "%point", column)
        points = [
            without_nan(f, lanes, load(f, plain, source, str(k * lanes.width)))
            for k in range(VECTORS)
        ]
        least = [(lanes.vector, value) for value in _pulled(f, lanes, points, "%n")]
        with f.loop("0", "%n", 1, least) as rows:
            others = _pulled(
                f, lanes, points, f.let(f"sub i64 {f.let('sub i64 %n, 1')}, {rows.index}")
            )
            later = [
                larger(f, lanes, *pair)
                for pair in zip(_get(f, lanes, rows.index), others, strict=True)
            ]
            rows.following = [
                smaller(f, lanes, *pair) for pair in zip(rows.carried, later, strict=True)
            ]
        _store(f, lanes, column, rows.carried)
    return f


def _function(name: str, pointers: list[str], integers: list[str]) -> Function:
    pointers = ["rows", "network", "values", "out", *pointers]
    integers = ["stride", "n", "width", "runs", *integers]
    return Function(name, {**dict.fromkeys(pointers, "ptr"), **dict.fromkeys(integers, "i64")})


@contextmanager
def _sorted_columns(f: Function, lanes: Lanes) -> Iterator[str]:
    """A loop over columns, in whose body their values are in their places."""
    with f.loop("0", "%width", VECTORS * lanes.width) as columns:
        _fill(f, lanes, columns.index)
        _exchange(f, lanes)
        yield columns.index


def _pulled(f: Function, lanes: Lanes, points: Sequence[str], k: str) -> list[str]:
    """``point + offsets[k]``."""
    address = element(f, lanes.number, "%offsets", k)
    offset = broadcast(f, lanes, f.let(f"load {lanes.number}, ptr {address}"))
    return [f.let(f"fadd {lanes.vector} {point}, {offset}") for point in points]


def _store(f: Function, lanes: Lanes, column: str, found: Sequence[str]) -> None:
    for k, value in enumerate(found):
        place = f.let(f"add i64 {column}, {k * lanes.width}")
        value = f.let(f"fadd {lanes.vector} {value}, {lanes.splat('0.0')}")
        store(f, lanes, "%out", place, value)


def _fill(f: Function, lanes: Lanes, column: str) -> None:
    """The values of these columns, widened, NaN as +Inf."""
    with f.loop("0", "%n", 1) as rows:
        first = f.let(f"add i64 {f.let(f'mul i64 {rows.index}, %stride')}, {column}")
        source = element(f, lanes.storage, "%rows", first)
        values = [
            without_nan(f, lanes, load(f, lanes, source, str(k * lanes.width)))
            for k in range(VECTORS)
        ]
        _put(f, lanes, rows.index, values)


def _exchange(f: Function, lanes: Lanes) -> None:
    with f.loop("0", "%runs", 1) as runs:
        line = f.let(f"mul i64 {runs.index}, 4")
        first, gap, step, count = (
            f.let(f"load i64, ptr {element(f, 'i64', '%network', place)}")
            for place in (line, *(f.let(f"add i64 {line}, {k}") for k in (1, 2, 3)))
        )
        end = f.let(f"add i64 {first}, {f.let(f'mul i64 {step}, {count}')}")
        with f.loop(first, end, step) as lows:
            high = f.let(f"add i64 {lows.index}, {gap}")
            both = list(zip(_get(f, lanes, lows.index), _get(f, lanes, high), strict=True))
            _put(f, lanes, lows.index, [_one_of(f, lanes, "minnum", *pair) for pair in both])
            _put(f, lanes, high, [_one_of(f, lanes, "maxnum", *pair) for pair in both])


def _one_of(f: Function, lanes: Lanes, which: str, left: str, right: str) -> str:
    # A comparison and a choice would be made a masked store, which is slow on some processors.
    # There is no NaN any more, and which zero it is does not matter.
    kind = lanes.vector
    return f.call(
        kind, f"llvm.{which}.{lanes.suffix}", (kind, left), (kind, right), flags="nnan nsz"
    )


def _centres(f: Function, lanes: Lanes) -> list[str]:
    """The means of the values start .. stop - 1."""
    _, small, _ = _constants(f, lanes, 0)
    with f.loop("%start", "%stop", 1, _zeros(lanes, 2)) as rows:
        rows.following = _added(f, lanes, rows.carried, _get(f, lanes, rows.index), small)
    last = f.let("sub i64 %stop, 1")
    bounds = zip(_get(f, lanes, "%start"), _get(f, lanes, last), strict=True)
    return _means(f, lanes, rows.carried, bounds, 0)


def _means_around(f: Function, lanes: Lanes, centres: Sequence[str]) -> list[str]:
    """The means of the n - far values nearest to the centres, of two as near the lower."""
    _, small, _ = _constants(f, lanes, 1)
    near = f.let("sub i64 %n, %far")
    with f.loop("%far", near, 1, _zeros(lanes, 2)) as rows:
        rows.following = _added(f, lanes, rows.carried, _get(f, lanes, rows.index), small)
    lows, highs = _get(f, lanes, "%far"), _get(f, lanes, f.let(f"sub i64 {near}, 1"))
    carried = [(lanes.vector, value) for value in (*rows.carried, *lows, *highs)]
    with f.loop("0", "%far", 1, carried) as pairs:
        belows = _get(f, lanes, pairs.index)
        aboves = _get(f, lanes, f.let(f"add i64 {near}, {pairs.index}"))
        chosen = [
            nearer(f, lanes, centre, below, above)
            for centre, below, above in zip(centres, belows, aboves, strict=True)
        ]
        sums, lows, highs = _thirds(pairs.carried)
        pairs.following = [
            *_added(f, lanes, sums, chosen, small),
            *(smaller(f, lanes, *each) for each in zip(lows, chosen, strict=True)),
            *(larger(f, lanes, *each) for each in zip(highs, chosen, strict=True)),
        ]
    sums, lows, highs = _thirds(pairs.carried)
    return _means(f, lanes, sums, zip(lows, highs, strict=True), 1)


def _thirds(carried: list[str]) -> tuple[list[str], list[str], list[str]]:
    """The sums, plain and scaled, the lower and the upper bounds."""
    return carried[: 2 * VECTORS], carried[2 * VECTORS : 3 * VECTORS], carried[3 * VECTORS :]


def _added(
    f: Function, lanes: Lanes, sums: Sequence[str], values: Sequence[str], small: str
) -> list[str]:
    """The sums, and the scaled sums after them, with values added to both."""
    plain = [
        f.let(f"fadd {lanes.vector} {total}, {value}")
        for total, value in zip(sums[:VECTORS], values, strict=True)
    ]
    scaled = [
        multiply_add(f, lanes, value, small, total)
        for total, value in zip(sums[VECTORS:], values, strict=True)
    ]
    return [*plain, *scaled]


def _means(
    f: Function,
    lanes: Lanes,
    sums: Sequence[str],
    bounds: Iterable[tuple[str, str]],
    line: int,
) -> list[str]:
    count, _, large = _constants(f, lanes, line)
    means = []
    for plain, scaled, (least, largest) in zip(sums[:VECTORS], sums[VECTORS:], bounds, strict=True):
        mean = f.let(f"fdiv {lanes.vector} {plain}, {count}")
        scaled = f.let(f"fdiv {lanes.vector} {scaled}, {count}")
        scaled = f.let(f"fmul {lanes.vector} {scaled}, {large}")
        mean = where_finite(f, lanes, mean, scaled)
        means.append(larger(f, lanes, least, smaller(f, lanes, largest, mean)))
    return means


def _constants(f: Function, lanes: Lanes, line: int) -> list[str]:
    scalars = []
    for place in range(3 * line, 3 * line + 3):
        address = element(f, lanes.number, "%constants", str(place))
        scalars.append(f.let(f"load {lanes.number}, ptr {address}"))
    return [broadcast(f, lanes, scalar) for scalar in scalars]


def _zeros(lanes: Lanes, sets: int) -> list[tuple[str, str]]:
    return [(lanes.vector, "zeroinitializer")] * (sets * VECTORS)


def _get(f: Function, lanes: Lanes, row: str) -> list[str]:
    plain = Lanes(storage=lanes.number, width=lanes.width)
    source = _row(f, lanes, row)
    return [load(f, plain, source, str(k * lanes.width)) for k in range(VECTORS)]


def _put(f: Function, lanes: Lanes, row: str, values: Sequence[str]) -> None:
    target = _row(f, lanes, row)
    for k, value in enumerate(values):
        store(f, lanes, target, str(k * lanes.width), value)


def _row(f: Function, lanes: Lanes, row: str) -> str:
    return element(f, f"[{VECTORS * lanes.width} x {lanes.number}]", "%values", row)
