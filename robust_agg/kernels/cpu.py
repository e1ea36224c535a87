"""The kernels on the CPU: compiled where llvmlite is there and it pays, else numpy and torch.

Order statistics round alike on every path, so that which one runs may depend on what is compiled
already. The others differ in the order of their sums: their path depends on shape and dtype alone,
and on whether columns are contiguous.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache, lru_cache

import numpy as np
import torch
from torch import Tensor

from robust_agg.kernels import (
    blocks,
    combination_programs,
    combinations,
    llvm,
    programs,
    reference,
    selection,
    team,
)
from robust_agg.kernels.combinations import combine, mean, mix
from robust_agg.kernels.pages import advised
from robust_agg.kernels.reference import OrderMean
from robust_agg.kernels.selection import Selection
from robust_agg.kernels.threads import map_ranges, ranges
from robust_agg.kernels.vectors import Lanes, host_lanes

GRAM_BLOCK = 1024
"""Columns whose products are summed in the precision of the centre, and from there in float64."""

CACHED_NUMBERS = 1 << 16
"""Numbers a median is taken of before their Gram matrix: 256 KiB of float32, for the L2 cache."""

LARGEST_GRAM = 1024
"""Most vectors in a compiled Gram matrix: a task's memory grows with their square."""

MIXED_NUMBERS = 1 << 14
"""Numbers that are mixed, and then selected from while they lie near: 64 KiB of float32."""

SORT_NUMBERS = 1 << 15
"""Numbers numpy sorts at a time: 128 KiB of float32."""

__all__ = [
    "centred_gram",
    "combine",
    "mean",
    "mix",
    "mixed_order_mean",
    "order_mean",
    "pulled_median",
    "row_distances",
]


def order_mean(rows: Tensor, wanted: OrderMean) -> Tensor:
    """`reference.order_mean` of rows on the CPU."""
    n, d = rows.shape
    lanes = host_lanes(rows.dtype)
    chosen = None if lanes is None else selection.order_mean(n, wanted, lanes, n * d)
    if chosen is None:
        return _order_mean_by_sorting(rows, wanted)
    return _select(rows, chosen, chosen.arguments).to(rows.dtype)


def _select(
    rows: Tensor, chosen: Selection, same: Mapping[str, int], point: Tensor | None = None
) -> Tensor:
    """What the program makes of the rows, given also what is the `same` for all tasks."""
    out = blocks.output(rows, chosen.unit)
    for together in blocks.contiguous(rows, chosen.unit):
        parts = blocks.tasks(together, chosen.unit, each=chosen.room * out.element_size())
        room = out.new_empty(len(parts), chosen.room)
        given: dict[str, team.Argument] = {
            **same,
            "rows": parts.rows,
            "stride": parts.strides,
            "width": parts.widths,
            "out": parts.columns(out),
            "values": blocks.own(room),
        }
        if point is not None:
            points = blocks.beside(together, point, chosen.unit)
            given["point"] = parts.among(points)
        team.run(_compiled(chosen), len(parts), given)
    return out[: rows.shape[1]]


def _order_mean_by_sorting(
    rows: Tensor, wanted: OrderMean, *, dtype: torch.dtype | None = None
) -> Tensor:
    n, d = rows.shape
    # Without `far` only what is averaged need be made rows again.
    kept = slice(wanted.start, wanted.stop) if wanted.far is None else slice(None)
    of_kept = OrderMean(0, wanted.stop - wanted.start) if wanted.far is None else wanted

    def task(lo: int, hi: int) -> Tensor:
        block = rows[:, lo:hi].to(reference.compute_dtype(rows.dtype)).numpy()
        columns = np.empty((hi - lo, n), block.dtype)
        np.fmin(block.T, np.inf, out=columns)  # NaN to +Inf
        columns.sort(axis=1)
        values = torch.from_numpy(np.ascontiguousarray(columns[:, kept].T))
        return reference.mean_of_sorted(values, of_kept).to(dtype or rows.dtype)

    return torch.cat(map_ranges(task, ranges(d, max(1, SORT_NUMBERS // n))))


def pulled_median(rows: Tensor, point: Tensor, tau: float) -> Tensor:
    """`robust_agg.kernels.pulled_median` of rows on the CPU."""
    n, d = rows.shape
    lanes = host_lanes(rows.dtype)
    alike = point.dtype == reference.compute_dtype(rows.dtype) and type(point) is Tensor
    chosen = None
    if lanes is not None and alike:
        chosen = selection.pulled_median(n, lanes, n * d)
    if chosen is None:
        return reference.pulled_median(rows, point, tau, order=order_mean)
    offsets = reference.grid(n, tau, point)
    with_offsets = {**chosen.arguments, "offsets": offsets.data_ptr()}
    return _select(rows, chosen, with_offsets, point)


def mixed_order_mean(rows: Tensor, coefficients: Tensor, wanted: OrderMean) -> Tensor:
    """`reference.mixed_order_mean` of rows on the CPU."""
    m, d = coefficients.shape[0], rows.shape[1]
    lanes = host_lanes(rows.dtype)
    chosen = None
    if lanes is not None and rows.numel() >= blocks.SMALLEST_COMPILED:
        mixed = Lanes(storage=lanes.number, width=lanes.width)
        chosen = selection.order_mean(m, wanted, mixed, m * d)
    if lanes is None or chosen is None:
        mixer = combinations.mixer(rows)
        return reference.mixed_order_mean(rows, coefficients, wanted, order=order_mean, mix=mixer)
    unit = max(chosen.unit, combination_programs.MIX_VECTORS * lanes.width)
    out = blocks.output(rows, unit)
    read, rounded = combinations.used(coefficients, out.dtype)
    tiles = -(-m // combination_programs.MIX_TILE)
    whole = np.zeros((tiles * combination_programs.MIX_TILE, len(read)), rounded.dtype)
    whole[:m] = rounded
    weights = combinations.tiled(whole, combination_programs.MIX_TILE)
    cached = max(1, MIXED_NUMBERS // len(whole) // unit) * unit
    pitch = cached + lanes.width  # no power of two, as for a Gram matrix
    each = (len(whole) * pitch + chosen.room) * out.element_size()
    for together in blocks.contiguous(rows, unit):
        offsets = [read * block.rows.stride(0) for block in together]
        parts = blocks.tasks(together, unit, each=each)
        buffers = advised(out.new_empty(len(parts), len(whole), pitch))
        values = out.new_empty(len(parts), chosen.room)
        given: dict[str, team.Argument] = {
            **chosen.arguments,
            "rows": parts.rows,
            "offsets": parts.same([of_rows.ctypes.data for of_rows in offsets]),
            "weights": weights.ctypes.data,
            "count": len(read),
            "width": parts.widths,
            "tiles": tiles,
            "buffer": blocks.own(buffers),
            "pitch": pitch,
            "cached": cached,
            "values": blocks.own(values),
            "out": parts.columns(out),
        }
        team.run(_mixed(chosen, lanes), len(parts), given)
    return out[:d]


def centred_gram(rows: Tensor, extra: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """`robust_agg.kernels.centred_gram` of rows on the CPU."""
    n, d = rows.shape
    lanes = host_lanes(rows.dtype)
    vectors = 1 + n + (0 if extra is None else extra.shape[0])
    if lanes is None or vectors > LARGEST_GRAM or n * d < blocks.SMALLEST_COMPILED:
        return reference.centred_gram(rows, extra, order=order_mean)
    middle = reference.median(n)
    chosen = selection.order_mean(n, middle, lanes, n * d)
    unit = lanes.width if chosen is None else chosen.unit
    centre = blocks.output(rows, unit)
    points = centre.new_empty(0, d) if extra is None else extra.to(centre.dtype)
    if chosen is None:
        kernel, room, same = _gram(lanes), 0, {}
        centre[:d] = _order_mean_by_sorting(rows, middle, dtype=centre.dtype)
    else:
        kernel, room = _centred_gram(chosen, lanes), chosen.room
        cached = max(1, CACHED_NUMBERS // n // GRAM_BLOCK) * GRAM_BLOCK
        same = {**chosen.arguments, "cached": cached}
    side = programs.tiles(vectors)
    # In numpy: torch hands even so small a matrix to all threads, whose start takes longer.
    tiled = np.zeros((side, side, programs.TILE, programs.TILE))
    # A vector more than a power of two, which would put all rows in few sets of the cache.
    pitch = GRAM_BLOCK + lanes.width
    each = (side * programs.TILE * pitch + room) * centre.element_size() + tiled.nbytes
    for together in blocks.contiguous(rows, unit):
        others = blocks.beside(together, points, unit)
        parts = blocks.tasks(together, unit, each=each)
        grams = _zeros(len(parts), *tiled.shape)
        buffers = advised(centre.new_empty(len(parts), side * programs.TILE, pitch))
        buffers[:, vectors:] = 0.0
        values = centre.new_empty(len(parts), room)
        given: dict[str, team.Argument] = {
            **same,
            "rows": parts.rows,
            "stride": parts.strides,
            "n": n,
            "extra": parts.among(others),
            "extra_stride": parts.same([other.stride(0) for other in others]),
            "others": points.shape[0],
            "width": parts.widths,
            "centre": parts.columns(centre),
            "buffer": blocks.own(buffers),
            "pitch": pitch,
            "block": GRAM_BLOCK,
            "side": side,
            "gram": blocks.own(grams),
            "values": blocks.own(values),
        }
        team.run(kernel, len(parts), given)
        tiled += grams.numpy().sum(axis=0)
    square = tiled.transpose(0, 2, 1, 3).reshape(side * programs.TILE, side * programs.TILE)
    square = square[:vectors, :vectors]
    return centre[:d], torch.from_numpy(np.where(_upper(vectors), square, square.T))


def row_distances(rows: Tensor, point: Tensor) -> Tensor:
    """`robust_agg.kernels.row_distances` of rows on the CPU."""
    n = len(rows)
    lanes, of_point = host_lanes(rows.dtype), host_lanes(point.dtype)
    if lanes is None or of_point is None or rows.numel() < blocks.SMALLEST_COMPILED:
        return reference.row_distances(rows, point)
    kernel = _row_distances(lanes, of_point.storage)
    squares = np.zeros(n)
    for together in blocks.contiguous(rows, lanes.width):
        points = blocks.beside(together, point, lanes.width)
        parts = blocks.tasks(together, lanes.width)
        sums = _zeros(len(parts), n)
        given: dict[str, team.Argument] = {
            "rows": parts.rows,
            "stride": parts.strides,
            "n": n,
            "width": parts.widths,
            "point": parts.among(points),
            "sums": blocks.own(sums),
        }
        team.run(kernel, len(parts), given)
        squares += sums.numpy().sum(axis=0)
    return torch.from_numpy(np.sqrt(squares))


@lru_cache(maxsize=256)
def _compiled(chosen: Selection) -> llvm.Kernel:
    return llvm.compile_function(chosen.program)


@lru_cache(maxsize=256)
def _centred_gram(chosen: Selection, lanes: Lanes) -> llvm.Kernel:
    return llvm.compile_function(programs.centred_gram(chosen.program, lanes))


@lru_cache(maxsize=256)
def _mixed(chosen: Selection, lanes: Lanes) -> llvm.Kernel:
    return llvm.compile_function(combination_programs.mixed(chosen.program, lanes))


@cache
def _gram(lanes: Lanes) -> llvm.Kernel:
    return llvm.compile_function(programs.gram(lanes))


@cache
def _row_distances(lanes: Lanes, point: str) -> llvm.Kernel:
    beside = Lanes(storage=point, width=lanes.width)
    return llvm.compile_function(programs.row_distances(lanes, beside))


@lru_cache(maxsize=16)
def _upper(size: int) -> blocks.Array:
    """Where a matrix is on or above its diagonal."""
    return np.tri(size, dtype=bool).T


def _zeros(*shape: int) -> Tensor:
    # Their address is given to machine code: the device must be the CPU whatever torch's default.
    return torch.zeros(shape, dtype=torch.float64, device="cpu")
