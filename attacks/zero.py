"""Zeros: a worker that does nothing, and is counted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from attacks.attack import Attack
from attacks.threat import Knowledge, View
from robust_agg.types import State


@dataclass(frozen=True, kw_only=True)
class Zero(Attack):
    """Every row is 0.

    It shortens a mean by the share of the attackers and, where gradients are small, is nearer to
    the honest rows than they are to each other. Free riders, idle accelerators and gradients that
    were reset before they were sent look like this.
    """

    knows: ClassVar[Knowledge] = Knowledge.NOTHING

    def __call__(
        self, view: View, state: State, generator: torch.Generator
    ) -> tuple[Tensor, State]:
        rows = torch.zeros(view.byzantine, view.dim, dtype=view.dtype, device=view.device)
        return rows, state
