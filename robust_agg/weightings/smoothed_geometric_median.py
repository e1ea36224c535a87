"""A few smoothed Weiszfeld steps towards the geometric median (RFA)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

import numpy as np
import torch

from robust_agg.aggregator import Invariance, Weighing, Weighted
from robust_agg.errors import check_choice, check_count, check_positive
from robust_agg.solvers import Matrix, SolverReport, Vector
from robust_agg.span import Geometry

Start: TypeAlias = Literal["mean", "zero"]


def smoothed_weiszfeld(
    gram: Matrix, norms: Vector | None, *, nu: float, iterations: int
) -> tuple[Vector, SolverReport]:
    """Iterate ``y ← Σ_i β_i x_i / Σ_i β_i``, ``β_i = 1/max(ν, ‖y - x_i‖₂)``.

    Args:
        gram: ``(k, k)``, <x_i - o, x_j - o> for any point o.
        norms: ``(k,)``, ‖x_i‖₂, to start from the origin; None to start from the mean.
        nu: ν > 0.
        iterations: how often, at least once.

    Returns:
        ``(k,)`` coefficients of y over the x_i, which sum to 1, and the report: its residual is
        that of the smoothed objective, ‖Σ_i β_i (y - x_i)‖/k.
    """
    lengths = gram.diagonal()
    weights = np.full(len(gram), 1 / len(gram))

    def distances() -> Vector:
        along = gram @ weights
        return np.asarray(np.sqrt(np.maximum(lengths - 2 * along + weights @ along, 0.0)))

    reached = distances() if norms is None else norms
    for _ in range(iterations):
        pulls = 1 / np.maximum(nu, reached)
        weights = pulls / pulls.sum()
        reached = distances()
    pulls = 1 / np.maximum(nu, reached)
    left = pulls.sum() * weights - pulls
    residual = float(np.sqrt(max(left @ gram @ left, 0.0))) / len(gram)
    return weights, SolverReport(iterations, residual, False, "iterations")


@dataclass(frozen=True, kw_only=True)
class SmoothedGeometricMedian(Weighted):
    """T steps ``y ← Σ_i β_i x_i / Σ_i β_i`` with ``β_i = 1/max(ν, ‖y - x_i‖₂)`` from a start.

    Pillutla, Kakade & Harchaoui, "Robust Aggregation for Federated Learning", IEEE TSP 2022,
    algorithm 2 (RFA), with equal weights of the rows. RFA starts from the mean, with 3 steps and
    ν = 1e-6; ByzFL's geometric median is this from zero, with 3 steps and ν = 0.1. From the mean,
    each step leaves about f/(n-f) of what f far rows have moved it by, so a fixed number of them
    bounds nothing; ``GeometricMedian`` is the limit, in the same two passes over memory. A rejected
    row is left out.

    Attributes:
        nu: ν > 0, in the unit of the rows: where they are nearer, they pull in proportion.
        iterations: T >= 1.
        start: "mean" or "zero", where the first distances are measured from.
    """

    nu: float = 1e-6
    iterations: int = 3
    start: Start = "mean"

    def __post_init__(self) -> None:
        check_positive(self.name, "nu", self.nu)
        check_count(self.name, "iterations", self.iterations, minimum=1)
        check_choice(self.name, "start", self.start, get_args(Start))

    @property
    def invariances(self) -> frozenset[Invariance]:
        kept = {Invariance.PERMUTATION, Invariance.ROTATION}
        return frozenset(kept | ({Invariance.TRANSLATION} if self.start == "mean" else set()))

    def check(self, n: int) -> None:
        """Any n >= 1 will do; f does not enter."""

    def max_rejected(self, n: int) -> int:
        return (n - 1) // 2

    def loses_digits(self, geometry: Geometry) -> bool:
        return self.start == "zero" and geometry.loses_norms(1e-3, least=float(self.nu))

    def weigh(self, geometry: Geometry, generator: torch.Generator | None) -> Weighing:
        chosen, gram = geometry.accepted_gram()
        norms = geometry.squared_norms[chosen].sqrt().numpy() if self.start == "zero" else None
        solution, report = smoothed_weiszfeld(
            gram.numpy(), norms, nu=float(self.nu), iterations=self.iterations
        )
        weights = torch.zeros(len(geometry), dtype=torch.float64, device="cpu")
        weights[chosen] = torch.from_numpy(solution)
        return Weighing(weights, report)
