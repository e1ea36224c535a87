"""Order statistics of a column's values, as emitted into the Triton programs.

They round as `reference.order_mean` does. Values are ordered by instructions for the minimum and
the maximum once they hold no NaN; what may be NaN is compared and selected, because the two take a
NaN for a missing value on some devices and as a result on others.
"""

from __future__ import annotations

from collections.abc import Sequence

from robust_agg.kernels.networks import selection_network
from robust_agg.kernels.reference import OrderMean
from robust_agg.kernels.triton_source import Source

INFINITY = "float('inf')"


def point_at_rows(f: Source, n: int) -> None:
    """Pointers `row0`, `row1`, … to the first columns `at` of `n` rows."""
    f.do("row0 = rows + at")
    for row in range(1, n):
        # From row to row, because their offset from the first may not fit in 32 bits.
        f.do(f"row{row} = row{row - 1} + row_stride")


def load_rows(f: Source, n: int, number: str) -> list[str]:
    """The next values of `n` rows, where `inside`; NaN as +Inf. Moves the pointers by `step`.

    Pointers that a loop carries cost a pass of Triton's nothing that looks, for every other access
    to memory, through all that depends on what the pointer depends on: minutes for long networks.
    """
    values = []
    for row in range(n):
        value = f.let(f"tl.load(row{row}, mask=inside, other=0.0).to(tl.{number})")
        values.append(f.let(f"tl.where({value} == {value}, {value}, {INFINITY})"))
        f.do(f"row{row} += step")
    return values


def order_mean(f: Source, number: str, values: Sequence[str], wanted: OrderMean) -> str:
    """``reference.mean_of_sorted`` of values without NaN."""
    start, stop, far = wanted
    if far is None:
        kept = ordered(f, values, start, stop)[start:stop]
        return f.let(f"{_mean(f, number, kept, kept[0], kept[-1])} + 0.0")
    ascending = ordered(f, values, 0, len(values))
    middle = ascending[start:stop]
    centre = _mean(f, number, middle, middle[0], middle[-1])
    near = len(values) - far
    places = ascending[:near]
    for k in range(far):
        below, above = ascending[k], ascending[k + near]
        # Of finite numbers, at most one of the two differences is too large for a number.
        nearer = f"{above} - {centre} < {centre} - {below}"
        places[k % near] = f.let(f"tl.where({nearer}, {above}, {places[k % near]})")
    kept = places[far:] + places[:far]
    # What is kept whatever the centre ascends; without such values the bounds are of all.
    fixed = max(near - far, 1)
    low, high = kept[0], kept[fixed - 1]
    for value in kept[fixed:]:
        low = f.let(f"tl.minimum({low}, {value})")
        high = f.let(f"tl.maximum({high}, {value})")
    return f.let(f"{_mean(f, number, kept, low, high)} + 0.0")


def median_of_both(f: Source, values: Sequence[str], ascending: Sequence[str]) -> str:
    """The median of n values and of n + 1 that ascend already, all without NaN.

    Of two sorted sequences together, the (n+1)-th smallest is the least of the larger ends of all
    pairs of beginnings that have n + 1 values in all.
    """
    least = ascending[-1]
    for taken, value in enumerate(ordered(f, values, 0, len(values)), start=1):
        end = f.let(f"tl.maximum({value}, {ascending[-1 - taken]})")
        least = f.let(f"tl.minimum({least}, {end})")
    return f.let(f"{least} + 0.0")


def ordered(f: Source, values: Sequence[str], start: int, stop: int) -> list[str]:
    """The values, those that end in the places start .. stop - 1 in ascending order."""
    places = list(values)
    for comparator in selection_network(len(values), start, stop):
        low, high = places[comparator.low], places[comparator.high]
        if comparator.keep_low:
            places[comparator.low] = f.let(f"tl.minimum({low}, {high})")
        if comparator.keep_high:
            places[comparator.high] = f.let(f"tl.maximum({low}, {high})")
    return places


def where_finite(f: Source, value: str, otherwise: str) -> str:
    return f.let(f"tl.where(tl.abs({value}) < {INFINITY}, {value}, {otherwise})")


def _mean(f: Source, number: str, kept: Sequence[str], least: str, largest: str) -> str:
    if len(kept) == 1:
        return kept[0]
    count, scale = float(len(kept)), float(1 << len(kept).bit_length())
    total = kept[0]
    scaled = f.let(f"{kept[0]} * {1 / scale!r}")
    for value in kept[1:]:
        total = f.let(f"{total} + {value}")
        scaled = f.let(f"{value} * {1 / scale!r} + {scaled}")
    large = f.let(f"{_quotient(number, scaled, count)} * {scale!r}")
    mean = where_finite(f, f.let(_quotient(number, total, count)), large)
    mean = f.let(f"tl.where({mean} > {largest}, {largest}, {mean})")
    return f.let(f"tl.where({mean} < {least}, {least}, {mean})")


def _quotient(number: str, value: str, count: float) -> str:
    # `/` of float32 is rounded to within two units, `div_rn` to the nearest.
    return f"tl.div_rn({value}, {count!r})" if number == "float32" else f"{value} / {count!r}"
