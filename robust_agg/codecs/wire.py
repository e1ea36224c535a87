"""A message under a codec: the payload and what it builds on, as one tensor of bytes."""

from __future__ import annotations

import torch
from torch import Tensor

from robust_agg.codecs.codec import Codec
from robust_agg.codecs.layout import Field, Layout, Payload

NOTHING = -1
"""Stands for the round of a message where there is none: a sender that begins anew."""

_BASE = "base"


def form(codec: Codec | None, dim: int, dtype: torch.dtype) -> tuple[int, torch.dtype]:
    """Number and dtype of the elements that a message of a row ``(dim,)`` of ``dtype`` has."""
    return (dim, dtype) if codec is None else (_layout(codec, dim, dtype).bytes, torch.uint8)


def pack(codec: Codec, payload: Payload, base: int, like: Tensor) -> Tensor:
    """The ``(b,)`` bytes of a payload that builds on the message of round ``base``."""
    said = torch.tensor([base], device=like.device)
    return _layout(codec, like.numel(), like.dtype).pack({_BASE: said, **payload})


def unpack(codec: Codec, message: Tensor, like: Tensor) -> tuple[Payload, int]:
    """Payload and base of :func:`pack`.

    Raises:
        MessageError: another number of bytes.
    """
    parts = dict(_layout(codec, like.numel(), like.dtype).unpack(message))
    return parts, int(parts.pop(_BASE))


def _layout(codec: Codec, dim: int, dtype: torch.dtype) -> Layout:
    return Layout((Field(_BASE, torch.int64, 1), *codec.layout(dim, dtype).fields))
