"""Replay: an old message again, as if it were new."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from attacks.attack import Attack
from attacks.threat import Knowledge, View
from robust_agg.errors import check_count
from robust_agg.types import State


@dataclass(frozen=True, kw_only=True)
class Replay(Attack):
    """Row i is one that worker i computed in an earlier round, and has been sending since.

    A worker keeps its honest row in the first round it takes part in, and again as soon as the one
    it has is ``every`` rounds old; it sends what it keeps. The gradient was honest once, at other
    parameters, and it is the same one again and again: a stuck process, or an attacker that has
    recorded a message. The number of the round is this one's, or admission would refuse it
    (:class:`~attacks.faults.Stale`).

    Args:
        every: rounds after which a worker keeps a new row, >= 1; None to keep the first for good.

    Raises:
        ValueError: ``every`` < 1.
    """

    knows: ClassVar[Knowledge] = Knowledge.OWN

    every: int | None = None

    def __post_init__(self) -> None:
        if self.every is not None:
            check_count("Replay", "every", self.every, minimum=1)

    def __call__(
        self, view: View, state: State, generator: torch.Generator
    ) -> tuple[Tensor, State]:
        kept = dict(state)
        sent = []
        for sender, own in zip(view.senders, view.own, strict=True):
            row, since = f"row of {sender}", f"round of {sender}"
            age = view.round - int(kept[since]) if row in kept else None
            if age is None or (self.every is not None and age >= self.every):
                kept[row] = own.clone()
                kept[since] = torch.tensor(view.round, dtype=torch.int64, device="cpu")
            sent.append(kept[row])
        return torch.stack(sent), kept
