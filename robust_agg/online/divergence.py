"""Divergences D: whose expected value the online estimate minimises, ``argmin_m E[D(m - g)]``.

Equation numbers are those of Schaipp, Şimşekli & Gower, "Robust gradient estimation in the presence
of heavy-tailed noise", 2023.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Literal

import torch
from torch import Tensor

from robust_agg.aggregator import Invariance
from robust_agg.shards import WHOLE, Shards
from robust_agg.solvers import SolverReport

Method = Literal["prox", "subgradient"]
"""How one message moves the estimate: proximal point (eq. 8) or stochastic subgradient (eq. 6)."""


class Divergence(ABC):
    """A divergence is its ``prox`` and its ``subgradient``; all fusions but ``batch`` follow.

    A divergence of one's own is one subclass with these two methods. The other methods have
    general forms that are correct for any divergence, and faster ones in the subclasses here.
    All take m ``(d,)`` in at least float32 and rows ``(n, d)`` of any floating dtype, and never
    return a non-finite number for a non-finite row: such a row leaves m where it is.
    """

    adaptive = True
    """Whether τ may follow the distances of the rows (:class:`~robust_agg.online.tau.Adaptive`)."""

    @property
    @abstractmethod
    def invariances(self) -> frozenset[Invariance]:
        """Of the step as a map of the rows and m together, τ being scaled with them."""

    separable = False
    """Whether it is a sum over coordinates: some columns of the rows then step as among all others,
    but that a row is left out where it is non-finite, and not as a whole."""

    @property
    def shardable(self) -> bool:
        """Whether holders of some columns each can step together, asking each other for sums."""
        return self.separable

    scale_free = False
    """Whether a step follows a scaling of rows and m for a τ that stays the same."""

    @abstractmethod
    def prox(self, row: Tensor, m: Tensor, tau: float) -> Tensor:
        """``argmin_y D(y - g) + ‖y - m‖²/(2τ)`` (eq. 8) for one row g ``(d,)``."""

    @abstractmethod
    def subgradient(self, row: Tensor, m: Tensor) -> Tensor:
        """An element of ``∂_m D(m - g)`` ``(d,)`` for one row g (eq. 6)."""

    def overshoots(self, tau: float, method: Method) -> bool:
        """Whether a step may end beyond the row, and so beyond what a number can be."""
        return method == "subgradient"

    def share(self, tau: float, method: Method) -> float | None:
        """The s in (0, 1] of a step ``m + s (g - m)`` that is the same for every measurable row.

        None where s depends on the row, or lies beyond 1.
        """
        return None

    def gaps(self, rows: Tensor, m: Tensor, *, shards: Shards = WHOLE) -> Tensor:
        """``(n,)`` float64: how far each row is from m, in the divergence's own scale."""
        return shards.distances(rows, m)

    def step(
        self, row: Tensor, m: Tensor, tau: float, method: Method, *, shards: Shards = WHOLE
    ) -> Tensor:
        """The new estimate ``(d,)`` after one row."""
        prox = method == "prox"
        moved = self.prox(row, m, tau) if prox else m - tau * self.subgradient(row, m)
        # One's own divergence need not think of rows of NaN.
        return moved if bool(moved.isfinite().all()) else m

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
        """``(1/n) Σ_i step(g_i, m)`` and, where a row has one, its weight ``(n,)`` in it.

        ``gaps`` is what :meth:`gaps` returned for these rows and m, where the caller has it.
        """
        total = torch.zeros_like(m)
        for row in rows:
            total += self.step(row, m, tau, method) - m
        return m + total / len(rows), None

    def batch(
        self, rows: Tensor, m: Tensor, tau: float, *, shards: Shards = WHOLE
    ) -> tuple[Tensor, Tensor | None, SolverReport | None]:
        """``argmin_y (1/n) Σ_i D(y - g_i) + ‖y - m‖²/(2τ)``, weights and the solver's report."""
        raise ValueError(
            f"{type(self).__name__}: fusion='batch' needs a divergence with a batch method, "
            "found none"
        )


class Averaging(Divergence):
    """A divergence with an averaged step of its own: a single step is the average of one."""

    def prox(self, row: Tensor, m: Tensor, tau: float) -> Tensor:
        return self.averaged(row[None], m, tau, "prox")[0]

    def subgradient(self, row: Tensor, m: Tensor) -> Tensor:
        return m - self.averaged(row[None], m, 1.0, "subgradient")[0]

    def step(
        self, row: Tensor, m: Tensor, tau: float, method: Method, *, shards: Shards = WHOLE
    ) -> Tensor:
        return self.averaged(row[None], m, tau, method, shards=shards)[0]

    @abstractmethod
    def averaged(
        self,
        rows: Tensor,
        m: Tensor,
        tau: float,
        method: Method,
        gaps: Tensor | None = None,
        *,
        shards: Shards = WHOLE,
    ) -> tuple[Tensor, Tensor | None]: ...
