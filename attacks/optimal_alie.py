"""A Little Is Enough with the shift that does this defence the most harm."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from attacks.attack import Attack
from attacks.line_search import Line, maximise
from attacks.moments import check_scatter, mean_and_std, wide_rows
from attacks.threat import Knowledge, View
from robust_agg.errors import check_count, check_positive
from robust_agg.types import State


@dataclass(frozen=True, kw_only=True)
class OptimalALIE(Attack):
    """Every row is ḡ + sign · z σ with the z in (0, ``largest``] that moves the defence farthest; a
    codec is left out of account.

    ``z = argmax ‖defence(rows) - ḡ‖₂``, searched anew each round by asking the defence, which does
    not change by it. :class:`ALittleIsEnough` of the honest rows with the adaptive factor of
    Shejwalkar and Houmansadr (NDSS 2021), as in the experiments of Allouah et al., "Fixing by
    Mixing" (AISTATS 2023). Search and cost are those of :class:`OptimalIPM`.

    ByzFL adds (sign +1, ddof 1); the defaults here are those of :class:`ALittleIsEnough`.

    Args:
        largest: the largest z, > 0. Of a mean, the damage grows with z without end.
        sign: the direction of the shift.
        ddof: the standard deviation divides by the number of rows less ``ddof``.
        refinements: steps of the search about the best of the coarse values, >= 0.

    Raises:
        ValueError: a parameter out of range.
        UnfitRoundError: in a round, fewer than 2 honest rows.
    """

    knows: ClassVar[Knowledge] = Knowledge.HONEST | Knowledge.DEFENCE

    largest: float = 100.0
    sign: Literal[-1, 1] = -1
    ddof: Literal[0, 1] = 0
    refinements: int = 8

    def __post_init__(self) -> None:
        check_positive("OptimalALIE", "largest", self.largest)
        if self.sign not in (-1, 1):
            raise ValueError(f"OptimalALIE: sign must be -1 or 1, found {self.sign}")
        if self.ddof not in (0, 1):
            raise ValueError(f"OptimalALIE: ddof must be 0 or 1, found {self.ddof}")
        check_count("OptimalALIE", "refinements", self.refinements, minimum=0)

    def check(self, byzantine: int, honest: int) -> None:
        super().check(byzantine, honest)
        check_scatter("OptimalALIE", "honest", byzantine, honest)

    def __call__(
        self, view: View, state: State, generator: torch.Generator
    ) -> tuple[Tensor, State]:
        self.check(view.byzantine, view.n - view.byzantine)
        mean, std = mean_and_std(wide_rows(view), ddof=self.ddof)
        line = Line(view, mean + self.sign * std)
        z = maximise(line.damage, largest=self.largest, refinements=self.refinements)
        return line.row(z).expand(view.byzantine, -1), state
