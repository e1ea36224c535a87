"""What every transport does: ask workers for their rows, and say what did not come and why."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from torch import Tensor

from robust_agg.admission import Rejection
from robust_agg.messages import Update
from robust_agg.types import State


@dataclass(frozen=True, kw_only=True)
class Collection:
    """What came of one round.

    Attributes:
        asked: the workers that were asked for a row.
        updates: what arrived, in order of arrival; each from a worker that was asked, its row of
            the parameters' size and dtype, or a message of the codec. Stale and duplicate ones are
            left to admission.
        refused: what did not arrive or could not be accepted, and why.
        quorum_met: whether rows of this round came from at least as many workers as the quorum.
        seconds: to the last answer, or to the deadline; with what was waited for lost hosts.
    """

    asked: tuple[int, ...]
    updates: tuple[Update, ...]
    refused: tuple[Rejection, ...]
    quorum_met: bool
    seconds: float


class Transport(ABC):
    """Asks logical workers for rows, wherever they are; the server's only way to reach them.

    A collection ends when every host asked has answered or the deadline has passed. It does not end
    early at the quorum: which rows count must not depend on who is fast. A host that is dead, hung
    or late costs the rows of its own workers and nothing else; one that is still busy with an older
    round is not asked again, and what it answers to that round is dropped.
    """

    @property
    @abstractmethod
    def workers(self) -> tuple[int, ...]:
        """The ids of all workers, ascending, dead ones included."""

    @abstractmethod
    def collect(
        self,
        round: int,
        parameters: Tensor,
        *,
        active: Iterable[int] | None = None,
        accepted: Mapping[int, int] | None = None,
        others: int = 0,
    ) -> Collection:
        """The rows of one round.

        Args:
            round: the round's number, from which the workers derive their randomness.
            parameters: ``(d,)``, the trainable parameters; not changed, and copied before any
                worker sees them.
            active: the workers to ask (client sampling); all if None.
            accepted: ``Server.accepted``, from which workers know which of their messages count;
                without it, a codec with a memory begins anew with every message.
            others: rows of the round that come from elsewhere (an attack that looks at nobody's own
                gradient makes them up): they count for the quorum, though it may turn out later
                that the round is too small for the attack, and they do not come.

        Raises:
            ValueError: an active worker that does not exist, or the transport is closed.
        """

    @abstractmethod
    def state(self, *, complete: bool = False) -> dict[int, State]:
        """The states of estimators and codecs; what a dead host had is lost with it.

        A host that is busy with an older round is waited for, up to the deadline.

        Args:
            complete: whether a dead host is an error.

        Raises:
            HostError: a host that lives, or any, does not give its workers' states by the deadline.
        """

    @abstractmethod
    def load_state(self, states: Mapping[int, State]) -> None:
        """Make the workers' states exactly ``states``; one without a state starts anew.

        A host that is busy with an older round is waited for, up to the deadline.

        Raises:
            ValueError: a state for a worker that does not exist.
            HostError: a host does not take its workers' states by the deadline.
        """

    @abstractmethod
    def close(self) -> None:
        """Stop what this transport has started, hung hosts included; closing twice is nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class HostError(RuntimeError):
    """A host cannot be built, or does not do what a run cannot go on without."""
