"""Min-Max: as far from the mean as the farthest two honest rows are from each other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, get_args

import torch
from torch import Tensor

from attacks.attack import Attack
from attacks.moments import wide_rows
from attacks.perturbations import (
    Perturbation,
    compared_rows,
    mean_and_direction,
    products,
    squared_deviations,
)
from attacks.threat import Knowledge, View
from robust_agg.errors import check_choice
from robust_agg.span import measure
from robust_agg.types import State


@dataclass(frozen=True, kw_only=True)
class MinMax(Attack):
    """Every row is ``ḡ + γ p`` with the largest γ at which it is no outlier by its distances.

    ``γ = max γ : max_i ‖ḡ + γ p - x_i‖₂ <= max_{i,j} ‖x_i - x_j‖₂`` over the honest rows x_i.
    Shejwalkar and Houmansadr, "Manipulating the Byzantine: Optimizing Model Poisoning Attacks and
    Defenses for Federated Learning" (NDSS 2021), the attack that knows no aggregation rule.

    The paper halves its way to γ (algorithm 1); it is the smallest of the h roots of quadratics,
    and taken so here: ``a_i + √(a_i² + D² - ‖x_i - ḡ‖²)`` with ``a_i = <x_i - ḡ, p>``, ‖p‖ = 1 and
    D the largest distance.

    Args:
        perturbation: p, as in the paper: ``"std"`` is -σ, ``"unit"`` -ḡ/‖ḡ‖, ``"sign"`` -sign(ḡ).

    Raises:
        ValueError: an unknown ``perturbation``; in a round, fewer than 2 honest rows.
    """

    knows: ClassVar[Knowledge] = Knowledge.HONEST

    perturbation: Perturbation = "std"

    def __post_init__(self) -> None:
        check_choice("MinMax", "perturbation", self.perturbation, get_args(Perturbation))

    def __call__(
        self, view: View, state: State, generator: torch.Generator
    ) -> tuple[Tensor, State]:
        rows = compared_rows("MinMax", view)
        mean, direction = mean_and_direction(wide_rows(view), self.perturbation)
        geometry, _ = measure(rows)
        along = products(rows, direction, about=mean)
        squares = squared_deviations(geometry.squared_distances)
        room = geometry.squared_distances.max() - squares
        gamma = float((along + (along.square() + room).clamp(min=0).sqrt()).min())
        row = (mean + gamma * direction).to(view.dtype)
        return row.expand(view.byzantine, -1), state
