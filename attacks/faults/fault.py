"""What a fault is: what the server receives instead of one worker's honest message."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TypeAlias

import torch

from robust_agg.admission import Rejection
from robust_agg.messages import Update
from robust_agg.types import State

Message: TypeAlias = Update | Rejection
"""A message that arrives, or what a transport says of one that does not."""


class Fault(ABC):
    """Something that goes wrong between an honest worker and the server. A new one is small::

        class Twice(Fault):
            def __call__(self, update, state, generator):
                return [update, update], state

    It sees a message at a time, knows nothing of others, and acts where a transport would: on
    whether and when the message comes, on its round, on a row that is damaged on the way. A fault
    is pure, as an attack is: it changes neither the message nor the state, and all its randomness
    comes from the generator.
    """

    @abstractmethod
    def __call__(
        self, update: Update, state: State, generator: torch.Generator
    ) -> tuple[Sequence[Message], State]:
        """What comes of one message, and the worker's state for its next one.

        Args:
            update: what the worker sends; not changed.
            state: what this worker's previous message returned, ``{}`` before; not changed.
            generator: a CPU generator for every random choice.

        Returns:
            Messages of this sender in order of arrival, and the new state.
        """
