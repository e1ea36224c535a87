"""The paper's names for points of the family, as thin constructors (its table 1)."""

from __future__ import annotations

from dataclasses import dataclass, field

from robust_agg.errors import check_share
from robust_agg.online.coordinate import L1
from robust_agg.online.divergence import Divergence, Method
from robust_agg.online.estimator import OnlineMedian
from robust_agg.online.radial import L2, Squared


@dataclass(frozen=True, kw_only=True)
class VClip(OnlineMedian):
    """``m + clip_{τ,2}(g - m)``, ``clip_{τ,2}(v) = v · min(1, τ/‖v‖₂)`` (eq. 12, Clip21's update).

    Attributes:
        tau, fusion, iterations: as in :class:`OnlineMedian`.
    """

    divergence: Divergence = field(default_factory=L2, init=False)
    method: Method = field(default="prox", init=False)


@dataclass(frozen=True, kw_only=True)
class CClip(OnlineMedian):
    """``m + clip_{τ,1}(g - m)``, each coordinate clipped to [-τ, τ] (eq. 15).

    Attributes:
        tau, fusion, iterations: as in :class:`OnlineMedian`.
    """

    divergence: Divergence = field(default_factory=L1, init=False)
    method: Method = field(default="prox", init=False)


@dataclass(frozen=True, kw_only=True)
class AdaptiveMomentum(OnlineMedian):
    """``m + τ (g - m)/‖g - m‖₂`` (appendix B): the subgradient step of ‖·‖₂.

    Attributes:
        tau, fusion, iterations: as in :class:`OnlineMedian`; fusion is not ``"batch"``.
    """

    divergence: Divergence = field(default_factory=L2, init=False)
    method: Method = field(default="subgradient", init=False)


@dataclass(frozen=True, kw_only=True)
class SignedIncrement(OnlineMedian):
    """``m + τ sign(g - m)`` (appendix B): the subgradient step of ‖·‖₁.

    Attributes:
        tau, fusion, iterations: as in :class:`OnlineMedian`; fusion is not ``"batch"``.
    """

    divergence: Divergence = field(default_factory=L1, init=False)
    method: Method = field(default="subgradient", init=False)


@dataclass(frozen=True, kw_only=True)
class Momentum(OnlineMedian):
    """``β m + (1 - β) g``: the steps of ½‖·‖₂², which is not robust.

    Attributes:
        method: ``"subgradient"`` is eq. 7, β = 1 - τ with τ <= 1; ``"prox"`` is eq. 11,
            β = 1/(1 + τ).
        tau: the step size; give it or ``beta``.
        beta: the other way to say τ, in [0, 1) for eq. 7 and in (0, 1) for eq. 11.
        fusion, iterations: as in :class:`OnlineMedian`.
    """

    divergence: Divergence = field(default_factory=Squared, init=False)
    method: Method = "subgradient"
    tau: float | None = None
    beta: float | None = None

    def __post_init__(self) -> None:
        if (self.tau is None) == (self.beta is None):
            raise ValueError(
                f"Momentum: exactly one of tau and beta is required, "
                f"found tau={self.tau!r}, beta={self.beta!r}"
            )
        if self.beta is not None:
            check_share("Momentum", "beta", self.beta, zero=self.method != "prox")
            tau = 1 - self.beta if self.method == "subgradient" else (1 - self.beta) / self.beta
            object.__setattr__(self, "tau", tau)
            object.__setattr__(self, "beta", None)
        super().__post_init__()
        if self.method == "subgradient" and self.tau is not None and self.tau > 1:
            raise ValueError(
                f"Momentum: tau must be at most 1 for method='subgradient' (eq. 7, β = 1 - τ), "
                f"found {self.tau!r}"
            )
