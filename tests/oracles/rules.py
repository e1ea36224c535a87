"""Aggregation rules and pre-aggregators, one naive function each.

`rows` is always an (n, d) float64 array of finite numbers; a rule returns (d,), a pre-aggregator
(m, d). Ties go to the lowest index. Nothing is changed in place.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from oracles.solvers import minimise_sum_of_norms

Array = NDArray[np.float64]


def mean(rows: Array) -> Array:
    """(1/n) Σ x_i."""
    total = np.zeros(rows.shape[1])
    for row in rows:
        total = total + row
    return total / len(rows)


def coordinate_median(rows: Array) -> Array:
    """Median of every coordinate; for even n the midpoint of the two middle values.

    Yin et al. 2018, "Byzantine-robust distributed learning: towards optimal statistical rates",
    Definition 1.
    """
    n, d = rows.shape
    middle = np.zeros(d)
    for j in range(d):
        column = sorted(rows[:, j])
        middle[j] = (column[(n - 1) // 2] + column[n // 2]) / 2
    return middle


def trimmed_mean(rows: Array, f: int) -> Array:
    """Per coordinate, the mean of what is left without the f smallest and the f largest values.

    Yin et al. 2018, Definition 2. Raises ValueError unless 0 <= 2f < n.
    """
    n, d = rows.shape
    if not 0 <= 2 * f < n:
        raise ValueError(f"trimmed_mean: 0 <= 2f < n is required, found n={n}, f={f}")
    kept = np.zeros(d)
    for j in range(d):
        column = sorted(rows[:, j])
        kept[j] = sum(column[f : n - f]) / (n - 2 * f)
    return kept


def mean_around_median(rows: Array, f: int) -> Array:
    """Per coordinate, the mean of the n-f values nearest to the median; of two as near, the lower.

    Xie et al. 2018, "Generalized Byzantine-tolerant SGD", Definition 7.
    """
    return _mean_around(rows, coordinate_median(rows), f)


def phocas(rows: Array, f: int) -> Array:
    """Per coordinate, the mean of the n-f values nearest to the f-trimmed mean; likewise.

    Xie et al. 2018, "Phocas: dimensional Byzantine-resilient stochastic gradient descent",
    Definition 8.
    """
    return _mean_around(rows, trimmed_mean(rows, f), f)


def _mean_around(rows: Array, centre: Array, f: int) -> Array:
    n, d = rows.shape
    if not 0 <= 2 * f < n:
        raise ValueError(f"0 <= 2f < n is required, found n={n}, f={f}")
    out = np.zeros(d)
    for j in range(d):
        nearest = sorted((abs(x - centre[j]), x) for x in rows[:, j].tolist())[: n - f]
        out[j] = sum(x for _, x in nearest) / (n - f)
    return out


def krum_scores(rows: Array, f: int) -> Array:
    """score_i = sum of the n-f-2 smallest ‖x_i - x_j‖² over j ≠ i (by index); shape (n,).

    Blanchard et al. 2017, "Machine learning with adversaries: Byzantine tolerant gradient
    descent", section 4. Raises ValueError if no neighbour is left (n - f - 2 < 1).
    """
    n = len(rows)
    neighbours = n - f - 2
    if f < 0 or neighbours < 1:
        raise ValueError(f"krum: f >= 0 and n - f - 2 >= 1 are required, found n={n}, f={f}")
    scores = np.zeros(n)
    for i in range(n):
        distances = sorted(float(np.sum((rows[i] - rows[j]) ** 2)) for j in range(n) if j != i)
        scores[i] = sum(distances[:neighbours])
    return scores


def krum(rows: Array, f: int) -> Array:
    """The row with the lowest Krum score, ties to the lowest index (Blanchard et al. 2017)."""
    return multi_krum(rows, f, 1)


def multi_krum(rows: Array, f: int, m: int) -> Array:
    """Mean of the m rows with the lowest Krum scores, ties to the lowest index.

    Scores are computed once, over all rows (Multi-Krum, Blanchard et al. 2017).
    Raises ValueError unless 1 <= m <= n.
    """
    scores = krum_scores(rows, f)
    if not 1 <= m <= len(rows):
        raise ValueError(f"multi_krum: 1 <= m <= n is required, found m={m}, n={len(rows)}")
    order = sorted(range(len(rows)), key=lambda i: (scores[i], i))
    return mean(rows[order[:m]])


def geometric_median_objective(rows: Array, y: Array, weights: Array | None = None) -> float:
    """Σ_i w_i ‖y - x_i‖₂ with all w_i = 1 by default."""
    weights = np.ones(len(rows)) if weights is None else weights
    return float(sum(w * np.linalg.norm(y - row) for w, row in zip(weights, rows, strict=True)))


def geometric_median(rows: Array, weights: Array | None = None, tol: float = 1e-13) -> Array:
    """argmin_y Σ_i w_i ‖y - x_i‖₂, with w_i >= 0, all 1 by default.

    Not an iteration stopped early: a data point is returned exactly where the subgradient
    condition of Vardi & Zhang (2000) holds, otherwise Newton's method stops at a gradient of
    `tol` times Σ w_i. Where the minimiser is not unique (collinear rows, half of the weight on
    each side) it is the middle of the minimising segment, so for d = 1 and equal weights it is
    `coordinate_median`. Raises ValueError for bad weights, RuntimeError if `tol` is not reached.
    """
    weights = np.ones(len(rows)) if weights is None else np.asarray(weights, dtype=np.float64)
    return minimise_sum_of_norms(rows, weights, tol=tol)


def centered_clipping(
    rows: Array, radius: float | None = None, *, iterations: int, start: Array | None = None
) -> Array:
    """Repeat v ← v + (1/n) Σ_i (x_i - v) min(1, r/‖x_i - v‖), a row equal to v adding 0.

    Starts at `start`, by default the coordinate-wise median. r is `radius`, or if that is None
    the ceil(n/2)-th smallest of the distances ‖x_i - v‖, found anew in each iteration.
    Karimireddy, He, Jaggi 2021, "Learning from history for Byzantine robust optimization"
    (the adaptive radius and the default start are not the paper's).
    """
    v = coordinate_median(rows) if start is None else start.copy()
    n = len(rows)
    for _ in range(iterations):
        distances = [float(np.linalg.norm(row - v)) for row in rows]
        r = sorted(distances)[math.ceil(n / 2) - 1] if radius is None else radius
        moves = [
            (row - v) * min(1.0, r / distance)
            for row, distance in zip(rows, distances, strict=True)
            if distance > 0
        ]
        v = v + sum(moves, np.zeros_like(v)) / n
    return v


def clip(rows: Array, threshold: float) -> Array:
    """x_i min(1, C/‖x_i‖) for each row, zero rows staying zero; shape (n, d)."""
    clipped = rows.copy()
    for i, row in enumerate(rows):
        length = float(np.linalg.norm(row))
        if length > threshold:
            clipped[i] = row * (threshold / length)
    return clipped


def adaptive_clip(rows: Array, f: int) -> Array:
    """The ⌊2(f/n)(n-f)⌋ longest rows clipped to the length of the next longest; shape (n, d).

    Allouah et al. 2025, "Adaptive gradient clipping for robust federated learning", Algorithm 2.
    """
    n = len(rows)
    lengths = sorted((float(np.linalg.norm(row)) for row in rows), reverse=True)
    return clip(rows, lengths[math.floor(2 * (f / n) * (n - f))])


def nearest_neighbor_mixing(rows: Array, f: int) -> Array:
    """y_i = mean of x_i and its n-f-1 nearest other rows, ties to the lowest index; (n, d).

    Allouah et al. 2023, "Fixing by mixing: a recipe for optimal Byzantine ML under
    heterogeneity" (NNM). Raises ValueError unless 0 <= f < n.
    """
    n = len(rows)
    if not 0 <= f < n:
        raise ValueError(f"nearest_neighbor_mixing: 0 <= f < n is required, found n={n}, f={f}")
    mixed = np.zeros_like(rows)
    for i in range(n):
        others = [j for j in range(n) if j != i]
        others.sort(key=lambda j: (float(np.sum((rows[i] - rows[j]) ** 2)), j))
        mixed[i] = mean(rows[[i, *others[: n - f - 1]]])
    return mixed


def bucketing(rows: Array, s: int, permutation: Sequence[int]) -> Array:
    """Means of consecutive groups of s rows in the order of `permutation`; (ceil(n/s), d).

    The last group has what is left and is divided by its own size. Karimireddy, He, Jaggi 2022,
    "Byzantine-robust learning on heterogeneous datasets via bucketing", Algorithm 1.
    Raises ValueError if s < 1 or `permutation` does not hold each of 0…n-1 once.
    """
    order = [int(i) for i in permutation]
    if s < 1 or sorted(order) != list(range(len(rows))):
        raise ValueError(
            f"bucketing: s >= 1 and a permutation of 0…{len(rows) - 1} are required, "
            f"found s={s}, permutation={order}"
        )
    groups = [order[begin : begin + s] for begin in range(0, len(order), s)]
    return np.array([mean(rows[group]) for group in groups])


def honest_ratio(output: Array, honest_rows: Array) -> float:
    """‖output - mean_H‖² / ((1/|H|) Σ_{i∈H} ‖x_i - mean_H‖²), at most κ for an (f, κ)-robust rule.

    (f, κ)-robustness as Allouah et al. 2023 define it. Raises ValueError if all honest rows
    are equal, where the ratio has no meaning.
    """
    centre = mean(honest_rows)
    spread = float(np.mean([np.sum((row - centre) ** 2) for row in honest_rows]))
    if spread == 0.0:
        raise ValueError("honest_ratio: honest rows must differ, found a variance of 0.0")
    return float(np.sum((output - centre) ** 2)) / spread
