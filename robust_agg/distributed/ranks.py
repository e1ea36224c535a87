"""The ranks of a process group, as the robust collectives use them."""

from __future__ import annotations

import atexit
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any, TypeAlias
from weakref import WeakKeyDictionary

import torch
import torch.distributed as dist
from torch import Tensor

from robust_agg.distributed.digest import digest
from robust_agg.distributed.errors import DisagreementError, RankError
from robust_agg.distributed.later import Later, Then
from robust_agg.distributed.roll_call import GRACE, RollCall
from robust_agg.distributed.slices import Slices
from robust_agg.distributed.torch_compat import all_gather_single, backend_of, default_group
from robust_agg.distributed.words import around_difference, as_bytes, as_text
from robust_agg.errors import check_positive, shown

Launch: TypeAlias = Callable[[], Any | list[Any]]
"""Starts a collective and returns its ``dist.Work``, or several."""

SMALL = 1 << 16
_SMALL_SLICE = 1 << 19
# Bytes, of all ranks and of one, up to which gloo is to send a part to each rank directly.
_MOMENT = 0.1
_CPU = torch.device("cpu")
_LOOK = timedelta(seconds=0.25)
# How often a rank that waits looks whether another has failed.
_made: WeakKeyDictionary[dist.ProcessGroup, Counter[str]] = WeakKeyDictionary()
# How many of each name there have been in a group; ranks make them in the same order.


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
        within: the ranks of which these are some: what fails among these has failed among those,
            and is told in their numbers.
        anew: whether these begin with step 0; otherwise each of this name is one more step.

    Attributes:
        rank: of this process in the group.
        size: n, how many ranks there are.
        device: where tensors must be.

    Raises:
        ValueError: torch.distributed is not initialised, the group is none or does not have this
            process, or a timeout that is not positive.
    """

    def __init__(
        self,
        group: dist.ProcessGroup | None = None,
        *,
        who: str,
        timeout: float,
        within: Ranks | None = None,
        anew: bool = True,
    ) -> None:
        check_positive(who, "timeout", timeout)
        self.who, self.timeout = who, timeout
        self.group = _checked(group, who)
        self.rank, self.size = dist.get_rank(self.group), dist.get_world_size(self.group)
        on_gpu = torch.cuda.is_available() and backend_of(self.group, "cuda") == "nccl"
        self.device = torch.device("cuda", torch.cuda.current_device()) if on_gpu else _CPU
        self._on_gloo = backend_of(self.group, self.device.type) == "gloo"
        atexit.unregister(_let_go)  # or it would run as often as there are instances
        atexit.register(_let_go)
        self._within, self._step = within, 0
        self._roll: RollCall
        if within is not None:
            self._roll = within._roll
            return
        # What is made anew must not see what its predecessor has left in the store.
        made = _made.setdefault(self.group, Counter())
        number = 1 + made[who] if anew else 0
        if not anew:
            self._step = made[who]
        made[who] += 1
        name = f"{self.group.group_name}/{who}/{number}"
        self._roll = RollCall(name, self.rank, self.size, str(self.device))

    @property
    def step(self) -> int:
        """What errors call the step; whoever makes steps counts them."""
        return self._step if self._within is None else self._within.step

    @step.setter
    def step(self, number: int) -> None:
        self._step = number

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
                if ended or late or self._roll.failed():
                    raise self._gone(what, late=late) from error

    def _gone(self, what: str, *, late: bool) -> RankError:
        absent = self._roll.absent()
        why = f" within {self.timeout:g} s" if late else ""
        if absent is None:
            known = (
                "which rank is missing is not known, for the process that holds the group's store "
                "does not answer"
            )
        elif absent:
            known = (
                f"{', '.join(map(self._roll.describe, absent))} did not answer within {GRACE:g} s"
            )
        else:
            known = "all ranks answer, so one of them was late or a connection broke"
        return RankError(
            f"{self.who}: step {self.step}: {what} did not end{why}: {known}",
            ranks=absent or (),
            step=self.step,
        )

    def _start(self, launch: Launch, found: Tensor, what: str) -> Pending:
        try:
            works = launch()
            return Pending(self, works if isinstance(works, list) else [works], found, what)
        except RuntimeError as error:  # a connection that broke earlier
            raise self._gone(what, late=False) from error

    def agree(self, asked: str) -> None:
        """Raise on every rank unless all ask for the same, in words.

        Raises:
            DisagreementError: they differ; names the first rank that differs from rank 0.
        """
        what = "the comparison of what is asked for"
        differ = self.gather(digest(asked.encode()), what)
        differ = (differ != differ[0]).any(dim=1)
        if not differ.any():
            return
        # All ranks have found this, and tell the words; otherwise only digests are sent.
        texts = self.gather(as_bytes(asked), what)
        rank = int(differ.int().argmax())
        first, other = around_difference(as_text(texts[0]), as_text(texts[rank]))
        raise DisagreementError(
            f"{self.who}: all ranks must ask for the same, found {first} on rank 0 "
            f"and {other} on rank {rank}"
        )

    @contextmanager
    def telling_refusals(self) -> Iterator[None]:
        """What this rank alone refuses is told to the others, which agree on what follows."""
        try:
            yield
        except (TypeError, ValueError) as error:
            with suppress(DisagreementError, RankError):
                self.agree(f"what cannot be ({error})")
            raise

    def gather(self, part: Tensor, what: str) -> Tensor:
        """Every rank's small ``part``, of one shape and dtype: ``(n, *part.shape)``."""
        return self.gather_later(part.to(self.device), what).result().to(part.device)

    def gather_later(self, part: Tensor, what: str, room: Tensor | None = None) -> Pending:
        """Every rank's ``part``, of one shape and dtype: ``(n, *part.shape)``.

        In ``room``, if it has that shape and dtype.
        """
        own = part.contiguous()
        found = _room(room, own, self.size, *own.shape)
        flat = found.view(self.size * own.numel())
        if self._at_once(flat):
            return self._sent_to_each(own.view(-1), flat, [own.numel()] * self.size, found, what)

        def launch() -> Any:
            return all_gather_single(flat, own.view(-1), group=self.group, async_op=True)

        return self._start(launch, found, what)

    def _at_once(self, gathered: Tensor) -> bool:
        """Whether time is lost by waiting: gloo gathers and reduces in rings, a step after another.

        What is small is sent to each rank directly, in one step.
        """
        return self._on_gloo and gathered.numel() * gathered.element_size() <= SMALL

    def _sent_to_each(
        self, part: Tensor, flat: Tensor, sizes: Sequence[int], found: Tensor, what: str
    ) -> Pending:
        """Every rank's flat part, of these sizes, one after another in ``flat``, part of found."""

        def launch() -> Any:
            return dist.all_to_all_single(
                flat,
                part.repeat(self.size),
                list(sizes),
                [len(part)] * self.size,
                group=self.group,
                async_op=True,
            )

        return self._start(launch, found, what)

    def exchange(self, vector: Tensor, sizes: Sequence[int], room: Tensor | None = None) -> Pending:
        """Every rank's ``vector`` ``(d,)``, in this rank's slice of the coordinates: ``(n, k)``.

        Args:
            vector: the slices of all ranks, one after another.
            sizes: how long they are.
            room: where the rows go, if it is of their shape and dtype.
        """
        here = sizes[self.rank]
        rows = _room(room, vector, self.size, here)

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
        if self._on_gloo:
            whole = piece.new_empty(slices.d) if out is None else out
            if slices.width * piece.element_size() <= _SMALL_SLICE:
                return self._sent_to_each(piece, whole, slices.sizes, whole, what)
            # A ring would take twice as long as slices that are broadcast all at a time.
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

        In one order on all: an all-reduce gives all ranks the same sums, too.
        """
        what = "a sum"
        if self._at_once(part.expand(self.size, *part.shape)):
            return sum(self.gather(part, what), torch.zeros_like(part))
        total = part.to(self.device, copy=True).contiguous()

        def launch() -> Any:
            return dist.all_reduce(total, group=self.group, async_op=True)

        return self._start(launch, total, what).result().cpu()

    def largest(self, value: float) -> float:
        """The largest of a number over the ranks."""
        own = torch.tensor([value], dtype=torch.float64)
        return float(self.gather(own, "a maximum").max())


def _room(room: Tensor | None, like: Tensor, *shape: int) -> Tensor:
    """The room, if it is a tensor of that shape with the dtype of ``like``; else a new one."""
    if room is not None and (room.shape, room.dtype) == (shape, like.dtype):
        return room
    return like.new_empty(shape)


def _let_go() -> None:
    """Give gloo's threads the moment that they take, after a collective, to let go of its tensors.

    One that is the last to hold a tensor which Python knows needs the interpreter for that, and
    aborts the process where it has ended: a script whose last act is a collective would crash.
    """
    time.sleep(_MOMENT)


def _checked(group: dist.ProcessGroup | None, who: str) -> dist.ProcessGroup:
    """The group, or that of all processes, if there is one and this process is of it."""
    if not dist.is_initialized():
        raise ValueError(f"{who}: torch.distributed must be initialised, found no process group")
    given: object = group
    stranger = given is dist.GroupMember.NON_GROUP_MEMBER  # what `new_group` gives to others
    if not (stranger or isinstance(given, dist.ProcessGroup | None)):
        raise ValueError(f"{who}: group must be a process group or None, found {shown(group)}")
    if dist.get_rank(group) < 0:
        raise ValueError(f"{who}: group must have this process, found one without it")
    return group or default_group()
