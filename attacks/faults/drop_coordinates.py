"""Dropped coordinates: parts of a row that are lost on the way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from attacks.chance import happens
from attacks.faults.fault import Fault, Message
from robust_agg.errors import check_share
from robust_agg.messages import Update
from robust_agg.types import State


@dataclass(frozen=True, kw_only=True)
class DropCoordinates(Fault):
    """Every coordinate of the worker's rows is 0 with a probability, independently of the others.

    What an unreliable transport leaves that fills in zeros for the packets it has lost. Nothing
    tells the server: the message arrives, and its shape is right.

    Args:
        probability: in (0, 1].

    Raises:
        ValueError: ``probability`` out of range.
    """

    probability: float = 0.1

    def __post_init__(self) -> None:
        check_share("DropCoordinates", "probability", self.probability, one=True)

    def __call__(
        self, update: Update, state: State, generator: torch.Generator
    ) -> tuple[Sequence[Message], State]:
        lost = happens(self.probability, update.row.shape, generator)
        row = update.row.detach().masked_fill(lost.to(update.row.device), 0.0)
        return [replace(update, row=row)], state
