"""The ranks of a process group, as the robust collectives use them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, TypeAlias

import torch
import torch.distributed as dist
from torch import Tensor

from robust_agg.distributed.errors import DisagreementError, RankError
from robust_agg.distributed.later import Later, Then
from robust_agg.distributed.roll_call import RollCall
from robust_agg.distributed.slices import Slices
from robust_agg.errors import check_positive
from robust_agg.torch_compat import all_gather_single, default_group

Launch: TypeAlias = Callable[[], Any | list[Any]]
"""Starts a collective and returns its ``dist.Work``, or several."""

_LOOK = timedelta(seconds=0.25)
# How often a rank that waits looks whether another has failed.


class Pending:
    """A collective under way, of one call or several; :meth:`result` waits for it."""

    def __init__(self, ranks: Ranks, works: Sequence[Any], found: Tensor, what: str) -> None:
        self._ranks, self._works, self._found, self._what = ranks, works, found, what

    def result(self) -> Tensor:
        """What the collective gives.

        Raises:
            RankError: a rank is gone, or stalls it.
        """
        for work in self._works:
            self._ranks.wait(work, self._what)
        return self._found


class Ranks:
    """The ranks of a group, each with one row; all must call the same methods in the same order.

    Args:
        group: the process group; the default one if None.
        who: whose collectives these are, in errors; among all that use the group at one time no
            other has this name.
        timeout: seconds a collective may take, the slowest rank's delay included. On nccl, whose
            calls do not block, it is the group's own watchdog that ends what stalls.

    Attributes:
        rank: of this process in the group.
        size: n, how many ranks there are.
        device: where tensors must be.
        step: what errors call the step; whoever makes steps counts them.

    Raises:
        ValueError: torch.distributed is not initialised, this process is not of the group, or a
            timeout that is not positive.
    """

    def __init__(self, group: dist.ProcessGroup | None = None, *, who: str, timeout: float) -> None:
        check_positive(who, "timeout", timeout)
        if not dist.is_initialized():
            raise ValueError(
                f"{who}: torch.distributed must be initialised, found no process group"
            )
        self.who, self.timeout = who, timeout
        self.group: dist.ProcessGroup = group or default_group()
        self.rank, self.size = dist.get_rank(self.group), dist.get_world_size(self.group)
        if self.rank < 0:
            raise ValueError(f"{who}: group must have this process, found one without it")
        self.device = torch.device("cuda" if dist.get_backend(self.group) == "nccl" else "cpu")
        device = f"cuda:{torch.cuda.current_device()}" if self.device.type == "cuda" else "cpu"
        self._roll = RollCall(f"{self.group.group_name}/{who}", self.rank, self.size, device)
        # Gloo's all-gather is a ring, of which every step waits for the one before: slices that are
        # broadcast all at a time take half as long. Nccl gathers at the speed of the links.
        self.by_broadcasts = dist.get_backend(self.group) == "gloo"
        self.step = 0

    def place(self, rank: int) -> str:
        """``rank 3 (host, pid 17, cuda:1)``, as far as that is known."""
        return self._roll.describe(rank)

    def wait(self, work: dist.Work, what: str) -> None:
        """Until a collective is done.

        Raises:
            RankError: it fails, takes longer than the timeout, or another rank has failed in it.
        """
        if self.device.type == "cuda":
            work.wait()
            return
        end = time.monotonic() + self.timeout
        while True:
            # Asked before the wait: what ends just after a wait was given up may have ended well.
            ended = work.is_completed()
            try:
                work.wait(min(_LOOK, timedelta(seconds=self.timeout)))
                return
            except RuntimeError as error:
                late = time.monotonic() >= end
                if ended or late or self._roll.failed(self.step):
                    raise self._gone(what, late=late) from error

    def _gone(self, what: str, *, late: bool) -> RankError:
        absent = self._roll.absent(self.step)
        named = ", ".join(map(self._roll.describe, absent)) or "a rank that is not known"
        why = f" within {self.timeout:g} s" if late else ""
        return RankError(
            f"{self.who}: step {self.step}: {what} did not end{why}: {named} did not answer",
            ranks=absent,
            step=self.step,
        )

    def _start(self, launch: Launch, found: Tensor, what: str) -> Pending:
        try:
            works = launch()
            return Pending(self, works if isinstance(works, list) else [works], found, what)
        except RuntimeError as error:  # a connection that broke earlier
            raise self._gone(what, late=False) from error

    def agree(self, header: Sequence[int], say: Callable[[Sequence[int]], str]) -> None:
        """Raise on every rank unless all have the same header.

        Args:
            header: numbers of 64 bits, equally many on every rank.
            say: a header in words.

        Raises:
            DisagreementError: they differ; names the first rank that differs from rank 0.
        """
        own = torch.tensor(header, dtype=torch.int64)
        headers = self.gather(own, "the comparison of what is asked for").tolist()
        for rank, other in enumerate(headers):
            if other != headers[0]:
                raise DisagreementError(
                    f"{self.who}: all ranks must ask for the same, found {say(headers[0])} on rank "
                    f"0 and {say(other)} on rank {rank}"
                )

    def gather(self, part: Tensor, what: str) -> Tensor:
        """Every rank's small ``part``, of one shape and dtype: ``(n, *part.shape)``."""
        return self.gather_later(part.to(self.device), what).result().to(part.device)

    def gather_later(self, part: Tensor, what: str) -> Pending:
        """Every rank's ``part``, of one shape and dtype: ``(n, *part.shape)``."""
        own = part.contiguous()
        found = own.new_empty(self.size, *part.shape)

        def launch() -> Any:
            flat = found.view(self.size * own.numel())
            return all_gather_single(flat, own.view(-1), group=self.group, async_op=True)

        return self._start(launch, found, what)

    def exchange(self, vector: Tensor, sizes: Sequence[int], room: Tensor | None = None) -> Pending:
        """Every rank's ``vector`` ``(d,)``, in this rank's slice of the coordinates: ``(n, k)``.

        Args:
            vector: the slices of all ranks, one after another.
            sizes: how long they are.
            room: where the rows go, if it is of their shape and dtype.
        """
        here = sizes[self.rank]
        if room is None or (room.shape, room.dtype) != ((self.size, here), vector.dtype):
            room = vector.new_empty(self.size, here)
        rows = room

        def launch() -> Any:
            return dist.all_to_all_single(
                rows.view(-1),
                vector,
                [here] * self.size,
                list(sizes),
                group=self.group,
                async_op=True,
            )

        return self._start(launch, rows, "the exchange of rows")

    def collect(self, piece: Tensor, slices: Slices, out: Tensor | None = None) -> Later:
        """The vector ``(d,)`` of which every rank has its slice; in ``out`` where it is given."""
        what = "the collection of slices"
        if self.by_broadcasts:
            whole = piece.new_empty(slices.d) if out is None else out
            parts = [whole[slices.of(rank)] for rank in range(self.size)]
            parts[self.rank].copy_(piece)

            def broadcasts() -> list[Any]:
                return [
                    dist.broadcast(part, group=self.group, group_src=rank, async_op=True)
                    for rank, part in enumerate(parts)
                    if len(part)
                ]

            return self._start(broadcasts, whole, what)
        padded = piece.new_zeros(slices.width)
        padded[: len(piece)] = piece
        found = piece.new_empty(self.size * slices.width)

        def launch() -> Any:
            return all_gather_single(found, padded, group=self.group, async_op=True)

        def cut(found: Tensor) -> Tensor:
            whole = found[: slices.d]
            return whole if out is None else out.copy_(whole)

        return Then(self._start(launch, found, what), cut)

    def sum(self, part: Tensor) -> Tensor:
        """The sum of a small float64 CPU tensor over the ranks, the same to the bit on each.

        An all-reduce gives all ranks the same sums, which data-parallel training rests on.
        """
        return self._reduced(part, dist.ReduceOp.SUM, "a sum")

    def largest(self, value: float) -> float:
        """The largest of a number over the ranks."""
        own = torch.tensor([value], dtype=torch.float64)
        return float(self._reduced(own, dist.ReduceOp.MAX, "a maximum"))

    def _reduced(self, part: Tensor, op: dist.ReduceOp.RedOpType, what: str) -> Tensor:
        total = part.to(self.device, copy=True).contiguous()
        self._start(
            lambda: dist.all_reduce(total, op, group=self.group, async_op=True), total, what
        ).result()
        return total.cpu()
