"""Min-Max: as far from the mean as the farthest two honest rows are from each other."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from attacks.perturbations import Perturbed, products, squared_deviations
from robust_agg.span import measure


@dataclass(frozen=True, kw_only=True)
class MinMax(Perturbed):
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
        ValueError: an unknown ``perturbation``.
        UnfitRoundError: in a round, fewer than 2 honest rows.
    """

    def gamma(self, rows: Tensor, mean: Tensor, direction: Tensor) -> float:
        geometry, _ = measure(rows)
        along = products(rows, direction, about=mean)
        squares = squared_deviations(geometry.squared_distances)
        room = geometry.squared_distances.max() - squares
        return float((along + (along.square() + room).clamp(min=0).sqrt()).min())
