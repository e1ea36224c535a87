"""The covariance-bound agnostic filter (CAF)."""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt

import numpy as np
import torch

from robust_agg.aggregator import Invariance, Weighing, Weighted
from robust_agg.covariance import main_spread
from robust_agg.errors import check_count, check_honest_majority
from robust_agg.solvers import Matrix, SolverReport, Vector
from robust_agg.span import Geometry

_ROUNDING = 1e-12
# Of n: sums of weights that are no farther apart are the same.


def covariance_filter(gram: Matrix, count: float) -> tuple[Vector, int]:
    """Weights of the mean whose weighted covariance has the least largest eigenvalue on the way.

    The way: all c_i begin at 1, and while ``Σ_i c_i > count`` each is multiplied by
    ``1 - τ_i/max_j τ_j`` with ``τ_i = (v·(x_i - μ_c))²``, v the top eigenvector of
    ``Σ_c = Σ_i c_i (x_i - μ_c)(x_i - μ_c)ᵀ / Σ_i c_i``. The largest τ is one of those with c_i > 0,
    so each step leaves out a row.

    Args:
        gram: ``(k, k)``, <x_i - o, x_j - o> for any point o.
        count: the sum of the weights at which to end; the first mean is always looked at.

    Returns:
        ``(k,)`` weights that sum to 1, and the number of steps.
    """
    c = np.ones(len(gram))
    best, least = c / c.sum(), np.inf
    steps, ended = 0, False
    while not ended:
        steps += 1
        kept = c > 0
        spread, along = main_spread(gram[np.ix_(kept, kept)], c[kept] / c[kept].sum())
        if spread < least:
            best, least = np.where(kept, c, 0.0) / c[kept].sum(), spread
        largest = along.max()
        if largest > 0:  # else the rows that are left are one point
            c[kept] *= 1 - (along / largest) ** 2  # the fourth power of a length may be no number
        ended = not largest > 0 or c.sum() <= count + _ROUNDING * len(c)
    return best, steps


@dataclass(frozen=True, kw_only=True)
class CAF(Weighted):
    """The weighted mean μ_c that a filter meets with the smallest top eigenvalue of the covariance.

    ``μ_c = Σ_i c_i x_i / Σ_i c_i``. From c_i = 1, and while ``Σ_i c_i > n - 2f``, the filter
    multiplies c_i by ``1 - τ_i/max_j τ_j``, τ_i being the squared projection of x_i - μ_c on the
    top eigenvector of the weighted covariance. Allouah, Guerraoui & Stephan, "Towards Trustworthy
    Federated Learning with Untrusted Participants", ICML 2025, algorithm 2; no bound of the honest
    covariance need be known. In weight space, where a step is an eigenvalue problem of the (n, n)
    Gram matrix. ByzFL and ByzPy take one and three power iterations from a random vector, where
    this takes the eigenvector.

    The largest τ is taken among the rows with c_i > 0, so that rows that are filtered out have no
    say in how much of the others is kept; ByzFL and ByzPy take it among all. A rejected row has
    c_i = 0 from the beginning.

    Attributes:
        f: declared number of Byzantine rows; n >= 2f + 1 is required.
    """

    f: int

    def __post_init__(self) -> None:
        check_count(self.name, "f", self.f, minimum=0)

    @property
    def invariances(self) -> frozenset[Invariance]:
        return frozenset(Invariance)

    def check(self, n: int) -> None:
        check_honest_majority(self.name, n, self.f)

    def max_rejected(self, n: int) -> int:
        return self.f

    def kappa(self, n: int, f: int) -> float | None:
        """``2f/(n-3f) · (1 + √(2h/(n-2f)))²`` with h = n - f, where n > 3f.

        Let λ be the eigenvalue of a step, λ_H that of the honest covariance, C the sum of the
        weights and C_B the bad part of it. The honest part of Σ c_i τ_i is at most h λ_H + C_B λ:
        the spread about the honest mean, and that mean's distance from μ_c. While it is less than
        half of C λ, a step takes more from the bad than from the honest, which leaves C > n - 2f;
        so the filter does not end before a step where it is not, and there λ <= 2 h λ_H/(n-2f).
        The weights that are returned have no larger λ and C > n - 2f: as a distribution they have
        1 - p >= (n-3f)/h in common with the uniform one over the honest rows, so ‖out - x̄‖ <=
        √(p/(1-p)) (√λ + √λ_H), and λ_H is at most the honest variance.
        """
        if f > self.f or n <= 3 * self.f:
            return None
        f = self.f
        return 2 * f / (n - 3 * f) * (1 + sqrt(2 * (n - f) / (n - 2 * f))) ** 2

    def weigh(self, geometry: Geometry, generator: torch.Generator | None) -> Weighing:
        chosen, gram = geometry.accepted_gram()
        solution, steps = covariance_filter(gram.numpy(), len(geometry) - 2 * self.f)
        weights = torch.zeros(len(geometry), dtype=torch.float64, device="cpu")
        weights[chosen] = torch.from_numpy(solution)
        return Weighing(weights, SolverReport(steps, 0.0, True, "filtered"))
