"""An attack where rows travel by a codec: what it sees, and what its rows are sent as."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Protocol

from torch import Tensor

from robust_agg import Update
from robust_agg.codecs import Codec, privacy
from robust_agg.codecs.decoder import Decoder


class Receiving(Protocol):
    """What is needed of a server, to read messages and to write forged ones."""

    round: int

    @property
    def accepted(self) -> dict[int, int]: ...
    def read(self, updates: list[Update]) -> list[Update]: ...
    def write(self, updates: list[Update]) -> list[Update]: ...


class Coded:
    """Between workers that send messages, an attack that makes rows, and a server that reads them.

    An attack sees honest messages as the rows that the server will read. Its own rows are sent as
    messages that the server reads as near to them as it reads any: a liar is bound by what the
    decoder accepts, by the clip of Clip21 say, not by what the encoder does.

    A Byzantine worker's own honest row is the one it would have sent were it honest all along: what
    it computes is for a decoder here, not for the server, whose shift for it the attack has moved.

    Args:
        codec: the run's.
        server: what reads the messages.
        byzantine: whose rows the attack makes; nobody's where there is none.
        like: ``(d,)``, of the rows' dtype.
        delta: δ of the privacy that a codec with noise gives.
    """

    def __init__(
        self,
        codec: Codec,
        server: Receiving,
        byzantine: frozenset[int],
        like: Tensor,
        *,
        delta: float,
    ) -> None:
        self._codec, self._delta = codec, delta
        self._server, self._byzantine = server, byzantine
        self._messages: dict[int, int] = {}
        self._twins = Decoder(codec, dim=like.numel(), dtype=like.dtype)
        self._reader = self._twins.reader()

    def ask(self, workers: Iterable[int]) -> dict[int, int]:
        """What workers that are asked for a message are told of their last ones; counts them."""
        self._messages |= {i: self._messages.get(i, 0) + 1 for i in workers}
        known = self._server.accepted
        honest = {i: round for i, round in known.items() if i not in self._byzantine}
        return honest | self._twins.accepted

    def shown(self, updates: Sequence[Update]) -> list[Update]:
        """The messages as rows, in the order of their senders; those that are none are left out."""
        own = [u for u in updates if self._lies(u) and u.round == self._server.round]
        self._reader = self._twins.reader()
        rows = self._reader.rows(own)
        rows += self._server.read([u for u in updates if not self._lies(u)])
        return sorted(rows, key=lambda update: update.sender)

    def sent(self, updates: Sequence[Update], corrupted: Sequence[Update]) -> list[Update]:
        """What reaches the server: honest messages, and the attack's rows as messages."""
        honest = [u for u in updates if not self._lies(u)]
        return honest + self._server.write([u for u in corrupted if self._lies(u)])

    def keep(self) -> None:
        """The round that was shown last counts: the server has not skipped it."""
        self._twins.keep(self._reader)

    @property
    def epsilon(self) -> float | None:
        """ε of the data of the worker that was asked most often; None without noise."""
        if self._codec.noise == 0:
            return None
        most = max(self._messages.values(), default=0)
        return privacy.epsilon(self._codec, most, delta=self._delta)

    def state_dict(self) -> dict[str, Any]:
        """Honest states of Byzantine workers, and counts, as a tree for ``save_checkpoint``."""
        return {"twins": self._twins.state_dict(), "messages": self._messages}

    def load_state_dict(self, tree: Any) -> None:
        """Continue where :meth:`state_dict` was taken.

        Raises:
            ValueError: it was taken of another codec.
        """
        self._twins.states = self._twins.checked(tree["twins"])
        self._messages = dict(tree["messages"])

    def _lies(self, update: Update) -> bool:
        return update.sender in self._byzantine
