"""Directions away from the honest mean, and what bounds how far one may go."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor

from attacks.attack import Attack
from attacks.moments import check_scatter, mean_and_std, unit, wide_rows
from attacks.threat import Knowledge, View
from robust_agg.errors import check_choice
from robust_agg.types import State

Perturbation = Literal["std", "unit", "sign"]
"""``-σ`` per coordinate, ``-ḡ/‖ḡ‖₂`` or ``-sign(ḡ)``: Shejwalkar and Houmansadr (NDSS 2021)."""


@dataclass(frozen=True, kw_only=True)
class Perturbed(Attack):
    """Every row is ``ḡ + γ p``, γ as far as a subclass lets it go among the honest rows."""

    knows: ClassVar[Knowledge] = Knowledge.HONEST

    perturbation: Perturbation = "std"

    def __post_init__(self) -> None:
        check_choice(type(self).__name__, "perturbation", self.perturbation, get_args(Perturbation))

    def check(self, byzantine: int, honest: int) -> None:
        super().check(byzantine, honest)
        check_scatter(type(self).__name__, "honest", byzantine, honest)

    @abstractmethod
    def gamma(self, rows: Tensor, mean: Tensor, direction: Tensor) -> float:
        """γ for the honest rows ``(h, d)``, ḡ and p ``(d,)``, ‖p‖ = 1."""

    def __call__(
        self, view: View, state: State, generator: torch.Generator
    ) -> tuple[Tensor, State]:
        self.check(view.byzantine, view.n - view.byzantine)
        mean, direction = mean_and_direction(wide_rows(view), self.perturbation)
        row = (mean + self.gamma(view.honest, mean, direction) * direction).to(view.dtype)
        return row.expand(view.byzantine, -1), state


def mean_and_direction(rows: Tensor, perturbation: Perturbation) -> tuple[Tensor, Tensor]:
    """ḡ and the perturbation, both ``(d,)`` float64, the latter of length 1 (or 0).

    Its length does not matter where the factor before it is the largest that distances allow.
    """
    if perturbation == "std":
        mean, std = mean_and_std(rows)
        return mean.double(), unit(-std)
    mean = rows.mean(dim=0).double()
    return mean, unit(-mean if perturbation == "unit" else -mean.sign())


def products(rows: Tensor, direction: Tensor, *, about: Tensor | None = None) -> Tensor:
    """``<x_i - a, p>`` for each of the rows ``(h, d)``, ``(h,)`` float64 on the CPU.

    A row at a time: in float64, all would be twice the rows. a is 0 if ``about`` is None.
    """
    found = [
        torch.dot(row.double() if about is None else row.double() - about, direction)
        for row in rows
    ]
    return torch.stack(found).cpu()


def squared_deviations(squared_distances: Tensor) -> Tensor:
    """``‖x_i - ḡ‖²`` of h rows from their ``‖x_i - x_j‖²``: ``Σ_j D_ij/h - Σ_jk D_jk/(2h²)``."""
    h = len(squared_distances)
    sums = squared_distances.sum(dim=1)
    return (sums / h - sums.sum() / (2 * h * h)).clamp(min=0)
