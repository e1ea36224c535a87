"""The kernels as LLVM assembly: one pass over the columns of rows (n, d), a vector at a time.

Every program works on `width` columns, a multiple of `Lanes.width`, of rows that start at `rows`
and lie `stride` numbers apart, each contiguous. 16-bit numbers are widened as they are loaded.
"""

from __future__ import annotations

from robust_agg.kernels.llvm import Function
from robust_agg.kernels.reference import OrderMean
from robust_agg.kernels.vectors import (
    Lanes,
    add_sum,
    broadcast,
    element,
    load,
    mean_around,
    median_of_both,
    minimum,
    multiply_add,
    row_pointers,
    sorted_mean,
    store,
    where_finite,
    widen,
    without_nan,
)

BLOCK = 8192
"""Columns of the point that are used for every row while they lie in the cache."""

BLOCK_ROWS = (8, 4, 2, 1)
"""Rows whose distances are measured at a time: the memory is faster at several than at one, and the
point is widened once for all; of those that are left the next number."""

TILE = 3
"""A Gram matrix is formed in squares of this many rows, whose sums all fit in registers."""


def order_mean(n: int, wanted: OrderMean, lanes: Lanes) -> Function:
    """``out[j]`` = the mean of order statistics of column j that is `wanted`, NaN as +Inf."""
    f = Function("order_mean", {"rows": "ptr", "stride": "i64", "width": "i64", "out": "ptr"})
    pointers = row_pointers(f, lanes, "%rows", "%stride", n)
    start, stop, far = wanted
    with f.loop("0", "%width", lanes.width) as columns:
        values = [load(f, lanes, pointer, columns.index) for pointer in pointers]
        if far is None:
            mean = sorted_mean(f, lanes, values, start, stop)
        else:
            mean = mean_around(f, lanes, values, start, stop, far)
        store(f, lanes, "%out", columns.index, mean)
    return f


def pulled_median(n: int, lanes: Lanes) -> Function:
    """``out[j]`` = the median of column j and of ``point[j] + offsets[k]``, k = 0 … n."""
    f = Function(
        "pulled_median",
        {
            "rows": "ptr",
            "stride": "i64",
            "width": "i64",
            "point": "ptr",
            "offsets": "ptr",
            "out": "ptr",
        },
    )
    pointers = row_pointers(f, lanes, "%rows", "%stride", n)
    plain = Lanes(storage=lanes.number, width=lanes.width)
    with f.loop("0", "%width", lanes.width) as columns:
        values = [load(f, lanes, pointer, columns.index) for pointer in pointers]
        point = without_nan(f, lanes, load(f, plain, "%point", columns.index))
        pulled = []
        for k in range(n + 1):
            address = element(f, lanes.number, "%offsets", str(k))
            offset = broadcast(f, lanes, f.let(f"load {lanes.number}, ptr {address}"))
            pulled.append(f.let(f"fadd {lanes.vector} {point}, {offset}"))
        store(f, lanes, "%out", columns.index, median_of_both(f, lanes, values, pulled))
    return f


def gram(lanes: Lanes) -> Function:
    """Adds the Gram matrix of ``[c, x_i - c, y_k - c]``, i < n and k < others, to `gram`.

    `centre` is c, in which numbers that are not finite become 0; `extra` points at y_0, in the
    precision of c. `gram` is (T, T, 3, 3) float64, T = `tiles(1 + n + others)`, of which the tiles
    on and above the diagonal are formed. `buffer` is (3 T, `pitch`) in the precision of c, where
    pitch >= `block`, with zeros in the rows beyond the last vector. Products are summed in that
    precision over `block` columns, and in float64 from there.
    """
    f = Function(
        "gram",
        {
            "rows": "ptr",
            "stride": "i64",
            "n": "i64",
            "extra": "ptr",
            "extra_stride": "i64",
            "others": "i64",
            "width": "i64",
            "centre": "ptr",
            "buffer": "ptr",
            "pitch": "i64",
            "block": "i64",
            "side": "i64",
            "gram": "ptr",
        },
    )
    plain = Lanes(storage=lanes.number, width=lanes.width)
    with f.loop("0", "%width", "%block") as blocks:
        end = minimum(f, f.let(f"add i64 {blocks.index}, %block"), "%width")
        columns = f.let(f"sub i64 {end}, {blocks.index}")
        centre = element(f, lanes.number, "%centre", blocks.index)
        with f.loop("0", columns, lanes.width) as c:
            value = load(f, plain, centre, c.index)
            value = where_finite(f, lanes, value, lanes.splat("0.0"))
            store(f, lanes, centre, c.index, value)
            store(f, lanes, "%buffer", c.index, value)
        _store_deviations(f, lanes, ("%rows", "%stride", "%n"), blocks.index, columns, "1")
        after = f.let("add i64 %n, 1")
        _store_deviations(
            f, plain, ("%extra", "%extra_stride", "%others"), blocks.index, columns, after
        )
        _add_tiles(f, plain, columns)
    return f


def centred_gram(select: Function, lanes: Lanes) -> Function:
    """What `select` makes of the rows, and `gram` around it, on `cached` columns after another.

    Takes what both take, but for the output of the first, which is the `centre` of the second.
    """
    add = gram(lanes)
    own = {name: kind for name, kind in select.parameters.items() if name != "out"}
    f = Function("centred_gram", {**add.parameters, **own, "cached": "i64"})
    with f.loop("0", "%width", "%cached") as c:
        end = minimum(f, f.let(f"add i64 {c.index}, %cached"), "%width")
        centre = element(f, lanes.number, "%centre", c.index)
        here = {
            "rows": element(f, lanes.storage, "%rows", c.index),
            "extra": element(f, lanes.number, "%extra", c.index),
            "width": f.let(f"sub i64 {end}, {c.index}"),
            "centre": centre,
            "out": centre,
        }
        for function in (select, add):
            f.invoke(function, *(here.get(name, f"%{name}") for name in function.parameters))
    return f


def tiles(vectors: int) -> int:
    """The side of a Gram matrix of so many vectors, in tiles."""
    return -(-vectors // TILE)


def _store_deviations(
    f: Function, lanes: Lanes, rows: tuple[str, str, str], start: str, columns: str, first: str
) -> None:
    base, stride, count = rows
    plain = Lanes(storage=lanes.number, width=lanes.width)
    with f.loop("0", count, 1) as row:
        offset = f.let(f"mul i64 {row.index}, {stride}")
        source = element(f, lanes.storage, base, f.let(f"add i64 {offset}, {start}"))
        offset = f.let(f"mul i64 {f.let(f'add i64 {row.index}, {first}')}, %pitch")
        target = element(f, lanes.number, "%buffer", offset)
        with f.loop("0", columns, lanes.width) as c:
            value, centre = load(f, lanes, source, c.index), load(f, plain, "%buffer", c.index)
            deviation = f.let(f"fsub {lanes.vector} {value}, {centre}")
            store(f, lanes, target, c.index, deviation)


def _add_tiles(f: Function, lanes: Lanes, columns: str) -> None:
    with f.loop("0", "%side", 1) as down, f.loop(down.index, "%side", 1) as across:
        left, right = (_tile_rows(f, lanes, loop.index) for loop in (down, across))
        zeros = [(lanes.vector, "zeroinitializer")] * TILE**2
        with f.loop("0", columns, lanes.width, zeros) as c:
            rights = [load(f, lanes, pointer, c.index) for pointer in right]
            for row, pointer in enumerate(left):
                value = load(f, lanes, pointer, c.index)
                c.following += [
                    multiply_add(f, lanes, value, other, c.carried[row * TILE + k])
                    for k, other in enumerate(rights)
                ]
        tile = f.let(f"add i64 {f.let(f'mul i64 {down.index}, %side')}, {across.index}")
        first = f.let(f"mul i64 {tile}, {TILE**2}")
        for k, products in enumerate(c.carried):
            add_sum(f, lanes, products, "%gram", f.let(f"add i64 {first}, {k}"))


def _tile_rows(f: Function, lanes: Lanes, tile: str) -> list[str]:
    first = f.let(f"mul i64 {tile}, {TILE}")
    rows = [f.let(f"add i64 {first}, {k}") for k in range(TILE)]
    return [element(f, lanes.number, "%buffer", f.let(f"mul i64 {row}, %pitch")) for row in rows]


def row_distances(lanes: Lanes, point: Lanes) -> Function:
    """Adds ``sum_j (x_ij - point_j)^2``, in float64 throughout, to ``sums[i]`` for i < n."""
    f = Function(
        "row_distances",
        {
            "rows": "ptr",
            "stride": "i64",
            "n": "i64",
            "width": "i64",
            "point": "ptr",
            "sums": "ptr",
        },
    )
    wide = Lanes(storage="double", width=lanes.width)
    with f.loop("0", "%width", BLOCK) as blocks:
        end = minimum(f, f.let(f"add i64 {blocks.index}, {BLOCK}"), "%width")
        start = "0"
        for together in BLOCK_ROWS:
            stop = f.let(f"and i64 %n, {-together}")
            with f.loop(start, stop, together) as rows:
                places = [f.let(f"add i64 {rows.index}, {k}") for k in range(together)]
                offsets = [f.let(f"mul i64 {place}, %stride") for place in places]
                pointers = [element(f, lanes.storage, "%rows", offset) for offset in offsets]
                zeros = [(wide.vector, "zeroinitializer")] * together
                with f.loop(blocks.index, end, lanes.width, zeros) as c:
                    centre = widen(f, point, load(f, point, "%point", c.index))
                    for pointer, total in zip(pointers, c.carried, strict=True):
                        value = widen(f, lanes, load(f, lanes, pointer, c.index))
                        deviation = f.let(f"fsub {wide.vector} {value}, {centre}")
                        c.following.append(multiply_add(f, wide, deviation, deviation, total))
                for place, total in zip(places, c.carried, strict=True):
                    add_sum(f, wide, total, "%sums", place)
            start = stop
    return f
