"""A search for a learning rate and a τ with a budget of trials."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import exp, log

import numpy as np
from scipy.optimize import minimize

FIRST_STEP = 3.0
"""By what factor each number is made smaller in the trials after the first."""


@dataclass(frozen=True)
class Trial:
    """What was tried, and the cost found."""

    lr: float
    tau: float | None
    cost: float


def search(
    cost: Callable[[float, float | None], float], lr: float, tau: float | None, *, budget: int
) -> list[Trial]:
    """All trials, in their order: Nelder & Mead's simplex on the logarithms.

    Args:
        cost: to be least; finite, but as large as one likes.
        lr: where to begin.
        tau: where to begin; None if there is only a learning rate to be found.
        budget: the number of trials.
    """
    trials: list[Trial] = []

    def at(logarithms: np.ndarray) -> float:
        rate, *rest = (exp(number) for number in logarithms)
        found = cost(rate, rest[0] if rest else None)
        trials.append(Trial(rate, rest[0] if rest else None, found))
        return found

    start = np.log([lr] if tau is None else [lr, tau])
    simplex = np.vstack([start, start - log(FIRST_STEP) * np.eye(len(start))])
    # Tolerances of 0: only the budget ends it.
    options = {"maxfev": budget, "initial_simplex": simplex, "xatol": 0.0, "fatol": 0.0}
    minimize(at, start, method="Nelder-Mead", options=options)
    return trials
