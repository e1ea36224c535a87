"""Hosts in this process: no cluster, the same rows."""

from __future__ import annotations

import logging
import queue
import threading
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, TypeAlias

import torch
from torch import Tensor

from robust_agg.messages import MessageError, Schema, Update
from robust_agg.types import State
from workers.host import Host, HostSpec
from workers.pool import Failure, HostPool

_log = logging.getLogger(__name__)

_Calls: TypeAlias = "queue.SimpleQueue[tuple[str, tuple[Any, ...]] | None]"
_Answers: TypeAlias = "queue.SimpleQueue[tuple[int, Any]]"


class InlineHosts(HostPool):
    """Hosts in this process: several, or one with a deadline, in daemon threads of their own.

    A thread each, because a host that hangs must cost no other host its round; threads, because a
    deadline cannot interrupt the caller's own. Torch uses ``spec.threads`` threads within a host,
    as on Ray, and the caller's thread count stays what it is. A hung thread is given up: it ends
    with the process.

    A single host without a deadline works in the caller's thread, which would only wait: the
    threads that torch keeps for the caller then do the host's work as well, where a second set of
    them would contend with the first for the processors. What ends a thread (``KeyboardInterrupt``,
    ``SystemExit``) ends the round there and is raised to the caller, whose signal handlers it may
    come from; the host keeps the states it had. An ``Exception`` is a failure of the host, also one
    that a signal handler raises while the host works.

    Args:
        specs: one per host, built here and now.
        deadline: seconds a call may take; None waits for ever.
        quorum: rows without which a round does not count.

    Raises:
        ValueError: as :class:`~workers.pool.HostPool`; and whatever building a host raises.
    """

    def __init__(
        self, specs: Sequence[HostSpec], *, deadline: float | None = None, quorum: int = 1
    ) -> None:
        super().__init__(specs, deadline=deadline, quorum=quorum)
        hosts = [spec.build() for spec in specs]
        self._only = hosts[0] if len(hosts) == 1 else None
        self._answers: _Answers = queue.SimpleQueue()
        self._calls: list[_Calls] = [queue.SimpleQueue() for _ in hosts]
        started = threading.Barrier(len(hosts) + 1)
        self._threads = [
            HostThread(
                target=_serve,
                args=(
                    index,
                    host,
                    specs[index].threads,
                    started,
                    self._calls[index],
                    self._answers,
                ),
                name=f"host {index}",
                daemon=True,
            )
            for index, host in enumerate(hosts)
        ]
        for thread in self._threads:
            thread.start()
        threads = torch.get_num_threads()
        started.wait()
        # What the hosts' threads have set for themselves is also the default of later threads.
        torch.set_num_threads(threads)
        self._stop = weakref.finalize(self, _stop, self._calls, self._threads, self._busy)

    def close(self) -> None:
        self._closed = True
        self._stop()

    def _publish(self, round: int, parameters: Tensor) -> Tensor:
        # A late host may still read them when the caller has changed its own.
        with torch.inference_mode(False):  # or no host could take gradients with respect to them
            return parameters.detach().clone()

    def _submit(self, host: int, method: str, *args: Any) -> None:
        if self._only is None or self.deadline is not None or _has_default_device():
            self._calls[host].put((method, args))
            return
        with _as_in_a_thread_of_its_own(self._only.spec):
            answer = _answer(host, self._only, method, args)
        self._answers.put((host, answer))

    def _next(self, timeout: float | None) -> tuple[int, Any | Failure] | None:
        try:
            return self._answers.get(timeout=timeout)
        except queue.Empty:
            return None

    def _open(self, reply: Any, schema: Schema) -> Iterator[Update | MessageError]:
        for update in reply if isinstance(reply, list) else [reply]:
            if isinstance(update, Update):
                yield update
            else:
                yield MessageError(f"an update is required, found {type(update).__name__}")

    def _pack_states(self, states: Mapping[int, State]) -> Mapping[int, State]:
        return states

    def _unpack_states(self, reply: Any) -> Mapping[int, State]:
        states: Mapping[int, State] = reply
        return states


class HostThread(threading.Thread):
    """A thread that serves a host.

    One that is alive when the interpreter ends may abort the process, from within torch: a program
    that has given up a hung host had better end by ``os._exit``.
    """


def _serve(
    index: int,
    host: Host,
    threads: int,
    started: threading.Barrier,
    calls: _Calls,
    answers: _Answers,
) -> None:
    # A thread takes the process-wide count over when it first asks; only then can it have its own.
    torch.get_num_threads()
    torch.set_num_threads(threads)
    started.wait()
    while (call := calls.get()) is not None:
        method, args = call
        try:
            answer = _answer(index, host, method, args)
        except BaseException as error:
            answers.put((index, Failure(summary(error), gone=True)))
            return
        answers.put((index, answer))
        # Or the last round's rows would live until the next one's are computed.
        del answer, args, call


def _answer(index: int, host: Host, method: str, args: tuple[Any, ...]) -> Any | Failure:
    """What the host answers, or why it could not; what ends the host is raised."""
    try:
        return getattr(host, method)(*args)
    except Exception as error:
        _log.debug("host %d failed", index, exc_info=True)
        return Failure(f"failed: host {index}: {summary(error)}")


@contextmanager
def _as_in_a_thread_of_its_own(spec: HostSpec) -> Iterator[None]:
    """Torch's settings of the calling thread as the host's thread has them."""
    callers = torch.get_num_threads()
    with ExitStack() as settings:
        settings.enter_context(torch.inference_mode(False))
        settings.enter_context(torch.enable_grad())
        for kind in sorted({"cpu", torch.device(spec.device).type}):
            if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
                settings.enter_context(torch.autocast(kind, enabled=False))
        torch.set_num_threads(spec.threads)
        try:
            yield
        finally:
            torch.set_num_threads(callers)


def _has_default_device() -> bool:
    """Whether the calling thread has a device for its new tensors that a host would not have."""
    return torch.get_default_device().type != "cpu"


def _stop(
    calls: Sequence[_Calls], threads: Sequence[threading.Thread], busy: Mapping[int, str]
) -> None:
    """End the threads, and wait for those that do not hang."""
    for queue_ in calls:
        queue_.put(None)
    for index, thread in enumerate(threads):
        if index not in busy and thread is not threading.current_thread():
            thread.join(timeout=5.0)


def summary(error: BaseException) -> str:
    """The kind of an error and the first line of what it says."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
