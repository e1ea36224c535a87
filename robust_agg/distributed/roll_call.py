"""Who still answers when a collective has failed: what is known, told by all who are left.

The communication library says that a connection broke, or that time is up, but not whose fault it
was; and a rank that waits for the one that waits for a dead one learns of it last. So whoever fails
says so in the store, where the others look while they wait; who says nothing is who is missed.
"""

from __future__ import annotations

import os
import socket
import time

from robust_agg.torch_compat import store_of_the_world

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
        # Ranks that torchrun starts again may find the store they had, with marks that are history.
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        self._store = store_of_the_world(f"robust_agg/{attempt}/{name}")
        self._rank, self._size = rank, size
        place = f"{socket.gethostname()}, pid {os.getpid()}, {device}"
        self._store.set(f"host/{rank}", place)

    def failed(self, step: int) -> bool:
        """Whether some rank has failed in this step."""
        try:
            return self._store.check([f"failed/{step}"])
        except RuntimeError:  # the store is gone: so is the process that held it
            return True

    def absent(self, step: int) -> tuple[int, ...]:
        """Say that this rank has failed, and wait for the others: those that say nothing.

        Empty where all answer, or where the store itself does not.
        """
        others = [rank for rank in range(self._size) if rank != self._rank]
        try:
            self._store.set(f"failed/{step}", "")
            self._store.set(f"failed/{step}/{self._rank}", "")
            end = time.monotonic() + GRACE
            while others and time.monotonic() < end:
                others = [r for r in others if not self._store.check([f"failed/{step}/{r}"])]
                time.sleep(0.02)
        except RuntimeError:
            return ()
        return tuple(others)

    def describe(self, rank: int) -> str:
        """``rank 3 (host, pid 17, cuda:1)``, as far as that is known."""
        try:
            key = f"host/{rank}"
            place = self._store.get(key).decode() if self._store.check([key]) else "unknown host"
        except RuntimeError:
            place = "unknown host"
        return f"rank {rank} ({place})"
