"""Which workers are faulty in a simulation, and what arrives from them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from attacks.faults.fault import Fault
from robust_agg.admission import Rejection
from robust_agg.messages import Update
from robust_agg.types import State


@dataclass(frozen=True, kw_only=True)
class FaultyWorkers:
    """Lets a fault happen to every message of some workers, on any transport.

    Args:
        fault: what goes wrong.
        byzantine: the ids of the workers it happens to.
    """

    fault: Fault
    byzantine: frozenset[int]

    def deliver(
        self, updates: Sequence[Update], state: State, *, generator: torch.Generator
    ) -> tuple[list[Update], list[Rejection], State]:
        """What arrives, what is said of the rest, and the faulty workers' state for the next round.

        Args:
            updates: what every worker has sent; not changed.
            state: what the previous round returned, ``{}`` before; not changed.
            generator: a CPU generator for the fault's random choices.

        Raises:
            ValueError: the fault answers with a message of another sender.
        """
        arrived: list[Update] = []
        refused: list[Rejection] = []
        for update in updates:
            if update.sender not in self.byzantine:
                arrived.append(update)
                continue
            own, others = _divided(state, update.sender)
            messages, new = self.fault(update, own, generator)
            state = {**others, **{f"{update.sender}/{name}": t for name, t in new.items()}}
            for message in messages:
                if message.sender != update.sender:
                    raise ValueError(
                        f"{type(self.fault).__name__}: messages must be of sender "
                        f"{update.sender}, found {message.sender}"
                    )
                if isinstance(message, Update):
                    arrived.append(message)
                else:
                    refused.append(message)
        return arrived, refused, state


def _divided(state: State, sender: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The part of a state that is one sender's, by its own names, and the rest."""
    prefix = f"{sender}/"
    own = {name.removeprefix(prefix): t for name, t in state.items() if name.startswith(prefix)}
    return own, {name: t for name, t in state.items() if not name.startswith(prefix)}
