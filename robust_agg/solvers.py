"""Minimising a sum of distances in weight space: geometric medians and their proximal steps.

The unknown is a point ``y = Σ b_i p_i`` with ``Σ b_i = 1``, so all that is needed are the squared
distances between the points; the dimension of the space never appears.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Vector: TypeAlias = NDArray[np.float64]
Matrix: TypeAlias = NDArray[np.float64]


@dataclass(frozen=True)
class SolverReport:
    """How a solver stopped.

    Attributes:
        iterations: steps taken.
        residual: ‖∇F(y)‖ over the sum of the weights (0 where y is a data point that is optimal).
        converged: whether the residual reached the tolerance, or what float64 can tell apart.
        reason: one word or two, e.g. ``"tolerance"``, ``"data point"``, ``"iterations"``.
    """

    iterations: int
    residual: float
    converged: bool
    reason: str


class RadialLoss(Protocol):
    """A convex increasing φ of a distance r."""

    kink: float
    """φ'(0+): 0 where φ is smooth at 0."""

    def change(self, r: Vector, r0: Vector, squares: Vector) -> Vector:
        """φ(r) - φ(r0), given r² - r0² without the cancellation that r and r0 would bring."""
        ...

    def slope(self, r: Vector) -> Vector:
        """φ'(r)/r."""
        ...

    def bend(self, r: Vector) -> Vector:
        """-(φ'(r)/r)'/r."""
        ...


class Distance:
    """φ(r) = r."""

    kink = 1.0

    def change(self, r: Vector, r0: Vector, squares: Vector) -> Vector:
        total = r + r0
        return np.divide(squares, total, out=np.zeros_like(squares), where=total > 0)

    def slope(self, r: Vector) -> Vector:
        return 1 / r

    def bend(self, r: Vector) -> Vector:
        return 1 / r**3


@dataclass(frozen=True)
class HuberDistance:
    """φ(r) = r²/2 up to δ, then δ(r - δ/2)."""

    delta: float
    kink = 0.0

    def change(self, r: Vector, r0: Vector, squares: Vector) -> Vector:
        inside, inside0 = r <= self.delta, r0 <= self.delta
        across = self._value(r) - self._value(r0)
        outside = self.delta * squares / (r + r0)
        same = np.where(inside, squares / 2, outside)
        return np.where(inside == inside0, same, across)

    def _value(self, r: Vector) -> Vector:
        return np.where(r <= self.delta, r * r / 2, self.delta * (r - self.delta / 2))

    def slope(self, r: Vector) -> Vector:
        return np.where(r <= self.delta, 1.0, self.delta / r)

    def bend(self, r: Vector) -> Vector:
        return np.where(r <= self.delta, 0.0, self.delta / r**3)


def minimise_distances(
    gram: Tensor,
    weights: Tensor,
    *,
    loss: RadialLoss | None = None,
    anchor: Tensor | None = None,
    tolerance: float = 1e-13,
    max_iterations: int = 200,
) -> tuple[Tensor, SolverReport]:
    """The minimiser of ``F(y) = Σ_i w_i φ(‖y - p_i‖) + ½ Σ_i a_i ‖y - p_i‖²``.

    For φ(r) = r and no anchor this is the weighted geometric median; an anchor 1/τ at the point m
    makes it the proximal step of the average distance. A data point is checked for optimality
    first (Vardi & Zhang, PNAS 2000): only the one with the smallest F can be. From there, damped
    Newton steps; where one does not decrease F, a Weiszfeld step does.

    Args:
        gram: ``(k, k)`` float64, finite: <p_i - c, p_j - c> for a c that is about as near to the
            minimiser as most points are. Some p_i may be arbitrarily far.
        weights: ``(k,)`` float64, >= 0, not all 0.
        loss: φ; the plain distance if None.
        anchor: ``(k,)`` float64, >= 0; none if None.
        tolerance: of ‖∇F‖ relative to the sum of the weights.
        max_iterations: steps after which the best point so far is returned.

    Returns:
        ``(k,)`` coefficients b that sum to 1, y being ``Σ b_i p_i``, and how the solver stopped.
        Where the minimiser is not unique (collinear points, no anchor) y is the midpoint.
    """
    # In numpy, which takes a tenth of torch's time to begin an operation on so few numbers.
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        solution, report = _minimise(
            _Problem(
                gram.numpy(),
                weights.numpy(),
                np.zeros(len(weights)) if anchor is None else anchor.numpy(),
                Distance() if loss is None else loss,
            ),
            tolerance,
            max_iterations,
        )
    return torch.from_numpy(solution), report


def _minimise(
    problem: _Problem, tolerance: float, max_iterations: int
) -> tuple[Vector, SolverReport]:
    total = float(problem.weights.sum())
    state = problem.leave_best_point()
    if state is None:
        return problem.best_points(), SolverReport(0, 0.0, True, "data point")
    for iteration in range(max_iterations):
        residual = state.gradient_norm / total
        if residual <= tolerance:
            return state.closed(), SolverReport(iteration, residual, True, "tolerance")
        newton = problem.newton_step(state)
        tried = None if newton is None else problem.at(state.b + newton)
        if tried is None or not tried.improves(state):
            tried = problem.at(state.b - state.gradient / state.curvature)
            if not tried.value < state.value:
                # No step decreases F any more: float64 tells these points apart no further.
                near = residual <= max(tolerance, _INDISTINCT)
                return state.closed(), SolverReport(iteration, residual, near, "precision")
        state = tried
    residual = state.gradient_norm / total
    return state.closed(), SolverReport(max_iterations, residual, False, "iterations")


@dataclass(frozen=True)
class _State:
    """F and its gradient at ``y = c + Σ b_i (p_i - c)``.

    Attributes:
        b: ``(k,)``.
        r: ``(k,)`` distances to the points.
        products: ``(k,)``, <y - c, p_i - c>; ``square`` is ‖y - c‖².
        value: F(y) - F(c), which far points do not drown.
        pulls: ``(k,)`` Weiszfeld coefficients; their sum is ``curvature``.
        gradient: ``(k,)`` coefficients of ∇F over the p_i - c.
    """

    b: Vector
    r: Vector
    products: Vector
    square: float
    value: float
    pulls: Vector
    curvature: float
    gradient: Vector
    gradient_norm: float

    def improves(self, other: _State) -> bool:
        # F may be flat to the last bit near the optimum, where the gradient still tells.
        flat = abs(other.value) * 1e-14
        return (
            self.value <= other.value + flat and self.gradient_norm <= 0.9 * other.gradient_norm
        ) or self.value < other.value - flat

    def closed(self) -> Vector:
        """One more Weiszfeld step: coefficients that sum to 1, so that c is not needed."""
        return np.asarray(self.pulls / self.curvature)


class _Problem:
    """F in the coordinates of the Gram matrix."""

    def __init__(self, gram: Matrix, weights: Vector, anchor: Vector, loss: RadialLoss) -> None:
        self.gram, self.weights, self.anchor, self.loss = gram, weights, anchor, loss
        self.spread = np.maximum(gram.diagonal(), 0.0)
        # Row k: the changes of all squared distances from y = c to y = p_k.
        changes = self.spread[:, None] - 2 * gram
        squares = np.maximum(changes + self.spread, 0.0)
        terms = loss.change(np.sqrt(squares), np.sqrt(self.spread), changes)
        self.values = terms @ weights + changes @ anchor / 2
        self.best = int(self.values.argmin())
        self.twins = squares <= _NOISE * (self.spread[:, None] + self.spread)

    def best_points(self) -> Vector:
        """Coefficients of the mean of the optimal data points, twins counted once.

        Only collinear points of an even number have several: the two ends of the median interval.
        Their midpoint does not depend on the order of the rows.
        """
        least = self.values[self.best]
        # The scale of F among the points that compete, which a far point has no part in.
        scale = self.weights.sum() * np.sqrt(np.sort(self.spread)[(len(self.spread) - 1) // 2])
        tied = (self.values <= least + 1e-9 * scale) & (self.weights > 0)
        tied[self.best] = True
        shares = tied / np.maximum(self.twins.astype(float) @ tied, 1.0)
        return np.asarray(shares / shares.sum())

    def leave_best_point(self) -> _State | None:
        """The state after a first step away from the best data point; None if it is optimal."""
        here = self.twins[self.best]
        pull = float(self.weights[here].sum()) * self.loss.kink
        others = self.weights if pull == 0 else np.where(here, 0.0, self.weights)
        b = np.zeros_like(self.weights)
        b[self.best] = 1
        start = self._state(b, others)
        if start.gradient_norm <= pull * (1 + 1e-12):
            return None
        # Vardi & Zhang's step: the pull of the point itself shortens Weiszfeld's.
        share = 1 - pull / start.gradient_norm
        return self.at(b - share * start.gradient / start.curvature)

    def at(self, b: Vector) -> _State:
        return self._state(b, self.weights)

    def _state(self, b: Vector, weights: Vector) -> _State:
        products = self.gram @ b
        square = float(b @ products)
        changes = square - 2 * products
        squares = np.maximum(changes + self.spread, 0.0)
        r = np.sqrt(np.maximum(squares, _NOISE * _NOISE * (square + self.spread)))
        pulls = np.where(weights > 0, weights * self.loss.slope(r), 0.0) + self.anchor
        curvature = float(pulls.sum())
        gradient = curvature * b - pulls
        # The gradient is Σ pulls_i (y - p_i): over the p_i - c its coefficients need not sum to 0.
        norm = max(float(gradient @ self.gram @ gradient), 0.0) ** 0.5
        change = self.loss.change(np.sqrt(squares), np.sqrt(self.spread), changes)
        return _State(
            b=b,
            r=r,
            products=products,
            square=square,
            value=float(np.where(weights > 0, self.weights * change, 0.0).sum())
            + float(self.anchor @ changes) / 2,
            pulls=pulls,
            curvature=curvature,
            gradient=gradient,
            gradient_norm=norm,
        )

    def newton_step(self, state: _State) -> Vector | None:
        """Solve ``H p = -∇F``, H = κI - Σ e_i v_i v_iᵀ with v_i = y - p_i, by Woodbury in k x k."""
        bends = np.where(self.weights > 0, self.weights * self.loss.bend(state.r), 0.0)
        inner = state.square - state.products[:, None] - state.products + self.gram
        along = self.gram @ state.gradient
        slopes = state.b @ along - along
        system = state.curvature * np.eye(len(bends)) - inner * bends
        try:
            lifted: Vector = bends * np.linalg.solve(system, slopes)
        except np.linalg.LinAlgError:
            return None
        if not np.isfinite(lifted).all():
            return None
        step: Vector = -(state.gradient + lifted.sum() * state.b - lifted) / state.curvature
        return step


_INDISTINCT = 1e-7
# A residual of δ adds about δ²/2 to F: this one is below what float64 can tell apart.

_NOISE = 1e-14
# Squared distances are differences of the Gram's entries: below this share they are rounding.
