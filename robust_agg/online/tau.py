"""A step size that follows the rows' distances."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

import torch
from torch import Tensor

from robust_agg.errors import TooManyRejectedError, check_count, check_positive, check_share
from robust_agg.types import State

HISTORY = "distances"
"""The name of the running history in an estimator's state."""


@dataclass(frozen=True, kw_only=True)
class Adaptive:
    """``τ_t = ρ · q_t`` with q_t a quantile of the distances between rows and estimate.

    Over the round's n messages, or over the last ``window`` steps when n = 1. The quantile must be
    at most (n-f)/n, or attackers choose it: 0.5 is safe for every f < n/2.

    Attributes:
        rho: ρ > 0; if None 1 where n messages act together, and 0.1 where they act one at a time
            (n = 1, or a sequential fusion), for with ρ = 1 half of the steps would set m = g and
            nothing would be averaged.
        quantile: in (0, 1).
        window: steps of history for n = 1.
    """

    rho: float | None = None
    quantile: float = 0.5
    window: int = 100

    def __post_init__(self) -> None:
        if self.rho is not None:
            check_positive("Adaptive", "rho", self.rho)
        check_share("Adaptive", "quantile", self.quantile)
        check_count("Adaptive", "window", self.window, minimum=1)

    def init(self) -> State:
        """An empty history: NaN marks a place not yet used."""
        return {HISTORY: torch.full((self.window,), torch.nan, dtype=torch.float64, device="cpu")}

    def step(
        self, gaps: Tensor, state: State, *, steps: int, one_at_a_time: bool
    ) -> tuple[float, State]:
        """τ for distances ``gaps`` ``(n,)``, and the new history.

        Raises:
            TooManyRejectedError: so many of n > 1 rows are non-finite that the quantile is.
        """
        rho = (0.1 if one_at_a_time else 1.0) if self.rho is None else self.rho
        gaps = gaps.nan_to_num(nan=torch.inf, posinf=torch.inf)
        if len(gaps) > 1:
            q = self._quantile_of(gaps)
            if q == float("inf"):
                raise TooManyRejectedError(
                    f"Adaptive: the quantile {self.quantile} of the n={len(gaps)} distances must "
                    f"be finite, found {int(gaps.isinf().sum())} rows too far to measure"
                )
            return rho * q, state
        history = state[HISTORY].clone()
        if bool(gaps.isfinite()):
            history[steps % self.window] = gaps[0]
        seen = history[~history.isnan()]
        q = self._quantile_of(seen) if len(seen) else 0.0
        return rho * q, {**state, HISTORY: history}

    def rank(self, n: int) -> int:
        """⌈q·n⌉: the quantile of n distances is that many-th smallest, from 1.

        A distance that occurs, so no interpolation towards Inf. No f of the n rows choose it where
        it is at most n - f.
        """
        # 0.55 · 20 is a little more than 11 in floating point, and 12 may be a Byzantine distance.
        return max(1, ceil(self.quantile * n * (1 - 1e-12)))

    def _quantile_of(self, distances: Tensor) -> float:
        return float(distances.sort().values[self.rank(len(distances)) - 1])
