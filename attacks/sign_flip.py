"""Sign flipping: send the honest row reversed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from attacks.attack import Attack
from attacks.threat import Knowledge, View
from robust_agg.errors import check_choice, check_positive
from robust_agg.types import State


@dataclass(frozen=True, kw_only=True)
class SignFlip(Attack):
    """Row i is -c g_i, or -c ḡ in every row.

    g_i is the row attacker i would have sent, ḡ the mean of the h honest rows.
    With ``of="own"`` the attackers need no knowledge but their own and differ from each other; it
    is the bit-flipping attack of Karimireddy, He, Jaggi (2022) and SignFlip of Blades. With
    ``of="mean"`` all k rows are the same; it is SignFlipping of ByzFL (Allen-Zhu et al., 2021), and
    inner product manipulation with ε = c.

    Args:
        of: whose row is reversed.
        scale: the factor c > 0.

    Raises:
        ValueError: an unknown ``of``, or ``scale`` not positive and finite.
    """

    of: Literal["own", "mean"] = "own"
    scale: float = 1.0

    def __post_init__(self) -> None:
        check_choice("SignFlip", "of", self.of, ("own", "mean"))
        check_positive("SignFlip", "scale", self.scale)

    @property
    def knows(self) -> Knowledge:
        return Knowledge.OWN if self.of == "own" else Knowledge.HONEST

    def __call__(
        self, view: View, state: State, generator: torch.Generator
    ) -> tuple[Tensor, State]:
        if self.of == "own":
            return -self.scale * view.own, state
        return (-self.scale * view.honest_mean).expand(view.byzantine, -1), state
