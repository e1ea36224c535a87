"""Inner product manipulation: a negative multiple of the honest mean."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from attacks.attack import Attack
from attacks.threat import Knowledge, View
from robust_agg.errors import check_positive
from robust_agg.types import State


@dataclass(frozen=True, kw_only=True)
class InnerProductManipulation(Attack):
    """Every row is -ε ḡ, with ḡ the mean of the h honest rows.

    Xie, Koyejo, Gupta, "Fall of Empires: Breaking Byzantine-tolerant SGD by Inner Product
    Manipulation" (UAI 2019; PMLR 115, 2020); hence also called FoE, or Empire. It aims at a
    negative inner product between the aggregate and the true gradient. A small ε
    hides among rows that scatter more than ‖ḡ‖; a plain mean is reversed from
    ε > h/k on.

    The paper's ε is used here, by Karimireddy, He, Jaggi (2022), with 0.1 as here,
    by Blades as ``scale`` and by ByzFL as ``tau``, with 2. The ``factor`` of the older EPFL code
    measures from the mean, (1-τ) ḡ: ε = τ - 1.

    Args:
        epsilon: the factor, > 0.

    Raises:
        ValueError: ``epsilon`` not positive and finite.
    """

    knows: ClassVar[Knowledge] = Knowledge.HONEST

    epsilon: float = 0.1

    def __post_init__(self) -> None:
        check_positive("InnerProductManipulation", "epsilon", self.epsilon)

    def __call__(
        self, view: View, state: State, generator: torch.Generator
    ) -> tuple[Tensor, State]:
        return (-self.epsilon * view.honest_mean).expand(view.byzantine, -1), state
