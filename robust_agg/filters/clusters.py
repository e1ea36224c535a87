"""Clusterings of a few points, exact and without a library: mean shift, two kinds of linkage."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float64]
Labels = NDArray[np.int64]

_ROUNDING = 1 + 1e-9
# A point at the rim of a ball is in it, and two peaks as near are ties, however they are rounded.
_CLIMBS = 300
# The density that a step of mean shift climbs has finitely many values.
_QUANTUM = 2.0**-30
# Distances that differ by less are ties: sums of so many quanta are exact.


def neighbour_bandwidth(points: Matrix) -> float:
    """The mean over the points of the distance to the ⌊n/2⌋-th nearest, oneself the first.

    It is what scikit-learn's ``estimate_bandwidth(points, quantile=0.5)`` gives.
    """
    nearest = np.sqrt(np.sort(_squares(points, points), axis=1))[:, max(1, len(points) // 2) - 1]
    return float(np.sort(nearest).mean())  # sorted, so that no order of the points rounds otherwise


def mean_shift(points: Matrix, bandwidth: float) -> Labels:
    """The cluster of each of the points ``(n, k)``, from 0 on by falling density.

    Every point climbs to a peak: ``y ← mean {x_i : ‖x_i - y‖ <= h}`` until those are the same
    points. Of peaks within h of each other the denser one stays (the one with more points within h;
    as dense, that of the lexicographically first point), and each point is of the nearest peak that
    has stayed, of two as near the denser. Clusters and their numbers do not depend on the order of
    the points.

    Comaniciu & Meer, "Mean Shift: A Robust Approach Toward Feature Space Analysis", PAMI 2002, with
    the flat kernel.

    Args:
        points: of whole numbers where h is 0, whose means do not round.
        bandwidth: h >= 0.
    """
    places, of, counts = np.unique(points, axis=0, return_inverse=True, return_counts=True)
    reach = bandwidth**2 * _ROUNDING
    peaks, near = places, _squares(places, places) <= reach
    for _ in range(_CLIMBS):
        weights = near * counts
        peaks = weights @ places / weights.sum(axis=1, keepdims=True)
        before, near = near, _squares(peaks, places) <= reach
        if np.array_equal(before, near):
            break
    stay: list[int] = []
    for i in np.argsort(-(near * counts).sum(axis=1), kind="stable"):
        if not (_squares(peaks[i, None], peaks[stay]) <= reach).any():
            stay.append(int(i))
    squares = _squares(places, peaks[stay])
    as_near = squares <= squares.min(axis=1, keepdims=True) * _ROUNDING
    labels: Labels = as_near.argmax(axis=1)[of.reshape(-1)]
    return labels


def larger_of_two(distances: Matrix) -> list[int]:
    """The points of the larger of two clusters, ascending; as large, that with the first point.

    The two clusters with the least average distance between their points are joined until two are
    left (average linkage: Sokal & Michener 1958); of ties the lowest indices. Distances are rounded
    to 2⁻³⁰ first, so that equal ones are.

    Args:
        distances: ``(n, n)``, symmetric, n >= 1.
    """
    n = len(distances)
    sums = np.rint(distances / _QUANTUM)
    members = {i: [i] for i in range(n)}
    sizes = np.ones(n)
    means = sums.copy()
    np.fill_diagonal(means, np.inf)
    while len(members) > 2:
        # The first of the least in a symmetric matrix is above the diagonal.
        i, j = divmod(int(means.argmin()), n)
        members[i] += members.pop(j)
        sizes[i] += sizes[j]
        sums[i] += sums[j]
        sums[:, i] += sums[:, j]
        means[i] = means[:, i] = sums[i] / (sizes[i] * sizes)
        means[j] = means[:, j] = np.inf
        gone = [k for k in range(n) if k not in members]
        means[i, gone] = means[gone, i] = means[i, i] = np.inf
    largest = max(len(some) for some in members.values())
    return sorted(next(some for some in members.values() if len(some) == largest))


def first_majority(distances: Matrix, size: int) -> list[int]:
    """The first cluster of single linkage that has ``size`` points or more, ascending.

    Points no farther apart than a distance are linked; this grows until enough are linked to each
    other. Where ``size`` is more than half of the points there is one such cluster, and it is what
    HDBSCAN (Campello, Moulavi & Sander 2013) with that least size and no smoothing makes of a
    single cluster: at any distance at most one part is large enough to go on as the cluster.
    Distances are rounded to 2⁻³⁰ first, so that equal ones are.

    Args:
        distances: ``(n, n)``, symmetric.
        size: from 1 to n, more than n/2.
    """
    n = len(distances)
    lengths = np.rint(distances / _QUANTUM)
    # A shortest tree has all that linking looks at, one edge a point.
    nearest, of = lengths[0].copy(), np.zeros(n, dtype=np.int64)
    outside = np.arange(n) > 0
    edges: list[tuple[float, int, int]] = []
    for _ in range(n - 1):
        j = int(np.where(outside, nearest, np.inf).argmin())
        edges.append((float(nearest[j]), int(of[j]), j))
        outside[j] = False
        closer = lengths[j] < nearest
        nearest[closer], of[closer] = lengths[j][closer], j
    labels = np.arange(n)
    edges.sort(key=lambda edge: edge[0])
    for place, (length, i, j) in enumerate(edges):
        labels[labels == labels[j]] = labels[i]
        # Of links as long, none is before another.
        last = place + 1 == len(edges) or edges[place + 1][0] > length
        largest = np.bincount(labels).argmax()
        if last and (labels == largest).sum() >= size:
            return [int(k) for k in np.flatnonzero(labels == largest)]
    return list(range(n))


def cosine_distances(gram: Matrix) -> Matrix:
    """``1 - ⟨x_i, x_j⟩/(‖x_i‖‖x_j‖)``, ``(n, n)``, from the rows' Gram matrix; 1 for a row of 0."""
    lengths = np.sqrt(gram.diagonal())
    units = np.divide(1.0, lengths, out=np.zeros(len(gram)), where=lengths > 0)
    distances: Matrix = 1 - gram * units * units[:, None]
    return distances


def _squares(a: Matrix, b: Matrix) -> Matrix:
    """``(m, n)`` of ‖a_i - b_j‖²."""
    squares = np.zeros((len(a), len(b)))
    for k in range(a.shape[1]):
        squares += np.square(a[:, k, None] - b[:, k])
    return squares
