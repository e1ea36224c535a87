"""How ranks meet: all say that they are there, and then connect."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from datetime import timedelta

from torch.distributed import ProcessGroup

from robust_agg.distributed.torch_compat import PrefixStore, Store, TCPStore, gloo_group
from workers.transport import HostError

_LOOK = 0.05


def meet(
    store: Store,
    rank: int,
    size: int,
    *,
    timeout: float,
    host: str,
    look: Callable[[], None] = lambda: None,
) -> ProcessGroup:
    """A gloo group of all ranks, that is nobody's default; returns on all of them or on none.

    Args:
        store: where they meet; used for nothing else.
        rank: of this process.
        size: of the group.
        timeout: seconds for the slowest rank to come.
        host: the name or address by which this machine is reached.
        look: called now and then while rank 0 waits; may raise what it sees.

    Raises:
        HostError: a rank does not come.
    """
    try:
        store.set(f"here/{rank}", "")
        end = time.monotonic() + timeout
        missing = [f"here/{each}" for each in range(size)] if rank == 0 else ["all here"]
        while missing := [key for key in missing if not store.check([key])]:
            if time.monotonic() > end:
                raise HostError(_missing(rank, missing, timeout))
            look()
            time.sleep(_LOOK)
        store.set("all here", "")
        return gloo_group(PrefixStore("gloo", store), rank, size, timeout=timeout, host=host)
    except HostError:
        raise
    except RuntimeError as error:
        look()
        raise HostError(f"rank {rank} cannot meet the others: {error}") from error


def _missing(rank: int, keys: list[str], timeout: float) -> str:
    if rank > 0:
        return f"rank {rank} is here, but not all others within {timeout:g} s"
    ranks = ", ".join(
        f"rank {key.removeprefix('here/')} (host {int(key.removeprefix('here/')) - 1})"
        for key in keys
    )
    return f"{ranks} did not come within {timeout:g} s"


def meet_as_told(*, timeout: float = 120.0) -> ProcessGroup:
    """A gloo group of the processes that ``torchrun``, or another launcher, has started.

    They read ``RANK``, ``WORLD_SIZE``, ``MASTER_ADDR`` and ``MASTER_PORT``. Unlike
    ``init_process_group`` this makes no default group, and names the ranks that do not come.

    Args:
        timeout: seconds for the slowest rank to come.

    Raises:
        HostError: a variable is missing or no number, or a rank does not come.
    """
    names = ("RANK", "WORLD_SIZE", "MASTER_PORT")
    try:
        rank, size, port = (int(os.environ[name]) for name in names)
        address = os.environ["MASTER_ADDR"]
    except (KeyError, ValueError) as error:
        raise HostError(
            f"{', '.join(names)} and MASTER_ADDR must be in the environment, as torchrun puts "
            f"them there, found {type(error).__name__}: {error}"
        ) from error
    # torchrun may hold the store itself, also over restarts.
    theirs = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    try:
        store = TCPStore(
            address,
            port,
            is_master=rank == 0 and not theirs,
            timeout=timedelta(seconds=timeout),
            wait_for_workers=False,
        )
    except RuntimeError as error:
        raise HostError(f"rank {rank} cannot reach {address}:{port}: {error}") from error
    corner = PrefixStore(f"robust_agg/{attempt}", store)
    return meet(corner, rank, size, timeout=timeout, host=_own_address(address, port))


def open_store(host: str, timeout: float) -> TCPStore:
    """A store that this process holds, reached at ``host`` and at no other address of it."""
    with socket.socket() as listening:
        listening.bind((host, 0))
        listening.listen()
        port = listening.getsockname()[1]
        return TCPStore(
            host,
            port,
            is_master=True,
            timeout=timedelta(seconds=timeout),
            wait_for_workers=False,
            master_listen_fd=listening.detach(),
        )


def reach_store(host: str, port: int, timeout: float) -> TCPStore:
    """The store that another process holds."""
    return TCPStore(host, port, timeout=timedelta(seconds=timeout), wait_for_workers=False)


def _own_address(address: str, port: int) -> str:
    """That of the interface through which the store is reached: others reach this one by it too."""
    with socket.create_connection((address, port)) as connection:
        found: str = connection.getsockname()[0]
        return found
