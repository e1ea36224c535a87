"""The kernels on the CPU: compiled where llvmlite is there and it pays, else numpy and torch.

`order_mean` rounds alike on every path, so that which one runs may depend on what is compiled
already. The others differ in the order of their sums: their path depends on shape and dtype alone.
"""

from __future__ import annotations

from collections import Counter
from functools import cache, lru_cache

import numpy as np
import torch
from torch import Tensor

from robust_agg.kernels import blocks, llvm, programs, reference, team
from robust_agg.kernels.reference import OrderMean
from robust_agg.kernels.threads import map_ranges, ranges
from robust_agg.kernels.vectors import STORAGE_BYTES, Lanes

LARGEST_NETWORK = 512
"""Most values a straight-line network selects from; beyond, its code leaves the caches."""

LARGEST_OPTIMISED = 320
"""Most values for which it is compiled with care: that takes 1 s for 256 and 4 s for 512."""

GRAM_BLOCK = 1024
"""Columns whose products are summed in the precision of the centre, and from there in float64."""

CACHED_NUMBERS = 1 << 18
"""Numbers a median is taken of before their Gram matrix: 1 MiB of float32, for the L2 cache."""

GRAM_TASKS = 64
"""Most parts of a Gram matrix, each with memory of its own, that are added up at the end."""

LARGEST_GRAM = 256
"""Most vectors in a compiled Gram matrix; a block of more would leave the L2 cache."""

COMPILE_AFTER = 1 << 12
"""Numbers, times n², after whose sorting a network is compiled, which takes about as long."""

SMALLEST_COMPILED = 1 << 16
"""Numbers from which on the other kernels are compiled."""

SORT_NUMBERS = 1 << 15
"""Numbers numpy sorts at a time: 128 KiB of float32."""

STORAGE = {
    torch.float64: "double",
    torch.float32: "float",
    torch.float16: "half",
    torch.bfloat16: "bfloat",
}


def order_mean(rows: Tensor, wanted: OrderMean) -> Tensor:
    """`reference.order_mean` of rows on the CPU."""
    n, d = rows.shape
    lanes = _lanes(rows.dtype)
    if lanes is None or n > LARGEST_NETWORK or not _is_due((n, wanted, lanes), n * d):
        return _order_mean_by_sorting(rows, wanted)
    kernel = _order_mean(n, wanted, lanes)
    out = _output(rows, lanes.width)
    for first, block in blocks.contiguous(rows, lanes.width):
        tasks = [
            (blocks.address(block, lo), block.stride(0), hi - lo, blocks.address(out, first + lo))
            for lo, hi in blocks.tasks(block, lanes.width)
        ]
        team.run(kernel, tasks)
    return out[:d].to(rows.dtype)


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
    lanes = _lanes(rows.dtype)
    alike = point.dtype == reference.compute_dtype(rows.dtype) and type(point) is Tensor
    able = lanes is not None and alike and n <= LARGEST_OPTIMISED
    if lanes is None or not able or not _is_due((n, None, lanes), n * d):
        return reference.pulled_median(rows, point, tau, order=order_mean)
    kernel = _pulled_median(n, lanes)
    offsets = reference.grid(n, tau, point)
    out = _output(rows, lanes.width)
    for first, block in blocks.contiguous(rows, lanes.width):
        beside = blocks.padded(point, first, min(first + block.shape[1], d), lanes.width)
        tasks = [
            (
                *(blocks.address(block, lo), block.stride(0), hi - lo),
                *(blocks.address(beside, lo), offsets.data_ptr(), blocks.address(out, first + lo)),
            )
            for lo, hi in blocks.tasks(block, lanes.width)
        ]
        team.run(kernel, tasks)
    return out[:d].clone() if len(out) > d else out


def centred_gram(rows: Tensor, extra: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """`robust_agg.kernels.centred_gram` of rows on the CPU."""
    n, d = rows.shape
    lanes = _lanes(rows.dtype)
    vectors = 1 + n + (0 if extra is None else extra.shape[0])
    if lanes is None or vectors > LARGEST_GRAM or n * d < SMALLEST_COMPILED:
        return reference.centred_gram(rows, extra, order=order_mean)
    centre = _output(rows, lanes.width)
    points = centre.new_empty(0, d) if extra is None else extra.to(centre.dtype)
    middle = reference.median(n)
    if n <= LARGEST_NETWORK and _is_due((n, middle, lanes), n * d):
        kernel = _centred_gram(n, middle, lanes)
        cached = [max(1, CACHED_NUMBERS // n // GRAM_BLOCK) * GRAM_BLOCK]
    else:
        centre[:d] = _order_mean_by_sorting(rows, middle, dtype=centre.dtype)
        kernel, cached = _gram(lanes), []
    side = programs.tiles(vectors)
    tiled = _zeros(side, side, programs.TILE, programs.TILE)
    for first, block in blocks.contiguous(rows, lanes.width):
        beside = blocks.padded(points, first, min(first + block.shape[1], d), lanes.width)
        parts = blocks.tasks(block, lanes.width, most=GRAM_TASKS)
        grams = _zeros(len(parts), *tiled.shape)
        # A vector more than a power of two, which would put all rows in few sets of the cache.
        pitch = GRAM_BLOCK + lanes.width
        buffers = centre.new_zeros(len(parts), side * programs.TILE, pitch)
        tasks = [
            (
                *(blocks.address(block, lo), block.stride(0), n),
                *(blocks.address(beside, lo), beside.stride(0), points.shape[0]),
                *(hi - lo, blocks.address(centre, first + lo)),
                *(buffers[place].data_ptr(), pitch, GRAM_BLOCK),
                *(side, grams[place].data_ptr()),
                *cached,
            )
            for place, (lo, hi) in enumerate(parts)
        ]
        team.run(kernel, tasks)
        for part in grams:
            tiled += part
    square = tiled.transpose(1, 2).reshape(side * programs.TILE, side * programs.TILE)
    # By numpy: torch hands even so small a triangle to all threads, whose start takes longer.
    upper = np.triu(square[:vectors, :vectors].numpy())
    return centre[:d], torch.from_numpy(upper + np.triu(upper, 1).T)


def row_distances(rows: Tensor, point: Tensor) -> Tensor:
    """`robust_agg.kernels.row_distances` of rows on the CPU."""
    n, d = rows.shape
    lanes, beside = _lanes(rows.dtype), _lanes(point.dtype)
    if lanes is None or beside is None or n * d < SMALLEST_COMPILED:
        return reference.row_distances(rows, point)
    kernel = _row_distances(lanes, beside.storage)
    squares = _zeros(n)
    for first, block in blocks.contiguous(rows, lanes.width):
        centre = blocks.padded(point, first, min(first + block.shape[1], d), lanes.width)
        parts = blocks.tasks(block, lanes.width)
        sums = _zeros(len(parts), n)
        tasks = [
            (
                *(blocks.address(block, lo), block.stride(0), n, hi - lo),
                *(blocks.address(centre, lo), sums[place].data_ptr()),
            )
            for place, (lo, hi) in enumerate(parts)
        ]
        team.run(kernel, tasks)
        for part in sums:
            squares += part
    return squares.sqrt()


def combine(
    rows: Tensor,
    weights: Tensor,
    base: Tensor | None = None,
    *,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """`robust_agg.kernels.combine` of rows on the CPU."""
    lanes = _lanes(rows.dtype)
    if lanes is None or rows.numel() < SMALLEST_COMPILED:
        return reference.combine(rows, weights, base, dtype=dtype)
    out = _combinations(rows, weights[None], lanes, tile=1)[0]
    fused = reference.add_base(out, weights, weights.to(out), base)
    return fused.to(rows.dtype if dtype is None else dtype)


def mix(rows: Tensor, coefficients: Tensor) -> Tensor:
    """`robust_agg.kernels.mix` of rows on the CPU."""
    lanes = _lanes(rows.dtype)
    if lanes is None or rows.numel() < SMALLEST_COMPILED:
        return reference.mix(rows, coefficients)
    return _combinations(rows, coefficients, lanes, tile=programs.MIX_TILE)


def _combinations(rows: Tensor, coefficients: Tensor, lanes: Lanes, *, tile: int) -> Tensor:
    """``(m, d)``: the combination of the rows for each row of `coefficients` (m, n).

    Rows are not read whose coefficients are 0, or are when rounded to the precision of the sums.
    """
    m, d = len(coefficients), rows.shape[1]
    kernel = _combine(lanes, tile)
    unit = programs.COMBINE_VECTORS * lanes.width
    tiles = -(-m // tile)
    out = _output(rows, unit, tiles * tile)
    rounded = coefficients.to(out)
    chosen = rounded.any(dim=0).nonzero().flatten()
    tiled = out.new_zeros(tiles * tile, len(chosen))
    tiled[:m] = rounded[:, chosen]
    tiled = tiled.view(tiles, tile, -1).transpose(1, 2).contiguous()

    for first, block in blocks.contiguous(rows, unit):
        offsets = chosen * block.stride(0)
        tasks = [
            (
                *(blocks.address(block, lo), offsets.data_ptr()),
                *(tiled.data_ptr(), len(chosen), hi - lo),
                *(blocks.address(out, first + lo), out.stride(0), tiles),
            )
            for lo, hi in blocks.tasks(block, unit)
        ]
        team.run(kernel, tasks)
    return out[:m, :d]


def _lanes(dtype: torch.dtype) -> Lanes | None:
    """The vectors rows of `dtype` are computed in; None where they cannot be compiled."""
    return _host_lanes(dtype) if llvm.available() else None


@cache
def _host_lanes(dtype: torch.dtype) -> Lanes | None:
    host = llvm.host()
    if dtype not in STORAGE or (dtype == torch.float16 and not host.converts_half):
        return None
    size = STORAGE_BYTES["double" if dtype == torch.float64 else "float"]
    return Lanes(storage=STORAGE[dtype], width=host.vector_bytes // size)


_sorted: Counter[tuple[int, OrderMean | None, Lanes]] = Counter()


def _is_due(key: tuple[int, OrderMean | None, Lanes], numbers: int) -> bool:
    _sorted[key] += numbers
    return _sorted[key] >= COMPILE_AFTER * key[0] ** 2


@lru_cache(maxsize=256)
def _order_mean(n: int, wanted: OrderMean, lanes: Lanes) -> llvm.Kernel:
    program = programs.order_mean(n, wanted, lanes)
    return llvm.compile_function(program, optimised=n <= LARGEST_OPTIMISED)


@lru_cache(maxsize=256)
def _centred_gram(n: int, wanted: OrderMean, lanes: Lanes) -> llvm.Kernel:
    program = programs.centred_gram(n, wanted, lanes)
    return llvm.compile_function(program, optimised=n <= LARGEST_OPTIMISED)


@lru_cache(maxsize=256)
def _pulled_median(n: int, lanes: Lanes) -> llvm.Kernel:
    return llvm.compile_function(programs.pulled_median(n, lanes))


@cache
def _gram(lanes: Lanes) -> llvm.Kernel:
    return llvm.compile_function(programs.gram(lanes))


@cache
def _row_distances(lanes: Lanes, point: str) -> llvm.Kernel:
    beside = Lanes(storage=point, width=lanes.width)
    return llvm.compile_function(programs.row_distances(lanes, beside))


@cache
def _combine(lanes: Lanes, tile: int) -> llvm.Kernel:
    return llvm.compile_function(programs.combine(lanes, tile))


def _output(rows: Tensor, unit: int, *count: int) -> Tensor:
    """Room for a number a column, up to a multiple of `unit`; zeros beyond the columns."""
    d = rows.shape[1]
    out = rows.new_empty(*count, -(-d // unit) * unit, dtype=reference.compute_dtype(rows.dtype))
    out[..., d:] = 0.0
    return out


def _zeros(*shape: int) -> Tensor:
    # Their address is given to machine code: the device must be the CPU whatever torch's default.
    return torch.zeros(shape, dtype=torch.float64, device="cpu")
