"""A logical worker: its shard of the data, and the batch it computes from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from attacks import DataAttack
from robust_agg.seeding import generator

# Above this share of the shard, shuffling all of it is cheaper than drawing until enough differ.
_DENSE = 0.25


@dataclass(frozen=True, eq=False)
class Shard:
    """A worker's samples: ``inputs`` ``(N, ...)`` and ``targets`` ``(N, ...)``, N >= 1.

    Raises:
        ValueError: no samples, or another number of targets than of inputs.
    """

    inputs: Tensor
    targets: Tensor

    def __post_init__(self) -> None:
        shapes = (tuple(self.inputs.shape), tuple(self.targets.shape))
        if not shapes[0][:1] == shapes[1][:1] > (0,):
            raise ValueError(
                "Shard: inputs and targets must have the same number N >= 1 of samples, "
                f"found shapes {shapes[0]} and {shapes[1]}"
            )

    def __len__(self) -> int:
        return self.inputs.shape[0]

    def __reduce__(self) -> tuple[Any, ...]:
        # A view is pickled with the whole storage behind it: a host would be sent everyone's data.
        return Shard, (_owned(self.inputs), _owned(self.targets))

    def to(self, device: torch.device | str) -> Shard:
        """The same samples on ``device``."""
        return Shard(self.inputs.to(device), self.targets.to(device))


@dataclass(frozen=True, eq=False)
class LogicalWorker:
    """One worker of the federation; many of them share a host.

    Attributes:
        id: the sender of its messages, unique among all workers, >= 0.
        shard: its own data.
        data_attack: what changes each batch before the honest path runs on it, if the worker's
            data is bad.

    Raises:
        ValueError: a negative id (-1 stands for "no known sender").
    """

    id: int
    shard: Shard
    data_attack: DataAttack | None = None

    def __post_init__(self) -> None:
        if self.id < 0:
            raise ValueError(f"LogicalWorker: id must be at least 0, found {self.id}")

    def to(self, device: torch.device | str) -> LogicalWorker:
        """The same worker with its data on ``device``."""
        return replace(self, shard=self.shard.to(device))

    def batch_length(self, size: int | None) -> int:
        """``min(size, N)``; N for None."""
        return len(self.shard) if size is None else min(size, len(self.shard))

    def batch(self, size: int | None, *, seed: int, round: int, step: int) -> tuple[Tensor, Tensor]:
        """The inputs and targets of one local step, the data attack applied.

        The samples are drawn uniformly without replacement, independently of any other round, step
        or worker: from ``generator(seed, "batch", id, round, step)``. A batch at least as large as
        the shard is the shard.
        """
        inputs, targets = self.shard.inputs, self.shard.targets
        chosen = self._chosen(size, seed, round, step)
        if chosen is not None:
            inputs, targets = inputs[chosen], targets[chosen]
        if self.data_attack is None:
            return inputs, targets
        draw = generator(seed, "data attack", self.id, round, step)
        return self.data_attack(inputs, targets, draw)

    def _chosen(self, size: int | None, seed: int, round: int, step: int) -> Tensor | None:
        """The places of a batch's samples in the shard; None where the batch is the shard."""
        count, length = self.batch_length(size), len(self.shard)
        if count == length:
            return None
        draw = generator(seed, "batch", self.id, round, step)
        return sample(length, count, draw).to(self.shard.inputs.device)


def batches(
    workers: Sequence[LogicalWorker], size: int | None, *, seed: int, round: int, step: int
) -> tuple[Tensor, Tensor]:
    """:meth:`LogicalWorker.batch` of k workers whose batches are equally long, stacked.

    Returns:
        Inputs and targets, each ``(k, batch, ...)``.
    """
    if any(worker.data_attack is not None for worker in workers):
        each = [worker.batch(size, seed=seed, round=round, step=step) for worker in workers]
        return torch.stack([x for x, _ in each]), torch.stack([y for _, y in each])
    # Gathered where they belong: a batch of its own would be copied once more.
    shard, length = workers[0].shard, workers[0].batch_length(size)
    inputs, targets = (
        data.new_empty(len(workers), length, *data.shape[1:])
        for data in (shard.inputs, shard.targets)
    )
    for worker, x, y in zip(workers, inputs, targets, strict=True):
        chosen = worker._chosen(size, seed, round, step)
        for data, block in ((worker.shard.inputs, x), (worker.shard.targets, y)):
            if chosen is None:
                block.copy_(data.detach())
            else:
                torch.index_select(data.detach(), 0, chosen, out=block)
    return inputs, targets


def sample(size: int, count: int, draw: torch.Generator) -> Tensor:
    """``count`` different indices below ``size``, uniform over ordered samples; ``(count,)`` int64.

    Takes O(count) where that is a small part of ``size``: indices are drawn with replacement and
    repetitions passed over, which is sampling without replacement one at a time.
    """
    if count > _DENSE * size:
        return torch.randperm(size, generator=draw)[:count]
    seen: dict[int, None] = {}
    while len(seen) < count:
        drawn = torch.randint(size, (2 * count,), generator=draw)
        places = drawn.tolist()
        if not seen and len(set(places[:count])) == count:
            return drawn[:count]
        seen |= dict.fromkeys(places)
    return torch.tensor(list(seen)[:count])


def _owned(tensor: Tensor) -> Tensor:
    whole = tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()
    return tensor if whole else tensor.clone(memory_format=torch.contiguous_format)
