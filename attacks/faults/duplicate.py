"""Duplicates: a message that comes more than once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from attacks.faults.fault import Fault, Message
from robust_agg.errors import check_count
from robust_agg.messages import Update
from robust_agg.types import State


@dataclass(frozen=True, kw_only=True)
class Duplicate(Fault):
    """Every message of the worker comes ``copies`` times: a retry of what had arrived.

    Or it would have as many votes; admission counts the first.

    Args:
        copies: >= 2.

    Raises:
        ValueError: ``copies`` < 2.
    """

    copies: int = 2

    def __post_init__(self) -> None:
        check_count("Duplicate", "copies", self.copies, minimum=2)

    def __call__(
        self, update: Update, state: State, generator: torch.Generator
    ) -> tuple[Sequence[Message], State]:
        return [update] * self.copies, state
