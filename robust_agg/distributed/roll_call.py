"""Who still answers when a collective has failed: what is known, told by all who are left.

The communication library says that a connection broke, or that time is up, but not whose fault it
was; and a rank that waits for the one that waits for a dead one learns of it last. So whoever fails
says so in the store, where the others look while they wait; who says nothing is who is missed.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

from robust_agg.distributed.torch_compat import store_of_the_world

Answer = TypeVar("Answer")

_DESCRIBED = 32
# Ranks that are looked up before all have had time to answer.
GRACE = 2.0
"""Seconds in which ranks that are alive notice that others have failed, and say so."""


class RollCall:
    """The marks that the ranks of a group leave in the store of the world.

    Args:
        name: of the group and what it does, the same on its ranks and on no others.
        rank: of this process in the group.
        size: of the group.
        device: where the rank's tensors are, for whoever looks for the machine.
    """

    def __init__(self, name: str, rank: int, size: int, device: str) -> None:
        self._store = store_of_the_world(f"robust_agg/{name}")
        self._rank, self._size = rank, size
        self._asking: threading.Thread | None = None
        self._places: dict[int, str] = {}
        self._store.set(f"host/{rank}", f"{socket.gethostname()}, pid {os.getpid()}, {device}")

    def failed(self) -> bool:
        """Whether some rank has failed, as far as the store tells."""
        try:
            return self._ask(lambda: self._store.check(["failed"]))
        except RuntimeError:  # the store is gone: so is the process that held it
            return True
        except TimeoutError:  # that process is stopped, or only late
            return False

    def absent(self) -> tuple[int, ...] | None:
        """Say that this rank has failed, and wait for the others: those that say nothing.

        In whichever step they are: what has failed for one rank may have ended well for another,
        which then waits in the next. Empty where all answer, None where the store itself does not.
        """
        others = [rank for rank in range(self._size) if rank != self._rank]

        def say() -> None:
            self._store.set("failed", "")
            self._store.set(f"failed/{self._rank}", "")

        def silent() -> list[int]:
            return [r for r in others if not self._store.check([f"failed/{r}"])]

        try:
            self._ask(say)
            end = time.monotonic() + GRACE
            while others and time.monotonic() < end:
                others = self._ask(silent)
                if end - time.monotonic() < GRACE / 2:
                    # While the store is there: the process that holds it will end as well.
                    for rank in others[:_DESCRIBED]:
                        self.describe(rank)
                time.sleep(0.02)
        except (RuntimeError, TimeoutError):
            return None
        return tuple(others)

    def describe(self, rank: int) -> str:
        """``rank 3 (host, pid 17, cuda:1)``, as far as that is known."""
        if rank in self._places:
            return self._places[rank]
        key = f"host/{rank}"

        def place() -> str:
            known = self._store.check([key])
            return self._store.get(key).decode() if known else "unknown host"

        try:
            self._places[rank] = f"rank {rank} ({self._ask(place)})"
            return self._places[rank]
        except (RuntimeError, TimeoutError):
            return f"rank {rank} (unknown host)"

    def _ask(self, query: Callable[[], Answer]) -> Answer:
        """What the store answers.

        In a thread, for nothing ends the wait for a store whose process is stopped; that thread is
        left behind, and no second one while it waits.

        Raises:
            RuntimeError: the store is gone.
            TimeoutError: it does not answer within ``GRACE`` seconds.
        """
        if self._asking is not None and self._asking.is_alive():
            self._asking.join(GRACE)
            if self._asking.is_alive():
                raise TimeoutError
        answer: Future[Answer] = Future()

        def ask() -> None:
            try:
                answer.set_result(query())
            except RuntimeError as error:
                answer.set_exception(error)

        self._asking = threading.Thread(target=ask, daemon=True)
        self._asking.start()
        return answer.result(GRACE)
