"""Payloads of some coordinates: their places and their values."""

from __future__ import annotations

from math import ceil

import torch
from torch import Tensor

from robust_agg.codecs.compressor import working_dtype
from robust_agg.codecs.layout import Field, Layout, Payload
from robust_agg.messages import MessageError

INDICES, VALUES = "indices", "values"
_MOST = 2**31


def count(share: float, dim: int) -> int:
    """k = ⌈share · d⌉: at least one of them."""
    # The product of 0.1 and 30 is a little over 3.
    return min(dim, max(1, ceil(share * dim * (1 - 1e-12))))


def layout(who: str, k: int, dim: int, dtype: torch.dtype) -> Layout:
    """k int32 indices and k values of ``dtype``.

    Raises:
        ValueError: d is beyond what an int32 can index.
    """
    if dim > _MOST:
        raise ValueError(f"{who}: d must be at most {_MOST}, found {dim}")
    fields = Field(INDICES, torch.int32, k), Field(VALUES, dtype, k)
    return Layout(tuple(sorted(fields, key=lambda field: -field.dtype.itemsize)))


def gather(x: Tensor, places: Tensor, dtype: torch.dtype, factor: float = 1.0) -> Payload:
    """The payload of x ``(d,)`` at ``places``, which ascend."""
    return {INDICES: places.to(torch.int32), VALUES: (factor * x[places]).to(dtype)}


def scatter(payload: Payload, like: Tensor) -> Tensor:
    """``(d,)``: the values at their places, and 0 elsewhere.

    Raises:
        MessageError: indices that do not ascend, or are not in [0, d).
    """
    places = payload[INDICES].long()
    ascending = bool((places[1:] > places[:-1]).all())
    if not ascending or int(places[0]) < 0 or int(places[-1]) >= like.numel():
        raise MessageError(f"indices must ascend within [0, {like.numel()})")
    dense = torch.zeros(like.shape, dtype=working_dtype(like.dtype), device=like.device)
    dense[places] = payload[VALUES].to(dense.dtype)
    return dense
