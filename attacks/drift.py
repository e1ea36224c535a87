"""Drift: a bias too small to see in a round, always in the same direction."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from attacks.attack import Attack
from attacks.direction import steady, undrawn
from attacks.moments import check_scatter, mean_and_std, wide_rows
from attacks.threat import Knowledge, View
from robust_agg.errors import check_positive
from robust_agg.types import State


@dataclass(frozen=True, kw_only=True)
class Drift(Attack):
    """Every row is ``ḡ + c ‖σ‖₂ u`` with one random direction u for the whole run.

    ‖σ‖₂ is the root mean square distance of the honest rows from their mean ḡ: with c < 1 the
    attackers are nearer to it than honest rows are. What is harmless in a round adds up in all that
    remembers, a momentum, an online estimate and the model itself: a time-coupled attack as in
    Karimireddy, He, Jaggi, "Learning from History for Byzantine Robust Optimization" (ICML 2021),
    in a direction that has nothing to do with the gradients.

    Args:
        strength: c > 0.

    Raises:
        ValueError: ``strength`` not positive and finite.
        UnfitRoundError: in a round, fewer than 2 honest rows.
    """

    knows: ClassVar[Knowledge] = Knowledge.HONEST

    strength: float = 0.5

    def __post_init__(self) -> None:
        check_positive("Drift", "strength", self.strength)

    def check(self, byzantine: int, honest: int) -> None:
        super().check(byzantine, honest)
        check_scatter("Drift", "honest", byzantine, honest)

    def init(self, like: Tensor) -> State:
        """u is drawn in the first round."""
        return undrawn(like)

    def __call__(
        self, view: View, state: State, generator: torch.Generator
    ) -> tuple[Tensor, State]:
        self.check(view.byzantine, view.n - view.byzantine)
        mean, std = mean_and_std(wide_rows(view))
        direction, state = steady(state, generator)
        row = mean + self.strength * std.norm() * direction
        return row.to(view.dtype).expand(view.byzantine, -1), state
