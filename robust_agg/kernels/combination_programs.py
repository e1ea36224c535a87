"""Linear combinations of rows as LLVM assembly; what the programs work on is as in `programs`."""

from __future__ import annotations

from collections.abc import Callable

from robust_agg.kernels.llvm import Function
from robust_agg.kernels.vectors import Lanes, broadcast, element, load, minimum, multiply_add, store

STRIP = 8192
"""Columns whose sums stay in the cache while rows are added: long runs of each row are what the
memory is fastest at."""

STRIP_ROWS = (8, 4, 2, 1)
"""Rows that are added at a time, so that a sum is loaded and stored less often; of those that are
left the next number."""

MIX_TILE = 4
"""Combinations that are formed together, so that a number once loaded is used for each."""

MIX_VECTORS = 2
"""Vectors of columns they sum at a time: their sums fit in 16 registers."""


def combine(lanes: Lanes) -> Function:
    """``out[k, j] = sum_i weights[k, i] * rows[offsets[i] + j]`` for i < `count` and j < `width`.

    For k < `tiles`; the rows of `out` lie `pitch` numbers apart.
    """
    f = Function("combine", _COMBINED)
    with f.loop("0", "%tiles", 1) as tiles:
        before = f.let(f"mul i64 {tiles.index}, %count")
        weights = element(f, lanes.number, "%weights", before)
        target = element(f, lanes.number, "%out", f.let(f"mul i64 {tiles.index}, %pitch"))

        def row(place: str) -> tuple[str, str]:
            offset = f.let(f"load i64, ptr {element(f, 'i64', '%offsets', place)}")
            address = element(f, lanes.number, weights, place)
            weight = broadcast(f, lanes, f.let(f"load {lanes.number}, ptr {address}"))
            return element(f, lanes.storage, "%rows", offset), weight

        _sum_by_strips(f, lanes, "%count", row, target)
    return f


_COMBINED = {
    "rows": "ptr",
    "offsets": "ptr",
    "weights": "ptr",
    "count": "i64",
    "width": "i64",
    "out": "ptr",
    "pitch": "i64",
    "tiles": "i64",
}


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
    weight = broadcast(f, lanes, f.let(f"load {lanes.number}, ptr %weight"))

    def row(place: str) -> tuple[str, str]:
        offset = f.let(f"mul i64 {place}, %stride")
        return element(f, lanes.storage, "%rows", offset), weight

    magnitudes = _Magnitudes(lanes)
    found = _sum_by_strips(f, lanes, "%n", row, "%out", magnitudes)
    f.do(f"store i64 {magnitudes.reduced(f, found[0])}, ptr %largest")
    return f


class _Magnitudes:
    """The largest bits of magnitudes so far, in a vector of integers."""

    def __init__(self, lanes: Lanes) -> None:
        self._bits = 64 if lanes.number == "double" else 32
        self._lanes = lanes
        self.kind = f"<{lanes.width} x i{self._bits}>"
        self._suffix = f"v{lanes.width}i{self._bits}"
        mask = [f"i{self._bits} {(1 << self._bits - 1) - 1}"] * lanes.width
        self._mask = "<" + ", ".join(mask) + ">"

    def with_value(self, f: Function, largest: str, value: str) -> str:
        pattern = f.let(f"bitcast {self._lanes.vector} {value} to {self.kind}")
        pattern = f.let(f"and {self.kind} {pattern}, {self._mask}")
        kind = self.kind
        return f.call(kind, f"llvm.umax.{self._suffix}", (kind, largest), (kind, pattern))

    def reduced(self, f: Function, largest: str) -> str:
        """The largest of all, an i64."""
        name = f"llvm.vector.reduce.umax.{self._suffix}"
        found = f.call(f"i{self._bits}", name, (self.kind, largest))
        return found if self._bits == 64 else f.let(f"zext i32 {found} to i64")


def _sum_by_strips(
    f: Function,
    lanes: Lanes,
    count: str,
    row: Callable[[str], tuple[str, str]],
    target: str,
    magnitudes: _Magnitudes | None = None,
) -> list[str]:
    """`target` becomes the sum over i < count of a row's columns times its weight, in this order.

    `row` says where row i begins, and its weight. Returns the largest magnitudes, if asked for.
    """
    plain = Lanes(storage=lanes.number, width=lanes.width)
    carried = [] if magnitudes is None else [(magnitudes.kind, "zeroinitializer")]
    with f.loop("0", "%width", STRIP, carried) as strips:
        end = minimum(f, f.let(f"add i64 {strips.index}, {STRIP}"), "%width")
        # The first rows begin the sums; where there is none they are zeros.
        none = f.let(f"icmp eq i64 {count}, 0")
        zeros = f.let(f"select i1 {none}, i64 {end}, i64 {strips.index}")
        with f.loop(strips.index, zeros, lanes.width) as c:
            store(f, lanes, target, c.index, "zeroinitializer")
        largest = strips.carried
        start = "0"
        for step in STRIP_ROWS:
            stop = f.let(f"and i64 {count}, {-step}")
            with f.loop(start, stop, step, _of(magnitudes, largest)) as rows:
                places = [f.let(f"add i64 {rows.index}, {k}") for k in range(step)]
                given = [row(place) for place in places]
                first = f.let(f"icmp eq i64 {rows.index}, 0")
                with f.loop(strips.index, end, lanes.width, _of(magnitudes, rows.carried)) as c:
                    sums = load(f, plain, target, c.index)
                    kind = lanes.vector
                    sums = f.let(f"select i1 {first}, {kind} zeroinitializer, {kind} {sums}")
                    sums, c.following = _added(
                        f, lanes, given, sums, c.index, c.carried, magnitudes
                    )
                    store(f, lanes, target, c.index, sums)
                rows.following = c.carried
            start, largest = stop, rows.carried
        strips.following = largest
    return strips.carried


def _of(magnitudes: _Magnitudes | None, values: list[str]) -> list[tuple[str, str]]:
    return [] if magnitudes is None else [(magnitudes.kind, value) for value in values]


def _added(
    f: Function,
    lanes: Lanes,
    rows: list[tuple[str, str]],
    total: str,
    column: str,
    largest: list[str],
    magnitudes: _Magnitudes | None,
) -> tuple[str, list[str]]:
    """A sum and a vector of each row, and the largest magnitudes so far."""
    for pointer, weight in rows:
        value = load(f, lanes, pointer, column)
        total = multiply_add(f, lanes, value, weight, total)
        if magnitudes is not None:
            largest = [magnitudes.with_value(f, largest[0], value)]
    return total, largest


def approach(lanes: Lanes, near: bool) -> Function:
    """``moved = out = base + weight (row - point)``, the base being the point, or else the row.

    Of at least a vector of columns. `largest` are two int64, for the row and for the point, as
    `mean` has one.
    """
    names = ("row", "point", "moved", "out", "weight", "largest")
    f = Function("approach", {**dict.fromkeys(names, "ptr"), "width": "i64"})
    weight = broadcast(f, lanes, f.let(f"load {lanes.number}, ptr %weight"))
    last = f.let(f"sub i64 %width, {lanes.width}")
    magnitudes = _Magnitudes(lanes)
    with f.loop("0", "%width", lanes.width, [(magnitudes.kind, "zeroinitializer")] * 2) as columns:
        # The last vector may overlap the one before: what it writes there is the same.
        index = minimum(f, columns.index, last)
        row, point = (load(f, lanes, name, index) for name in ("%row", "%point"))
        gap = f.let(f"fsub {lanes.vector} {row}, {point}")
        moved = multiply_add(f, lanes, gap, weight, point if near else row)
        for name in ("%moved", "%out"):
            store(f, lanes, name, index, moved)
        for value, most in zip((row, point), columns.carried, strict=True):
            columns.following.append(magnitudes.with_value(f, most, value))
    for place, most in enumerate(columns.carried):
        address = element(f, "i64", "%largest", str(place))
        f.do(f"store i64 {magnitudes.reduced(f, most)}, ptr {address}")
    return f


def combine_together(lanes: Lanes) -> Function:
    """``out[k, j] = sum_i weights[k // tile, i, k % tile] * rows[offsets[i] + j]``, as `combine`.

    For k < `tiles` · tile, tile being `MIX_TILE`, and a width that is a multiple of 2 vectors.
    """
    f = Function("combine_together", _COMBINED)
    tile, vectors = MIX_TILE, MIX_VECTORS
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


def mixed(select: Function, lanes: Lanes) -> Function:
    """What `select` makes of combinations of the rows, on `cached` columns after another.

    Takes what `combine_together` takes, whose output is the `buffer`, of rows `pitch` numbers
    apart, and what `select` takes, which reads its rows there.
    """
    form = combine_together(lanes)
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
