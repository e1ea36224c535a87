"""Stragglers: answers that come after the deadline."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from attacks.chance import happens
from attacks.faults.fault import Fault, Message
from robust_agg.admission import Rejection
from robust_agg.errors import check_share
from robust_agg.messages import Update
from robust_agg.types import State


@dataclass(frozen=True, kw_only=True)
class Straggle(Fault):
    """Every answer of the worker is late with a probability, independently of the others.

    A late answer does not count, and is not taken for one to a later round either: that is what
    transports do with it.

    Args:
        probability: in (0, 1].

    Raises:
        ValueError: ``probability`` out of range.
    """

    probability: float = 0.5

    def __post_init__(self) -> None:
        check_share("Straggle", "probability", self.probability, one=True)

    def __call__(
        self, update: Update, state: State, generator: torch.Generator
    ) -> tuple[Sequence[Message], State]:
        if not bool(happens(self.probability, (), generator)):
            return [update], state
        reason = f"late: worker {update.sender} did not answer round {update.round} in time"
        return [Rejection(update.sender, reason)], state
