"""The kernels in Triton: each instance takes some columns of rows (n, d), any strides apart.

Offsets have 64 bits; 16-bit numbers are widened as they are loaded. `rows`, `row_stride` and
`column_stride` are the rows, `columns` is d.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from robust_agg.kernels.reference import OrderMean, median
from robust_agg.kernels.triton_networks import (
    INFINITY,
    load_rows,
    median_of_both,
    order_mean,
    point_at_rows,
    where_finite,
)
from robust_agg.kernels.triton_source import Program, Source

THREADS = 32
"""Threads in a warp."""

LIVE_NUMBERS = 64
"""Numbers a thread holds of as many columns as fit: more would not stay in registers."""

SUMMED = 64
"""Columns whose products are summed in float32, one after another, and from there in float64:
roundings that all go the same way stay within the precision the geometry counts on."""

DOT_WIDTH = 16
"""Columns of which threads hold the factors of a matrix product in registers at a time."""

DOT_PRECISION = "ieee"
"""Of these products: TF32 has 11 bits, in which differences between close rows do not survive."""

SMALLEST_DOT = 16
"""The least side of a matrix that Triton multiplies."""

CACHED = 256
"""Columns whose median is taken before their products: of 64 rows, 64 KiB of float32."""

DISTANCE_ROWS = 8
"""Rows whose distances an instance sums, so that it reads the point once for all of them."""

DISTANCE_WIDTH = 256
"""Columns it takes at a time: with so many rows, 16 sums of float64 to a thread."""

COMBINE_WIDTH = 1024
"""Columns of a single combination, 8 sums to a thread."""

MIX_WIDTH = 512
"""Columns of several combinations, 4 sums to a thread for each."""


def sorted_columns(n: int, wanted: OrderMean, number: str) -> Program:
    """``out[j]`` = the mean of order statistics of column j that is `wanted`, NaN as +Inf."""
    width, warps = _shape(n, number)
    f = Source("order_mean", "rows, row_stride, column_stride, columns, span, out")
    _span(f)
    with _blocks(f, n, width, "start", "stop"):
        mean = order_mean(f, number, load_rows(f, n, number), wanted)
        f.do(f"tl.store(out + column, {mean}, inside)")
    return Program(name=f.name, text=str(f), width=width, warps=warps)


def pulled_median(n: int, number: str) -> Program:
    """``out[j]`` = the median of column j and of ``point[j] + offsets[k]``, k = 0 … n."""
    width, warps = _shape(n, number)
    f = Source(
        "pulled_median",
        "rows, row_stride, column_stride, columns, span, point, point_stride, offsets, out",
    )
    _span(f)
    with _blocks(f, n, width, "start", "stop"):
        values = load_rows(f, n, number)
        f.do("centre = tl.load(point + column * point_stride, mask=inside, other=0.0)")
        pulled = []
        for k in range(n + 1):
            value = f.let(f"centre + tl.load(offsets + {k})")
            pulled.append(f.let(f"tl.where({value} == {value}, {value}, {INFINITY})"))
        f.do(f"tl.store(out + column, {median_of_both(f, values, pulled)}, inside)")
    return Program(name=f.name, text=str(f), width=width, warps=warps)


def centred_gram(n: int, others: int) -> Program:
    """The median c of float32 columns, and the Gram matrix of ``[c, x_i - c, y_k - c]`` around it.

    An instance takes `span` columns. `centre` is c, with 0 where the median is not finite; `extra`
    are the y. Of ``grams[instance]``, (1+n+others)² float64, what is on and above the diagonal is
    written. c and the y, few as they are, are multiplied one by one: as rows of the matrix product
    they would often double its side, a power of two.
    """
    side = max(SMALLEST_DOT, 1 << (n - 1).bit_length())
    warps = 4 if side <= 32 else 8
    width = THREADS * warps
    size = 1 + n + others
    vectors = range(1 + others)
    pairs = [(i, k) for i in vectors for k in vectors if i <= k]
    f = Source(
        "centred_gram",
        "rows, row_stride, column_stride, columns, span, extra, extra_stride, "
        "extra_column_stride, centre, grams",
    )
    f.do(f"each = tl.arange(0, {side})")
    f.do(f"real = each < {n}")
    f.do("each_at = each.to(tl.int64) * row_stride")
    f.do(f"gram = tl.zeros(({side}, {side}), tl.float64)")
    for i in vectors:
        f.do(f"with{i} = tl.zeros(({side},), tl.float64)")
    for i, k in pairs:
        f.do(f"pair{i}_{k} = tl.zeros(({DOT_WIDTH},), tl.float64)")
    _span(f)
    with f.block(f"for near in range(start, stop, {CACHED})"):
        # The median of some columns, then the products of these, which now lie in a cache.
        f.do(f"end = tl.minimum(near + {CACHED}, stop)")
        with _blocks(f, n, width, "near", "end"):
            middle = order_mean(f, "float32", load_rows(f, n, "float32"), median(n))
            f.do(f"tl.store(centre + column, {where_finite(f, middle, '0.0')}, inside)")
        # What one thread has written the others read.
        f.do("tl.debug_barrier()")
        with f.block(f"for begin in range(near, end, {SUMMED})"):
            f.do(f"products = tl.zeros(({side}, {side}), tl.float32)")
            with f.block(f"for turn in range(0, {SUMMED // DOT_WIDTH})"):
                _multiply(f, others)
            f.do("gram += products.to(tl.float64)")
    places = [0, *range(1 + n, size)]
    f.do(f"out = grams + tl.program_id(0).to(tl.int64) * {size * size}")
    for i, k in pairs:
        f.do(f"tl.store(out + {places[i] * size + places[k]}, tl.sum(pair{i}_{k}, axis=0))")
    f.do("tl.store(out + 1 + each, with0, real)")
    for i in vectors[1:]:
        f.do(f"tl.store(out + (1 + each) * {size} + {places[i]}, with{i}, real)")
    f.do(f"place = (1 + each)[:, None] * {size} + (1 + each)[None, :]")
    f.do("tl.store(out + place, gram, real[:, None] & real[None, :])")
    return Program(name=f.name, text=str(f), width=CACHED, warps=warps)


def _multiply(f: Source, others: int) -> None:
    """Adds what `DOT_WIDTH` columns of all vectors give to the sums."""
    f.do(f"narrow = begin + turn * {DOT_WIDTH} + tl.arange(0, {DOT_WIDTH})")
    f.do("known = narrow < stop")
    f.do("c = tl.load(centre + narrow, mask=known, other=0.0)")
    f.do("there = rows + each_at[:, None] + (narrow * column_stride)[None, :]")
    f.do("values = tl.load(there, mask=real[:, None] & known[None, :], other=0.0)")
    f.do("apart = values.to(tl.float32) - c[None, :]")
    f.do(f"products = tl.dot(apart, tl.trans(apart), products, input_precision={DOT_PRECISION!r})")
    vectors = ["c"]
    pointer = "extra"
    for _ in range(others):
        y = f"tl.load({pointer} + narrow * extra_column_stride, mask=known, other=0.0)"
        vectors.append(f.let(f"{y}.to(tl.float32) - c"))
        pointer = f.let(f"{pointer} + extra_stride")
    for i, vector in enumerate(vectors):
        f.do(f"with{i} += tl.sum(apart * {vector}[None, :], axis=1).to(tl.float64)")
        for k, other in enumerate(vectors[i:], start=i):
            f.do(f"pair{i}_{k} += ({vector} * {other}).to(tl.float64)")


def row_distances() -> Program:
    """``sum_j (x_ij - point_j)^2`` in float64 throughout, of `span` columns, to ``sums[part, i]``.

    Instances of one part, a tile of rows each, follow upon another, so that they find the point in
    a cache.
    """
    f = Source(
        "row_distances",
        "rows, row_stride, column_stride, n, columns, span, point, point_stride, sums",
    )
    f.do(f"tiles = tl.cdiv(n, {DISTANCE_ROWS})")
    f.do("part = (tl.program_id(0) // tiles).to(tl.int64)")
    f.do(f"row = (tl.program_id(0) % tiles) * {DISTANCE_ROWS} + tl.arange(0, {DISTANCE_ROWS})")
    f.do("real = row < n")
    f.do("row_at = row.to(tl.int64) * row_stride")
    f.do("start = part * span")
    f.do("stop = tl.minimum(start + span, columns)")
    f.do(f"total = tl.zeros(({DISTANCE_ROWS}, {DISTANCE_WIDTH}), tl.float64)")
    with f.block(f"for first in range(start, stop, {DISTANCE_WIDTH})"):
        f.do(f"column = first + tl.arange(0, {DISTANCE_WIDTH})")
        f.do("inside = column < stop")
        f.do("at = column * column_stride")
        f.do("centre = tl.load(point + column * point_stride, mask=inside, other=0.0)")
        f.do("within = real[:, None] & inside[None, :]")
        f.do("values = tl.load(rows + row_at[:, None] + at[None, :], mask=within, other=0.0)")
        f.do("apart = values.to(tl.float64) - centre.to(tl.float64)[None, :]")
        f.do("total += apart * apart")
    f.do("tl.store(sums + part * n + row, tl.sum(total, axis=1), real)")
    return Program(name=f.name, text=str(f), width=DISTANCE_WIDTH, warps=4)


def combine(tile: int, number: str, base: str) -> Program:
    """``out[k, j] = sum_i factors[k // tile, i, k % tile] * rows[chosen[i], j]``, k < m, i < count.

    The rows of `out` lie `pitch` apart. `base` says what is added, of a tile of 1: "none"; "pull",
    r times the base; "step", the base less r times itself, before which the sum is small. r is the
    last of the factors. Instances of the same columns follow upon another, so that all but the
    first find the rows in a cache.
    """
    width = COMBINE_WIDTH if tile == 1 else MIX_WIDTH
    f = Source(
        "combine",
        "rows, row_stride, column_stride, columns, chosen, factors, count, "
        "base, base_stride, out, pitch, m",
    )
    f.do(f"tiles = tl.cdiv(m, {tile})")
    f.do("turn = (tl.program_id(0) % tiles).to(tl.int64)")
    f.do(f"first = (tl.program_id(0) // tiles).to(tl.int64) * {width}")
    f.do(f"column = first + tl.arange(0, {width})")
    f.do("inside = column < columns")
    f.do("at = column * column_stride")
    f.do(f"weights = factors + turn * count * {tile}")
    for k in range(tile):
        f.do(f"sum{k} = tl.zeros(({width},), tl.{number})")
    # Unrolled, so that several rows are on their way at a time.
    with f.block("for i in tl.range(0, count, loop_unroll_factor=4)"):
        f.do("pointer = rows + tl.load(chosen + i) * row_stride")
        f.do(f"value = tl.load(pointer + at, mask=inside, other=0.0).to(tl.{number})")
        for k in range(tile):
            f.do(f"sum{k} += tl.load(weights + i * {tile} + {k}) * value")
    if base != "none":
        f.do("r = tl.load(factors + count)")
        f.do("point = tl.load(base + column * base_stride, mask=inside, other=0.0)")
        f.do(f"point = point.to(tl.{number})")
        f.do("sum0 += r * point" if base == "pull" else "sum0 = (sum0 - r * point) + point")
    for k in range(tile):
        row = f.let(f"turn * {tile} + {k}")
        f.do(f"tl.store(out + {row} * pitch + column, sum{k}, inside & ({row} < m))")
    return Program(name=f.name, text=str(f), width=width, warps=4)


def _shape(n: int, number: str) -> tuple[int, int]:
    """Columns and warps of an instance whose threads hold all values of their columns."""
    live = LIVE_NUMBERS if number == "float32" else LIVE_NUMBERS // 2
    warps = 4
    each = min(4, 1 << max(0, (live // n).bit_length() - 1))
    return THREADS * warps * each, warps


def _span(f: Source) -> None:
    """The columns `start` .. `stop` - 1 are the instance's, `span` of them."""
    f.do("start = tl.program_id(0).to(tl.int64) * span")
    f.do("stop = tl.minimum(start + span, columns)")


@contextmanager
def _blocks(f: Source, n: int, width: int, start: str, stop: str) -> Iterator[None]:
    """A loop over the columns start .. stop - 1, `width` at a time, which `load_rows` loads.

    `column` says which they are, `inside` whether they are there.
    """
    f.do(f"at = ({start} + tl.arange(0, {width})) * column_stride")
    f.do(f"step = tl.full((1,), {width}, tl.int64) * column_stride")
    point_at_rows(f, n)
    with f.block(f"for first in range({start}, {stop}, {width})"):
        f.do(f"column = first + tl.arange(0, {width})")
        f.do(f"inside = column < {stop}")
        yield
