"""Compressors: a vector as a payload, and a vector near it out of the payload."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor

from robust_agg.codecs.layout import Layout, Payload
from robust_agg.span import too_far


class Expanded(NamedTuple):
    """A vector ``(d,)`` out of a payload, and whether it had to be clipped."""

    vector: Tensor
    clipped: bool = False


class Compressor(ABC):
    """A map C of vectors ``(d,)``, split into what is sent and what is made of it.

    Vectors are of ``working_dtype(dtype)``, numbers are sent in ``dtype``, that of the rows.
    Subclasses are frozen dataclasses of their parameters.
    """

    @property
    def name(self) -> str:
        """How the compressor is called in error messages."""
        return type(self).__name__

    @property
    def private(self) -> bool:
        """Whether a payload must not show that the vector was no number."""
        return False

    def takes(self, x: Tensor) -> bool:
        """Whether x ``(d,)`` can be sent: it is finite, and not too far to measure."""
        return length(x) <= too_far(x.dtype)

    @abstractmethod
    def contraction(self, dim: int) -> float | None:
        """α in (0, 1] with ``E‖C(x) - x‖² <= (1 - α)‖x‖²`` for all x ``(dim,)``; None if none."""

    @abstractmethod
    def layout(self, dim: int, dtype: torch.dtype) -> Layout:
        """What a payload consists of, for rows ``(dim,)`` of ``dtype``."""

    @abstractmethod
    def compress(
        self, x: Tensor, dtype: torch.dtype, generator: torch.Generator | None = None
    ) -> Payload:
        """What is sent for x ``(d,)``, which it :meth:`takes`.

        Raises:
            ValueError: the compressor draws and there is no generator.
        """

    @abstractmethod
    def expand(self, payload: Payload, like: Tensor) -> Expanded:
        """C(x) for rows like ``(d,)`` ``like``, of whatever a payload of the layout may hold.

        Raises:
            MessageError: numbers that no :meth:`compress` sends.
        """

    def forge(
        self, x: Tensor, dtype: torch.dtype, generator: torch.Generator | None = None
    ) -> Payload:
        """A payload that expands as near to x as any does: what a liar sends."""
        return self.compress(x, dtype, generator)


def working_dtype(dtype: torch.dtype) -> torch.dtype:
    """Of states and sums: at least float32, for steps of 1e-3 from 1 leave 1 in bfloat16."""
    return torch.promote_types(dtype, torch.float32)


def length(x: Tensor) -> float:
    """‖x‖₂, summed in float64."""
    return float(torch.linalg.vector_norm(x, dtype=torch.float64))


def send(
    compressor: Compressor,
    x: Tensor,
    dtype: torch.dtype,
    generator: torch.Generator | None,
    *,
    forged: bool = False,
) -> tuple[Payload, Tensor | None]:
    """The payload for x ``(d,)``, and what the other side makes of it.

    Of an x that cannot be sent it is NaN, and the other side makes nothing of it: None. A private
    compressor does not show that: it sends 0. A liar, who forges, has nothing to hide, and sends
    whatever is finite.
    """
    say = compressor.forge if forged else compressor.compress
    if bool(x.isfinite().all()) if forged else compressor.takes(x):
        payload = say(x, dtype, generator)
    else:
        payload = say(torch.zeros_like(x), dtype, generator)
        if forged or not compressor.private:
            return {name: _spoiled(part) for name, part in payload.items()}, None
    # Made of the very numbers that are sent, rounded as they are: both sides make the same of them.
    return payload, compressor.expand(payload, x).vector


def _spoiled(part: Tensor) -> Tensor:
    return torch.full_like(part, torch.nan) if part.is_floating_point() else part
