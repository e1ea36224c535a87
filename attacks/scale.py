"""Scaling: the honest row, too long or too short."""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite
from typing import ClassVar

import torch
from torch import Tensor

from attacks.attack import Attack
from attacks.threat import Knowledge, View
from robust_agg.errors import shown
from robust_agg.types import State


@dataclass(frozen=True, kw_only=True)
class Scale(Attack):
    """Row i is c g_i, with g_i the row attacker i would have sent.

    With c = n/k the attackers outweigh all others in a mean: boosting, or model replacement where
    the row is a model's change (Bhagoji et al., ICML 2019; Bagdasaryan et al., AISTATS 2020). Also
    what a gradient that was summed instead of averaged, or a wrong loss scale, looks like.

    Args:
        factor: c, finite. Negative ones reverse the row, as :class:`SignFlip` does.

    Raises:
        ValueError: ``factor`` not finite.
    """

    knows: ClassVar[Knowledge] = Knowledge.OWN

    factor: float = 10.0

    def __post_init__(self) -> None:
        if not isfinite(self.factor):
            raise ValueError(f"Scale: factor must be finite, found {shown(self.factor)}")

    def __call__(
        self, view: View, state: State, generator: torch.Generator
    ) -> tuple[Tensor, State]:
        return self.factor * view.own, state
