"""How ranks meet: all say that they are there, and then connect."""

from __future__ import annotations

import fcntl
import ipaddress
import os
import secrets
import socket
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import NamedTuple

from torch.distributed import ProcessGroup

from robust_agg.distributed.torch_compat import PrefixStore, Store, TCPStore, gloo_group
from workers.rank_wire import in_a_line
from workers.transport import HostError

_LAUNCHED = (
    "RANK, WORLD_SIZE, MASTER_PORT and MASTER_ADDR must be in the environment, as torchrun puts "
    "them there"
)
_LOOK = 0.05
_INTERFACE = "GLOO_SOCKET_IFNAME"
_SIOCGIFADDR = 0x8915  # Linux: the address of an interface


class LauncherError(HostError):
    """No launcher has said which rank this process is."""


def _nothing() -> None:
    pass


def meet(
    store: Store,
    rank: int,
    size: int,
    *,
    timeout: float,
    host: str,
    begun: float | None = None,
    look: Callable[[], None] = _nothing,
) -> ProcessGroup:
    """A gloo group of all ranks, that is nobody's default; returns on all of them or on none.

    Args:
        store: where they meet; see :func:`corner`.
        rank: of this process.
        size: of the group.
        timeout: seconds for the slowest rank to come.
        host: the name or address by which this machine is reached.
        begun: since when they count, on the clock of ``time.monotonic``; from now on if None.
        look: called now and then while rank 0 waits; may raise what it sees.

    Raises:
        HostError: a rank does not come.
    """
    own = corner(store, rank, size, timeout=timeout, begun=begun, look=look)
    with _as_host_error(rank, look):
        return gloo_group(PrefixStore("gloo", own), rank, size, timeout=timeout, host=host)


def corner(
    store: Store,
    rank: int,
    size: int,
    *,
    timeout: float,
    begun: float | None = None,
    look: Callable[[], None] = _nothing,
) -> Store:
    """A part of the store that has never been used, the same on all ranks, once all are there.

    Ranks that are started again may find the store they had, with the addresses of those that are
    gone; and how often they were is not for the launcher to say, whose machines count for
    themselves. So rank 0 puts up a name that it draws. Every other rank answers each name that it
    sees with a number that it draws, and follows the one under which its number is confirmed: only
    a rank 0 that is there can have done that.

    Args and errors are those of :func:`meet`.
    """
    end = (time.monotonic() if begun is None else begun) + timeout
    drawn = secrets.token_hex(8)
    missing = list(range(1, size))

    def called() -> str | None:
        missing[:] = [each for each in missing if not store.check([f"{drawn}/{each}"])]
        if missing:
            return None
        for each in range(1, size):
            store.set(f"{drawn}/{store.get(f'{drawn}/{each}').decode()}", "")
        return drawn

    def answered() -> str | None:
        if not store.check(["name"]):
            return None
        name = store.get("name").decode()
        store.set(f"{name}/{rank}", drawn)
        return name if store.check([f"{name}/{drawn}"]) else None

    with _as_host_error(rank, look):
        if rank == 0:
            store.set("name", drawn)
        found = called if rank == 0 else answered
        while (name := found()) is None:
            if time.monotonic() > end:
                raise HostError(_missing(rank, missing, timeout))
            look()
            time.sleep(_LOOK)
    return PrefixStore(f"{name}/met", store)


@contextmanager
def _as_host_error(rank: int, look: Callable[[], None]) -> Iterator[None]:
    try:
        yield
    except HostError:
        raise
    except RuntimeError as error:
        look()
        raise HostError(f"rank {rank} cannot meet the others: {in_a_line(error)}") from error


def _missing(rank: int, missing: list[int], timeout: float) -> str:
    if rank > 0:
        return f"rank {rank} is here, but not all others within {timeout:g} s"
    ranks = ", ".join(f"rank {each} (host {each - 1})" for each in missing)
    return f"{ranks} did not come within {timeout:g} s"


class Told(NamedTuple):
    """What a launcher tells a process: who it is, and where the others are met.

    Attributes:
        store: used by nobody else.
        rank: of this process.
        size: how many there are.
        address: of the store.
        port: of the store.
    """

    store: Store
    rank: int
    size: int
    address: str
    port: int


def as_told(*, timeout: float) -> Told:
    """What ``torchrun``, or another launcher, has put into the environment.

    That is ``RANK``, ``WORLD_SIZE``, ``MASTER_ADDR`` and ``MASTER_PORT``.

    Args:
        timeout: seconds to reach the store, and the default of what is asked of it.

    Raises:
        LauncherError: a variable is missing or no number.
        HostError: the store is not reached.
    """
    rank, size, port = (_told_number(name) for name in ("RANK", "WORLD_SIZE", "MASTER_PORT"))
    address = _told("MASTER_ADDR")
    # torchrun may hold the store itself, also over restarts.
    theirs = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    try:
        store = TCPStore(
            address,
            port,
            is_master=rank == 0 and not theirs,
            timeout=timedelta(seconds=timeout),
            wait_for_workers=False,
        )
    except RuntimeError as error:
        raise HostError(f"rank {rank} cannot reach {address}:{port}: {in_a_line(error)}") from error
    return Told(PrefixStore("robust_agg", store), rank, size, address, port)


def _told(name: str) -> str:
    """What a launcher has put into the environment under this name."""
    if name not in os.environ:
        raise LauncherError(f"{_LAUNCHED}, found no {name}: start this with torchrun")
    return os.environ[name]


def _told_number(name: str) -> int:
    text = _told(name)
    try:
        return int(text)
    except ValueError:
        raise LauncherError(f"{_LAUNCHED}, found {name}={text!r}, no integer") from None


def meet_as_told(*, timeout: float = 120.0) -> ProcessGroup:
    """A gloo group of the processes that ``torchrun``, or another launcher, has started.

    They read what :func:`as_told` says. Unlike ``init_process_group`` this makes no default group,
    and names the ranks that do not come. Ranks reach each other by the interface by which they
    reach the store, or by the one that ``GLOO_SOCKET_IFNAME`` names.

    Args:
        timeout: seconds for the slowest rank to come.

    Raises:
        LauncherError: a variable is missing or no number.
        HostError: a rank does not come, or this one has no address for other machines.
    """
    begun = time.monotonic()
    told = as_told(timeout=timeout)
    host = _own_address(told, timeout)
    return meet(told.store, told.rank, told.size, timeout=timeout, host=host, begun=begun)


def open_store(host: str, timeout: float) -> TCPStore:
    """A store that this process holds, reached at ``host`` and at no other address of it.

    Raises:
        HostError: this machine has no such address.
    """
    with socket.socket() as listening:
        try:
            listening.bind((host, 0))
        except OSError as error:
            raise HostError(f"a store cannot be opened at {host}: {error}") from error
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


def _own_address(told: Told, timeout: float) -> str:
    """That of the interface through which the store is reached: others reach this one by it too."""
    interface = os.environ.get(_INTERFACE, "").partition(",")[0]
    try:
        if interface:
            return _address_of(interface)
        with socket.create_connection((told.address, told.port), timeout) as connection:
            found: str = connection.getsockname()[0]
    except OSError as error:
        what = f"{_INTERFACE}={interface}" if interface else f"{told.address}:{told.port}"
        raise HostError(f"rank {told.rank} has no address by {what}: {error}") from error
    # As on machines whose own name is one of 127.0.1.1.
    others = int(os.environ.get("LOCAL_WORLD_SIZE", told.size)) < told.size
    if others and ipaddress.ip_address(found.partition("%")[0]).is_loopback:
        raise HostError(
            f"rank {told.rank} must have an address that other machines reach, found {found}; "
            f"{_INTERFACE} may name an interface that has one"
        )
    return found


def _address_of(interface: str) -> str:
    """Its IPv4 address."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        asked = struct.pack("256s", interface.encode()[:15])
        return socket.inet_ntoa(fcntl.ioctl(any_socket, _SIOCGIFADDR, asked)[20:24])
