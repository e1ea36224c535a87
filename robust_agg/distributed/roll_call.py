"""Who still answers when a collective has failed: what is known, told by all who are left.

The communication library says that a connection broke, or that time is up, but not whose fault it
was; and a rank that waits for the one that waits for a dead one learns of it last. So whoever fails
says so in the store, where the others look while they wait; who says nothing is who is missed.
"""

from __future__ import annotations

import os
import queue
import socket
import threading
import time
from collections.abc import Callable
from typing import TypeVar

from robust_agg.torch_compat import store_of_the_world

GRACE = 2.0
"""Seconds in which ranks that are alive notice that others have failed, and say so."""

_Answer = TypeVar("_Answer")


class StoreGoneError(Exception):
    """The store does not answer: the process that holds it is gone or stalled."""


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
        place = f"{socket.gethostname()}, pid {os.getpid()}, {device}"
        self._store.set(f"host/{rank}", place)

    def failed(self, step: int) -> bool:
        """Whether some rank has failed in this step, as far as the store knows and answers."""
        try:
            return self._is_there(f"failed/{step}")
        except StoreGoneError:
            return False

    def absent(self, step: int) -> tuple[int, ...]:
        """Say that this rank has failed, and wait for the others: those that say nothing.

        Raises:
            StoreGoneError: nobody can say anything.
        """
        others = [rank for rank in range(self._size) if rank != self._rank]
        self._mark(f"failed/{step}")
        self._mark(f"failed/{step}/{self._rank}")
        end = time.monotonic() + GRACE
        while others and time.monotonic() < end:
            others = [rank for rank in others if not self._is_there(f"failed/{step}/{rank}")]
            time.sleep(0.02)
        return tuple(others)

    def describe(self, rank: int) -> str:
        """``rank 3 (host, pid 17, cuda:1)``, as far as that is known."""
        key = f"host/{rank}"
        try:
            known = self._is_there(key)
            place = _within_grace(lambda: self._store.get(key)).decode() if known else "unknown"
        except StoreGoneError:
            place = "unknown"
        return f"rank {rank} ({place})"

    def _mark(self, key: str) -> None:
        _within_grace(lambda: self._store.set(key, ""))

    def _is_there(self, key: str) -> bool:
        return _within_grace(lambda: self._store.check([key]))


def _within_grace(ask: Callable[[], _Answer]) -> _Answer:
    """What the store answers.

    In a thread, which is given up where the store's process is stopped: its connection stands, and
    torch's client waits on it for ever.

    Raises:
        StoreGoneError: nothing within the grace, or the connection is broken.
    """
    answers: queue.SimpleQueue[_Answer | Exception] = queue.SimpleQueue()

    def serve() -> None:
        try:
            answers.put(ask())
        except Exception as error:
            answers.put(error)

    threading.Thread(target=serve, name="robust_agg store", daemon=True).start()
    try:
        answer = answers.get(timeout=GRACE)
    except queue.Empty:
        raise StoreGoneError(f"no answer within {GRACE:g} s") from None
    if isinstance(answer, Exception):
        raise StoreGoneError(str(answer)) from answer
    return answer
