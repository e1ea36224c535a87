"""Ranks that are processes of this machine, started by the driver and gone with it."""

from __future__ import annotations

import logging
import multiprocessing
import os
import pickle
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess

from workers.host import HostSpec
from workers.rank_hosts import RankPool
from workers.rank_meeting import meet, open_store, reach_store
from workers.rank_serve import serve_what
from workers.transport import HostError

_log = logging.getLogger(__name__)

_LOCALHOST = "127.0.0.1"
_PATIENCE = 5.0
# Seconds for a process to end that was told to.
_DRIVERS = (signal.SIGINT, signal.SIGHUP)
# Signals that a terminal sends to all: what becomes of the run is for the driver to say.


class LocalRanks(RankPool):
    """One process of this machine per host, on the ranks of a gloo group that is theirs alone.

    As :class:`~workers.rank_hosts.RankHosts`, over the loopback interface. The processes end when
    this is closed, hung ones included, and when this process ends, however it does. As with all of
    ``multiprocessing``, a script that starts them must not do so when it is imported.

    Args:
        specs: one per host; each is pickled, for its own process.
        deadline: seconds a call may take; None waits for ever.
        quorum: rows without which a round does not count.
        start_timeout: seconds for all processes to start and to build their hosts.
        prepare: called in each process before it reads its specification, which may need a module
            that is nowhere to be imported from.

    Raises:
        ValueError: as :class:`~workers.pool.HostPool`.
        HostError: a host cannot be sent, started or built.
    """

    def __init__(
        self,
        specs: Sequence[HostSpec],
        *,
        deadline: float | None = None,
        quorum: int = 1,
        start_timeout: float = 120.0,
        prepare: Callable[[], object] | None = None,
    ) -> None:
        super().__init__(specs, deadline=deadline, quorum=quorum)
        begun = time.monotonic()
        self._processes: list[SpawnProcess] = []
        try:
            packed = [_packed(spec, f"host {host}") for host, spec in enumerate(specs)]
            first = _packed(prepare, "prepare")
            size = len(specs) + 1
            store = open_store(_LOCALHOST, start_timeout)
            address = (store.port, size, start_timeout)
            ends = []
            for rank in range(1, size):
                process, end = _start(rank, *address)
                self._processes.append(process)
                ends.append(end)
            for end, block in zip(ends, packed, strict=True):
                with end, suppress(BrokenPipeError):
                    end.send_bytes(first)
                    end.send_bytes(block)
            group = meet(
                store,
                0,
                size,
                timeout=start_timeout,
                host=_LOCALHOST,
                begun=begun,
                look=self._check_alive,
            )
            self._connect(group, start_timeout, begun)
        except BaseException:
            self.close()
            raise

    def _check_alive(self) -> None:
        for host, process in enumerate(self._processes):
            if process.exitcode is not None:
                raise HostError(
                    f"LocalRanks: host {host} on rank {host + 1} did not start: its process ended "
                    f"with exit code {process.exitcode}"
                )

    def close(self) -> None:
        for host in {*self._busy, *self._lost}:
            self._processes[host].kill()
        super().close()
        for process in self._processes:
            # Where the hosts have not met there is nobody to be told.
            process.join(_PATIENCE if self._lines else 0)
            process.kill()
            process.join()


def _packed(value: object, what: str) -> bytes:
    try:
        return pickle.dumps(value)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise HostError(f"LocalRanks: {what} cannot be sent to a process: {error}") from error


def _start(rank: int, port: int, size: int, timeout: float) -> tuple[SpawnProcess, Connection]:
    """A process, and the pipe through which it reads its specification."""
    context = multiprocessing.get_context("spawn")
    end, start = context.Pipe(duplex=False)
    process = context.Process(
        target=_run, args=(end, rank, port, size, timeout), name=f"rank {rank}", daemon=True
    )
    with _held(), end:
        process.start()
    return process, start


@contextmanager
def _held() -> Iterator[None]:
    """Keep the terminal's signals from what is started meanwhile; this process gets them later."""
    # It would let them through again, were it started in between.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _DRIVERS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _run(end: Connection, rank: int, port: int, size: int, timeout: float) -> None:
    """What runs in the process of one rank."""
    end_with_parent()
    code = 1
    try:
        with end:
            blocks = end.recv_bytes(), end.recv_bytes()
        store = reach_store(_LOCALHOST, port, timeout)
        group = meet(store, rank, size, timeout=timeout, host=_LOCALHOST)
        serve_what(partial(_unpacked, *blocks), group)
        code = 0
    except BaseException:
        # Where there is a driver it was told, and says it.
        _log.debug("rank %d ends", rank, exc_info=True)
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        # Not by unwinding: a thread may be waiting in gloo for the driver's next call.
        os._exit(code)


def _unpacked(prepare: bytes, spec: bytes) -> HostSpec:
    # From the driver, whose process this one is.
    first: Callable[[], object] | None = pickle.loads(prepare)
    if first is not None:
        first()
    found: HostSpec = pickle.loads(spec)
    return found


def end_with_parent() -> None:
    """See to it that this process of ``multiprocessing`` ends when the one that started it has."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
