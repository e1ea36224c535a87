"""Signs and one scale: a bit a coordinate."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from robust_agg.codecs.compressor import Compressor, Expanded, working_dtype
from robust_agg.codecs.layout import Field, Layout, Payload

_SCALE, _BITS = "scale", "bits"


@dataclass(frozen=True, kw_only=True)
class Sign(Compressor):
    """``C(x) = (‖x‖₁/d) sign(x)``, contractive with α = ‖x‖₁²/(d‖x‖₂²) >= 1/d.

    The compressor of EF-signSGD (Karimireddy et al., 2019, Algorithm 1). A bit has no
    third value: the sign of 0, of either sign, is +1 here, which leaves ‖C(x) - x‖ what it is with
    any other choice (in signSGD it is 0).
    """

    def contraction(self, dim: int) -> float:
        return 1 / dim

    def layout(self, dim: int, dtype: torch.dtype) -> Layout:
        return Layout(
            (Field(_SCALE, working_dtype(dtype), 1), Field(_BITS, torch.uint8, -(-dim // 8)))
        )

    def compress(
        self, x: Tensor, dtype: torch.dtype, generator: torch.Generator | None = None
    ) -> Payload:
        scale = x.abs().mean(dtype=torch.float64).to(working_dtype(dtype))
        return {_SCALE: scale[None], _BITS: packed(x >= 0)}

    def expand(self, payload: Payload, like: Tensor) -> Expanded:
        scale = payload[_SCALE]
        return Expanded(torch.where(unpacked(payload[_BITS], like.numel()), scale, -scale))


def packed(bits: Tensor) -> Tensor:
    """``(⌈d/8⌉,)`` bytes of the booleans ``(d,)``, the first in the lowest bit; padded with 0."""
    padded = torch.nn.functional.pad(bits.to(torch.uint8), (0, -len(bits) % 8))
    return (padded.view(-1, 8) << _places(bits.device)).sum(dim=1, dtype=torch.uint8)


def unpacked(found: Tensor, dim: int) -> Tensor:
    """The first ``dim`` booleans of :func:`packed`."""
    bits = (found[:, None] >> _places(found.device)) & 1
    return bits.view(-1)[:dim].bool()


def _places(device: torch.device) -> Tensor:
    return torch.arange(8, dtype=torch.uint8, device=device)
