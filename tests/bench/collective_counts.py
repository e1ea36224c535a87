"""What a rank gives to the collectives, counted as they are called."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from experiments.bench.collectives_forms import forms
from robust_agg.distributed import ranks


class Counter:
    """Passes calls on to the real collectives, and adds up the bytes that this rank sends."""

    def __init__(self) -> None:
        self.sent = 0.0
        self.size, self.rank = dist.get_world_size(), dist.get_rank()
        self._exchange, self._reduce = dist.all_to_all_single, dist.all_reduce
        self._broadcast = dist.broadcast
        self._gather: Callable[..., Any] = ranks.all_gather_single

    def exchange(
        self, rows: Tensor, own: Tensor, taken: list[int], given: list[int], **options: Any
    ) -> Any:
        assert sum(given) == len(own)
        self.sent += own.element_size() * (len(own) - given[self.rank])
        return self._exchange(rows, own, taken, given, **options)

    def gather(self, found: Tensor, own: Tensor, **options: Any) -> Any:
        self.sent += (self.size - 1) * own.nbytes
        return self._gather(found, own, **options)

    def broadcast(self, part: Tensor, *, group_src: int, **options: Any) -> Any:
        """Counted where it begins, whoever passes it on."""
        self.sent += (self.size - 1) * part.nbytes * (group_src == self.rank)
        return self._broadcast(part, group_src=group_src, **options)

    def reduce(self, tensor: Tensor, *arguments: Any, **options: Any) -> Any:
        self.sent += 2 * tensor.nbytes * (self.size - 1) / self.size
        return self._reduce(tensor, *arguments, **options)


def counted(d: int) -> dict[str, float]:
    """Bytes that this rank sends in each form."""
    counter = Counter()
    dist.all_to_all_single, dist.all_reduce = counter.exchange, counter.reduce
    dist.broadcast, ranks.all_gather_single = counter.broadcast, counter.gather
    row = torch.randn(d, generator=torch.Generator().manual_seed(counter.rank))
    found = {}
    for name, form in forms(row, row.clone(), counter.size).items():
        counter.sent = 0.0
        form()
        found[name] = counter.sent
    return found
