"""The worker's side: what it has sent, and what of it counts.

A worker's state under a codec is at most two states of the codec: *kept*, after its last message
that is known to count, and *sent*, after the last one, each with the number of that message's
round. The server says which message of the worker's counted last. If it is the one that was sent,
the worker goes on from there; if it is the one that is kept, what was sent since did not count and
is forgotten; if it is neither, the two have lost each other, and the worker begins anew.
"""

from __future__ import annotations

import torch
from torch import Tensor

from robust_agg.codecs import wire
from robust_agg.codecs.codec import Codec
from robust_agg.codecs.wire import NOTHING
from robust_agg.types import State

_KEPT, _SENT = "kept/", "sent/"
_ROUND = "round"


def message(
    codec: Codec,
    row: Tensor,
    state: State,
    *,
    round: int,
    accepted: int,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, State]:
    """A worker's message for a row ``(d,)`` as ``(b,)`` bytes, and its state after it.

    Args:
        codec: the run's.
        row: what the worker would send without it.
        state: from here; ``{}`` before the first message. Not changed.
        round: the number of the round, which no two messages of a worker have in common.
        accepted: the round of the worker's last message that counts, as the server says, or
            :data:`~robust_agg.codecs.wire.NOTHING`.
        generator: as for :meth:`~robust_agg.codecs.Codec.encode`.
    """
    known = _known(state, accepted)
    base = NOTHING if known is None else accepted
    own = codec.init(row) if known is None else known
    payload, new = codec.encode(row, own, generator=generator)
    kept = {} if known is None else _named(_KEPT, own, accepted)
    return wire.pack(codec, payload, base, row), {**kept, **_named(_SENT, new, round)}


def _known(state: State, accepted: int) -> State | None:
    """The codec's state after the message of round ``accepted``; None where it is not here."""
    for prefix in (_SENT, _KEPT):
        number = state.get(prefix + _ROUND)
        if accepted != NOTHING and number is not None and int(number) == accepted:
            return {
                name.removeprefix(prefix): value
                for name, value in state.items()
                if name.startswith(prefix) and name != prefix + _ROUND
            }
    return None


def _named(prefix: str, state: State, round: int) -> State:
    number = torch.tensor(round, dtype=torch.int64, device="cpu")
    return {prefix + _ROUND: number, **{prefix + name: value for name, value in state.items()}}
