"""Hosts on the ranks of a process group; rank 0 is the driver."""

from __future__ import annotations

import queue
import threading
import time
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any, TypeAlias

from torch import Tensor
from torch.distributed import ProcessGroup

from robust_agg.distributed.torch_compat import carries_cpu_tensors, default_group
from robust_agg.messages import MessageError, Schema, Update
from robust_agg.types import State
from workers.blocks import most_bytes, open_rows, pack_parameters, pack_states, unpack_states
from workers.host import HostSpec
from workers.pool import Failure, HostPool
from workers.rank_wire import Answer, Call, Line, in_bytes, numbers, whole
from workers.transport import HostError

_PATIENCE = 7.0
# Seconds for the ranks to take leave; one whose host hangs ends itself after 5.

_Calls: TypeAlias = "queue.SimpleQueue[Call | None]"
_Answers: TypeAlias = "queue.SimpleQueue[tuple[int, Any | Failure]]"


class RankPool(HostPool):
    """A pool over the ranks of a group, however they have come to be.

    Each rank has a line of its own, with a thread at this end that speaks: point-to-point messages,
    because a collective does not end when a rank is dead, and because a gloo wait that times out
    closes the connections to all ranks. A rank that dies breaks its own connection only.
    """

    def __init__(self, specs: Sequence[HostSpec], *, deadline: float | None, quorum: int) -> None:
        super().__init__(specs, deadline=deadline, quorum=quorum)
        self._answers: _Answers = queue.SimpleQueue()
        self._calls: list[_Calls] = [queue.SimpleQueue() for _ in specs]
        self._lines: list[Line] = []
        self._threads: list[threading.Thread] = []
        # Also when this is forgotten, or the program ends: a thread that still waits in gloo would
        # abort it.
        self._leave = weakref.finalize(
            self, _leave, self._lines, self._calls, self._threads, self._lost
        )

    def _connect(self, group: ProcessGroup, timeout: float, begun: float) -> None:
        """Meet the hosts on ranks 1, 2, …, within so many seconds since ``begun``.

        Raises:
            HostError: a host cannot be built, does not answer in time, or has other workers than
                its specification here.
        """
        self._lines += [Line(group, host + 1) for host in range(len(self._ids))]
        for host, (line, calls) in enumerate(zip(self._lines, self._calls, strict=True)):
            given = (host, line, calls, self._answers)
            self._threads.append(
                threading.Thread(target=_speak, args=given, name=f"rank {host + 1}", daemon=True)
            )
            self._threads[-1].start()
        self._await_start(timeout, begun)

    def _await_start(self, timeout: float, begun: float) -> None:
        who = type(self).__name__
        end = begun + timeout
        for host in range(len(self._ids)):
            self._call(host, "ready", (), "its start")
        while self._busy:
            arrived = self._receive(end - time.monotonic())
            if arrived is None:
                host = min(self._busy)
                raise HostError(
                    f"{who}: host {host} on rank {host + 1} did not start within {timeout:g} s"
                )
            host, answer = arrived
            if isinstance(answer, Failure):
                said = answer.reason.removeprefix(f"lost: host {host} died in its start: ")
                raise HostError(f"{who}: host {host} cannot be built: {said}")
            found = tuple(whole(answer))
            if found != self._ids[host]:
                raise HostError(
                    f"{who}: host {host} on rank {host + 1} must have the workers "
                    f"{self._ids[host]}, found {found}"
                )

    def close(self) -> None:
        self._closed = True
        self._leave()

    def _publish(self, round: int, parameters: Tensor) -> Tensor:
        return in_bytes(pack_parameters(round, parameters))

    def _submit(self, host: int, method: str, *args: Any) -> None:
        match method:
            case "compute":
                _, published, ids, accepted = args
                most = most_bytes(len(self._ids[host]), self._row_bytes)
                told = numbers([*ids, *(accepted[i] for i in ids)])
                call = Call("compute", (published, told), most)
            case "load_state":
                call = Call("load_state", args)
            case "state":
                call = Call("state")
            case _:
                call = Call("ready", most=most_bytes(len(self._ids[host]), 8))
        self._calls[host].put(call)

    def _next(self, timeout: float | None) -> tuple[int, Any | Failure] | None:
        try:
            return self._answers.get(timeout=timeout)
        except queue.Empty:
            return None

    def _open(self, reply: Tensor, schema: Schema) -> Iterator[Update | MessageError]:
        return open_rows(reply.numpy().data, schema)

    def _pack_states(self, states: Mapping[int, State]) -> Tensor:
        return in_bytes(pack_states(states))

    def _unpack_states(self, reply: Tensor) -> Mapping[int, State]:
        return unpack_states(bytes(reply.numpy()))


class RankHosts(RankPool):
    """Hosts on the ranks of a process group that the caller has made, under ``torchrun`` say.

    Rank 0 is the driver; rank r has host r - 1 and runs :func:`~workers.rank_serve.serve` with the
    same specification. Parameters and rows travel as the bytes of ``robust_agg.messages``, states
    as those of safetensors, all of them in tensors: nothing is pickled. They travel through the
    memory of the CPU, by gloo, wherever they were computed and wherever they go: a rank that dies
    aborts a communicator of nccl on all the others.

    A rank that dies, hangs or is late costs its own workers' rows. Its process is trusted to speak
    this protocol: gloo would end the driver that is sent more bytes than it waits for, and how many
    its states have is believed. ``torchrun`` itself ends all processes when one of them fails.

    Args:
        specs: those of ranks 1, 2, …; only the workers' ids and the codec are read here.
        group: one that sends CPU tensors by gloo; the default group if None.
        deadline: seconds a call may take; None waits for ever.
        quorum: rows without which a round does not count.
        start_timeout: seconds for all ranks to build their hosts and to answer.

    Raises:
        ValueError: as :class:`~workers.pool.HostPool`; or a group of another size, without gloo,
            or in which this is not rank 0.
        HostError: a host cannot be built, or does not answer in time.
    """

    def __init__(
        self,
        specs: Sequence[HostSpec],
        group: ProcessGroup | None = None,
        *,
        deadline: float | None = None,
        quorum: int = 1,
        start_timeout: float = 120.0,
    ) -> None:
        super().__init__(specs, deadline=deadline, quorum=quorum)
        group = group or default_group()
        size = len(specs) + 1
        if (group.rank(), group.size()) != (0, size):
            raise ValueError(
                f"RankHosts: group must have this process as rank 0 of {size}, one more than "
                f"specs, found rank {group.rank()} of {group.size()}"
            )
        if not carries_cpu_tensors(group):
            raise ValueError(
                "RankHosts: group must send CPU tensors by gloo, found "
                f"{group.name() or 'another backend'}"
            )
        try:
            self._connect(group, start_timeout, time.monotonic())
        except BaseException:
            self.close()
            raise


def _speak(host: int, line: Line, calls: _Calls, answers: _Answers) -> None:
    """Ask a rank what its host is asked, one call at a time."""
    while (call := calls.get()) is not None:
        try:
            line.call(call)
            answer = line.next_answer(call.most)
        except ConnectionError as error:
            answers.put((host, Failure(str(error), gone=True)))
            return
        answers.put((host, _outcome(host, answer, call.most)))
        if answer.outcome == "gone":
            _take_leave(line)
            return
        # Or the last round's rows would live until the next one's arrive.
        del answer, call


def _outcome(host: int, answer: Answer, most: int) -> Tensor | Failure:
    if answer.outcome == "gone":
        return Failure(answer.text, gone=True)
    if answer.outcome == "failed":
        return Failure(f"failed: host {host}: {answer.text}")
    if answer.body is None:
        found = f"{answer.size} bytes, at most {most} expected"
        return Failure(f"oversize: host {host} answers {found}")
    return answer.body


def _leave(
    lines: Sequence[Line],
    calls: Sequence[_Calls],
    threads: Sequence[threading.Thread],
    lost: Mapping[int, str],
) -> None:
    """Take leave of the ranks, and wait until they have heard it."""
    end = time.monotonic() + _PATIENCE
    # A thread each: that of a host that hangs is in the middle of its last call.
    leaving = [
        threading.Thread(target=_take_leave, args=(line,), daemon=True)
        for host, line in enumerate(lines)
        if host not in lost
    ]
    for thread in leaving:
        thread.start()
    for queue_ in calls:
        queue_.put(None)
    for thread in [*leaving, *threads]:
        if thread is not threading.current_thread():
            thread.join(max(0.0, end - time.monotonic()))


def _take_leave(line: Line) -> None:
    with suppress(ConnectionError):
        line.call(Call("stop"))
