"""Codecs of a shift that both sides hold: the difference to it is what is sent."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from robust_agg.codecs.codec import Codec, Decoded
from robust_agg.codecs.compressor import Compressor, send, working_dtype
from robust_agg.codecs.layout import Layout, Payload
from robust_agg.errors import check_instance
from robust_agg.types import State

SHIFT = "shift"


@dataclass(frozen=True, kw_only=True)
class Shifted(Codec):
    """``c = C(g - v)`` is sent, both sides step ``v ← v + c``, v₀ = 0, and v is the row.

    v is kept in at least float32, c is sent in the rows' dtype, and both sides add the very numbers
    that are sent: their shifts are equal to the last bit.

    Attributes:
        compressor: C.
    """

    compressor: Compressor

    def layout(self, dim: int, dtype: torch.dtype) -> Layout:
        return self.compressor.layout(dim, dtype)

    def init(self, like: Tensor) -> State:
        dtype = working_dtype(like.dtype)
        return {SHIFT: torch.zeros(like.shape, dtype=dtype, device=like.device)}

    def encode(
        self, row: Tensor, state: State, *, generator: torch.Generator | None = None
    ) -> tuple[Payload, State]:
        shift = state[SHIFT]
        payload, heard = send(self.compressor, row.to(shift.dtype) - shift, row.dtype, generator)
        return payload, state if heard is None else {SHIFT: shift + heard}

    def expect(self, like: Tensor) -> State:
        return self.init(like)

    def decode(self, payload: Payload, state: State, like: Tensor) -> Decoded:
        heard, clipped = self.compressor.expand(payload, like)
        shift = state[SHIFT] + heard
        return Decoded(shift.to(like.dtype), {SHIFT: shift}, clipped)

    def forge(
        self, row: Tensor, state: State, *, generator: torch.Generator | None = None
    ) -> Payload:
        x = row.to(state[SHIFT].dtype) - state[SHIFT]
        return send(self.compressor, x, row.dtype, generator, forged=True)[0]


def check_contractive(who: str, compressor: object) -> None:
    """Raise ``ValueError`` unless it is a contractive :class:`Compressor`."""
    check_instance(who, "compressor", compressor, Compressor)
    assert isinstance(compressor, Compressor)
    # Of many coordinates: what is contractive there is so of few.
    if compressor.contraction(1 << 20) is None:
        raise ValueError(f"{who}: compressor must be contractive, found {compressor!r}")
