"""Inner product manipulation with the factor that does this defence the most harm."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from attacks.attack import Attack
from attacks.line_search import Line, maximise
from attacks.moments import wide_dtype
from attacks.threat import Knowledge, View
from robust_agg.errors import check_count, check_positive
from robust_agg.types import State


@dataclass(frozen=True, kw_only=True)
class OptimalIPM(Attack):
    """Every row is -ε ḡ with the ε in (0, ``largest``] that moves the defence farthest from ḡ; a
    codec is left out of account.

    ``ε = argmax ‖defence(rows) - ḡ‖₂``, searched anew each round by asking the defence, which does
    not change by it. :class:`InnerProductManipulation` with the adaptive factor of Shejwalkar and
    Houmansadr (NDSS 2021), as in the experiments of Allouah et al., "Fixing by Mixing" (AISTATS
    2023). The search of :mod:`attacks.line_search` is our own; ByzFL's doubles a step as long as
    the damage grows, from 0 and 10, without an upper end.

    Under a codec the answer is the one to rows that are sent as they are. What a clip or a
    compressor leaves of them may do less, and another ε more.

    Of a defence in weight space it costs one Gram matrix, of another one
    ``24 + 2 · refinements`` aggregations.

    Args:
        largest: the largest ε, > 0. Of a mean, the damage grows with ε without end.
        refinements: steps of the search about the best of the coarse values, >= 0.

    Raises:
        ValueError: a parameter out of range.
    """

    knows: ClassVar[Knowledge] = Knowledge.HONEST | Knowledge.DEFENCE

    largest: float = 100.0
    refinements: int = 8

    def __post_init__(self) -> None:
        check_positive("OptimalIPM", "largest", self.largest)
        check_count("OptimalIPM", "refinements", self.refinements, minimum=0)

    def __call__(
        self, view: View, state: State, generator: torch.Generator
    ) -> tuple[Tensor, State]:
        origin = torch.zeros(view.dim, dtype=wide_dtype(view), device=view.device)
        line = Line(view, origin)
        epsilon = maximise(
            lambda epsilon: line.damage(1 + epsilon),
            largest=self.largest,
            refinements=self.refinements,
        )
        return line.row(1 + epsilon).expand(view.byzantine, -1), state
