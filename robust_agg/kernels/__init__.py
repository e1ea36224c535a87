"""The passes over memory that every rule is made of, dispatched to the fastest path.

`sorted_mean` and `mean_around` are what coordinate-wise rules need, `pulled_median` what the online
median of ‖·‖₁ needs; `centred_gram`, `row_distances` and `combine` are what weight-space rules
need, `gram` where the first has lost its digits, and `mix` and `mixed_order_mean` what mixings
before another rule need. None of them changes its input, and none is differentiable.
"""

from __future__ import annotations

from math import inf, isfinite
from typing import Protocol

import torch
from torch import Tensor

from robust_agg.kernels import cpu, cuda, reference
from robust_agg.kernels.reference import OrderMean, largest

__all__ = [
    "centred_gram",
    "combine",
    "gram",
    "is_finite",
    "largest",
    "mean",
    "mean_around",
    "mix",
    "mixed_order_mean",
    "pulled_median",
    "row_distances",
    "sorted_mean",
]


def sorted_mean(rows: Tensor, start: int, stop: int) -> Tensor:
    """Mean of the order statistics `start` .. `stop - 1` per coordinate, ascending, NaN as +Inf.

    ``out_j = 1/(stop-start) * sum_{k=start}^{stop-1} x_(k)j``; `rows` is (n, d), the result (d,) of
    the same dtype. The median of an odd n is ``(n-1)//2, n//2+1`` (for an even n that is the
    midpoint of the two middle values); the f-trimmed mean is ``f, n-f``.

    Raises:
        ValueError: unless rows are a float matrix with n, d >= 1, and ``0 <= start < stop <= n``.
    """
    _check_rows("sorted_mean", rows)
    if not 0 <= start < stop <= rows.shape[0]:
        raise ValueError(
            "sorted_mean: 0 <= start < stop <= n is required, "
            f"found start={start}, stop={stop}, n={rows.shape[0]}"
        )
    return _path(rows).order_mean(_values(rows), OrderMean(start, stop))


def mean_around(rows: Tensor, start: int, stop: int, far: int) -> Tensor:
    """Per coordinate, the mean without the `far` values that are farthest from a centre.

    The centre is the mean of the order statistics `start` .. `stop - 1`, as in `sorted_mean`. Of
    two values as far, one below and one above, the lower one is kept. NaN is ordered as +Inf.

    Raises:
        ValueError: unless rows are a float matrix with n, d >= 1, ``0 <= start < stop <= n`` and
            ``0 <= far < n``.
    """
    _check_rows("mean_around", rows)
    n = rows.shape[0]
    if not (0 <= start < stop <= n and 0 <= far < n):
        raise ValueError(
            "mean_around: 0 <= start < stop <= n and 0 <= far < n are required, "
            f"found start={start}, stop={stop}, far={far}, n={n}"
        )
    return _path(rows).order_mean(_values(rows), OrderMean(start, stop, far))


def pulled_median(rows: Tensor, point: Tensor, tau: float) -> Tensor:
    """Per coordinate, the median of the n values and of ``p_j + τ(n-2k)/n``, k = 0 … n.

    The point that ``(1/n) sum_i |y - x_i| + (y - p)^2/(2τ)`` is least at. `rows` is (n, d), `point`
    (d,), whose dtype the result (d,) has. NaN is ordered as +Inf.

    Raises:
        ValueError: unless rows are a float matrix with n, d >= 1, point is (d,), both are on one
            device, and tau is positive and finite.
    """
    _check_rows("pulled_median", rows)
    _check_vector("pulled_median", "point", point, rows.shape[1])
    _check_device("pulled_median", "point", point, rows)
    if not 0 < tau < inf:
        raise ValueError(f"pulled_median: tau must be positive and finite, found {tau}")
    return _path(rows, point).pulled_median(_values(rows), _values(point), tau)


def centred_gram(rows: Tensor, extra: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The coordinate-wise median c of `rows` and the Gram matrix of ``[c, x_i - c, y_k - c]``.

    `rows` is (n, d), `extra` (e, d) or None. Returns c (d,) in at least float32, with 0 where the
    median is not finite, and the matrix (1+n+e, 1+n+e), float64 on the CPU. A row that cannot be
    measured (NaN, Inf, overflowing squares) makes only its own row and column non-finite.

    Raises:
        ValueError: unless rows are a float matrix with n, d >= 1, extra is None or (e, d), and both
            are on one device.
    """
    _check_rows("centred_gram", rows)
    if extra is not None:
        if extra.shape[1:] != rows.shape[1:]:
            raise ValueError(
                f"centred_gram: extra must be (e, {rows.shape[1]}), found {tuple(extra.shape)}"
            )
        _check_device("centred_gram", "extra", extra, rows)
        extra = _values(extra)
    return _path(rows, extra).centred_gram(_values(rows), extra)


def gram(rows: Tensor) -> Tensor:
    """``<x_i, x_k>``, products and sums in float64: (n, n) float64 on the CPU, from rows (n, d).

    About the origin, not a centre. A row that holds NaN or Inf makes only its own row and column
    non-finite.

    Raises:
        ValueError: unless rows are a float matrix with n, d >= 1.
    """
    _check_rows("gram", rows)
    return reference.gram(_values(rows))


def row_distances(rows: Tensor, point: Tensor) -> Tensor:
    """``||x_i - point||_2`` of each row, float64 (n,) on the CPU; non-finite where not measurable.

    Raises:
        ValueError: unless rows are a float matrix with n, d >= 1, point is (d,), and both are on
            one device.
    """
    _check_rows("row_distances", rows)
    _check_vector("row_distances", "point", point, rows.shape[1])
    _check_device("row_distances", "point", point, rows)
    return _path(rows, point).row_distances(_values(rows), _values(point))


def combine(
    rows: Tensor,
    weights: Tensor,
    base: Tensor | None = None,
    *,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """``sum_i w_i x_i``, plus ``(1 - sum_i w_i) * base`` where a base (d,) is given.

    `rows` (n, d), `weights` (n,) float64; (d,) of `dtype`, by default that of the rows, accumulated
    in at least float32, row after row, of which the rounding is at most n·ε·``sum_i |w_i x_i|``. A
    row of weight 0 is never read: 0 times Inf would be NaN.

    Raises:
        ValueError: unless rows are a float matrix with n, d >= 1, weights (n,), base None or (d,)
            and on the device of the rows.
    """
    _check_rows("combine", rows)
    _check_vector("combine", "weights", weights, rows.shape[0])
    if base is not None:
        _check_vector("combine", "base", base, rows.shape[1])
        _check_device("combine", "base", base, rows)
        base = _values(base)
    path = _path(rows, weights, base)
    return path.combine(_values(rows), _values(weights), base, dtype=dtype)


def mean(rows: Tensor) -> tuple[Tensor, float]:
    """``(1/n) sum_i x_i``, and the largest magnitude of a number in the rows: one pass.

    `rows` is (n, d), the mean (d,) of the same dtype, as `combine` with all weights 1/n gives it.
    The magnitude is Inf where a number is NaN.

    Raises:
        ValueError: unless rows are a float matrix with n, d >= 1.
    """
    _check_rows("mean", rows)
    return _path(rows).mean(_values(rows))


def mix(rows: Tensor, coefficients: Tensor) -> Tensor:
    """``sum_j a_ij x_j`` for each row a_i of `coefficients` (m, n); (m, d) in at least float32.

    A row of `rows` (n, d) that has coefficient 0 everywhere is never read: 0 times Inf would be
    NaN. One that has another coefficient anywhere must be finite.

    Raises:
        ValueError: unless rows are a float matrix with n, d >= 1, and coefficients (m, n).
    """
    _check_rows("mix", rows)
    _check_coefficients("mix", coefficients, rows)
    return _path(rows, coefficients).mix(_values(rows), _values(coefficients))


def mixed_order_mean(
    rows: Tensor, coefficients: Tensor, start: int, stop: int, far: int | None = None
) -> Tensor:
    """`sorted_mean`, or `mean_around` where `far` is given, of the rows that `mix` would give.

    Those are never all in memory. Of rows (n, d) and coefficients (m, n); the result is (d,) in at
    least float32. Coefficients that are NaN make a mixed row of NaN, which is ordered as +Inf.

    Raises:
        ValueError: unless rows are a float matrix with n, d >= 1, coefficients (m, n) with m >= 1,
            ``0 <= start < stop <= m`` and, where given, ``0 <= far < m``.
    """
    _check_rows("mixed_order_mean", rows)
    _check_coefficients("mixed_order_mean", coefficients, rows)
    m = len(coefficients)
    if not (0 <= start < stop <= m and 0 <= (far or 0) < m):
        raise ValueError(
            "mixed_order_mean: 0 <= start < stop <= m and 0 <= far < m are required, "
            f"found start={start}, stop={stop}, far={far}, m={m}"
        )
    wanted = OrderMean(start, stop, far)
    path = _path(rows, coefficients)
    return path.mixed_order_mean(_values(rows), _values(coefficients), wanted)


def is_finite(tensor: Tensor) -> bool:
    """Whether no number of a tensor that is not empty is NaN or infinite: one pass, no copy."""
    return isfinite(largest(tensor))


class _Path(Protocol):
    """What `reference`, `cpu` and `cuda` have in common."""

    def order_mean(self, rows: Tensor, wanted: OrderMean) -> Tensor: ...

    def pulled_median(self, rows: Tensor, point: Tensor, tau: float) -> Tensor: ...

    def centred_gram(self, rows: Tensor, extra: Tensor | None = None) -> tuple[Tensor, Tensor]: ...

    def row_distances(self, rows: Tensor, point: Tensor) -> Tensor: ...

    def combine(
        self,
        rows: Tensor,
        weights: Tensor,
        base: Tensor | None = None,
        *,
        dtype: torch.dtype | None = None,
    ) -> Tensor: ...

    def mean(self, rows: Tensor) -> tuple[Tensor, float]: ...

    def mix(self, rows: Tensor, coefficients: Tensor) -> Tensor: ...

    def mixed_order_mean(self, rows: Tensor, coefficients: Tensor, wanted: OrderMean) -> Tensor: ...


def _path(rows: Tensor, *others: Tensor | None) -> _Path:
    """The fastest path that takes these tensors."""
    tensors = [rows, *(tensor for tensor in others if tensor is not None)]
    # A subclass (DTensor, FakeTensor) need not have its numbers in memory at its address.
    if not all(type(tensor) in {Tensor, torch.nn.Parameter} for tensor in tensors):
        return reference
    if all(tensor.is_cpu for tensor in tensors):
        return cpu
    # Of the others, only weights and coefficients may be elsewhere.
    if rows.is_cuda and cuda.available(rows.device):
        return cuda
    return reference


def _values(tensor: Tensor) -> Tensor:
    """The tensor without history, and with its numbers as they are in its memory."""
    tensor = tensor.detach().resolve_neg()
    return tensor.clone() if tensor._is_zerotensor() else tensor


def _check_rows(name: str, rows: Tensor) -> None:
    floats = rows.is_floating_point() and rows.dtype.itemsize >= 2
    if rows.ndim != 2 or 0 in rows.shape or not floats or rows.layout != torch.strided:
        raise ValueError(
            f"{name}: rows must be a dense float matrix (n, d), of 16 bits or more and with "
            f"n, d >= 1, found {rows.dtype}, {rows.layout} of shape {tuple(rows.shape)}"
        )


def _check_vector(name: str, parameter: str, vector: Tensor, length: int) -> None:
    if vector.shape != (length,):
        raise ValueError(
            f"{name}: {parameter} must have shape ({length},), found {tuple(vector.shape)}"
        )


def _check_coefficients(name: str, coefficients: Tensor, rows: Tensor) -> None:
    if coefficients.ndim != 2 or coefficients.shape[1] != rows.shape[0]:
        raise ValueError(
            f"{name}: coefficients must be (m, {rows.shape[0]}), found {tuple(coefficients.shape)}"
        )


def _check_device(name: str, parameter: str, tensor: Tensor, rows: Tensor) -> None:
    if tensor.device != rows.device:
        raise ValueError(
            f"{name}: {parameter} must be on the device of rows, {rows.device}, "
            f"found {tensor.device}"
        )
