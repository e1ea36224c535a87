"""Linear combinations of rows on the CPU: compiled where llvmlite is there and it pays."""

from __future__ import annotations

import struct
from array import array
from collections.abc import Callable
from functools import cache, partial
from math import inf, isnan

import numpy as np
import torch
from torch import Tensor

from robust_agg.kernels import blocks, combination_programs, llvm, reference, team
from robust_agg.kernels.vectors import Lanes, host_lanes


def combine(
    rows: Tensor,
    weights: Tensor,
    base: Tensor | None = None,
    *,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """`robust_agg.kernels.combine` of rows on the CPU."""
    lanes = host_lanes(rows.dtype)
    if lanes is None or rows.numel() < blocks.SMALLEST_COMPILED:
        return reference.combine(rows, weights, base, dtype=dtype)
    out = _combinations(rows, weights[None], lanes)[0]
    fused = reference.add_base(out, weights, weights.to(out), base)
    return fused.to(rows.dtype if dtype is None else dtype)


def mean(rows: Tensor) -> tuple[Tensor, float]:
    """`robust_agg.kernels.mean` of rows on the CPU."""
    lanes = host_lanes(rows.dtype)
    if lanes is None or rows.numel() < blocks.SMALLEST_COMPILED:
        return reference.mean(rows)
    n, d = rows.shape
    unit = lanes.width
    out = blocks.output(rows, unit)
    # Arrays of Python's own: after a pass over memory that evicted it, what torch needs for as
    # little is slow to come back.
    weight = array("d" if lanes.number == "double" else "f", [1 / n])
    largest = 0
    for together in blocks.contiguous(rows, unit):
        parts = blocks.tasks(together, unit)
        found = array("q", bytes(8 * len(parts)))
        place = found.buffer_info()[0]
        given: dict[str, team.Argument] = {
            "rows": parts.rows,
            "stride": parts.strides,
            "n": n,
            "weight": weight.buffer_info()[0],
            "width": parts.widths,
            "out": parts.columns(out),
            "largest": range(place, place + 8 * len(parts), 8),
        }
        team.run(_mean(lanes), len(parts), given)
        largest = max(largest, *found)
    kinds = "qd" if lanes.number == "double" else "if"
    (magnitude,) = struct.unpack(kinds[1], struct.pack(kinds[0], largest))
    return out[:d].to(rows.dtype), inf if isnan(magnitude) else magnitude


def mix(rows: Tensor, coefficients: Tensor) -> Tensor:
    """`robust_agg.kernels.mix` of rows on the CPU."""
    return mixer(rows)(rows, coefficients)


def mixer(rows: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    """`mix` as it is for these rows, and to be for parts of them: all must round alike."""
    lanes = host_lanes(rows.dtype)
    if lanes is None or rows.numel() < blocks.SMALLEST_COMPILED:
        return reference.mix
    return partial(_combinations, lanes=lanes)


def _combinations(rows: Tensor, coefficients: Tensor, lanes: Lanes) -> Tensor:
    """``(m, d)``: the combination of the rows for each row of `coefficients` (m, n).

    Rows are not read whose coefficients are 0, or are when rounded to the precision of the sums.
    """
    m, d = len(coefficients), rows.shape[1]
    vectors = 1 if m < combination_programs.MIX_TILE else combination_programs.MIX_VECTORS
    unit = vectors * lanes.width
    out = blocks.output(rows, unit, m)
    chosen, rounded = used(coefficients, out.dtype)
    for together in blocks.contiguous(rows, unit):
        offsets = [chosen * block.rows.stride(0) for block in together]
        parts = blocks.tasks(together, unit)
        # Several combinations at a time, and what is left of them one by one.
        done = 0
        for tile in (combination_programs.MIX_TILE, 1):
            tiles = (m - done) // tile
            if not tiles:
                continue
            weights = tiled(rounded[done : done + tiles * tile], tile)
            given: dict[str, team.Argument] = {
                "rows": parts.rows,
                "offsets": parts.same([of_rows.ctypes.data for of_rows in offsets]),
                "weights": weights.ctypes.data,
                "count": len(chosen),
                "width": parts.widths,
                "out": parts.columns(out[done]),
                "pitch": out.stride(0),
                "tiles": tiles,
            }
            team.run(_combine(lanes, tile), len(parts), given)
            done += tiles * tile
    return out[:, :d]


def used(coefficients: Tensor, dtype: torch.dtype) -> tuple[blocks.Array, blocks.Array]:
    """Which rows have a coefficient (m, n) that is not 0 in `dtype`, and those coefficients.

    In numpy, which takes a fraction of torch's time to begin an operation on so few numbers.
    """
    rounded = coefficients.to(dtype).numpy()
    chosen = np.flatnonzero(rounded.any(axis=0))
    return chosen, rounded if len(chosen) == rounded.shape[1] else rounded[:, chosen]


def tiled(coefficients: blocks.Array, tile: int) -> blocks.Array:
    """Coefficients (m, k), of so many combinations together, as ``(m // tile, k, tile)``."""
    m, k = coefficients.shape
    return np.ascontiguousarray(coefficients.reshape(m // tile, tile, k).swapaxes(1, 2))


@cache
def _mean(lanes: Lanes) -> llvm.Kernel:
    return llvm.compile_function(combination_programs.mean(lanes))


@cache
def _combine(lanes: Lanes, tile: int) -> llvm.Kernel:
    if tile == 1:
        return llvm.compile_function(combination_programs.combine(lanes))
    return llvm.compile_function(combination_programs.combine_together(lanes))
