"""Groups of real processes that are ranks over gloo, to which tests send jobs.

Processes are forked off a server that has imported torch, which takes seconds, and nothing else.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import time
from collections.abc import Callable, Collection
from multiprocessing.connection import Connection, wait
from typing import Any, NamedTuple

import torch
import torch.distributed as dist

LIMIT = 60.0
"""Seconds that a job, or the start of a group, may take before the group is killed."""

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["torch", "torch.distributed"])


class RankDiedError(Exception):
    """The process of a rank ended instead of answering."""


class Answer(NamedTuple):
    """What a job returned or, if so, raised."""

    value: Any
    raised: bool = False


class RankGroup:
    """n processes, started when the first job comes, and anew for the next one after a failure.

    Args:
        size: n, how many ranks.
        limit: seconds that a job may take.
    """

    def __init__(self, size: int, *, limit: float = LIMIT) -> None:
        self.size, self.limit = size, limit
        self._processes: list[Any] = []
        self._pipes: list[Connection] = []

    @property
    def pids(self) -> list[int]:
        """The processes there are now."""
        return [process.pid for process in self._processes]

    def run(self, job: Callable[..., Any], *arguments: Any) -> list[Any]:
        """What ``job(*arguments)`` returns on each rank.

        Args:
            job: a function of a module that the ranks can import.
            arguments: the same for all ranks; what cannot be pickled cannot be sent.

        Raises:
            Exception: what the job raised on the first rank on which it did.
        """
        answers = self._ask(job, arguments, ())
        for answer in answers:
            if answer.raised:
                raise answer.value
        return [answer.value for answer in answers]

    def outcomes(
        self, job: Callable[..., Any], *arguments: Any, silent: Collection[int] = ()
    ) -> list[Any]:
        """What the job returns on each rank, or the exception that it raises there.

        Args:
            job: as for :meth:`run`.
            arguments: as for :meth:`run`.
            silent: ranks that nobody waits for; they answer None.

        Raises:
            TimeoutError: a rank did not answer within the limit.
        """
        return [answer.value for answer in self._ask(job, arguments, silent)]

    def _ask(
        self, job: Callable[..., Any], arguments: tuple[Any, ...], silent: Collection[int]
    ) -> list[Answer]:
        if not self._processes:
            self._start()
        for pipe in self._pipes:
            pipe.send_bytes(pickle.dumps((job, arguments)))
        awaited = [rank for rank in range(self.size) if rank not in silent]
        found = self._answers(awaited)
        answers = [found.get(rank, Answer(None)) for rank in range(self.size)]
        if silent or any(answer.raised for answer in answers):
            self.close()
        return answers

    def close(self) -> None:
        """Kill all processes, whatever they are doing; a stopped one would not hear anything else.

        The next job starts others.
        """
        for process in self._processes:
            process.kill()
        for process in self._processes:
            process.join()
        for pipe in self._pipes:
            pipe.close()
        self._processes, self._pipes = [], []

    def _start(self) -> None:
        for rank in range(self.size):
            ours, theirs = _context.Pipe()
            process = _context.Process(target=_serve, args=(theirs, rank, self.size), daemon=True)
            process.start()
            theirs.close()  # or nobody would be told that the process died
            self._processes.append(process)
            self._pipes.append(ours)
        port = self._answers([0])[0].value
        for pipe in self._pipes[1:]:
            pipe.send_bytes(pickle.dumps(port))
        self._answers(range(self.size))

    def _answers(self, ranks: Collection[int]) -> dict[int, Answer]:
        """What these ranks send next."""
        found: dict[int, Answer] = {}
        end = time.monotonic() + self.limit
        while len(found) < len(ranks):
            missing = {self._pipes[rank]: rank for rank in ranks if rank not in found}
            ready = wait(list(missing), timeout=max(0.0, end - time.monotonic()))
            if not ready:
                self.close()
                errors = [answer.value for answer in found.values() if answer.raised]
                raise TimeoutError(
                    f"ranks {sorted(missing.values())} of {self.size} did not answer within "
                    f"{self.limit:g} s"
                ) from (errors[0] if errors else None)
            for pipe in ready:
                assert isinstance(pipe, Connection)
                found[missing[pipe]] = _received(pipe)
        return found


def _received(pipe: Connection) -> Answer:
    try:
        return Answer(*pickle.loads(pipe.recv_bytes()))
    except (EOFError, ConnectionResetError):
        return Answer(RankDiedError("the process ended"), raised=True)


def _send(pipe: Connection, value: object, *, raised: bool = False) -> None:
    """Bytes of a plain pickle: torch's own would leave tensors in memory of this process."""
    pipe.send_bytes(pickle.dumps((value, raised)))


class RankGroups:
    """A group of each size that is asked for; all of them end with the context."""

    def __init__(self) -> None:
        self._groups: dict[int, RankGroup] = {}

    def __call__(self, size: int) -> RankGroup:
        """The group of so many ranks."""
        return self._groups.setdefault(size, RankGroup(size))

    def __enter__(self) -> RankGroups:
        return self

    def __exit__(self, *error: object) -> None:
        for group in self._groups.values():
            group.close()


def _serve(pipe: Connection, rank: int, size: int) -> None:
    """A rank's process: joins the group, then does jobs until nobody is left to send any."""
    torch.set_num_threads(1)
    if rank == 0:  # holds the store, at a port that is free
        store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        _send(pipe, store.port)
    else:
        store = dist.TCPStore("127.0.0.1", pickle.loads(pipe.recv_bytes()), is_master=False)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=size)
    _send(pipe, "ready")
    while True:
        try:
            job, arguments = pickle.loads(pipe.recv_bytes())
        except EOFError:
            os._exit(0)
        try:
            value = job(*arguments)
        except Exception as error:
            _send(pipe, error, raised=True)
        else:
            _send(pipe, value)
