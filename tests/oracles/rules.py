"""Aggregation rules and pre-aggregators, one naive function each.

`rows` is always an (n, d) float64 array of finite numbers; a rule returns (d,), a pre-aggregator
(m, d). Ties go to the lowest index. Nothing is changed in place.
"""

from __future__ import annotations

import itertools
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


def krum_scores(
    rows: Array, f: int, *, neighbours: int | None = None, squared: bool = True
) -> Array:
    """score_i = sum of the n-f-2 smallest ‖x_i - x_j‖² over j ≠ i (by index); shape (n,).

    Or of so many `neighbours`, or of distances that are not `squared`. Blanchard et al. 2017,
    "Machine learning with adversaries: Byzantine tolerant gradient descent", section 4.
    Raises ValueError if no neighbour is left (n - f - 2 < 1).
    """
    n = len(rows)
    neighbours = n - f - 2 if neighbours is None else neighbours
    if f < 0 or neighbours < 1:
        raise ValueError(f"krum: f >= 0 and n - f - 2 >= 1 are required, found n={n}, f={f}")
    scores = np.zeros(n)
    for i in range(n):
        distances = sorted(float(np.sum((rows[i] - rows[j]) ** 2)) for j in range(n) if j != i)
        for distance in distances[:neighbours]:
            scores[i] += distance if squared else math.sqrt(distance)
    return scores


def krum(rows: Array, f: int) -> Array:
    """The row with the lowest Krum score, ties to the lowest index (Blanchard et al. 2017)."""
    return multi_krum(rows, f, 1)


def multi_krum(
    rows: Array, f: int, m: int, *, neighbours: int | None = None, squared: bool = True
) -> Array:
    """Mean of the m rows with the lowest Krum scores, ties to the lowest index.

    Scores are computed once, over all rows (Multi-Krum, Blanchard et al. 2017); see `krum_scores`.
    Raises ValueError unless 1 <= m <= n.
    """
    order = krum_order(rows, f, neighbours=neighbours, squared=squared)
    if not 1 <= m <= len(rows):
        raise ValueError(f"multi_krum: 1 <= m <= n is required, found m={m}, n={len(rows)}")
    return mean(rows[order[:m]])


def krum_order(
    rows: Array, f: int, *, neighbours: int | None = None, squared: bool = True
) -> list[int]:
    """Places of the rows by ascending Krum score, ties by ascending index; see `krum_scores`."""
    scores = krum_scores(rows, f, neighbours=neighbours, squared=squared)
    return sorted(range(len(rows)), key=lambda i: (scores[i], i))


def krum_selection(rows: Array, f: int) -> list[int]:
    """Places of the n-2f rows that Krum selects one after the other, each time from what is left.

    Of m rows left, the scores have m-f-2 neighbours, at least 1. El Mhamdi, Guerraoui, Rouault
    2018, "The hidden vulnerability of distributed learning in Byzantium", section 4.
    """
    left = list(range(len(rows)))
    selected = []
    for _ in range(len(rows) - 2 * f):
        place = 0
        if len(left) > 1:
            scores = krum_scores(rows[left], f, neighbours=max(1, len(left) - f - 2))
            place = min(range(len(left)), key=lambda k: (scores[k], k))
        selected.append(left.pop(place))
    return selected


def bulyan(rows: Array, f: int) -> Array:
    """Per coordinate, the mean of the n-4f values nearest to the median, of the n-2f rows selected.

    Of two as near, the lower. El Mhamdi et al. 2018, section 4. Raises ValueError if n < 4f+3.
    """
    if len(rows) < 4 * f + 3:
        raise ValueError(f"bulyan: n >= 4f + 3 is required, found n={len(rows)}, f={f}")
    return near_median(rows[krum_selection(rows, f)], 2 * f)


def near_median(rows: Array, far: int) -> Array:
    """Per coordinate, the mean of the n-far values nearest to the median; of two, the lower."""
    n, d = rows.shape
    centre = coordinate_median(rows)
    out = np.zeros(d)
    for j in range(d):
        nearest = sorted((abs(x - centre[j]), x) for x in rows[:, j].tolist())[: n - far]
        out[j] = sum(x for _, x in nearest) / (n - far)
    return out


def medoid(rows: Array) -> int:
    """The place of the row with the least sum of distances to all rows, the first of several.

    El Mhamdi et al. 2018, section 2 (there called GeoMed).
    """
    sums = [geometric_median_objective(rows, row) for row in rows]
    return min(range(len(rows)), key=lambda i: (sums[i], i))


def diameter(rows: Array) -> float:
    """The largest squared distance between two rows."""
    return max(float(np.sum((a - b) ** 2)) for a in rows for b in rows)


def minimum_diameter_set(rows: Array, f: int) -> tuple[int, ...]:
    """The lexicographically first of the sets of n-f rows with the least diameter.

    Rousseeuw 1985, "Multivariate estimation with high breakdown point"; El-Mhamdi et al. 2020,
    "Genuinely distributed Byzantine machine learning" (MDA). By looking at all sets.
    """
    sets = itertools.combinations(range(len(rows)), len(rows) - f)
    return min(sets, key=lambda chosen: diameter(rows[list(chosen)]))


def minimum_diameter_averaging(rows: Array, f: int) -> Array:
    """Mean of the set of n-f rows that has the least diameter."""
    return mean(rows[list(minimum_diameter_set(rows, f))])


def top_eigenvalue(rows: Array) -> float:
    """The largest eigenvalue of (1/n) Σ (x_i - x̄)(x_i - x̄)ᵀ."""
    return float(np.linalg.norm(rows - mean(rows), ord=2) ** 2 / len(rows))


def smallest_eigenvalue_set(rows: Array, f: int) -> tuple[int, ...]:
    """The first set of n-f rows whose covariance has the least top eigenvalue, to 1 part in 10⁹.

    Allouah et al. 2023, "On the privacy-robustness-utility trilemma in distributed learning",
    section 5 (SMEA). By looking at all sets.
    """
    sets = list(itertools.combinations(range(len(rows)), len(rows) - f))
    values = [top_eigenvalue(rows[list(chosen)]) for chosen in sets]
    least = min(values)
    near = least + 1e-9 * abs(least)
    return next(chosen for chosen, value in zip(sets, values, strict=True) if value <= near)


def smea(rows: Array, f: int) -> Array:
    """Mean of the set of n-f rows whose covariance has the least top eigenvalue."""
    return mean(rows[list(smallest_eigenvalue_set(rows, f))])


def caf(rows: Array, f: int) -> Array:
    """The weighted mean that the filter meets with the least top eigenvalue of the covariance.

    c_i = 1; while Σ c_i > n-2f: μ and Σ the weighted mean and covariance, v the top eigenvector of
    Σ, τ_i = (vᵀ(x_i - μ))², c_i ← c_i (1 - τ_i/max τ), the maximum over c_i > 0. Allouah,
    Guerraoui, Stephan 2025, "Towards trustworthy federated learning with untrusted participants",
    Algorithm 2. For f = 0 the mean.
    """
    n = len(rows)
    c = np.ones(n)
    best, least = mean(rows), math.inf
    while c.sum() > n - 2 * f + 1e-12 * n:
        mu = np.einsum("i,ij->j", c, rows) / c.sum()
        covariance = np.einsum("i,ij,ik->jk", c, rows - mu, rows - mu) / c.sum()
        values, vectors = np.linalg.eigh(covariance)
        if values[-1] < least:
            best, least = mu, float(values[-1])
        tau = ((rows - mu) @ vectors[:, -1]) ** 2
        largest = max(t for t, weight in zip(tau, c, strict=True) if weight > 0)
        if largest == 0:
            break
        c = np.array([w * (1 - t / largest) if w > 0 else 0.0 for w, t in zip(c, tau, strict=True)])
    return best


def nearest_to_reference(rows: Array, f: int, reference: int) -> Array:
    """Mean of row `reference` and its n-f-1 nearest other rows, ties to the lowest index.

    Farhadkhani et al. 2023, "Robust collaborative learning with linear gradient overhead" (MoNNA).
    """
    return nearest_neighbor_mixing(rows, f)[reference]


def comparative_gradient_elimination(rows: Array, f: int) -> Array:
    """Mean of the n-f rows with the smallest norms, ties to the lowest index.

    Gupta, Vaidya 2020, "Fault-tolerance in distributed optimization: the case of redundancy".
    """
    squares = [float(np.sum(row**2)) for row in rows]
    order = sorted(range(len(rows)), key=lambda i: (squares[i], i))
    return mean(rows[order[: len(rows) - f]])


def smoothed_weiszfeld(rows: Array, nu: float, iterations: int, start: Array) -> Array:
    """Repeat y ← Σ β_i x_i / Σ β_i with β_i = 1 / max(ν, ‖y - x_i‖).

    Pillutla, Kakade, Harchaoui 2022, "Robust aggregation for federated learning", Algorithm 2.
    """
    y = start.copy()
    for _ in range(iterations):
        beta = [1 / max(nu, float(np.linalg.norm(y - row))) for row in rows]
        y = sum((b * row for b, row in zip(beta, rows, strict=True)), np.zeros_like(y)) / sum(beta)
    return y


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


def resample(rows: Array, s: int, permutation: Sequence[int]) -> Array:
    """Means of n groups of s places, of n·s places of which s in a row are each row's; (n, d).

    He, Karimireddy, Jaggi 2020, "Byzantine-robust learning on heterogeneous datasets via
    resampling", Algorithm 1, with a permutation of all places that are to be drawn.
    Raises ValueError if s < 1 or `permutation` does not hold each of 0…ns-1 once.
    """
    copies = np.repeat(rows, s, axis=0) if s >= 1 else rows[:0]
    return bucketing(copies, s, permutation)


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
