"""The rules as one writes them in torch or numpy: a definition each, every step a pass over memory.

In float64, iterated to more digits, they are what errors are measured against.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import islice, pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from robust_agg import GeometricMedian

Floats = NDArray[np.floating]
STEPS = 1000

TOLERANCE = GeometricMedian().tolerance
"""Of iterations in float64 that are timed: this library's own."""

EXACT_TOLERANCE = 1e-14
"""Of those that errors are measured against."""


def median(rows: Tensor, f: int) -> Tensor:
    return _middle(rows.sort(dim=0).values)


def trimmed_mean(rows: Tensor, f: int) -> Tensor:
    return rows.sort(dim=0).values[f : len(rows) - f].mean(dim=0)


def mean_around_median(rows: Tensor, f: int) -> Tensor:
    return _nearest(rows, median(rows, f), f)


def phocas(rows: Tensor, f: int) -> Tensor:
    return _nearest(rows, trimmed_mean(rows, f), f)


def _middle(values: Tensor) -> Tensor:
    n = len(values)
    return (values[(n - 1) // 2] + values[n // 2]) / 2


def _nearest(rows: Tensor, centre: Tensor, f: int) -> Tensor:
    # Sorted first: of two values as far, the lower one comes first in a stable order.
    rows = rows.sort(dim=0).values
    kept = (rows - centre).abs().argsort(dim=0, stable=True)[: len(rows) - f]
    return rows.gather(0, kept).mean(dim=0)


def geometric_median(rows: Tensor, f: int, tolerance: float = TOLERANCE) -> Tensor:
    return _converged(_weiszfeld(rows, rows.mean(dim=0)), tolerance)


def _weiszfeld(rows: Tensor, y: Tensor, pull: float = 0.0) -> Iterator[Tensor]:
    """Weiszfeld's iteration; with the term ``pull/2 ‖y - start‖²`` in the mean of distances.

    Norms in float64: in float32 their rounding keeps the iteration from ever ending.
    """
    start = y
    while True:
        yield y
        inverse = 1 / torch.linalg.vector_norm(rows - y, dim=1, dtype=torch.float64)
        total = inverse.mean() + pull
        y = ((inverse / len(rows) / total).to(rows.dtype) @ rows) + start * float(pull / total)


def _converged(steps: Iterator[Tensor], tolerance: float) -> Tensor:
    """The first of the steps that is as near to the one before, relatively; 1e-6 in float32."""
    if (first := next(steps)).dtype is not torch.float64:
        tolerance = 1e-6
    for before, after in islice(pairwise(_prepended(first, steps)), STEPS):
        if float((after - before).norm()) <= tolerance * float(after.norm()):
            break
    return after


def _prepended(first: Tensor, rest: Iterator[Tensor]) -> Iterator[Tensor]:
    yield first
    yield from rest


def krum(rows: Tensor, f: int) -> Tensor:
    return rows[_krum_scores(rows, f).argmin()]


def multi_krum(rows: Tensor, f: int) -> Tensor:
    return rows[_krum_scores(rows, f).argsort(stable=True)[: len(rows) - f]].mean(dim=0)


def _krum_scores(rows: Tensor, f: int) -> Tensor:
    """Sums of the squared distances to the n - f - 2 nearest others."""
    return _squared_distances(rows).sort(dim=1).values[:, 1 : len(rows) - f - 1].sum(dim=1)


def _squared_distances(rows: Tensor) -> Tensor:
    # By a matrix product, about the mean: `torch.cdist` takes several times as long.
    deviations = rows - rows.mean(dim=0)
    gram = deviations @ deviations.T
    squares = gram.diagonal()
    return (squares[:, None] + squares - 2 * gram).clamp(min=0).fill_diagonal_(0)


def nearest_neighbor_trimmed_mean(rows: Tensor, f: int) -> Tensor:
    nearest = _squared_distances(rows).topk(len(rows) - f, largest=False).indices
    return trimmed_mean(torch.stack([rows[chosen].mean(dim=0) for chosen in nearest]), f)


def adaptively_clipped_mean(rows: Tensor, f: int) -> Tensor:
    n = len(rows)
    norms = torch.linalg.vector_norm(rows, dim=1)
    limit = norms.sort().values[n - 2 * f * (n - f) // n - 1]
    factors: Tensor = (limit / norms).clamp(max=1)
    return (rows * factors[:, None]).mean(dim=0)


def centered_clipping(rows: Tensor, f: int) -> Tensor:
    y = median(rows, f)
    for _ in range(CLIPPING_STEPS):
        y = _clipped_step(rows, y, clipping_radius(rows))
    return y


CLIPPING_STEPS = 3


def clipping_radius(rows: Tensor) -> float:
    """A radius that clips: half of what a standard normal row is long."""
    return float(0.5 * rows.shape[1] ** 0.5)


def _clipped_step(rows: Tensor, y: Tensor, radius: float) -> Tensor:
    deviations = rows - y
    norms = torch.linalg.vector_norm(deviations, dim=1)
    factors: Tensor = (radius / norms).clamp(max=1)
    return y + (deviations * factors[:, None]).mean(dim=0)


def clipped_step_from_zero(rows: Tensor, f: int) -> Tensor:
    return _clipped_step(rows, torch.zeros_like(rows[0]), clipping_radius(rows))


def pulled_geometric_median(rows: Tensor, f: int, tolerance: float = TOLERANCE) -> Tensor:
    pull = 1 / clipping_radius(rows)
    return _converged(_weiszfeld(rows, torch.zeros_like(rows[0]), pull), tolerance)


ENTRY = 0.5
"""τ of the proximal step of ‖·‖₁, in which a coordinate moves by no more."""


def pulled_median(rows: Tensor, f: int) -> Tensor:
    n = len(rows)
    grid = ENTRY * (n - 2 * torch.arange(n + 1, dtype=rows.dtype, device=rows.device)) / n
    return torch.cat([rows, grid[:, None].expand(-1, rows.shape[1])]).sort(dim=0).values[n]


def _numpy_median(rows: Floats, f: int) -> Floats:
    middle: Floats = np.median(rows, axis=0)
    return middle


def _numpy_trimmed_mean(rows: Floats, f: int) -> Floats:
    kept: Floats = np.partition(rows, (f, len(rows) - f - 1), axis=0)[f : len(rows) - f]
    mean: Floats = kept.mean(axis=0)
    return mean


def _numpy_krum(rows: Floats, f: int) -> Floats:
    squares = np.einsum("ij,ij->i", rows, rows)
    distances = squares[:, None] + squares - 2 * rows @ rows.T
    scores = np.sort(distances, axis=1)[:, 1 : len(rows) - f - 1].sum(axis=1)
    chosen: Floats = rows[scores.argmin()]
    return chosen


def _numpy_mean(rows: Floats, f: int) -> Floats:
    mean: Floats = rows.mean(axis=0)
    return mean


NUMPY: Mapping[str, Callable[[Floats, int], Floats]] = {
    "Mean": _numpy_mean,
    "CoordinateWiseMedian": _numpy_median,
    "TrimmedMean": _numpy_trimmed_mean,
    "Krum": _numpy_krum,
}


def mean(rows: Tensor, f: int) -> Tensor:
    return rows.mean(dim=0)


TORCH: Mapping[str, Callable[[Tensor, int], Tensor]] = {
    "Mean": mean,
    "CoordinateWiseMedian": median,
    "TrimmedMean": trimmed_mean,
    "MeanAroundMedian": mean_around_median,
    "Phocas": phocas,
    "L1 batch": pulled_median,
    "GeometricMedian": geometric_median,
    "Krum": krum,
    "MultiKrum": multi_krum,
    "CenteredClipping": centered_clipping,
    "AdaptiveClip + Mean": adaptively_clipped_mean,
    "NNM + TrimmedMean": nearest_neighbor_trimmed_mean,
    "VClip": clipped_step_from_zero,
    "L2 batch": pulled_geometric_median,
}

EXACT: Mapping[str, Callable[[Tensor, int], Tensor]] = {
    **TORCH,
    "GeometricMedian": partial(geometric_median, tolerance=EXACT_TOLERANCE),
    "L2 batch": partial(pulled_geometric_median, tolerance=EXACT_TOLERANCE),
}
"""In float64, what errors are measured against."""
