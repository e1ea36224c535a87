"""What the tests of the exchanges have ranks do."""

from __future__ import annotations

import os
import signal
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from rank_jobs import Rule, own
from torch import Tensor

from robust_agg.distributed import RobustAllReduce, robust_all_reduce
from robust_agg.distributed import ranks as ranks_module
from robust_agg.distributed.exchanges import Exchange, exchange
from robust_agg.distributed.later import Later, Then
from robust_agg.distributed.ranks import Ranks
from robust_agg.distributed.slices import Slices


def meeting(options: dict[str, Any]) -> Exchange:
    return exchange(None, who="test", timeout=20.0, **options)


def there_and_back(vectors: list[Tensor], options: dict[str, Any]) -> dict[str, Any]:
    """What a rank holds of the rows, and what its columns of the first row become."""
    met = meeting(options)
    vector = own(vectors)
    rows = met.rows(vector).result()
    room = rows.new_empty(rows.shape)
    in_room = met.rows(vector, room).result()
    out = vector.new_empty(len(vector))
    whole = met.whole(rows[0], len(vector)).result()
    met.whole(rows[0].clone(), len(vector), out).result()
    return {
        "rows": rows,
        "in room": in_room.data_ptr() == room.data_ptr(),
        "same rows": bool((in_room == rows).all()),
        "counts": met.counts(len(vector)),
        "own": met.own(vectors[0]),
        "whole": whole,
        "out": out,
    }


def all_collections(vectors: list[Tensor]) -> list[Tensor]:
    """A vector put together at once, by broadcasts, and by a gather as on nccl; and with out."""
    ranks = Ranks(who="test", timeout=20.0)
    vector = vectors[0]
    slices = Slices(len(vector), ranks.size)
    piece = vector[slices.of(ranks.rank)].clone()
    found = []
    usual = ranks_module._SMALL_SLICE
    for ranks._on_gloo, ranks_module._SMALL_SLICE in ((True, usual), (True, 0), (False, usual)):
        found.append(ranks.collect(piece, slices).result())
        found.append(ranks.collect(piece, slices, vector.new_empty(len(vector))).result())
    ranks_module._SMALL_SLICE = usual
    return found


def sums(parts: list[Tensor]) -> list[Tensor]:
    """The sum of small parts and of one that is not, directly and as on nccl."""
    ranks = Ranks(who="test", timeout=20.0)
    part = parts[ranks.rank]
    found = []
    for ranks._on_gloo in (True, False):
        found += [ranks.sum(part[:7].view(7, 1)), ranks.sum(part)]
        found.append(torch.tensor(ranks.largest(float(part[0])), dtype=torch.float64))
    return found


def equivocal(rule: Rule, rows: list[Tensor], liar: int, row: int) -> Exception | None:
    """A replicated step in which one rank has received another row than the others."""
    reduction = RobustAllReduce(rule, trust="replicated")
    ranks = reduction.ranks
    if ranks.rank == liar:
        honest = ranks.gather_later

        def gather_later(part: Tensor, what: str, room: Tensor | None = None) -> Later:
            if what != "the gathering of rows":
                return honest(part, what, room)

            def changed(found: Tensor) -> Tensor:
                found[row, -1] += 1
                return found

            return Then(honest(part, what, room), changed)

        ranks.gather_later = gather_later  # type: ignore[assignment,method-assign]
    try:
        reduction(own(rows))
    except Exception as error:
        return error
    finally:
        dist.barrier()
    return None


def in_place(rule: Rule, rows: list[Tensor]) -> tuple[Tensor, bool]:
    """A step whose result goes where the row was."""
    row = own(rows).clone()
    found = RobustAllReduce(rule)(row, out=row)
    return found, found.data_ptr() == row.data_ptr()


def explained(rule: Rule, rows: list[Tensor], options: dict[str, Any]) -> Any:
    """Distances, and who is rejected, under an exchange."""
    reduction = RobustAllReduce(rule, distances=True, **options)
    reduction(own(rows))
    why = reduction.explanation
    assert why is not None
    return why.distances, why.rejected


def struck_in_groups(rule: Rule, rows: list[Tensor], victim: int, timeout: float) -> None:
    """Two steps among means of groups, in the second of which a rank is killed."""
    reduction = RobustAllReduce(rule, groups=2, timeout=timeout)
    reduction(own(rows))
    if dist.get_rank() == victim:
        os.kill(os.getpid(), signal.SIGKILL)
    reduction(own(rows))


def loaded_then_failed(rule: Rule, rows: Tensor, bad: int) -> list[Any]:
    """The whole states before a step that fails after they were loaded, and after it."""
    first = RobustAllReduce(rule)
    first(rows[dist.get_rank()])
    tree = first.state_dict()
    second = RobustAllReduce(rule, f=1)
    second.load_state_dict(tree)
    row = rows[dist.get_rank()].clone()
    if dist.get_rank() < bad:
        row.fill_(torch.nan)
    try:
        second(row)
    except ValueError as error:
        return [tree["estimator"]["estimate"], second.state_dict()["estimator"]["estimate"], error]
    return []


def refused_by_one(rules: list[Rule], options: list[dict[str, Any]]) -> list[Any]:
    """What comes of two calls, in the first of which some ranks cannot take part."""
    found: list[Any] = []
    row = torch.ones(7)
    for rule, given in ((own(rules), own(options)), (rules[0], options[0])):
        try:
            found.append(robust_all_reduce(row, rule, timeout=20.0, **given))
        except Exception as error:
            found.append(error)
    return found


def refused_reduction(rules: list[Rule], options: list[dict[str, Any]]) -> Any:
    """What comes of a reduction that cannot be on some ranks."""
    try:
        return RobustAllReduce(own(rules), timeout=20.0, **own(options))(torch.ones(7))
    except Exception as error:
        return error


def elsewhere(rule: Rule, liar: int) -> Exception | None:
    """What is raised where one rank has its row on another device."""
    row = torch.ones(7, device="meta" if dist.get_rank() == liar else "cpu")
    try:
        RobustAllReduce(rule)(row)
    except Exception as error:
        return error
    return None


def badly_out(rule: Rule, case: str) -> Exception | None:
    """What is raised where the result cannot go where it should."""
    row = torch.ones(4, 6)
    outs: dict[str, Any] = {
        "shape": torch.ones(24),
        "dtype": torch.ones(4, 6, dtype=torch.float64),
        "strided": torch.ones(6, 4).T,
        "an array": np.ones((4, 6)),
        "a list": [torch.ones(4, 6)],
        "one rank": torch.ones(24) if dist.get_rank() == 1 else torch.ones(4, 6),
    }
    try:
        RobustAllReduce(rule)(row, out=outs[case])
    except Exception as error:
        return error
    return None
