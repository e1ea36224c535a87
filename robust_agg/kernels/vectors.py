"""Vector instructions, as emitted into the programs: load, widen, compare, sum, order.

No instruction assumes values to be finite.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import torch

from robust_agg.kernels import llvm
from robust_agg.kernels.llvm import Function
from robust_agg.kernels.networks import selection_network

INFINITY = "0x7FF0000000000000"


@dataclass(frozen=True, kw_only=True)
class Lanes:
    """A vector of `width` numbers, stored as `storage` and computed as float or double."""

    storage: str
    width: int

    @property
    def number(self) -> str:
        return "double" if self.storage == "double" else "float"

    @property
    def vector(self) -> str:
        return f"<{self.width} x {self.number}>"

    @property
    def wide(self) -> str:
        return f"<{self.width} x double>"

    @property
    def suffix(self) -> str:
        return f"v{self.width}f{64 if self.number == 'double' else 32}"

    def splat(self, value: str) -> str:
        return "<" + ", ".join([f"{self.number} {value}"] * self.width) + ">"


STORAGE_BYTES = {"double": 8, "float": 4, "half": 2, "bfloat": 2}

STORAGE = {
    torch.float64: "double",
    torch.float32: "float",
    torch.float16: "half",
    torch.bfloat16: "bfloat",
}


def host_lanes(dtype: torch.dtype) -> Lanes | None:
    """The vectors rows of `dtype` are computed in; None where they cannot be compiled."""
    return _host_lanes(dtype) if llvm.available() else None


@cache
def _host_lanes(dtype: torch.dtype) -> Lanes | None:
    host = llvm.host()
    if dtype not in STORAGE or (dtype == torch.float16 and not host.converts_half):
        return None
    size = STORAGE_BYTES["double" if dtype == torch.float64 else "float"]
    return Lanes(storage=STORAGE[dtype], width=host.vector_bytes // size)


def row_pointers(f: Function, lanes: Lanes, base: str, stride: str, n: int) -> list[str]:
    return [element(f, lanes.storage, base, f.let(f"mul i64 {stride}, {i}")) for i in range(n)]


def element(f: Function, kind: str, base: str, index: str) -> str:
    kind = "i16" if kind == "bfloat" else kind
    return f.let(f"getelementptr {kind}, ptr {base}, i64 {index}")


def load(f: Function, lanes: Lanes, base: str, index: str) -> str:
    address = element(f, lanes.storage, base, index)
    align = f"align {STORAGE_BYTES[lanes.storage]}"
    if lanes.storage == lanes.number:
        return f.let(f"load {lanes.vector}, ptr {address}, {align}")
    if lanes.storage == "half":
        half = f"<{lanes.width} x half>"
        value = f.let(f"load {half}, ptr {address}, {align}")
        return f.let(f"fpext {half} {value} to {lanes.vector}")
    short, long = f"<{lanes.width} x i16>", f"<{lanes.width} x i32>"
    value = f.let(f"load {short}, ptr {address}, {align}")
    value = f.let(f"zext {short} {value} to {long}")
    sixteen = "<" + ", ".join(["i32 16"] * lanes.width) + ">"
    value = f.let(f"shl {long} {value}, {sixteen}")
    return f.let(f"bitcast {long} {value} to {lanes.vector}")


def store(f: Function, lanes: Lanes, base: str, index: str, value: str) -> None:
    address = element(f, lanes.number, base, index)
    f.do(f"store {lanes.vector} {value}, ptr {address}, align {STORAGE_BYTES[lanes.number]}")


def broadcast(f: Function, lanes: Lanes, scalar: str) -> str:
    one = f.let(f"insertelement {lanes.vector} poison, {lanes.number} {scalar}, i64 0")
    zeros = f"<{lanes.width} x i32> zeroinitializer"
    return f.let(f"shufflevector {lanes.vector} {one}, {lanes.vector} poison, {zeros}")


def minimum(f: Function, left: str, right: str) -> str:
    return f.call("i64", "llvm.smin.i64", ("i64", left), ("i64", right))


def multiply_add(f: Function, lanes: Lanes, left: str, right: str, total: str) -> str:
    kind = lanes.vector
    return f.call(kind, f"llvm.fmuladd.{lanes.suffix}", (kind, left), (kind, right), (kind, total))


def widen(f: Function, lanes: Lanes, value: str) -> str:
    if lanes.number == "double":
        return value
    return f.let(f"fpext {lanes.vector} {value} to {lanes.wide}")


def add_sum(f: Function, lanes: Lanes, value: str, base: str, index: str) -> None:
    """``base[index] += `` the sum of a vector, in float64."""
    value = widen(f, lanes, value)
    name = f"llvm.vector.reduce.fadd.v{lanes.width}f64"
    total = f.call("double", name, ("double", "0.0"), (lanes.wide, value), flags="reassoc")
    address = element(f, "double", base, index)
    before = f.let(f"load double, ptr {address}")
    f.do(f"store double {f.let(f'fadd double {before}, {total}')}, ptr {address}")


def sorted_mean(f: Function, lanes: Lanes, values: Sequence[str], start: int, stop: int) -> str:
    kept = _sort(f, lanes, values, start, stop)[start:stop]
    mean = _mean(f, lanes, kept, kept[0], kept[-1])
    return f.let(f"fadd {lanes.vector} {mean}, {lanes.splat('0.0')}")


def mean_around(
    f: Function, lanes: Lanes, values: Sequence[str], start: int, stop: int, far: int
) -> str:
    ordered = _sort(f, lanes, values, 0, len(values))
    middle = ordered[start:stop]
    centre = _mean(f, lanes, middle, middle[0], middle[-1])
    near = len(values) - far
    places = ordered[:near]
    for k in range(far):
        chosen = nearer(f, lanes, centre, ordered[k], ordered[k + near], places[k % near])
        places[k % near] = chosen
    kept = places[far:] + places[:far]
    # What is kept whatever the centre ascends; without such values the bounds are of all.
    fixed = max(near - far, 1)
    low, high = kept[0], kept[fixed - 1]
    for value in kept[fixed:]:
        low, high = smaller(f, lanes, low, value), larger(f, lanes, high, value)
    mean = _mean(f, lanes, kept, low, high)
    return f.let(f"fadd {lanes.vector} {mean}, {lanes.splat('0.0')}")


def nearer(
    f: Function, lanes: Lanes, centre: str, below: str, above: str, otherwise: str | None = None
) -> str:
    """``above`` if it is nearer to the centre than ``below``, of two as near the lower.

    The lower is ``otherwise``, where another value has come for ``below`` already.
    """
    # Of finite numbers, at most one of the two differences is too large for a number.
    down = f.let(f"fsub {lanes.vector} {centre}, {below}")
    up = f.let(f"fsub {lanes.vector} {above}, {centre}")
    return select(
        f, lanes, f.let(f"fcmp olt {lanes.vector} {up}, {down}"), above, otherwise or below
    )


def median_of_both(
    f: Function, lanes: Lanes, values: Sequence[str], ascending: Sequence[str]
) -> str:
    """The median of n values and of n + 1 that ascend already.

    Of two sorted sequences together, the (n+1)-th smallest is the least of the larger ends of all
    pairs of beginnings that have n + 1 values in all.
    """
    ordered = _sort(f, lanes, values, 0, len(values))
    least = ascending[-1]
    for taken, value in enumerate(ordered, start=1):
        least = smaller(f, lanes, least, larger(f, lanes, value, ascending[-1 - taken]))
    return f.let(f"fadd {lanes.vector} {least}, {lanes.splat('0.0')}")


def _sort(f: Function, lanes: Lanes, values: Sequence[str], start: int, stop: int) -> list[str]:
    """The values, those that end in the places start .. stop - 1 in ascending order."""
    ordered = [without_nan(f, lanes, value) for value in values]
    for comparator in selection_network(len(values), start, stop):
        low, high = ordered[comparator.low], ordered[comparator.high]
        if comparator.keep_low:
            ordered[comparator.low] = smaller(f, lanes, low, high)
        if comparator.keep_high:
            ordered[comparator.high] = larger(f, lanes, low, high)
    return ordered


def _mean(f: Function, lanes: Lanes, kept: Sequence[str], least: str, largest: str) -> str:
    if len(kept) == 1:
        return kept[0]
    count, scale = len(kept), float(1 << len(kept).bit_length())
    total = kept[0]
    for value in kept[1:]:
        total = f.let(f"fadd {lanes.vector} {total}, {value}")
    mean = f.let(f"fdiv {lanes.vector} {total}, {lanes.splat(f'{count:e}')}")
    small, large = lanes.splat(f"{1 / scale:e}"), lanes.splat(f"{scale:e}")
    scaled = f.let(f"fmul {lanes.vector} {kept[0]}, {small}")
    for value in kept[1:]:
        scaled = multiply_add(f, lanes, value, small, scaled)
    scaled = f.let(f"fdiv {lanes.vector} {scaled}, {lanes.splat(f'{count:e}')}")
    mean = where_finite(f, lanes, mean, f.let(f"fmul {lanes.vector} {scaled}, {large}"))
    return larger(f, lanes, least, smaller(f, lanes, largest, mean))


def without_nan(f: Function, lanes: Lanes, value: str) -> str:
    """NaN becomes +Inf: `fcmp olt` is false and the second one is taken."""
    return smaller(f, lanes, value, lanes.splat(INFINITY))


def smaller(f: Function, lanes: Lanes, left: str, right: str) -> str:
    return select(f, lanes, f.let(f"fcmp olt {lanes.vector} {left}, {right}"), left, right)


def larger(f: Function, lanes: Lanes, left: str, right: str) -> str:
    return select(f, lanes, f.let(f"fcmp ogt {lanes.vector} {left}, {right}"), left, right)


def where_finite(f: Function, lanes: Lanes, value: str, otherwise: str) -> str:
    difference = f.let(f"fsub {lanes.vector} {value}, {value}")
    finite = f.let(f"fcmp ord {lanes.vector} {difference}, {difference}")
    return select(f, lanes, finite, value, otherwise)


def select(f: Function, lanes: Lanes, condition: str, left: str, right: str) -> str:
    kind = lanes.vector
    return f.let(f"select <{lanes.width} x i1> {condition}, {kind} {left}, {kind} {right}")
