"""How rows meet: who holds which columns of which rows, and how the result comes back to all.

Three ways, which rules do not notice: every rank holds a slice of the coordinates (*sharded*), or
all of them (*replicated*), or the rows are the means of groups of ranks (*grouped*).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from datetime import timedelta
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor

from robust_agg.distributed.digest import digest
from robust_agg.distributed.errors import EquivocationError
from robust_agg.distributed.later import Here, Later, Then
from robust_agg.distributed.ranks import Ranks
from robust_agg.distributed.shared import SharedColumns
from robust_agg.distributed.slices import Slices
from robust_agg.errors import check_choice, check_count
from robust_agg.shards import WHOLE, Shards

Trust = Literal["sharded", "replicated"]
"""What ranks are trusted with.

``"sharded"``: a rank may give any row (corrupted hardware, corrupted data), but runs the collective
as it is written. About the bytes of an all-reduce.

``"replicated"``: every rank gathers all rows and aggregates them itself, so that no rank depends on
another's arithmetic; ranks compare digests of what they have received, so that a row that is not
the same everywhere is detected, though not whose fault it is. n/2 times the bytes of an all-reduce,
and n times the memory and the work. That all come to the same result rests on the same arithmetic:
the same kind of processor, the same torch, as many threads.

Neither withstands a rank that stalls, and the first none that lies within the collective.
"""


class Exchange(ABC):
    """How rows meet.

    Attributes:
        ranks: all ranks that take part.
        n: how many rows there are.
    """

    ranks: Ranks
    n: int

    @abstractmethod
    def rows(self, vector: Tensor, room: Tensor | None = None) -> Later:
        """All rows, ``(n, k)``, in the columns of this rank; its own is ``vector`` ``(d,)``.

        They are in ``room``, if that is given and of their shape and dtype: fresh memory can take
        longer to come by than the rows.
        """

    @abstractmethod
    def counts(self, d: int) -> list[int]:
        """How many of d columns each rank has."""

    @abstractmethod
    def columns(self, counts: Sequence[int]) -> Shards:
        """Who holds the columns, by how many each rank has."""

    @abstractmethod
    def own(self, vector: Tensor) -> Tensor:
        """This rank's columns ``(k,)`` of a vector ``(d,)``."""

    @abstractmethod
    def whole(self, own: Tensor, d: int, out: Tensor | None = None) -> Later:
        """The vector ``(d,)`` of which every rank has its columns; in ``out``, if it is given."""


class Sharded(Exchange):
    """Every rank holds all rows in its slice of the coordinates."""

    def __init__(self, ranks: Ranks) -> None:
        self.ranks, self.n = ranks, ranks.size

    def rows(self, vector: Tensor, room: Tensor | None = None) -> Later:
        return self.ranks.exchange(vector, self.counts(len(vector)), room)

    def counts(self, d: int) -> list[int]:
        return Slices(d, self.n).sizes

    def columns(self, counts: Sequence[int]) -> Shards:
        return SharedColumns(self.ranks, counts)

    def own(self, vector: Tensor) -> Tensor:
        return vector[Slices(len(vector), self.n).of(self.ranks.rank)]

    def whole(self, own: Tensor, d: int, out: Tensor | None = None) -> Later:
        return self.ranks.collect(own, Slices(d, self.n), out)


class Replicated(Exchange):
    """Every rank holds all rows, and has compared with the others that they are the same."""

    def __init__(self, ranks: Ranks) -> None:
        self.ranks, self.n = ranks, ranks.size

    def rows(self, vector: Tensor, room: Tensor | None = None) -> Later:
        gathered = self.ranks.gather_later(vector, "the gathering of rows", room)
        return Then(gathered, self._compared)

    def _compared(self, rows: Tensor) -> Tensor:
        """The rows, if every rank has received the same.

        Raises:
            EquivocationError: some rank has received another row; raised on every rank.
        """
        own = torch.stack([digest(_bytes(row)) for row in rows]).to(self.ranks.device)
        # Point to point: what one rank tells another does not pass through a third.
        tables = self.ranks.exchange(own.repeat(self.n, 1, 1).view(-1), [own.numel()] * self.n)
        differ = (tables.result().view(self.n, *own.shape) != own).any(dim=2)
        if bool(differ.any()):
            rows_ = sorted(set(differ.nonzero()[:, 1].tolist()))
            peers = sorted(set(differ.nonzero()[:, 0].tolist()))
            raise EquivocationError(
                f"{self.ranks.who}: step {self.ranks.step}: all ranks must receive the same rows, "
                f"found row {', '.join(map(str, rows_))} to differ from what rank "
                f"{', '.join(map(str, peers))} received"
            )
        return rows

    def counts(self, d: int) -> list[int]:
        return [d] * self.n

    def columns(self, counts: Sequence[int]) -> Shards:
        return WHOLE

    def own(self, vector: Tensor) -> Tensor:
        return vector

    def whole(self, own: Tensor, d: int, out: Tensor | None = None) -> Later:
        return Here(own.clone() if out is None else out.copy_(own))


class Grouped(Exchange):
    """The rows are the plain means of groups of neighbouring ranks.

    Ranks ``g·s … g·s + s-1`` are group g. Within a group every rank averages a slice; ranks at the
    same place in their groups then exchange these. The bytes of an all-reduce, and a Gram matrix of
    no more rows than there are groups. Each makes process groups of its own, all ranks together.

    One bad rank spoils its group's row. A rule that withstands f of n groups withstands f bad ranks
    wherever they are, and up to ``f·s`` where they are neighbours; n groups bear ``⌊(n-1)/2⌋`` bad
    ranks at most, where single ranks would bear half of all.

    Args:
        ranks: all ranks of the world.
        groups: n.
    """

    def __init__(self, ranks: Ranks, groups: int) -> None:
        with ranks.telling_refusals():
            check_count(ranks.who, "groups", groups, minimum=1)
            if ranks.size % groups or ranks.size != dist.get_world_size():
                raise ValueError(
                    f"{ranks.who}: groups must divide the number of all ranks, found "
                    f"groups={groups} of {ranks.size} ranks, {dist.get_world_size()} in all"
                )
        ranks.agree(f"groups={groups}")
        self.ranks, self.n = ranks, groups
        world, size = dist.get_process_group_ranks(ranks.group), ranks.size // groups
        neighbours = [world[i : i + size] for i in range(0, len(world), size)]
        self._within = _subgroup(ranks, neighbours)
        self._across = _subgroup(ranks, list(zip(*neighbours, strict=True)))

    def rows(self, vector: Tensor, room: Tensor | None = None) -> Later:
        size = self._within.size
        parts = self._within.exchange(vector, Slices(len(vector), size).sizes)

        def of_groups(parts: Tensor) -> Tensor:
            mean = _mean(parts)
            return self._across.exchange(mean, Slices(len(mean), self.n).sizes, room).result()

        return Then(parts, of_groups)

    def counts(self, d: int) -> list[int]:
        within = Slices(d, self._within.size)
        of_place = [Slices(size, self.n) for size in within.sizes]
        size = self._within.size
        return [of_place[r % size].size(r // size) for r in range(self.ranks.size)]

    def columns(self, counts: Sequence[int]) -> Shards:
        return SharedColumns(self.ranks, counts)

    def own(self, vector: Tensor) -> Tensor:
        mine = vector[Slices(len(vector), self._within.size).of(self._within.rank)]
        return mine[Slices(len(mine), self.n).of(self._across.rank)]

    def whole(self, own: Tensor, d: int, out: Tensor | None = None) -> Later:
        within = Slices(d, self._within.size)
        across = Slices(within.size(self._within.rank), self.n)

        def of_all(mine: Tensor) -> Tensor:
            return self._within.collect(mine, within, out).result()

        return Then(self._across.collect(own, across), of_all)


def exchange(
    group: dist.ProcessGroup | None,
    *,
    who: str,
    timeout: float,
    trust: Trust = "sharded",
    groups: int | None = None,
) -> Exchange:
    """The exchange that the arguments of the collectives describe.

    Raises:
        ValueError: an argument is out of range, or they do not go together.
    """
    return exchange_of(Ranks(group, who=who, timeout=timeout), trust=trust, groups=groups)


def exchange_of(ranks: Ranks, *, trust: Trust, groups: int | None = None) -> Exchange:
    """The same among ranks that are there."""
    with ranks.telling_refusals():
        check_choice(ranks.who, "trust", trust, ("sharded", "replicated"))
        if groups is not None and trust != "sharded":
            raise ValueError(f"{ranks.who}: groups needs trust='sharded', found {trust!r}")
    if groups is not None:
        return Grouped(ranks, groups)
    return Sharded(ranks) if trust == "sharded" else Replicated(ranks)


def _subgroup(ranks: Ranks, lists: Sequence[Sequence[int]]) -> Ranks:
    """The group of those lists of ranks that has this one; all ranks make all of them."""
    own, _ = dist.new_subgroups_by_enumeration(
        [list(each) for each in lists], timeout=timedelta(seconds=ranks.timeout)
    )
    return Ranks(own, who=ranks.who, timeout=ranks.timeout, within=ranks)


def _mean(rows: Tensor) -> Tensor:
    """The plain mean ``(k,)``; a row of NaN makes it NaN, as it should."""
    wide = torch.promote_types(rows.dtype, torch.float32)
    return rows.mean(dim=0, dtype=wide).to(rows.dtype)


def _bytes(row: Tensor) -> bytes:
    return row.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes()
