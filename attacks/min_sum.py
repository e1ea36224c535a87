"""Min-Sum: as far from all honest rows together as the most remote honest row is."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from attacks.perturbations import Perturbed, squared_deviations
from robust_agg.span import measure


@dataclass(frozen=True, kw_only=True)
class MinSum(Perturbed):
    """Every row is ``ḡ + γ p`` with the largest γ at which it is no outlier by its distances.

    ``γ = max γ : Σ_i ‖ḡ + γ p - x_i‖₂² <= max_i Σ_j ‖x_i - x_j‖₂²`` over the honest rows x_i.
    Shejwalkar and Houmansadr, "Manipulating the Byzantine: Optimizing Model Poisoning Attacks and
    Defenses for Federated Learning" (NDSS 2021). Stricter than :class:`MinMax`, against rules that
    add distances up, such as Krum.

    The paper halves its way to γ; deviations from ḡ add up to 0, so it is
    ``√((max_i Σ_j ‖x_i - x_j‖² - Σ_i ‖x_i - ḡ‖²)/h)`` for ‖p‖ = 1.

    Args:
        perturbation: p, as in the paper: ``"std"`` is -σ, ``"unit"`` -ḡ/‖ḡ‖, ``"sign"`` -sign(ḡ).

    Raises:
        ValueError: an unknown ``perturbation``.
        UnfitRoundError: in a round, fewer than 2 honest rows.
    """

    def gamma(self, rows: Tensor, mean: Tensor, direction: Tensor) -> float:
        distances = measure(rows)[0].squared_distances
        room = distances.sum(dim=1).max() - squared_deviations(distances).sum()
        return float((room / len(rows)).clamp(min=0).sqrt())
