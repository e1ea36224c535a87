"""A crash: from some round on nothing comes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from attacks.faults.fault import Fault, Message
from robust_agg.admission import Rejection
from robust_agg.errors import check_count
from robust_agg.messages import Update
from robust_agg.types import State


@dataclass(frozen=True, kw_only=True)
class Crash(Fault):
    """The worker answers no round from ``round`` on.

    The crash-stop fault of distributed computing. It reduces n and never f: the rounds go on while
    n >= 2f + 1 rows are left.

    Args:
        round: the first one without an answer, >= 0.

    Raises:
        ValueError: ``round`` < 0.
    """

    round: int = 10

    def __post_init__(self) -> None:
        check_count("Crash", "round", self.round, minimum=0)

    def __call__(
        self, update: Update, state: State, generator: torch.Generator
    ) -> tuple[Sequence[Message], State]:
        if update.round < self.round:
            return [update], state
        reason = f"lost: worker {update.sender} crashed in round {self.round}"
        return [Rejection(update.sender, reason)], state
