"""Gaussian noise, instead of a row or on top of it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from attacks.attack import Attack
from attacks.threat import Knowledge, View
from robust_agg.errors import check_choice
from robust_agg.types import State


@dataclass(frozen=True, kw_only=True)
class GaussianNoise(Attack):
    """Row i is c_i + ξ_i, with independent ξ_ij ~ N(μ, σ²).

    With ``around="zero"``, c_i = 0: pure noise that needs no knowledge, the Gaussian attack
    of Blanchard et al. (NeurIPS 2017) with μ = 0 and σ = 200, the defaults;
    also of ByzFL and ByzPy (μ = 0, σ = 1) and Blades (μ = σ = 0.1).
    With ``around="own"``, c_i is the row attacker i would have sent: a noisy worker.

    Args:
        scale: the standard deviation σ ≥ 0, in the rows' units.
        mean: the mean μ of every coordinate of the noise.
        around: what the noise is added to.

    Raises:
        ValueError: ``scale`` negative, a number not finite, or an unknown ``around``.
    """

    scale: float = 200.0
    mean: float = 0.0
    around: Literal["zero", "own"] = "zero"

    def __post_init__(self) -> None:
        if not (self.scale >= 0 and math.isfinite(self.scale)):
            raise ValueError(f"GaussianNoise: scale must be finite and >= 0, found {self.scale}")
        if not math.isfinite(self.mean):
            raise ValueError(f"GaussianNoise: mean must be finite, found {self.mean}")
        check_choice("GaussianNoise", "around", self.around, ("zero", "own"))

    @property
    def knows(self) -> Knowledge:
        return Knowledge.NOTHING if self.around == "zero" else Knowledge.OWN

    def __call__(
        self, view: View, state: State, generator: torch.Generator
    ) -> tuple[Tensor, State]:
        # Drawn wide and on the CPU, where the generator is, so that every device draws the same.
        wide = torch.promote_types(view.dtype, torch.float32)
        drawn = torch.randn(view.byzantine, view.dim, dtype=wide, generator=generator, device="cpu")
        noise = (self.mean + self.scale * drawn).to(view.device)
        rows = noise if self.around == "zero" else view.own.to(wide) + noise
        return rows.to(view.dtype), state
