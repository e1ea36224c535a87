"""Linear combinations of rows as LLVM assembly; what the programs work on is as in `programs`."""

from __future__ import annotations

from robust_agg.kernels.llvm import Function
from robust_agg.kernels.vectors import Lanes, broadcast, element, load, minimum, multiply_add, store

COMBINE_VECTORS = 4
"""Vectors of columns that a single combination sums at a time, to have several sums in flight."""

MIX_TILE = 4
"""Combinations that are formed together, so that a number once loaded is used for each."""

MIX_VECTORS = 2
"""Vectors of columns they sum at a time: their sums fit in 16 registers."""


def combine(lanes: Lanes, tile: int) -> Function:
    """``out[k, j] = sum_i weights[k // tile, i, k % tile] * rows[offsets[i] + j]``.

    For k < `tiles` · tile, i < `count` and j < `width`, a multiple of 4 vectors; the rows of `out`
    lie `pitch` numbers apart.
    """
    f = Function(
        "combine",
        {
            "rows": "ptr",
            "offsets": "ptr",
            "weights": "ptr",
            "count": "i64",
            "width": "i64",
            "out": "ptr",
            "pitch": "i64",
            "tiles": "i64",
        },
    )
    vectors = COMBINE_VECTORS if tile == 1 else MIX_VECTORS
    zeros = [(lanes.vector, "zeroinitializer")] * (tile * vectors)
    with (
        f.loop("0", "%width", vectors * lanes.width) as columns,
        f.loop("0", "%tiles", 1) as tiles,
    ):
        places = [f.let(f"add i64 {columns.index}, {k * lanes.width}") for k in range(vectors)]
        before = f.let(f"mul i64 {f.let(f'mul i64 {tiles.index}, %count')}, {tile}")
        weights = element(f, lanes.number, "%weights", before)
        with f.loop("0", "%count", 1, zeros) as rows:
            offset = f.let(f"load i64, ptr {element(f, 'i64', '%offsets', rows.index)}")
            pointer = element(f, lanes.storage, "%rows", offset)
            values = [load(f, lanes, pointer, place) for place in places]
            first = element(f, lanes.number, weights, f.let(f"mul i64 {rows.index}, {tile}"))
            for k in range(tile):
                address = element(f, lanes.number, first, str(k))
                weight = broadcast(f, lanes, f.let(f"load {lanes.number}, ptr {address}"))
                totals = rows.carried[k * vectors : (k + 1) * vectors]
                rows.following += [
                    multiply_add(f, lanes, value, weight, total)
                    for value, total in zip(values, totals, strict=True)
                ]
        row = f.let(f"mul i64 {tiles.index}, {tile}")
        for k in range(tile):
            start = f.let(f"mul i64 {f.let(f'add i64 {row}, {k}')}, %pitch")
            target = element(f, lanes.number, "%out", start)
            totals = rows.carried[k * vectors : (k + 1) * vectors]
            for place, total in zip(places, totals, strict=True):
                store(f, lanes, target, place, total)
    return f


def mean(lanes: Lanes) -> Function:
    """``out[j] = sum_i weight * rows[i, j]`` for i < n, as `combine` rounds it.

    `largest` is an int64: it becomes the bits of the largest magnitude of a number that is read.
    NaN counts as larger than Inf, and Inf as larger than any number.
    """
    f = Function(
        "mean",
        {
            "rows": "ptr",
            "stride": "i64",
            "n": "i64",
            "weight": "ptr",
            "width": "i64",
            "out": "ptr",
            "largest": "ptr",
        },
    )
    bits = 64 if lanes.number == "double" else 32
    whole = f"<{lanes.width} x i{bits}>"
    mask = "<" + ", ".join([f"i{bits} {(1 << bits - 1) - 1}"] * lanes.width) + ">"
    suffix = f"v{lanes.width}i{bits}"
    weight = broadcast(f, lanes, f.let(f"load {lanes.number}, ptr %weight"))
    most = [(whole, "zeroinitializer")]
    zeros = [(lanes.vector, "zeroinitializer")] * COMBINE_VECTORS
    with f.loop("0", "%width", COMBINE_VECTORS * lanes.width, most) as columns:
        places = [
            f.let(f"add i64 {columns.index}, {k * lanes.width}") for k in range(COMBINE_VECTORS)
        ]
        with f.loop("0", "%n", 1, [(whole, columns.carried[0]), *zeros]) as rows:
            offset = f.let(f"mul i64 {rows.index}, %stride")
            pointer = element(f, lanes.storage, "%rows", offset)
            largest, *totals = rows.carried
            for place, total in zip(places, totals, strict=True):
                value = load(f, lanes, pointer, place)
                rows.following.append(multiply_add(f, lanes, value, weight, total))
                pattern = f.let(f"bitcast {lanes.vector} {value} to {whole}")
                pattern = f.let(f"and {whole} {pattern}, {mask}")
                name = f"llvm.umax.{suffix}"
                largest = f.call(whole, name, (whole, largest), (whole, pattern))
            rows.following.insert(0, largest)
        columns.following = [rows.carried[0]]
        for place, total in zip(places, rows.carried[1:], strict=True):
            store(f, lanes, "%out", place, total)
    name = f"llvm.vector.reduce.umax.{suffix}"
    found = f.call(f"i{bits}", name, (whole, columns.carried[0]))
    if bits == 32:
        found = f.let(f"zext i32 {found} to i64")
    f.do(f"store i64 {found}, ptr %largest")
    return f


def mixed(select: Function, lanes: Lanes) -> Function:
    """What `select` makes of combinations of the rows, on `cached` columns after another.

    Takes what `combine` of `MIX_TILE` takes, whose output is the `buffer`, of rows `pitch` numbers
    apart, and what `select` takes, which reads its rows there.
    """
    form = combine(lanes, MIX_TILE)
    needed = {name: kind for f in (form, select) for name, kind in f.parameters.items()}
    del needed["stride"]
    f = Function("mixed", {**needed, "buffer": "ptr", "cached": "i64"})
    with f.loop("0", "%width", "%cached") as c:
        end = minimum(f, f.let(f"add i64 {c.index}, %cached"), "%width")
        here = {"width": f.let(f"sub i64 {end}, {c.index}"), "stride": "%pitch"}
        rows = element(f, lanes.storage, "%rows", c.index)
        out = element(f, lanes.number, "%out", c.index)
        for function, own in (
            (form, {"rows": rows, "out": "%buffer"}),
            (select, {"rows": "%buffer", "out": out}),
        ):
            given = {**here, **own}
            f.invoke(function, *(given.get(name, f"%{name}") for name in function.parameters))
    return f
