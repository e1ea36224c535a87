"""Noise on the inputs: a bad sensor."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from attacks.attack import DataAttack
from robust_agg.errors import check_positive


@dataclass(frozen=True, kw_only=True)
class FeatureNoise(DataAttack):
    """Add independent N(0, σ²) to every number of the inputs; the labels stay.

    A worker whose sensor is bad or whose data is of another source; honest gradients of inputs that
    nobody else sees.

    Args:
        scale: σ > 0, in the units of the inputs.

    Raises:
        ValueError: ``scale`` not positive and finite; in a batch, inputs that are not floating.
    """

    scale: float = 1.0

    def __post_init__(self) -> None:
        check_positive("FeatureNoise", "scale", self.scale)

    def __call__(
        self, inputs: Tensor, targets: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        if not inputs.is_floating_point():
            raise ValueError(f"FeatureNoise: inputs must be floating, found {inputs.dtype}")
        # Drawn wide and on the CPU, where the generator is, so that every device draws the same.
        wide = torch.promote_types(inputs.dtype, torch.float32)
        noise = torch.randn(inputs.shape, dtype=wide, generator=generator, device="cpu")
        noisy = inputs.to(wide) + self.scale * noise.to(inputs.device)
        return noisy.to(inputs.dtype), targets
