"""What ``robust-agg bench collectives`` times on every rank, and the bytes that each form sends."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import torch
import torch.distributed as dist
from torch import Tensor

from robust_agg import (
    Aggregator,
    CoordinateWiseMedian,
    GeometricMedian,
    NearestNeighborMixing,
    TrimmedMean,
    VClip,
    chain,
    kernels,
)
from robust_agg.distributed import RobustAllReduce, robust_all_reduce
from robust_agg.distributed.digest import DIGEST_BYTES
from robust_agg.distributed.ranks import SMALL, Ranks
from robust_agg.distributed.slices import Slices
from robust_agg.online.estimator import Estimator
from robust_agg.seeding import generator

ALL_REDUCE = "all_reduce"
EXCHANGE = "communication alone"
VCLIP = "VClip"
CALLED = "function, "
NAIVE = "all_gather, "
GRAM, MEDIAN = "Gram matrix of a slice", "median of a slice"
"""Of the rows in one rank's slice, with no communication."""


def rules(n: int) -> dict[str, Aggregator]:
    """The aggregators that are timed, by name, for n ranks a quarter of which may be bad."""
    f = n // 4
    return {
        "CoordinateWiseMedian": CoordinateWiseMedian(),
        "TrimmedMean": TrimmedMean(f=f),
        "GeometricMedian": GeometricMedian(),
        "NNM + TrimmedMean": chain(NearestNeighborMixing(f=f), TrimmedMean(f=f)),
    }


def seconds_on_this_rank(d: int, repeats: int) -> dict[str, list[float]]:
    """The slowest rank's seconds in every repeat of every form, in turns; the first ones not.

    Args:
        d: float32 numbers of each rank's row.
        repeats: how many count.
    """
    n, rank = dist.get_world_size(), dist.get_rank()
    row = torch.randn(d, generator=generator(0, "bench collectives", rank))
    scratch = row.clone()
    timed = forms(row, scratch, n)
    own = torch.zeros(len(timed), repeats, dtype=torch.float64)
    for turn in range(-1, repeats):
        for place, form in enumerate(timed.values()):
            scratch.copy_(row)  # or sums of sums would grow beyond what a number can be
            dist.barrier()
            begun = time.perf_counter()
            form()
            if turn >= 0:
                own[place, turn] = time.perf_counter() - begun
    dist.all_reduce(own, dist.ReduceOp.MAX)
    return dict(zip(timed, own.tolist(), strict=True))


def forms(row: Tensor, scratch: Tensor, n: int) -> dict[str, Callable[[], object]]:
    """Everything that is timed; ``scratch`` is summed in place, as gradients are."""
    ranks = Ranks(who="bench", timeout=600)
    slices = Slices(len(row), n)
    slice_of_all = torch.randn(n, slices.width, generator=generator(0, "bench collectives"))
    room = torch.empty(n, slices.size(ranks.rank))

    def exchange() -> Tensor:
        rows = ranks.exchange(row, slices.sizes, room).result()
        return ranks.collect(rows[0], slices, scratch).result()

    def called(rule: Aggregator) -> Callable[[], Tensor]:
        return lambda: robust_all_reduce(row, rule, timeout=600)

    def kept(name: str, rule: Aggregator | Estimator) -> Callable[[], Tensor]:
        reduction = RobustAllReduce(rule, timeout=600, name=name)
        return lambda: reduction(row, out=scratch)

    def naive(rule: Aggregator) -> Callable[[], Tensor]:
        return lambda: rule(ranks.gather(row, "all rows"))

    chosen = rules(n)
    return {
        ALL_REDUCE: lambda: dist.all_reduce(scratch),
        EXCHANGE: exchange,
        **{CALLED + name: called(rule) for name, rule in chosen.items()},
        **{name: kept(name, rule) for name, rule in chosen.items()},
        VCLIP: kept(VCLIP, VClip(tau=0.1 * len(row) ** 0.5)),
        **{NAIVE + name: naive(rule) for name, rule in chosen.items()},
        GRAM: lambda: kernels.centred_gram(slice_of_all),
        MEDIAN: lambda: kernels.sorted_mean(slice_of_all, (n - 1) // 2, n // 2 + 1),
    }


def bytes_sent(n: int, d: int, itemsize: int = 4) -> dict[str, float]:
    """Bytes that a rank sends in each form, the average of n ranks, for rows of d numbers.

    What all others get of every rank, or from it of its row alone, is sent n - 1 times in all, by
    whatever paths; a reduction of B bytes sends 2 B (n-1)/n a rank, the least that will do.
    """

    def reduced(size: float) -> float:
        return 2 * size * (n - 1) / n

    def summed(size: float) -> float:
        """Over gloo what is small is sent to each rank, which adds it up."""
        return size * (n - 1) if size * n <= SMALL else reduced(size)

    rows = 2 * itemsize * d * (n - 1) / n
    agreed = DIGEST_BYTES * (n - 1.0)
    one, gram = summed(8), summed(8 * (n + 1) ** 2)
    sums: Mapping[str, float] = {
        "CoordinateWiseMedian": one,
        "TrimmedMean": one,
        "GeometricMedian": gram,
        "NNM + TrimmedMean": gram + one,
        VCLIP: summed(8 * n),
    }
    ours = {name: rows + agreed + more for name, more in sums.items()}
    return {
        ALL_REDUCE: reduced(itemsize * d),
        EXCHANGE: rows,
        **{CALLED + name: ours[name] for name in rules(n)},
        **ours,
        **{NAIVE + name: itemsize * d * (n - 1.0) for name in rules(n)},
    }
