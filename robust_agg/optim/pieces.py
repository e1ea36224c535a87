"""Gradients and estimates as lists of pieces: alike for an operator on lists, small for a cache."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache, cached_property, partial
from typing import NamedTuple

import torch
from torch import Tensor

from robust_agg import torch_compat

CACHED_NUMBERS = 1 << 16
"""Numbers of a buffer on the CPU: 256 KiB of float32, with g and m for the L2 cache."""

BUFFER_NUMBERS = 1 << 26
"""Numbers at a time on other devices: 256 MiB of float32."""


def on_cpu(tensor: Tensor) -> bool:
    """Whether an operator costs what it reads, and not its launch: lists have no use there."""
    return tensor.is_cpu


class Part(NamedTuple):
    """A stretch of the vector: g and m, equal in shape and strides, and the block they are in."""

    gradient: Tensor
    estimate: Tensor
    block: int = 0


@dataclass(frozen=True)
class Batch:
    """Parts of one device and dtype, and room for as many numbers in the dtype of m."""

    gradients: list[Tensor]
    estimates: list[Tensor]
    blocks: list[int]
    buffer: Callable[[], Tensor]

    def differences(self) -> list[Tensor]:
        """``g - m`` in the dtype of m; the next batch overwrites it."""
        if not on_cpu(self.estimates[0]):
            if self.gradients[0].dtype == self.estimates[0].dtype:
                return list(torch_compat.foreach_sub(self.gradients, self.estimates))
            torch_compat.foreach_sub_(self.widened(), self.estimates)
            return self.room
        for g, m, out in zip(self.gradients, self.estimates, self.room, strict=True):
            torch.sub(g, m, out=out)
        return self.room

    def widened(self) -> list[Tensor]:
        """g in the dtype of m; the next batch overwrites it."""
        torch_compat.foreach_copy_(self.room, self.gradients)
        return self.room

    @cached_property
    def room(self) -> list[Tensor]:
        """The buffer, cut and laid out in memory like the estimates."""
        sizes = [estimate.numel() for estimate in self.estimates]
        cut = torch.split(self.buffer()[: sum(sizes)], sizes)
        # Estimates are dense in some order of their dimensions, and lists want equal strides.
        pairs = zip(cut, self.estimates, strict=True)
        return [out.as_strided(m.shape, m.stride()) for out, m in pairs]


def alike(parts: Iterable[Part]) -> Iterator[list[Part]]:
    """The parts by device and dtype, which is what an operator on lists takes at once."""
    groups: dict[object, list[Part]] = {}
    for part in parts:
        key = part.gradient.device, part.gradient.dtype, part.estimate.dtype
        groups.setdefault(key, []).append(part)
    yield from groups.values()


def batches(parts: Iterable[Part]) -> Iterator[Batch]:
    """The parts cut and put together to what fits the buffer, which all batches share."""
    for group in alike(parts):
        like = group[0].estimate
        limit = CACHED_NUMBERS if on_cpu(like) else BUFFER_NUMBERS
        pieces = [piece for part in group for piece in _cut(part, limit)]
        sizes = [piece.estimate.numel() for piece in pieces]
        most = min(sum(sizes), max(limit, *sizes))
        buffer = cache(partial(torch.empty, most, dtype=like.dtype, device=like.device))
        batch: list[Part] = []
        used = 0
        for piece, size in zip(pieces, sizes, strict=True):
            if batch and used + size > most:
                yield _batch(batch, buffer)
                batch, used = [], 0
            batch.append(piece)
            used += size
        yield _batch(batch, buffer)


def _batch(pieces: list[Part], buffer: Callable[[], Tensor]) -> Batch:
    gradients, estimates, blocks = (list(column) for column in zip(*pieces, strict=True))
    return Batch(gradients, estimates, blocks, buffer)


def _cut(part: Part, limit: int) -> list[Part]:
    """The part in flat pieces of at most ``limit`` numbers; whole where memory is in no order."""
    gradient, estimate, block = part
    if estimate.numel() <= limit or not estimate.is_contiguous():
        return [part]
    cuts = torch.split(gradient.view(-1), limit), torch.split(estimate.view(-1), limit)
    return [Part(g, m, block) for g, m in zip(*cuts, strict=True)]
