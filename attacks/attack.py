"""The two kinds of attack: on the rows as sent, and on the data an honest worker computes from."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from attacks.threat import Knowledge, View, check_known
from robust_agg.types import State


class Attack(ABC):
    """An attack on the rows as sent. A new one is one small class::

        class Echo(Attack):
            knows = Knowledge.HONEST

            def __call__(self, view, state, generator):
                return view.honest[:1].repeat(view.byzantine, 1), state

    An attack is pure: it changes neither the state it receives nor itself, and all its randomness
    comes from the generator.
    """

    @property
    def knows(self) -> Knowledge:
        """What the attack reads of a round; a class attribute, or a property of its parameters."""
        return Knowledge.NOTHING

    def init(self, like: Tensor) -> State:
        """The state before the first round, for rows like the ``(d,)`` tensor ``like``."""
        return {}

    def check(self, byzantine: int, honest: int) -> None:
        """Raise :class:`~attacks.UnfitRoundError` if a round of so many is none for this attack.

        In such a round the attackers send their own honest rows (:class:`~attacks.Adversary`), and
        a run of no other rounds does not begin. Whether there is an honest row, where ``knows`` has
        them, is all that is checked here; a class that needs more checks that too.

        Args:
            byzantine: the number k of rows that are the attack's, >= 1.
            honest: the number h of the others, n - k.
        """
        check_known(type(self).__name__, self.knows, byzantine=byzantine, honest=honest)

    @abstractmethod
    def __call__(
        self, view: View, state: State, generator: torch.Generator
    ) -> tuple[Tensor, State]:
        """The rows the attackers send this round, and the state for the next.

        Args:
            view: the round, as far as ``knows`` opens it.
            state: what the previous round returned, or ``init``; not changed.
            generator: a CPU generator for every random choice.

        Returns:
            ``view.byzantine`` rows ``(k, d)`` of ``view.dtype`` on ``view.device``, in the order of
            ``view.own``; and the new state.
        """


class DataAttack(ABC):
    """An attack on the data: the worker runs the honest path on a batch that this has changed.

    It is pure: what it does to a batch depends on the batch and the generator alone. A run may use
    one object for many workers and trainings, and none of its own memory is in a checkpoint.
    """

    @abstractmethod
    def __call__(
        self, inputs: Tensor, targets: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """The batch to train on instead.

        Args:
            inputs: the batch's inputs, examples first; not changed.
            targets: the batch's targets, examples first; not changed.
            generator: a CPU generator for every random choice.

        Returns:
            Inputs and targets of the same shapes; a part the attack leaves alone may be the very
            tensor it was given.
        """

    def goal(self, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor] | None:
        """What a model is asked to find out whether the attack has succeeded.

        Args:
            inputs: clean test inputs, examples first; not changed.
            targets: their targets.

        Returns:
            Inputs and the targets the attacker wants the model to give to them, which the success
            rate is the share of; None for an attack whose success is bad accuracy.
        """
        return None
