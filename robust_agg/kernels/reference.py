"""The kernels in plain torch, for every device and float dtype.

They are the oracle of the fast paths, and the path taken where there is no fast one.
Columns are processed in chunks, so that no temporary is as large as the rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import inf, isnan
from typing import NamedTuple

import torch
from torch import Tensor

CPU_CHUNK_NUMBERS = 1 << 18
"""Numbers a chunk holds on the CPU: 1 MiB of float32, which stays in a core's L2 cache."""

MOSTLY_BASE = 0.5
"""Weight of the base from which on a combination is formed as a step away from it."""

EXACT_COLUMNS = 512
"""Columns whose float64 products are summed at a time."""

DEVICE_CHUNK_NUMBERS = 1 << 24
"""Numbers a chunk holds on an accelerator, where few large launches are what is fast."""


def chunks(rows: Tensor, *, per_column: int, smallest: int = 64) -> Iterator[slice]:
    """Slices that cover the columns of `rows` (n, d), for `per_column` numbers a column."""
    numbers = CPU_CHUNK_NUMBERS if rows.device.type == "cpu" else DEVICE_CHUNK_NUMBERS
    width = max(smallest, numbers // per_column)
    for start in range(0, rows.shape[1], width):
        yield slice(start, min(start + width, rows.shape[1]))


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype rows of `dtype` are computed in: float64 for float64, float32 for the rest."""
    return torch.promote_types(dtype, torch.float32)


class OrderMean(NamedTuple):
    """Which values of a coordinate are averaged: see `order_mean`."""

    start: int
    stop: int
    far: int | None = None


def median(n: int) -> OrderMean:
    """The median of n values; of an even n the midpoint of the two middle ones."""
    return OrderMean((n - 1) // 2, n // 2 + 1)


def order_mean(rows: Tensor, wanted: OrderMean) -> Tensor:
    """Per coordinate, a mean of order statistics of the n values; NaN is ordered as +Inf.

    With ``x_(0)j <= ... <= x_(n-1)j``: ``c_j = 1/(stop-start) * sum_{k=start}^{stop-1} x_(k)j``;
    where `far` is given, the mean of the n - far values nearest to c_j, of two as near the lower.
    `rows` is (n, d), the result (d,) of the same dtype. The sum runs in ascending order (with `far`
    first over those that are always kept) in float32 (float64 for float64 rows) and is divided by
    the count; where it overflows it is formed again from scaled values. The result is clamped to
    the kept values, so that rounding takes it neither beyond them nor to infinity. A zero is +0.
    """
    out = torch.empty_like(rows[0], memory_format=torch.contiguous_format)
    for part in chunks(rows, per_column=rows.shape[0]):
        values = rows[:, part].to(compute_dtype(rows.dtype))
        values = torch.where(values.isnan(), torch.inf, values)
        out[part] = mean_of_sorted(values.sort(dim=0).values, wanted).to(rows.dtype)
    return out


def mean_of_sorted(values: Tensor, wanted: OrderMean) -> Tensor:
    """The mean of `values` (n, d), which ascend and hold no NaN, that is wanted."""
    start, stop, far = wanted
    middle = values[start:stop]
    centre = _mean(middle, middle[0], middle[-1])
    if far is None:
        return centre + 0.0
    near = len(values) - far
    # Those that are kept follow one another. From the lowest on, the next above comes in for the
    # lowest of them for as long as it is nearer; where far < n/2 each place changes once at most.
    kept = values[:near].clone()
    for first in range(0, far, near):
        below = values[first : min(first + near, far)]
        above = values[first + near : first + near + len(below)]
        # Of finite numbers, at most one of the two differences is too large for a number.
        nearer = above - centre < centre - below
        kept[: len(below)] = torch.where(nearer, above, kept[: len(below)])
    kept = torch.cat([kept[far:], kept[:far]])
    return _mean(kept, kept.amin(dim=0), kept.amax(dim=0)) + 0.0


def _mean(kept: Tensor, least: Tensor, largest: Tensor) -> Tensor:
    if len(kept) == 1:
        return kept[0]
    # A tensor, because a number would be replaced by its rounded reciprocal on some devices.
    count = kept.new_tensor(len(kept))
    mean = _sum_ascending(kept) / count
    if not bool(mean.isfinite().all()):
        # A power of two scales exactly, but for denormals, which are nothing beside an overflow.
        scale = 2.0 ** len(kept).bit_length()
        scaled = _sum_ascending(kept / scale) / count * scale
        mean = torch.where(mean.isfinite(), mean, scaled)
    return mean.clamp(least, largest)


def _sum_ascending(kept: Tensor) -> Tensor:
    # One row at a time: `Tensor.sum` leaves its order open, and every path must round alike.
    total = kept[0].clone()
    for row in kept[1:]:
        total += row
    return total


def grid(n: int, tau: float, like: Tensor) -> Tensor:
    """``τ(n-2k)/n`` for k = n … 0: (n + 1,), ascending, of the dtype and device of `like`."""
    steps = tau * (2 * torch.arange(n + 1, dtype=torch.float64, device="cpu") - n) / n
    return steps.to(like.device, like.dtype)


def pulled_median(
    rows: Tensor,
    point: Tensor,
    tau: float,
    *,
    order: Callable[[Tensor, OrderMean], Tensor] = order_mean,
) -> Tensor:
    """Per coordinate, the median of rows (n, d) and of `point` (d,) + `grid`; see `kernels`."""
    n = rows.shape[0]
    offsets = grid(n, tau, point)[:, None]
    out = torch.empty_like(point)
    for part in chunks(rows, per_column=2 * n + 1):
        values = torch.cat([rows[:, part].to(point.dtype), point[part] + offsets])
        out[part] = order(values, OrderMean(n, n + 1))
    return out


def centred_gram(
    rows: Tensor,
    extra: Tensor | None = None,
    *,
    order: Callable[[Tensor, OrderMean], Tensor] = order_mean,
) -> tuple[Tensor, Tensor]:
    """The coordinate-wise median c of `rows` (n, d), and the Gram matrix of what lies around it.

    Returns ``(c, G)``: c (d,) in float32 (float64 for float64 rows), with 0 where the median is not
    finite; G, float64 on the CPU, the inner products of
    ``[c, x_1 - c, ..., x_n - c, y_1 - c, ..., y_e - c]`` with y the `extra` rows (e, d).
    Sums over a chunk have the precision of c, and are accumulated in float64. A row that holds NaN,
    Inf or numbers too large to square makes its own row and column of G non-finite, no others.
    `order` is the `order_mean` in use.
    """
    n = rows.shape[0]
    size = 1 + n + (0 if extra is None else extra.shape[0])
    dtype = compute_dtype(rows.dtype)
    centre = torch.empty(rows.shape[1], dtype=dtype, device=rows.device)
    gram = torch.zeros(size, size, dtype=torch.float64, device="cpu")
    # A chunk as wide as the Gram matrix takes no more memory than that, and fewer columns would
    # leave the matrix product waiting for the matrix.
    for part in chunks(rows, per_column=2 * size, smallest=max(64, size)):
        block = rows[:, part].to(dtype)
        middle = order(block, median(n))
        middle = middle.nan_to_num_(nan=0.0, posinf=0.0, neginf=0.0)
        centre[part] = middle
        others = [] if extra is None else [extra[:, part].to(dtype) - middle]
        gram += _gram(torch.cat([middle[None], block - middle, *others]))
    return centre, _symmetric(gram)


def _gram(vectors: Tensor) -> Tensor:
    # In float64, because a setting of the user may have float32 products rounded to TF32 or
    # bfloat16, in which differences between close rows do not survive; then back, so that what is
    # too large to measure is so on every path.
    if vectors.dtype != torch.float64:
        wide = vectors.to(_widest(vectors))
        return (wide @ wide.T).to(vectors.dtype).cpu().double()
    # Not all at once: a long sum may lose more digits than the geometry allows for.
    gram = vectors.new_zeros(len(vectors), len(vectors))
    for part in torch.split(vectors, EXACT_COLUMNS, dim=1):
        gram.addmm_(part, part.T)
    return gram.cpu()


def gram(rows: Tensor) -> Tensor:
    """``<x_i, x_k>`` of rows (n, d), about the origin: (n, n) float64 on the CPU.

    Float64 throughout, but where the device has none. A row that holds NaN or Inf makes only its
    own row and column non-finite.
    """
    n = rows.shape[0]
    out = torch.zeros(n, n, dtype=torch.float64, device="cpu")
    for part in chunks(rows, per_column=2 * n, smallest=max(64, n)):
        block = rows[:, part].to(_widest(rows))
        out += (block @ block.T).cpu().double()
    return _symmetric(out)


def _symmetric(matrix: Tensor) -> Tensor:
    """A matrix with its upper triangle on both sides: not every BLAS rounds the two alike."""
    return matrix.triu() + matrix.triu(1).T


def _widest(rows: Tensor) -> torch.dtype:
    return torch.float32 if rows.device.type == "mps" else torch.float64


def row_distances(rows: Tensor, point: Tensor) -> Tensor:
    """``||x_i - point||_2`` for each row x_i of `rows` (n, d) and `point` (d,).

    Float64 (n,) on the CPU; NaN or Inf for a row that holds them.
    """
    dtype = _widest(rows)
    squares = torch.zeros(rows.shape[0], dtype=torch.float64, device="cpu")
    for part in chunks(rows, per_column=2 * rows.shape[0]):
        deviations = rows[:, part].to(dtype) - point[part].to(dtype)
        squares += deviations.square().sum(dim=1).cpu().double()
    return squares.sqrt()


def combine(
    rows: Tensor,
    weights: Tensor,
    base: Tensor | None = None,
    *,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """``sum_i w_i x_i``, plus ``(1 - sum_i w_i) * base`` where a base is given.

    `rows` (n, d), `weights` (n,) float64, `base` (d,); the result is (d,) of `dtype` (default: that
    of `rows`) and accumulated in at least float32. A row of weight 0 is never read, so that its NaN
    or Inf has no part in the result.
    """
    work = compute_dtype(rows.dtype)
    coefficients = weights.to(work)
    chosen = coefficients.nonzero().flatten()
    coefficients = coefficients[chosen].to(rows.device)
    everything = len(chosen) == rows.shape[0]
    # What is contiguous in neither direction would be copied at once.
    whole = everything and 1 in (rows.stride(0), rows.stride(1))
    # On the CPU a setting of the user may have float32 products rounded to bfloat16, those with a
    # vector included.
    wide = torch.float64 if rows.device.type == "cpu" else work
    if whole and rows.dtype == wide:
        out = torch.mv(rows.T, coefficients)
    else:
        chosen = chosen.to(rows.device)
        factors = coefficients.to(wide)
        out = torch.zeros(rows.shape[1], dtype=work, device=rows.device)
        for part in chunks(rows, per_column=max(1, 2 * len(chosen))):
            block = rows[:, part] if everything else rows[:, part].index_select(0, chosen)
            out[part] = torch.mv(block.to(wide).T, factors)
    return add_base(out, weights, coefficients, base).to(rows.dtype if dtype is None else dtype)


def mean(
    rows: Tensor, *, combine: Callable[[Tensor, Tensor], Tensor] = combine
) -> tuple[Tensor, float]:
    """``(1/n) sum_i x_i`` of rows (n, d), and the largest magnitude of a number.

    That is Inf where one is NaN. `combine` is the one in use.
    """
    n = rows.shape[0]
    weights = torch.full((n,), 1 / n, dtype=torch.float64, device="cpu")
    return combine(rows, weights), largest(rows)


def largest(tensor: Tensor) -> float:
    """The largest magnitude in a tensor that is not empty, Inf where it holds a NaN: one pass."""
    least, most = (float(end) for end in torch.aminmax(tensor.detach()))
    return inf if isnan(least) else max(-least, most)  # both ends are NaN where there is one


def mix(rows: Tensor, coefficients: Tensor) -> Tensor:
    """``sum_j a_ij x_j`` of rows (n, d) for each row a_i of `coefficients` (m, n) float64.

    The result is (m, d) in float32 (float64 for float64 rows). A row that has coefficient 0
    everywhere is never read.
    """
    m, n = coefficients.shape
    # As they are rounded on every path, so that all read the same rows.
    coefficients = coefficients.to(compute_dtype(rows.dtype))
    read = coefficients.any(dim=0).nonzero().flatten()
    # In float64 for the same reason as a Gram matrix: the rule that follows compares mixed rows.
    wide = coefficients[:, read].to(rows.device, _widest(rows))
    chosen = None if len(read) == n else read.to(rows.device)
    out = rows.new_empty(m, rows.shape[1], dtype=compute_dtype(rows.dtype))
    for part in chunks(rows, per_column=2 * (m + n)):
        block = rows[:, part] if chosen is None else rows[:, part].index_select(0, chosen)
        out[:, part] = wide @ block.to(wide.dtype)
    return out


def mixed_order_mean(
    rows: Tensor,
    coefficients: Tensor,
    wanted: OrderMean,
    *,
    order: Callable[[Tensor, OrderMean], Tensor] = order_mean,
    mix: Callable[[Tensor, Tensor], Tensor] = mix,
) -> Tensor:
    """`order_mean` of `mix`, for some columns at a time; (d,) in the precision of the mixed rows.

    `order` and `mix` are those in use.
    """
    out = rows.new_empty(rows.shape[1], dtype=compute_dtype(rows.dtype))
    for part in chunks(rows, per_column=2 * sum(coefficients.shape)):
        out[part] = order(mix(rows[:, part], coefficients), wanted)
    return out


def add_base(out: Tensor, weights: Tensor, coefficients: Tensor, base: Tensor | None) -> Tensor:
    """Adds ``(1 - W) * base`` in place, W the sum of the weights; not read where W is exactly 1.

    `coefficients` are the weights as they were rounded to be multiplied.
    """
    if base is None:
        return out
    remainder = 1.0 - float(weights.double().sum())
    if remainder == 0.0:
        return out
    base = base.to(out.dtype)
    if remainder < MOSTLY_BASE:
        return out.add_(base, alpha=remainder)
    # base + (Σ w_i x_i - W base) rather than (1 - W) base: where W is small, rounding 1 - W
    # to float32 would pull the result away from the base by more than a step adds.
    return out.sub_(base, alpha=float(coefficients.double().sum())).add_(base)
