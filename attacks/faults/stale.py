"""Stale messages: a worker that is behind."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from attacks.faults.fault import Fault, Message
from robust_agg.errors import check_count
from robust_agg.messages import Update
from robust_agg.types import State


@dataclass(frozen=True, kw_only=True)
class Stale(Fault):
    """The worker sends the message it should have sent ``age`` of its rounds ago.

    Row and round are the old ones, so admission sees that it is stale and does not count it. What
    passes an old row off as new is :class:`~attacks.Replay`. Before there is an old one nothing
    comes.

    Args:
        age: >= 1, counted in rounds that the worker takes part in.

    Raises:
        ValueError: ``age`` < 1.
    """

    age: int = 1

    def __post_init__(self) -> None:
        check_count("Stale", "age", self.age, minimum=1)

    def __call__(
        self, update: Update, state: State, generator: torch.Generator
    ) -> tuple[Sequence[Message], State]:
        kept = {**state, str(update.round): update.row.detach().clone()}
        oldest = min(kept, key=int)
        if len(kept) <= self.age:
            return [], kept
        row = kept.pop(oldest)
        return [replace(update, round=int(oldest), row=row)], kept
