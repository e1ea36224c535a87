"""Work on ranges of columns in as many threads as torch may use."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import cache
from typing import TypeVar, TypeVarTuple, Unpack

import torch

Result = TypeVar("Result")
Numbers = TypeVarTuple("Numbers")


@cache
def _pool(size: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(size, thread_name_prefix="robust_agg")


if hasattr(os, "register_at_fork"):
    # A forked child has the pool but not its threads, and would wait for them forever.
    os.register_at_fork(after_in_child=_pool.cache_clear)


def ranges(columns: int, width: int) -> list[tuple[int, int]]:
    """The ranges [start, stop) of `width` columns, the last one perhaps shorter."""
    return [(start, min(start + width, columns)) for start in range(0, columns, width)]


def map_ranges(
    task: Callable[[Unpack[Numbers]], Result], parts: Sequence[tuple[*Numbers]]
) -> list[Result]:
    """``task(*part)`` for each part, such as a range, in parallel; the results in their order.

    The task must release the interpreter's lock to gain from it. A single part, or a torch that may
    use one thread only, runs in the calling thread.
    """
    threads = min(torch.get_num_threads(), len(parts))
    if threads <= 1:
        return [task(*part) for part in parts]
    left = iter(enumerate(parts))  # a step is atomic under the interpreter's lock: no part twice
    results: dict[int, Result] = {}

    def work() -> None:
        for place, part in left:
            results[place] = task(*part)

    # The calling thread works too: it need not wait for another to wake.
    helpers: list[Future[None]] = []
    try:
        for _ in range(threads - 1):
            helpers.append(_pool(threads - 1).submit(work))
        work()
    finally:
        _outlast(helpers)
    for helper in helpers:
        if not helper.cancelled():
            helper.result()
    return [results[place] for place in range(len(parts))]


def _outlast(helpers: Sequence[Future[None]]) -> None:
    """Wait, also through Ctrl-C: they work in memory that is the caller's."""
    interrupted: KeyboardInterrupt | None = None
    while True:
        try:
            # One that has not begun finds nothing left, and may be queued behind its own caller.
            wait([helper for helper in helpers if not helper.cancel()])
            break
        except KeyboardInterrupt as error:
            interrupted = error
    if interrupted is not None:
        raise interrupted
