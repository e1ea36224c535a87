"""What transports over hosts share: who is busy, who is lost, and whom to believe."""

from __future__ import annotations

import logging
import math
import time
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from robust_agg.admission import Rejection
from robust_agg.codecs.wire import NOTHING, form
from robust_agg.errors import check_count, check_positive, shown
from robust_agg.messages import MessageError, Schema, Update
from robust_agg.types import State
from workers.host import HostSpec
from workers.judging import judge
from workers.transport import Collection, HostError, Transport

_log = logging.getLogger(__name__)

_MESSAGES = 3
# For every worker asked: beyond, a reply is a flood, and the rest of it is not read.
_LOOK = 0.1
# Seconds between two looks where two things are waited for.


@dataclass(frozen=True)
class Failure:
    """An answer that did not come. ``gone``: none will come until the host is built anew."""

    reason: str
    gone: bool = False


class HostPool(Transport):
    """Hosts that are asked together and answer in any order, one call at a time each.

    A transport adds how to send a call and how to wait for an answer; that a host is not asked
    while it is busy, what is late, lost or forged, and what the ledger reads then is the same for
    all of them.

    Args:
        specs: one per host; no worker on two of them, and the same codec on all.
        deadline: seconds a call may take, encoding and sending included; None waits for ever. An
            attribute that may be changed between rounds: the first one is the slowest.
        quorum: rows without which a round does not count. Where fewer are to be had because hosts
            are lost or late, a round waits as long again for those that are coming and those that
            are busy, if they are enough.

    Raises:
        ValueError: no hosts, a worker twice, two codecs, a deadline that is not positive, or a
            quorum below 1 or above the number of workers.
    """

    def __init__(self, specs: Sequence[HostSpec], *, deadline: float | None, quorum: int) -> None:
        who = type(self).__name__
        self._ids = tuple(spec.ids for spec in specs)
        self._host_of = {i: host for host, ids in enumerate(self._ids) for i in ids}
        if not self._host_of:
            raise ValueError(f"{who}: specs must not be empty, found {specs}")
        if len(self._host_of) != sum(map(len, self._ids)):
            raise ValueError(f"{who}: specs must have different workers, found {self._ids}")
        if deadline is not None:
            check_positive(who, "deadline", deadline)
        check_count(who, "quorum", quorum, minimum=1)
        if quorum > len(self._host_of):
            raise ValueError(
                f"{who}: quorum must be at most the number of workers {len(self._host_of)}, "
                f"found {quorum}"
            )
        self._codec = specs[0].codec
        for spec in specs:
            if spec.codec != self._codec:
                raise ValueError(
                    f"{who}: specs must have one codec, found {self._codec} and {spec.codec}"
                )
        self.deadline = deadline
        self.quorum = quorum
        self._row_bytes = 0
        self._busy: dict[int, str] = {}
        self._lost: dict[int, str] = {}
        self._closed = False

    @abstractmethod
    def _publish(self, round: int, parameters: Tensor) -> Any:
        """The parameters as :meth:`_submit` passes them to every host."""

    @abstractmethod
    def _submit(self, host: int, method: str, *args: Any) -> None:
        """Call ``method`` of the host, whose answer is then for :meth:`_next`."""

    @abstractmethod
    def _next(self, timeout: float | None) -> tuple[int, Any | Failure] | None:
        """The next answer to arrive, with its host; None if there is none within the timeout."""

    @abstractmethod
    def _open(self, reply: Any, schema: Schema) -> Iterator[Update | MessageError]:
        """The messages of a reply, of which nothing is known but that it came from its host."""

    @abstractmethod
    def _pack_states(self, states: Mapping[int, State]) -> Any:
        """States as a host takes them."""

    @abstractmethod
    def _unpack_states(self, reply: Any) -> Mapping[int, State]:
        """States as a host gives them.

        Raises:
            ValueError: the reply holds no states.
        """

    def _coming(self) -> set[int]:
        """Hosts that are lost and are being built anew, with states that begin anew."""
        return set()

    def _rebuild(self) -> None:
        """Begin to build lost hosts anew, those that may be."""

    def _readmit(self, timeout: float | None) -> None:
        """Take back those of the :meth:`_coming` hosts that are there; wait for the first so long.

        Those are no longer lost. What may fail afterwards must not lose them once more.
        """

    @property
    def workers(self) -> tuple[int, ...]:
        return tuple(sorted(self._host_of))

    def collect(
        self,
        round: int,
        parameters: Tensor,
        *,
        active: Iterable[int] | None = None,
        accepted: Mapping[int, int] | None = None,
        others: int = 0,
    ) -> Collection:
        begun = time.monotonic()
        asked = self._by_host("active", self.workers if active is None else active)
        senders = sorted(i for ids in asked.values() for i in ids)
        dim, dtype = form(self._codec, parameters.numel(), parameters.dtype)
        schema = Schema(round=round, dim=dim, dtype=dtype, senders=frozenset(senders))
        self._row_bytes = dim * dtype.itemsize
        self._settle()
        self._await_quorum(f"round {round}", asked, self.quorum - others)
        asking = time.monotonic()
        known = accepted or {}
        published = self._publish(round, parameters)
        updates: list[Update] = []
        refused: list[Rejection] = []
        calls = {
            host: (round, published, ids, {i: known.get(i, NOTHING) for i in ids})
            for host, ids in asked.items()
        }
        for host, answer in self._ask("compute", calls, f"round {round}", asking):
            if isinstance(answer, Failure):
                refused += [Rejection(i, answer.reason) for i in asked[host]]
                continue
            most = _MESSAGES * len(asked[host])
            for place, message in enumerate(self._open(answer, schema)):
                if place == most:
                    refused.append(Rejection(-1, f"malformed: host {host}: over {most} messages"))
                    break
                verdict = judge(message, host, asked[host], schema)
                if isinstance(verdict, Update):
                    updates.append(verdict)
                else:
                    refused.append(verdict)
        present = {update.sender for update in updates if update.round == round}
        return Collection(
            asked=tuple(senders),
            updates=tuple(updates),
            refused=tuple(refused),
            quorum_met=len(present) + others >= self.quorum,
            seconds=time.monotonic() - begun,
        )

    def state(self, *, complete: bool = False) -> dict[int, State]:
        states: dict[int, State] = {}
        self._settle()
        calls: dict[int, tuple[Any, ...]] = dict.fromkeys(range(len(self._ids)), ())
        answers = list(self._ask("state", calls, "its state", time.monotonic(), patient=True))
        for host, answer in answers:
            if host in self._lost and not complete:
                continue
            if isinstance(answer, Failure):
                raise HostError(f"{type(self).__name__}: state: {answer.reason}")
            try:
                found = self._unpack_states(answer)
            except ValueError as error:
                raise HostError(f"{type(self).__name__}: state: host {host}: {error}") from error
            states |= {i: state for i, state in found.items() if i in self._ids[host]}
        return states

    def load_state(self, states: Mapping[int, State]) -> None:
        self._by_host("states", states)
        calls = {
            host: (self._pack_states({i: states[i] for i in ids if i in states}),)
            for host, ids in enumerate(self._ids)
        }
        self._settle()
        begun = time.monotonic()
        answers = list(self._ask("load_state", calls, "its new state", begun, patient=True))
        for _, answer in answers:
            if isinstance(answer, Failure):
                raise HostError(f"{type(self).__name__}: load_state: {answer.reason}")

    def _by_host(self, what: str, workers: Iterable[int]) -> dict[int, tuple[int, ...]]:
        grouped: dict[int, list[int]] = {}
        for i in sorted(set(workers)):
            if i not in self._host_of:
                raise ValueError(
                    f"{type(self).__name__}: {what} must be among the workers "
                    f"{shown(self.workers)}, found {i}"
                )
            grouped.setdefault(self._host_of[i], []).append(i)
        return {host: tuple(ids) for host, ids in sorted(grouped.items())}

    def _ask(
        self,
        method: str,
        calls: Mapping[int, tuple[Any, ...]],
        what: str,
        begun: float,
        *,
        patient: bool = False,
    ) -> Iterator[tuple[int, Any | Failure]]:
        """Call the hosts; each of them once with its answer or why there is none.

        A busy host is not called, unless ``patient``: then as soon as it is free.
        """
        waiting: set[int] = set()
        uncalled: set[int] = set()
        for host, args in calls.items():
            if host in self._lost:
                yield host, Failure(self._lost[host])
            elif host not in self._busy:
                self._call(host, method, args, what)
                waiting.add(host)
            elif patient:
                uncalled.add(host)
            else:
                yield host, self._still_busy(host)
        while waiting or uncalled:
            left = None if self.deadline is None else begun + self.deadline - time.monotonic()
            arrived = self._receive(left)
            if arrived is None:
                break
            host, answer = arrived
            if host in waiting:
                waiting.remove(host)
                yield host, answer
            elif host in uncalled:
                uncalled.remove(host)
                if host in self._lost:
                    yield host, answer
                    continue
                self._call(host, method, calls[host], what)
                waiting.add(host)
        for host in sorted(waiting):
            late = f"late: host {host} did not answer {what} within {self.deadline} s"
            yield host, Failure(late)
        for host in sorted(uncalled):
            yield host, self._still_busy(host)

    def _settle(self) -> None:
        """Take what has arrived meanwhile: answers that were late, hosts that are there again.

        Before the deadline begins, for to build a host anew may take its time. One whose building
        has failed is built anew the next time.
        """
        if self._closed:
            raise ValueError(f"{type(self).__name__}: the transport is closed")
        while self._busy and self._receive(0.0) is not None:
            pass
        self._rebuild()
        self._readmit(0.0)

    def _await_quorum(self, what: str, asked: Mapping[int, Sequence[int]], quorum: int) -> None:
        """Where too few hosts are free for a round, wait for the busy and the coming ones.

        As long as a call may take; without it a training would skip its rounds, one a millisecond,
        before a late host has answered or a machine has started again.
        """

        def rows(hosts: Iterable[int]) -> int:
            return sum(len(asked.get(host, ())) for host in hosts)

        end = math.inf if self.deadline is None else time.monotonic() + self.deadline
        said = False
        while (left := end - time.monotonic()) > 0:
            busy, coming = {*self._busy}, self._coming()
            there = rows(asked.keys() - self._lost.keys() - busy)
            if not there < quorum <= there + rows(busy) + rows(coming):
                return
            if not said:
                log = "%s waits for hosts that are late or built anew: %d of %d rows can be had"
                _log.warning(log, what, there, quorum)
                said = True
            wait = None if left == math.inf else left
            if busy:
                self._receive(_LOOK if coming else wait)
            if coming:
                self._readmit(0.0 if busy else wait)

    def _call(self, host: int, method: str, args: tuple[Any, ...], what: str) -> None:
        try:
            # Marked before it is sent: an interrupt in between must not leave an answer that the
            # next call would take for its own.
            self._busy[host] = what
            self._submit(host, method, *args)
        except BaseException:
            self._busy.pop(host, None)
            raise

    def _still_busy(self, host: int) -> Failure:
        return Failure(f"late: host {host} is still busy with {self._busy[host]}")

    def _receive(self, timeout: float | None) -> tuple[int, Any | Failure] | None:
        arrived = self._next(None if timeout is None else max(0.0, timeout))
        if arrived is None:
            return None
        host, answer = arrived
        what = self._busy.pop(host, "a call")
        if isinstance(answer, Failure) and answer.gone:
            self._lost[host] = f"lost: host {host} died in {what}"
            lost = shown(self._ids[host])
            _log.warning("host %d died in %s, and its workers %s with it", host, what, lost)
            return host, Failure(f"lost: host {host} died in {what}: {answer.reason}", gone=True)
        return arrived
