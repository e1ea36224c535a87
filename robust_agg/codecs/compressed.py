"""Compression without memory."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from robust_agg.codecs.codec import Codec, Decoded
from robust_agg.codecs.compressor import Compressor, send, working_dtype
from robust_agg.codecs.layout import Layout, Payload
from robust_agg.errors import check_instance
from robust_agg.types import State


@dataclass(frozen=True, kw_only=True)
class Compressed(Codec):
    """``C(g)`` is sent, and is the row: distributed compressed SGD, for an unbiased C.

    With a contractive C, which is biased, SGD need not converge (Karimireddy et al., 2019, section
    3): that is what :class:`~robust_agg.codecs.EF21` and
    :class:`~robust_agg.codecs.ErrorFeedback` are for.

    Attributes:
        compressor: C.
    """

    compressor: Compressor

    def __post_init__(self) -> None:
        check_instance(self.name, "compressor", self.compressor, Compressor)

    def layout(self, dim: int, dtype: torch.dtype) -> Layout:
        return self.compressor.layout(dim, dtype)

    def encode(
        self, row: Tensor, state: State, *, generator: torch.Generator | None = None
    ) -> tuple[Payload, State]:
        x = row.to(working_dtype(row.dtype))
        return send(self.compressor, x, row.dtype, generator)[0], state

    def decode(self, payload: Payload, state: State, like: Tensor) -> Decoded:
        x, clipped = self.compressor.expand(payload, like)
        return Decoded(x.to(like.dtype), state, clipped)

    def forge(
        self, row: Tensor, state: State, *, generator: torch.Generator | None = None
    ) -> Payload:
        x = row.to(working_dtype(row.dtype))
        return send(self.compressor, x, row.dtype, generator, forged=True)[0]
