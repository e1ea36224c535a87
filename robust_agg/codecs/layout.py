"""What a payload consists of: flat tensors one behind the other, of sizes known beforehand."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import TypeAlias

import torch
from torch import Tensor

from robust_agg.messages import MessageError

Payload: TypeAlias = Mapping[str, Tensor]
"""What a codec sends: flat tensors by name, as its layout has them."""


@dataclass(frozen=True)
class Field:
    """One of them: ``count`` numbers of ``dtype``."""

    name: str
    dtype: torch.dtype
    count: int

    @property
    def bytes(self) -> int:
        return self.count * self.dtype.itemsize


@dataclass(frozen=True)
class Layout:
    """Fields in their order; wide numbers stand before narrow ones, so that all are aligned.

    Raises:
        ValueError: they do not.
    """

    fields: tuple[Field, ...]

    def __post_init__(self) -> None:
        widths = [field.dtype.itemsize for field in self.fields]
        if widths != sorted(widths, reverse=True):
            raise ValueError(
                f"Layout: fields must stand in the order of their width, found {widths} bytes"
            )

    @property
    def bytes(self) -> int:
        """The bytes of a payload, whatever it says."""
        return sum(field.bytes for field in self.fields)

    def pack(self, payload: Payload) -> Tensor:
        """The payload as one ``(bytes,)`` uint8 tensor, in memory of its own.

        Raises:
            ValueError: it is not of this layout.
        """
        found = {name: (t.dtype, tuple(t.shape)) for name, t in payload.items()}
        expected = {field.name: (field.dtype, (field.count,)) for field in self.fields}
        if found != expected:
            raise ValueError(f"Layout: payload must be {expected}, found {found}")
        parts = [payload[field.name].detach().contiguous() for field in self.fields]
        return torch.cat([part.view(torch.uint8) for part in parts])

    def unpack(self, message: Tensor) -> Payload:
        """The payload in the bytes of :meth:`pack`; nothing is copied that lies aligned.

        Raises:
            MessageError: another number of bytes, or no bytes.
        """
        if message.dtype != torch.uint8 or message.shape != (self.bytes,):
            raise MessageError(
                f"{self.bytes} bytes are required, found {tuple(message.shape)} of {message.dtype}"
            )
        if message.storage_offset() % 8 or message.stride() != (1,):
            message = message.clone(memory_format=torch.contiguous_format)
        bounds = accumulate((field.bytes for field in self.fields), initial=0)
        return {
            field.name: message[start:stop].view(field.dtype)
            for field, (start, stop) in zip(self.fields, pairwise(bounds), strict=True)
        }
