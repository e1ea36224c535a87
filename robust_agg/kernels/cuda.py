"""The kernels on a CUDA device, compiled by Triton where it pays, else plain torch.

Order statistics round alike on every path. The others differ in the order of their sums: their path
and that order depend on shape and dtype alone, so that the same rows give the same bits.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from robust_agg.kernels import reference, triton_programs, triton_source
from robust_agg.kernels.reference import OrderMean
from robust_agg.kernels.triton_source import Program

LARGEST_NETWORK = 64
"""Most values a straight-line network selects from: all are in a thread's registers."""

LARGEST_EXTRA = 4
"""Most extra rows in a compiled Gram matrix, which are multiplied one by one."""

SMALLEST_COMPILED = 1 << 16
"""Numbers from which on kernels are compiled, which takes up to seconds the first time."""

PARTS = 1024
"""Most parts of the columns, summed apart and then together: several to each of a card's cores."""

GRAM_SHARE = 20
"""The memory of parts of a Gram matrix is at most one 20th of the rows, but for a single part."""

DISTANCE_COLUMNS = 4096
"""Least columns of a part whose distances are summed."""

MIX_TILE = 8
"""Combinations that are formed together, so that a number once loaded is used for each."""

NUMBERS = {
    torch.float64: "float64",
    torch.float32: "float32",
    torch.float16: "float32",
    torch.bfloat16: "float32",
}
"""What rows of a dtype are computed in; others are not compiled."""


def available(device: torch.device) -> bool:
    """Whether kernels can be compiled for this device."""
    return triton_source.available(device)


def order_mean(rows: Tensor, wanted: OrderMean) -> Tensor:
    """`reference.order_mean` of rows on a CUDA device."""
    n, d = rows.shape
    if not _pays(rows) or n > LARGEST_NETWORK:
        return reference.order_mean(rows, wanted)
    program = _sorted_columns(n, wanted, NUMBERS[rows.dtype])
    out = rows.new_empty(d)
    _launch(program, -(-d // program.width), rows, *rows.stride(), d, program.width, out)
    return out


def pulled_median(rows: Tensor, point: Tensor, tau: float) -> Tensor:
    """`robust_agg.kernels.pulled_median` of rows on a CUDA device."""
    n, d = rows.shape
    alike = point.dtype == reference.compute_dtype(rows.dtype)
    if not _pays(rows) or n > LARGEST_NETWORK or not alike:
        return reference.pulled_median(rows, point, tau, order=order_mean)
    program = _pulled_median(n, NUMBERS[rows.dtype])
    offsets = reference.grid(n, tau, point)
    out = point.new_empty(d)
    _launch(
        program,
        -(-d // program.width),
        *(rows, *rows.stride(), d, program.width),
        *(point, point.stride(0), offsets, out),
    )
    return out


def centred_gram(rows: Tensor, extra: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """`robust_agg.kernels.centred_gram` of rows on a CUDA device.

    The Gram matrix, summed on the device, is copied to the CPU once.
    """
    n, d = rows.shape
    others = 0 if extra is None else extra.shape[0]
    known = rows.dtype != torch.float64 and (extra is None or extra.dtype in NUMBERS)
    if not _pays(rows) or not known or n > LARGEST_NETWORK or others > LARGEST_EXTRA:
        return reference.centred_gram(rows, extra, order=order_mean)
    size = 1 + n + others
    able = rows.numel() * rows.element_size() // GRAM_SHARE // (8 * size**2)
    program = _centred_gram(n, others)
    parts, span = _parts(d, program.width, min(PARTS, able))
    centre = rows.new_empty(d, dtype=torch.float32)
    grams = rows.new_empty(parts, size, size, dtype=torch.float64)
    beside = centre.new_empty(0, d) if extra is None else extra
    _launch(
        program,
        parts,
        *(rows, *rows.stride(), d, span),
        *(beside, *beside.stride(), centre, grams),
    )
    # Of each part only what is on and above the diagonal was written.
    upper = grams.sum(dim=0).cpu().triu()
    return centre, upper + upper.triu(1).T


def row_distances(rows: Tensor, point: Tensor) -> Tensor:
    """`robust_agg.kernels.row_distances` of rows on a CUDA device."""
    n, d = rows.shape
    if not _pays(rows) or point.dtype not in NUMBERS:
        return reference.row_distances(rows, point)
    program = _row_distances()
    parts, span = _parts(d, program.width, min(PARTS, -(-d // DISTANCE_COLUMNS)))
    sums = rows.new_empty(parts, n, dtype=torch.float64)
    tiles = -(-n // triton_programs.DISTANCE_ROWS)
    _launch(
        program,
        parts * tiles,
        *(rows, *rows.stride(), n, d, span),
        *(point, point.stride(0), sums),
    )
    return sums.sum(dim=0).sqrt().cpu()


def combine(
    rows: Tensor,
    weights: Tensor,
    base: Tensor | None = None,
    *,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """`robust_agg.kernels.combine` of rows on a CUDA device; the base is added on the way."""
    out_dtype = rows.dtype if dtype is None else dtype
    known = out_dtype in NUMBERS and (base is None or base.dtype in NUMBERS)
    if not _pays(rows) or not known:
        return reference.combine(rows, weights, base, dtype=dtype)
    weights = weights.cpu()
    coefficients = weights.to(reference.compute_dtype(rows.dtype))
    # As `reference.add_base` does.
    remainder = 1.0 - float(weights.double().sum())
    step, factor = "none", 0.0
    if base is not None and remainder != 0.0:
        if remainder < reference.MOSTLY_BASE:
            step, factor = "pull", remainder
        else:
            step, factor = "step", float(coefficients.double().sum())
    out = rows.new_empty(1, rows.shape[1], dtype=out_dtype)
    _combinations(rows, coefficients[None], out, 1, step, factor, base)
    return out[0]


def mean(rows: Tensor) -> tuple[Tensor, float]:
    """`robust_agg.kernels.mean` of rows on a CUDA device, which reads them twice."""
    return reference.mean(rows, combine=combine)


def mixed_order_mean(rows: Tensor, coefficients: Tensor, wanted: OrderMean) -> Tensor:
    """`reference.mixed_order_mean` of rows on a CUDA device."""
    return reference.mixed_order_mean(rows, coefficients, wanted, order=order_mean, mix=mix)


def mix(rows: Tensor, coefficients: Tensor) -> Tensor:
    """`robust_agg.kernels.mix` of rows on a CUDA device."""
    if not _pays(rows):
        return reference.mix(rows, coefficients)
    work = reference.compute_dtype(rows.dtype)
    out = rows.new_empty(len(coefficients), rows.shape[1], dtype=work)
    _combinations(rows, coefficients.cpu().to(work), out, MIX_TILE)
    return out


def _combinations(
    rows: Tensor,
    coefficients: Tensor,
    out: Tensor,
    tile: int,
    step: str = "none",
    factor: float = 0.0,
    base: Tensor | None = None,
) -> None:
    """Fills `out` (m, d) with the combinations of the rows that `coefficients` (m, n) say.

    Rows are not read whose coefficients are 0, rounded to the precision of the sums as they are.
    """
    m, d = out.shape
    tiles = -(-m // tile)
    chosen = coefficients.any(dim=0).nonzero().flatten()
    tiled = coefficients.new_zeros(tiles * tile, len(chosen))
    tiled[:m] = coefficients[:, chosen]
    tiled = tiled.view(tiles, tile, len(chosen)).transpose(1, 2).flatten()
    factors = torch.cat([tiled, tiled.new_tensor([factor])]).to(rows.device)
    program = _combine(tile, NUMBERS[rows.dtype], step)
    beside = out if base is None else base
    _launch(
        program,
        tiles * -(-d // program.width),
        *(rows, *rows.stride(), d, chosen.to(rows.device), factors, len(chosen)),
        *(beside, beside.stride(-1), out, out.stride(0), m),
    )


def _pays(rows: Tensor) -> bool:
    return rows.dtype in NUMBERS and rows.numel() >= SMALLEST_COMPILED


def _parts(d: int, unit: int, most: int) -> tuple[int, int]:
    """How many parts, at most `most` but at least one, and their columns, a multiple of `unit`."""
    units = -(-d // unit)
    span = -(-units // max(1, most)) * unit
    return -(-d // span), span


def _launch(program: Program, instances: int, *arguments: Any) -> None:
    """Runs the instances on the device of the first argument, in its current stream."""
    with _device(arguments[0]):
        triton_source.kernel(program)[(instances,)](*arguments, **program.options)


def _device(tensor: Tensor) -> AbstractContextManager[Any]:
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()


# A program is written once.
_sorted_columns = lru_cache(maxsize=256)(triton_programs.sorted_columns)
_pulled_median = lru_cache(maxsize=256)(triton_programs.pulled_median)
_centred_gram = lru_cache(maxsize=256)(triton_programs.centred_gram)
_row_distances = lru_cache(maxsize=256)(triton_programs.row_distances)
_combine = lru_cache(maxsize=256)(triton_programs.combine)
