"""What a codec is: two pairs of pure functions, one for the worker and one for the server."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor

from robust_agg.codecs.layout import Layout, Payload
from robust_agg.types import State


class Decoded(NamedTuple):
    """What the server makes of a payload.

    Attributes:
        row: ``(d,)`` of the rows' dtype; non-finite where the payload is no honest one of a finite
            row, and then ``state`` is not to be kept.
        state: the server's state for this sender after it.
        clipped: whether the payload was longer than the codec allows, and was clipped.
    """

    row: Tensor
    state: State
    clipped: bool = False


class Codec(ABC):
    """How a row travels. States and payloads are passed, not hidden; nothing given is changed.

    Subclasses are frozen dataclasses of their parameters.
    """

    @property
    def name(self) -> str:
        """How the codec is called in error messages and tables."""
        return type(self).__name__

    @property
    def noise(self) -> float:
        """σ/τ, where a payload is ``c + σζ``, ζ standard normal and ‖c‖₂ <= τ; 0 for no noise."""
        return 0.0

    @abstractmethod
    def layout(self, dim: int, dtype: torch.dtype) -> Layout:
        """What a payload of a row ``(dim,)`` of ``dtype`` consists of."""

    def init(self, like: Tensor) -> State:
        """The worker's state before its first message, for rows like the ``(d,)`` ``like``."""
        return {}

    @abstractmethod
    def encode(
        self, row: Tensor, state: State, *, generator: torch.Generator | None = None
    ) -> tuple[Payload, State]:
        """The payload for a row ``(d,)``, and the worker's state once that message counts.

        A row that is non-finite or too far to measure has a payload that decodes to such a row, and
        leaves the state as it is. What clips takes any finite row, and noise hides one that is not.

        Raises:
            ValueError: the codec draws and there is no generator.
        """

    def expect(self, like: Tensor) -> State:
        """The server's state for a sender before its first message."""
        return {}

    @abstractmethod
    def decode(self, payload: Payload, state: State, like: Tensor) -> Decoded:
        """The row in a payload of the layout, whose numbers may be any.

        Args:
            payload: from whoever it came.
            state: the server's for this sender.
            like: a ``(d,)`` tensor of the rows' dtype and device; not read.

        Raises:
            MessageError: a payload that :meth:`encode` cannot have made.
        """

    def forge(
        self, row: Tensor, state: State, *, generator: torch.Generator | None = None
    ) -> Payload:
        """A payload that is decoded as near to ``row`` as any: what a liar sends.

        That may not be near: of k coordinates no payload says more than k, of signs none has more
        than one size, and none of Clip21 moves the shift by more than τ. A row that is not finite
        is sent as one.

        Args:
            row: what the server is to read.
            state: the server's for this sender, which the sender may know.
            generator: as for :meth:`encode`.
        """
        return self.encode(row, {**self.init(row), **state}, generator=generator)[0]
