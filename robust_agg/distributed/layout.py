"""One tensor or several as the vectors that ranks exchange: one of each dtype."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True)
class Layout:
    """Which tensors a rank gives, in order; equal ones on all ranks go together.

    The coordinates of the whole vector are those of the first dtype, then those of the next, each
    in the order of the tensors.

    Attributes:
        shapes: of the tensors.
        dtypes: of the tensors.
    """

    shapes: tuple[torch.Size, ...]
    dtypes: tuple[torch.dtype, ...]

    def __str__(self) -> str:
        return ", ".join(f"{dtype} of shape {tuple(shape)}" for shape, dtype in self._pairs)

    @classmethod
    def of(cls, tensors: Sequence[Tensor]) -> Layout:
        """That of the tensors."""
        return cls(tuple(t.shape for t in tensors), tuple(t.dtype for t in tensors))

    @cached_property
    def kinds(self) -> tuple[torch.dtype, ...]:
        """The dtypes there are, in order of appearance."""
        return tuple(dict.fromkeys(self.dtypes))

    @cached_property
    def lengths(self) -> tuple[int, ...]:
        """How many numbers of each kind."""
        return tuple(
            sum(s.numel() for s, t in zip(self.shapes, self.dtypes, strict=True) if t == kind)
            for kind in self.kinds
        )

    @property
    def d(self) -> int:
        """How many numbers in all."""
        return sum(self.lengths)

    @cached_property
    def dtype(self) -> torch.dtype:
        """Of the rows: the narrowest that holds every kind."""
        widest = self.kinds[0]
        for kind in self.kinds[1:]:
            widest = torch.promote_types(widest, kind)
        return widest

    def flatten(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """A vector of each kind; a view where that is a single dense tensor."""
        flat = []
        for kind in self.kinds:
            parts = [t.detach().reshape(-1) for t in tensors if t.dtype == kind]
            flat.append(parts[0].contiguous() if len(parts) == 1 else torch.cat(parts))
        return flat

    def unflatten(self, vectors: Sequence[Tensor]) -> list[Tensor]:
        """The tensors of which these are the vectors."""
        left = {
            kind: torch.split(vector, [s.numel() for s, t in self._pairs if t == kind])
            for kind, vector in zip(self.kinds, vectors, strict=True)
        }
        iterators = {kind: iter(parts) for kind, parts in left.items()}
        return [next(iterators[dtype]).view(shape) for shape, dtype in self._pairs]

    @property
    def _pairs(self) -> list[tuple[torch.Size, torch.dtype]]:
        return list(zip(self.shapes, self.dtypes, strict=True))


def narrowed(piece: Tensor, dtype: torch.dtype) -> Tensor:
    """As numbers of ``dtype``: what it cannot hold must not become Inf."""
    if piece.dtype == dtype:
        return piece
    limit = torch.finfo(dtype).max
    return piece.clamp(-limit, limit).to(dtype)


def side_by_side(parts: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    """``(n, k)`` of one dtype from the parts; a column of zeros where there is none."""
    rows = parts[0] if len(parts) == 1 else torch.cat([part.to(dtype) for part in parts], dim=1)
    return rows if rows.shape[1] else rows.new_zeros(rows.shape[0], 1)
