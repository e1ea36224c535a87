"""Processes of one thread each that are ranks over gloo, for as long as one job takes."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import torch
import torch.distributed as dist

_TCPStore: Any = dist.TCPStore  # type: ignore[attr-defined]  # public, though stubs do not say so


def on_ranks(size: int, job: Callable[..., Any], *arguments: Any) -> list[Any]:
    """What ``job(*arguments)`` returns on each rank of a new process group.

    The processes are forked off a server that has imported torch, which takes seconds.

    Args:
        size: how many ranks.
        job: a function of a module; it finds its rank by ``dist.get_rank()``.
        arguments: the same for all ranks.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "torch.distributed"])
    store = _TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    with ProcessPoolExecutor(size, mp_context=context) as pool:
        # None of them ends before all have begun, so that each has a process of its own.
        futures = [
            pool.submit(_as_rank, rank, size, store.port, job, arguments) for rank in range(size)
        ]
        return [future.result() for future in futures]


def _as_rank(
    rank: int, size: int, port: int, job: Callable[..., Any], arguments: tuple[Any, ...]
) -> Any:
    torch.set_num_threads(1)
    store = _TCPStore("127.0.0.1", port, is_master=False)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=size)
    try:
        found = job(*arguments)
        dist.barrier()
        return found
    finally:
        dist.destroy_process_group()
