"""Rules by votes, signs, directions and outlier scores, one naive function each.

`rows` is always an (n, d) float64 array of finite numbers; a rule returns (d,). What a paper draws
is given: `places` are the coordinates of a draw. Ties go to the lowest index unless something else
is said. Nothing is changed in place.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def sign_majority(rows: Array) -> Array:
    """sign(Σ_i sign(x_ij)) of each coordinate; a NaN votes for nothing.

    Bernstein et al. 2019, "signSGD with majority vote is communication efficient and fault
    tolerant", Algorithm 1.
    """
    out = np.zeros(rows.shape[1])
    for j in range(rows.shape[1]):
        votes = sum((x > 0) - (x < 0) for x in rows[:, j].tolist())
        out[j] = (votes > 0) - (votes < 0)
    return out


def lower_median(rows: Array) -> Array:
    """The median of every coordinate; for even n the lower of the two middle values."""
    return np.array([sorted(column)[(len(rows) - 1) // 2] for column in rows.T.tolist()])


def beta_trimmed_mean(rows: Array, numerator: int, denominator: int) -> Array:
    """Per coordinate, the mean without the ⌊βn⌋ smallest and ⌊βn⌋ largest, β a fraction.

    Yin et al. 2018, Definition 2.
    """
    n, d = rows.shape
    trimmed = numerator * n // denominator
    out = np.zeros(d)
    for j in range(d):
        kept = sorted(rows[:, j].tolist())[trimmed : n - trimmed]
        out[j] = sum(kept) / len(kept)
    return out


def singular_scores(rows: Array, places: Sequence[int]) -> Array:
    """⟨x_i - x̄, v⟩² in the coordinates `places`, v the top right singular vector; (n,)."""
    some = rows[:, list(places)]
    centred = some - some.mean(axis=0)
    _, _, right = np.linalg.svd(centred, full_matrices=False)
    scores: Array = np.square(centred @ right[0])
    return scores


def divide_and_conquer(rows: Array, f: int, c: float, draws: Sequence[Sequence[int]]) -> Array:
    """The mean of the rows that are among the n - ⌊c f⌋ lowest scores in every draw.

    Shejwalkar & Houmansadr 2021, "Manipulating the Byzantine", Algorithm 2. Scores as near as
    1e-9 of the largest are ties. Raises ValueError if no row is left.
    """
    n = len(rows)
    good = set(range(n))
    for places in draws:
        scores = singular_scores(rows, places)
        order: list[int] = []
        left = list(range(n))
        while left:
            least = min(scores[i] for i in left)
            order.append(next(i for i in left if scores[i] <= least + 1e-9 * scores.max()))
            left.remove(order[-1])
        good &= set(order[: n - math.floor(c * f)])
    if not good:
        raise ValueError("divide_and_conquer: no row is kept by all draws")
    return np.mean([rows[i] for i in sorted(good)], axis=0)


def sign_features(rows: Array, places: Sequence[int]) -> Array:
    """How many positive, zero and negative numbers there are in the coordinates `places`; (n, 3).

    The paper's shares of signs times the number of places, which is exact.
    """
    some = rows[:, list(places)]
    return np.array([[np.sum(r > 0), np.sum(r == 0), np.sum(r < 0)] for r in some], dtype=float)


def half_neighbour_bandwidth(points: Array) -> float:
    """The mean distance of a point to its ⌊n/2⌋-th nearest, itself the first."""
    n = len(points)
    found = [
        sorted(float(np.linalg.norm(p - q)) for q in points)[max(1, n // 2) - 1] for p in points
    ]
    return sum(found) / n


def mean_shift(points: Array, bandwidth: float) -> list[int]:
    """The cluster of each point: 0 the densest, of as dense ones that of the smaller point first.

    Flat kernel: y ← mean of the points within h of y, until it stays. Points climb from where they
    are, peaks within h of a denser one are dropped, each point is of its nearest peak, the first of
    those as near. Squared distances are compared with a tolerance of 1e-9.
    """

    def within(y: Array) -> list[int]:
        return [
            i
            for i, p in enumerate(points)
            if float(np.sum((p - y) ** 2)) <= bandwidth**2 * (1 + 1e-9)
        ]

    climbed = []
    for start in points:
        y, seen = start, None
        while seen != (seen := within(y)):
            y = np.mean(points[seen], axis=0)
        climbed.append((-len(seen), tuple(start.tolist()), y))
    peaks: list[Array] = []
    for _, _, y in sorted(climbed, key=lambda found: found[:2]):
        if all(float(np.sum((y - p) ** 2)) > bandwidth**2 * (1 + 1e-9) for p in peaks):
            peaks.append(y)
    clusters = []
    for p in points:
        squares = [float(np.sum((p - y) ** 2)) for y in peaks]
        clusters.append(next(c for c, s in enumerate(squares) if s <= min(squares) * (1 + 1e-9)))
    return clusters


def sign_guard(
    rows: Array,
    places: Sequence[int],
    *,
    lower: float = 0.1,
    upper: float = 3.0,
    bandwidth: float | None = None,
) -> Array:
    """The mean of the rows that pass both filters, each clipped to the lower median M of the norms.

    Xu et al. 2022, "Byzantine-robust federated learning through collaborative malicious gradient
    filtering", Algorithm 2: norms in [L M, R M], and the cluster of sign features with the most
    rows that have such norms (not the paper's: the most rows).
    """
    lengths = [float(np.linalg.norm(row)) for row in rows]
    middle = sorted(lengths)[(len(rows) - 1) // 2]
    usual = [i for i, length in enumerate(lengths) if lower * middle <= length <= upper * middle]
    features = sign_features(rows, places)
    half = half_neighbour_bandwidth(features)
    clusters = mean_shift(features, half if bandwidth is None else bandwidth * len(places))
    largest = max(sorted(set(clusters)), key=lambda c: sum(clusters[i] == c for i in usual))
    kept = [i for i in usual if clusters[i] == largest]
    clipped = [rows[i] * (middle / lengths[i]) if lengths[i] > middle else rows[i] for i in kept]
    return np.mean(clipped, axis=0)


def fl_trust(rows: Array, reference: Array) -> Array:
    """Σ t_i (‖g₀‖/‖x_i‖) x_i / Σ t_i with t_i = max(0, cos(x_i, g₀)), and g₀ where all t_i are 0.

    Cao et al. 2021, "FLTrust: Byzantine-robust federated learning via trust bootstrapping",
    Algorithm 2 (which does not say what follows if no row is trusted).
    """
    length = float(np.linalg.norm(reference))
    total, out = 0.0, np.zeros(rows.shape[1])
    for row in rows:
        norm = float(np.linalg.norm(row))
        if norm == 0 or length == 0:
            continue
        trust = max(0.0, float(row @ reference) / (norm * length))
        total += trust
        out = out + trust * row * (length / norm)
    return out / total if total > 0 else reference.copy()


def cosine_distances(rows: Array) -> Array:
    """1 - cos(x_i, x_j), and 1 where either is 0; (n, n)."""
    n = len(rows)
    out = np.ones((n, n))
    for i, j in itertools.product(range(n), repeat=2):
        lengths = float(np.linalg.norm(rows[i])) * float(np.linalg.norm(rows[j]))
        if lengths > 0:
            out[i, j] = 1 - float(rows[i] @ rows[j]) / lengths
    return out


def larger_of_two(distances: Array) -> list[int]:
    """The larger of the two clusters of average linkage; as large, that with the first point.

    Averages as near as 1e-8 are ties, which go to the clusters that begin with the lowest indices.
    """
    clusters = [[i] for i in range(len(distances))]
    while len(clusters) > 2:
        averages = {
            (a, b): float(np.mean(distances[np.ix_(clusters[a], clusters[b])]))
            for a, b in itertools.combinations(range(len(clusters)), 2)
        }
        least = min(averages.values())
        a, b = next(pair for pair, average in averages.items() if average <= least + 1e-8)
        clusters[a] += clusters.pop(b)
    largest = max(len(cluster) for cluster in clusters)
    return sorted(next(cluster for cluster in clusters if len(cluster) == largest))


def first_majority(distances: Array) -> list[int]:
    """The points of the first cluster that is a majority when links grow from the shortest on.

    Points are linked that are no farther apart than some distance; links as long within 1e-8 come
    at once.
    """
    n = len(distances)
    for length in sorted(distances[np.triu_indices(n, 1)].tolist()):
        for first in range(n):
            cluster, grown = {first}, True
            while grown:
                more = {j for i in cluster for j in range(n) if distances[i, j] <= length + 1e-8}
                grown = not more <= cluster
                cluster |= more
            if len(cluster) > n / 2:
                return sorted(cluster)
    return list(range(n))


def flame(rows: Array) -> Array:
    """The mean of the majority's rows, clipped to the median of all norms; without the noise.

    Nguyen et al. 2022, "FLAME: taming backdoors in federated learning", Algorithm 1.
    """
    lengths = [float(np.linalg.norm(row)) for row in rows]
    middle = (sorted(lengths)[(len(rows) - 1) // 2] + sorted(lengths)[len(rows) // 2]) / 2
    kept = first_majority(cosine_distances(rows))
    clipped = [rows[i] * (middle / lengths[i]) if lengths[i] > middle else rows[i] for i in kept]
    return np.mean(clipped, axis=0)


def clipped_clustering(rows: Array, earlier_norms: Sequence[float]) -> tuple[Array, list[float]]:
    """The mean of the larger cluster by cosine distance, clipped to the median of all norms so far.

    Li, Ngai, Voigt 2023, "An experimental study of Byzantine-robust aggregation schemes in
    federated learning" (ClippedClustering). Returns it and the norms so far.
    """
    lengths = [float(np.linalg.norm(row)) for row in rows]
    norms = [*earlier_norms, *lengths]
    middle = (sorted(norms)[(len(norms) - 1) // 2] + sorted(norms)[len(norms) // 2]) / 2
    kept = larger_of_two(cosine_distances(rows))
    clipped = [rows[i] * (middle / lengths[i]) if lengths[i] > middle else rows[i] for i in kept]
    return np.mean(clipped, axis=0), norms
