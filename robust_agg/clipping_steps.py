"""The iterations of centered clipping: in weight space, or by passes over the rows."""

from __future__ import annotations

from math import ceil

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from robust_agg import kernels
from robust_agg.shards import WHOLE, Shards
from robust_agg.solvers import Vector
from robust_agg.span import too_far


def clip_in_weight_space(
    gram: Tensor, accepted: Tensor, weights: Vector, *, radius: float | None, iterations: int
) -> Tensor:
    """The rows' weights after ``v ← v + (1/n) Σ_i min(1, r/‖x_i - v‖₂) (x_i - v)`` so many times.

    Args:
        gram: ``(n, n)``, <x_i - c, x_j - c> for some c; zero for rejected rows.
        accepted: ``(n,)`` bool; the other rows are clipped to nothing.
        weights: ``(n,)``, of the v to begin with; what they lack in 1 is c's, and remains so.
        radius: r, or None for the ⌈n/2⌉-th smallest distance of the iteration.
        iterations: how often.

    Returns:
        ``(n,)`` float64.
    """
    # In numpy, which takes a fraction of torch's time to begin an operation on so few numbers.
    products, kept, n = gram.numpy(), accepted.numpy(), len(accepted)
    lengths = products.diagonal()
    for _ in range(iterations):
        along = products @ weights
        squares = np.maximum(lengths - 2 * along + weights @ along, 0.0)
        factors = _factors(np.sqrt(squares), kept, radius)
        weights = weights * (1 - factors.mean()) + factors / n
    return torch.from_numpy(weights)


def clip_over_rows(
    rows: Tensor,
    start: Tensor,
    *,
    radius: float | None,
    iterations: int,
    shards: Shards = WHOLE,
) -> tuple[Tensor, Tensor]:
    """As :func:`clip_in_weight_space` from v = c = ``start``, reading the rows in each iteration.

    Twice, where their Gram matrix takes n²d multiply-adds once.

    Args:
        rows: ``(n, d)``.
        start: ``(d,)``, finite.
        radius: r, or None for the ⌈n/2⌉-th smallest distance of the iteration.
        iterations: how often, at least once.
        shards: who holds the columns.

    Returns:
        Weights ``(n,)`` float64, and the accepted rows ``(n,)`` bool.
    """
    n = len(rows)
    distances = shards.distances(rows, start)
    accepted = distances <= too_far(rows.dtype)
    weights = torch.zeros(n, dtype=torch.float64, device="cpu")
    for iteration in range(iterations):
        if iteration > 0:
            distances = shards.distances(rows, kernels.combine(rows, weights, start))
        factors = torch.from_numpy(_factors(distances.numpy(), accepted.numpy(), radius))
        weights = weights * (1 - factors.mean()) + factors / n
    return weights, accepted


def _factors(distances: Vector, kept: NDArray[np.bool_], radius: float | None) -> Vector:
    """``min(1, r/‖x_i - v‖)``, and 0 for the rows that are not kept."""
    distances = np.where(kept, distances, np.inf)
    middle = ceil(len(distances) / 2) - 1
    r = float(np.sort(distances)[middle]) if radius is None else float(radius)
    with np.errstate(divide="ignore", invalid="ignore"):  # of rows that are where v is
        factors = np.where(distances > r, r / distances, 1.0)
    return np.where(kept, factors, 0.0)
