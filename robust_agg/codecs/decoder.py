"""The server's side: rows out of messages, with a state for every sender.

A sender's state moves with a message of its own that counts, and with no other: one that is lost,
late, stale, a duplicate or malformed leaves it as it is, and so does a round that is skipped. What
the sender made of such a message it takes back, once it is told which one counted last.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from robust_agg.codecs import wire
from robust_agg.codecs.codec import Codec
from robust_agg.codecs.wire import NOTHING
from robust_agg.errors import as_integer, check_instance
from robust_agg.messages import MessageError, Update
from robust_agg.seeding import generator
from robust_agg.types import State

ROUND = "round"


class Decoder:
    """The states of all senders, and the rows they make of their messages.

    Args:
        codec: the run's; None where rows are sent as they are, and nothing is to be remembered.
        dim: d, the number of elements of a row.
        dtype: of the rows.
        device: where rows and states are.

    Attributes:
        states: by sender, with the round of its last message that counts.
    """

    def __init__(
        self,
        codec: Codec | None,
        *,
        dim: int,
        dtype: torch.dtype,
        device: torch.device | str = "cpu",
    ) -> None:
        if codec is not None:
            check_instance("Decoder", "codec", codec, Codec)
        self.codec = codec
        self._like = torch.empty(1, dtype=dtype, device=device).expand(dim)
        self.states: dict[int, State] = {}

    @property
    def form(self) -> tuple[int, torch.dtype]:
        """Number and dtype of the elements of a message."""
        return wire.form(self.codec, self._like.numel(), self._like.dtype)

    @property
    def accepted(self) -> dict[int, int]:
        """By sender, the round of its last message that counts."""
        return {sender: int(state[ROUND]) for sender, state in self.states.items()}

    def reader(self) -> RoundReader:
        """What reads the messages of one round; the states stay until it is kept."""
        return RoundReader(self.codec, self._like, self.states)

    def keep(self, reader: RoundReader) -> None:
        """Let the messages count that ``reader`` has read."""
        self.states = {**self.states, **reader.states}

    def read(self, updates: Iterable[Update]) -> list[Update]:
        """:meth:`RoundReader.rows` as they would be read now; nothing is changed."""
        return self.reader().rows(updates)

    def write(self, updates: Iterable[Update], *, seed: int) -> list[Update]:
        """Messages that are read as near to the rows of ``updates`` as any: what liars send.

        Args:
            updates: rows ``(d,)``, by sender.
            seed: of what the codec draws.
        """
        if self.codec is None:
            return list(updates)
        codec = self.codec
        return [replace(update, row=self._forged(codec, update, seed)) for update in updates]

    def _forged(self, codec: Codec, update: Update, seed: int) -> Tensor:
        state, base = _after(self.states, update.sender, codec, self._like)
        row = update.row.to(self._like.device)
        draw = generator(seed, "forged message", update.round, update.sender)
        payload = codec.forge(row, state, generator=draw)
        return wire.pack(codec, payload, base, row).cpu()

    def state_dict(self) -> dict[int, dict[str, Tensor]]:
        """By sender its state, as a tree for ``save_checkpoint``."""
        return {sender: dict(state) for sender, state in self.states.items()}

    def checked(self, tree: Any) -> dict[int, State]:
        """The states in the tree of :meth:`state_dict`, on this device.

        Raises:
            ValueError: they are not of this codec and these rows.
        """
        own = {} if self.codec is None else self.codec.expect(self._like)
        expected = {
            ROUND: ((), torch.int64),
            **{name: (tuple(value.shape), value.dtype) for name, value in own.items()},
        }
        states: dict[int, State] = {}
        for sender, state in tree.items():
            found = {name: (tuple(value.shape), value.dtype) for name, value in state.items()}
            if found != expected:
                raise ValueError(
                    f"Decoder: the state of sender {sender} must have {expected}, found {found}"
                )
            number = as_integer("Decoder", "sender", sender)
            states[number] = {
                name: value if name == ROUND else value.to(self._like.device)
                for name, value in state.items()
            }
        return states


class RoundReader:
    """One round's messages as rows.

    Attributes:
        dim, dtype: of the rows.
        states: of the senders that were read, after their messages.
        clipped: senders whose payload was longer than the codec allows.
    """

    def __init__(self, codec: Codec | None, like: Tensor, before: Mapping[int, State]) -> None:
        self.dim, self.dtype = like.numel(), like.dtype
        self.states: dict[int, State] = {}
        self.clipped: list[int] = []
        self._codec, self._like, self._before = codec, like, before

    def read(self, update: Update) -> Tensor:
        """The row ``(d,)`` of a message; of NaN where a payload gives no finite one.

        Raises:
            MessageError: the message is malformed, or builds on one that is not the sender's last.
        """
        if self._codec is None:
            return update.row
        sender = update.sender
        payload, base = wire.unpack(self._codec, update.row.to(self._like.device), self._like)
        state, last = _after(self._before, sender, self._codec, self._like)
        if base == NOTHING:
            state = self._codec.expect(self._like)
        elif base != last:
            raise MessageError(f"it builds on round {base}, the last that counts is {last}")
        row, new, clipped = self._codec.decode(payload, state, self._like)
        if not bool(row.isfinite().all()):
            return torch.full_like(row, torch.nan)
        number = torch.tensor(update.round, dtype=torch.int64, device="cpu")
        self.states[sender] = {ROUND: number, **new}
        if clipped:
            self.clipped.append(sender)
        return row

    def rows(self, updates: Iterable[Update]) -> list[Update]:
        """The updates as rows on the CPU.

        Those that cannot be read, and a sender's second, are left out.
        """
        if self._codec is None:
            return list(updates)
        rows: dict[int, Update] = {}
        for update in updates:
            if update.sender not in rows:
                with suppress(MessageError):
                    rows[update.sender] = replace(update, row=self.read(update).cpu())
        return list(rows.values())


def _after(
    states: Mapping[int, State], sender: int, codec: Codec, like: Tensor
) -> tuple[State, int]:
    """The codec's state after a sender's last message that counts, and the round of that."""
    if sender not in states:
        return codec.expect(like), NOTHING
    state = dict(states[sender])
    return state, int(state.pop(ROUND))
