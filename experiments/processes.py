"""Ranks as processes of this machine, for studies: torchrun's job where no rank may be lost."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection, wait
from typing import Any, NamedTuple

import torch
import torch.distributed as dist

from workers.local_ranks import end_with_parent

# Forked off a process that has imported torch, which takes seconds a rank.
_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["experiments.cluster.ddp"])


class LocalError(RuntimeError):
    """A rank has failed, and with it all of them."""


def on_ranks(
    count: int,
    function: Callable[..., Any],
    *arguments: Any,
    look: Callable[[], None] | None = None,
) -> list[Any]:
    """What ``function(*arguments)`` returns on each of so many ranks, over gloo, a thread each.

    Args:
        count: how many ranks.
        function: of a module that the ranks can import.
        arguments: what can be pickled.
        look: called now and then while they work.

    Raises:
        LocalError: the function has raised on a rank, what it returns cannot be pickled, or its
            process died; none is left then.
    """
    pipes: list[Any] = []
    processes = []
    with tempfile.TemporaryDirectory() as folder:
        try:
            with _undisturbed():
                for rank in range(count):
                    ours, theirs = _context.Pipe()
                    world = _World(rank, count, f"file://{folder}/met", dict(os.environ))
                    given = (theirs, world, function, arguments)
                    process = _context.Process(target=_rank, args=given, daemon=True)
                    process.start()
                    processes.append(process)
                    theirs.close()  # or nobody would be told that the process died
                    pipes.append(ours)
            answers: dict[int, Any] = {}
            while len(answers) < count:
                for pipe in wait([p for p in pipes if pipes.index(p) not in answers], timeout=0.5):
                    rank = pipes.index(pipe)
                    answers[rank] = _answer(rank, pipes[rank])
                if look is not None:
                    look()
            return [answers[rank] for rank in range(count)]
        finally:
            for process in processes:
                process.kill()
            for process in processes:
                process.join()
            for pipe in pipes:
                pipe.close()


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Ctrl-C waits: a process that is half started could not be ended."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    asked: list[int] = []
    handler = signal.signal(signal.SIGINT, lambda number, _: asked.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
    if asked:
        raise KeyboardInterrupt


class _World(NamedTuple):
    """What a rank must know; the process it is forked off has the environment of its start."""

    rank: int
    ranks: int
    meeting: str
    environment: dict[str, str]


def _answer(rank: int, pipe: Connection) -> Any:
    try:
        answer = pipe.recv()
    except (EOFError, ConnectionResetError):
        raise LocalError(f"rank {rank} must answer, found its process dead") from None
    if isinstance(answer, _Failed):
        raise LocalError(f"rank {rank}: {answer.why}")
    return answer


class _Failed:
    """What a rank says whose function has raised."""

    def __init__(self, error: BaseException) -> None:
        self.why = f"{type(error).__name__}: {error}"


def _rank(
    pipe: Connection, world: _World, function: Callable[..., Any], arguments: tuple[Any, ...]
) -> None:
    """The process of a rank."""
    end_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's, who ends its ranks
    os.environ.update(world.environment)
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - the parent has the terminal
    torch.set_num_threads(1)
    try:
        dist.init_process_group(
            "gloo", init_method=world.meeting, rank=world.rank, world_size=world.ranks
        )
        pipe.send(function(*arguments))
    except Exception as error:
        pipe.send(_Failed(error))
    pipe.recv()  # until the parent has all answers, and ends this process
