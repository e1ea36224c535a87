"""Error feedback: what a message leaves out is added to the next one."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from robust_agg.codecs.codec import Codec, Decoded
from robust_agg.codecs.compressor import Compressor, send, working_dtype
from robust_agg.codecs.layout import Layout, Payload
from robust_agg.codecs.shifted import check_contractive
from robust_agg.codecs.sign import Sign
from robust_agg.types import State

ERROR = "error"


@dataclass(frozen=True, kw_only=True)
class ErrorFeedback(Codec):
    """``C(g + e)`` is sent, and is the row; the worker keeps ``e ← g + e - C(g + e)``, e₀ = 0.

    With :class:`~robust_agg.codecs.Sign`, EF-signSGD (Karimireddy, Rebjock, Stich, Jaggi, "Error
    feedback fixes SignSGD and other gradient compression schemes", 2019, Algorithm 1; any
    contractive C is Algorithm 2). There p = γg + e is what is compressed; the step size γ is the
    server's optimizer's here, which for a constant γ is the same algorithm with e in units of the
    rows. A γ that changes leaves the errors of earlier rounds at the new one.

    Attributes:
        compressor: C, contractive.

    Raises:
        ValueError: C is not contractive.
    """

    compressor: Compressor = field(default_factory=Sign)

    def __post_init__(self) -> None:
        check_contractive(self.name, self.compressor)

    def layout(self, dim: int, dtype: torch.dtype) -> Layout:
        return self.compressor.layout(dim, dtype)

    def init(self, like: Tensor) -> State:
        dtype = working_dtype(like.dtype)
        return {ERROR: torch.zeros(like.shape, dtype=dtype, device=like.device)}

    def encode(
        self, row: Tensor, state: State, *, generator: torch.Generator | None = None
    ) -> tuple[Payload, State]:
        x = row.to(state[ERROR].dtype) + state[ERROR]
        payload, heard = send(self.compressor, x, row.dtype, generator)
        return payload, state if heard is None else {ERROR: x - heard}

    def decode(self, payload: Payload, state: State, like: Tensor) -> Decoded:
        x, clipped = self.compressor.expand(payload, like)
        return Decoded(x.to(like.dtype), state, clipped)

    def forge(
        self, row: Tensor, state: State, *, generator: torch.Generator | None = None
    ) -> Payload:
        x = row.to(working_dtype(row.dtype))
        return send(self.compressor, x, row.dtype, generator, forged=True)[0]
