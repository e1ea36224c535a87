"""What can go wrong between ranks, told alike on all of them."""

from __future__ import annotations

from functools import partial


class RankError(RuntimeError):
    """A rank is gone, stalled or unreachable in the middle of a step.

    The group is of no use any more. Where a peer is stopped rather than dead, a process that ends
    may wait for gloo's operations with it: end it by ``os._exit``.

    Attributes:
        ranks: those that have not been heard of since, as ranks of the group; empty where nothing
            is known but that the step failed.
        step: which step of the collective, from 0.
    """

    def __init__(self, text: str, *, ranks: tuple[int, ...], step: int) -> None:
        super().__init__(text)
        self.ranks = ranks
        self.step = step

    def __reduce__(self) -> tuple[partial[RankError], tuple[object, ...]]:
        # Exceptions are rebuilt from their positional arguments, which are not all of this one's.
        return partial(RankError, ranks=self.ranks, step=self.step), self.args


class DisagreementError(ValueError):
    """The ranks do not ask for the same thing; raised on every one of them, before data moves."""


class EquivocationError(RuntimeError):
    """A rank's row has not reached all ranks as the same bytes. Which rank lied is not known."""
