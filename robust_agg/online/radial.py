"""Divergences of the distance ‖m - g‖₂ alone: every step moves m straight towards the row."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from robust_agg import kernels
from robust_agg.aggregator import Invariance
from robust_agg.errors import check_positive
from robust_agg.online.divergence import Averaging, Method
from robust_agg.shards import WHOLE, Shards
from robust_agg.solvers import (
    Distance,
    HuberDistance,
    RadialLoss,
    SolverReport,
    minimise_distances,
)
from robust_agg.span import measure, too_far


class Radial(Averaging):
    """``D(v) = φ(‖v‖₂)``: a step is ``m + s (g - m)`` with a factor s of r = ‖g - m‖₂."""

    @property
    def invariances(self) -> frozenset[Invariance]:
        return frozenset(Invariance)

    @property
    def shardable(self) -> bool:
        return True

    @abstractmethod
    def factors(self, r: Tensor, tau: float, method: Method) -> Tensor:
        """s for each distance r >= 0, float64; r may be 0 or infinite."""

    def averaged(
        self,
        rows: Tensor,
        m: Tensor,
        tau: float,
        method: Method,
        gaps: Tensor | None = None,
        *,
        shards: Shards = WHOLE,
    ) -> tuple[Tensor, Tensor | None]:
        r = self.gaps(rows, m, shards=shards) if gaps is None else gaps
        measured = r <= too_far(m.dtype)
        factors = self.factors(torch.where(measured, r, 1.0), tau, method)
        # No weight is beyond what the sums can hold, however large τ/r is.
        limit = torch.finfo(m.dtype).max / 4
        weights = torch.where(measured, factors, 0.0).clamp(max=limit) / len(rows)
        return kernels.combine(rows, weights, m, dtype=m.dtype), weights


def _toward_ball(r: Tensor, tau: float) -> Tensor:
    """``min(1, τ/r)``: the factor of a clipped difference."""
    return torch.where(r > tau, tau / r.clamp(min=tau), 1.0)


@dataclass(frozen=True)
class Squared(Radial):
    """``D(v) = ½‖v‖₂²``: momentum, with β = 1/(1+τ) (prox, eq. 11) or β = 1 - τ (eq. 7)."""

    adaptive = False
    scale_free = True
    separable = True

    def factors(self, r: Tensor, tau: float, method: Method) -> Tensor:
        return torch.full_like(r, _share(tau, method))

    def overshoots(self, tau: float, method: Method) -> bool:
        return _share(tau, method) > 1

    def share(self, tau: float, method: Method) -> float | None:
        if type(self) is not Squared:
            return None  # a subclass may have a step of its own
        share = _share(tau, method)
        return share if share <= 1 else None

    def averaged(
        self,
        rows: Tensor,
        m: Tensor,
        tau: float,
        method: Method,
        gaps: Tensor | None = None,
        *,
        shards: Shards = WHOLE,
    ) -> tuple[Tensor, Tensor | None]:
        share = self.share(tau, method)
        if len(rows) == 1 and share is not None:
            # ‖g - m‖₂ is not needed, only that it is a number: which the largest entries can tell.
            reach = shards.largest(kernels.largest(rows) + kernels.largest(m))
            if reach * shards.columns(m.numel()) ** 0.5 <= too_far(m.dtype):
                moved = torch.lerp(m, rows[0].to(m.dtype), share)
                return moved, torch.full((1,), share, dtype=torch.float64, device="cpu")
        return super().averaged(rows, m, tau, method, gaps, shards=shards)

    def batch(
        self, rows: Tensor, m: Tensor, tau: float, *, shards: Shards = WHOLE
    ) -> tuple[Tensor, Tensor | None, SolverReport | None]:
        # The mean of quadratics is a quadratic: the exact step is the average of the steps.
        return *self.averaged(rows, m, tau, "prox", shards=shards), None


def _share(tau: float, method: Method) -> float:
    """The s of ``m + s (g - m)``."""
    return tau / (1 + tau) if method == "prox" else tau


class _DistanceBatch(Radial):
    """The exact proximal step of the average distance, in weight space over the rows and m."""

    @property
    @abstractmethod
    def loss(self) -> RadialLoss: ...

    def batch(
        self, rows: Tensor, m: Tensor, tau: float, *, shards: Shards = WHOLE
    ) -> tuple[Tensor, Tensor | None, SolverReport | None]:
        n = rows.shape[0]
        # m travels as one more row beside the rows' own centre: far from them, it is none itself.
        geometry = measure(rows, m, shards=shards)[0]
        kept, gram = geometry.accepted_gram()
        # F times min(τ, 1), so that no τ makes an infinite anchor.
        weights = (kept < n).double() / n * min(tau, 1.0)
        anchor = (kept == n).double() / max(tau, 1.0)
        if not bool((kept < n).any()) or not bool((kept == n).any()):
            return m.clone(), torch.zeros(n, dtype=torch.float64, device="cpu"), None
        solution, report = minimise_distances(gram, weights, loss=self.loss, anchor=anchor)
        over_rows = torch.zeros(n + 1, dtype=torch.float64, device="cpu")
        over_rows[kept] = solution
        return kernels.combine(rows, over_rows[:n], m, dtype=m.dtype), over_rows[:n], report


@dataclass(frozen=True)
class L2(_DistanceBatch):
    """``D(v) = ‖v‖₂``: VClip (prox, eq. 12, Clip21's update) or adaptive momentum (appendix B).

    The expected divergence is minimised by the geometric median.
    """

    @property
    def loss(self) -> RadialLoss:
        return Distance()

    def factors(self, r: Tensor, tau: float, method: Method) -> Tensor:
        if method == "prox":
            return _toward_ball(r, tau)
        return torch.where(r > 0, tau / r, 0.0)


@dataclass(frozen=True)
class Huber(_DistanceBatch):
    """``D(v) = ½‖v‖₂²`` up to ‖v‖₂ = δ and ``δ(‖v‖₂ - δ/2)`` beyond: between momentum and VClip.

    Attributes:
        delta: δ > 0, in the units of the rows.
    """

    delta: float

    def __post_init__(self) -> None:
        check_positive("Huber", "delta", self.delta)
        object.__setattr__(self, "delta", float(self.delta))

    @property
    def invariances(self) -> frozenset[Invariance]:
        return super().invariances - {Invariance.SCALING}

    @property
    def loss(self) -> RadialLoss:
        return HuberDistance(self.delta)

    def factors(self, r: Tensor, tau: float, method: Method) -> Tensor:
        if method == "prox":
            return torch.where(r <= self.delta * (1 + tau), tau / (1 + tau), tau * self.delta / r)
        return tau * torch.where(r <= self.delta, 1.0, self.delta / r)
