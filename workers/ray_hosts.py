"""Hosts as Ray actors: on this machine or a cluster, dead and late ones included."""

from __future__ import annotations

import logging
import math
import pickle
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from robust_agg.errors import check_count
from robust_agg.messages import MessageError, Schema, Update
from robust_agg.types import State
from workers import ray_compat, ray_connection
from workers.blocks import (
    most_bytes,
    open_rows,
    pack_parameters,
    pack_states,
    unpack_parameters,
    unpack_states,
)
from workers.host import HostSpec
from workers.pool import Failure, HostPool

_log = logging.getLogger(__name__)


class RayHosts(HostPool):
    """One Ray actor per host.

    Parameters are put into the object store once a round. Rows come back as the bytes of
    ``robust_agg.messages``, states as those of safetensors. That guards against wrong numbers and
    broken messages, not against hostile hosts: Ray unpickles whatever an actor answers, so every
    process of the cluster is trusted with code, and the rows alone are not.

    With ``restarts`` a host that died, with its process or its machine, is built anew in another
    actor as soon as the cluster has room for it; until then its workers are lost, and then their
    states begin anew. A machine that was cut off comes back as a new node, whose ``ray start`` is
    for whoever runs the cluster to repeat.

    Ray's connection is shared: it is made here if there is none, and closed with the last transport
    that uses it unless it was there before.

    Args:
        specs: one per host; each is sent once, when its actor starts.
        deadline: seconds a call may take; None waits for ever.
        quorum: rows without which a round does not count.
        num_cpus: CPUs that each actor reserves; torch uses ``spec.threads`` threads all the same.
        num_gpus: GPUs, whole or a fraction, that each actor reserves; say ``device="cuda"`` in the
            specs then.
        address: the cluster; ``RAY_ADDRESS`` or a new cluster of this machine alone if None.
        start_timeout: seconds for all actors to be placed and to build their hosts.
        by_value: modules whose classes and functions travel with the specs, for code that other
            machines have not installed: a user's attack, say. The driver's ``sys.path`` is tried
            by the actors, which is enough on one machine.
        restarts: how often a host that died is built anew before it has sent rows once more.

    Raises:
        ImportError: Ray is not installed.
        ValueError: as :class:`~workers.pool.HostPool`, or ``restarts`` < 0.
        HostError: the cluster is not joined, or a host cannot be placed or built; a run does not
            begin with fewer.
    """

    def __init__(
        self,
        specs: Sequence[HostSpec],
        *,
        deadline: float | None = None,
        quorum: int = 1,
        num_cpus: float = 1,
        num_gpus: float = 0,
        address: str | None = None,
        start_timeout: float = 120.0,
        by_value: Iterable[ModuleType] = (),
        restarts: int = 0,
    ) -> None:
        super().__init__(specs, deadline=deadline, quorum=quorum)
        check_count("RayHosts", "restarts", restarts, minimum=0)
        self._specs, self._by_value = tuple(specs), tuple(by_value)
        self._restarts = restarts
        self._left = [restarts] * len(specs)
        self._building: dict[Any, int] = {}
        self._ray = ray_compat.require()
        ray_connection.connect(cpus=num_cpus * len(specs), address=address)
        self._actors: list[Any] = []
        self._pending: dict[Any, tuple[int, str, float]] = {}
        try:
            self._remote = self._ray.remote(HostActor).options(
                num_cpus=num_cpus, num_gpus=num_gpus, scheduling_strategy="SPREAD"
            )
            for host in range(len(specs)):  # one by one: those that are there are closed
                self._actors.append(self._started(host))
            ready = {f"host {i}": actor.ready.remote() for i, actor in enumerate(self._actors)}
            self._where = ray_compat.await_start("RayHosts", ready, start_timeout)
            if restarts == 0:
                self._specs = ()  # all the workers' data
        except BaseException:
            self.close()
            raise

    def _started(self, host: int) -> Any:
        packed = ray_compat.pickled(self._specs[host], self._by_value)
        return self._remote.remote(packed, sys.path)

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        try:
            if self._ray.is_initialized():
                for actor in self._actors:
                    self._ray.kill(actor)
        finally:
            self._actors.clear()
            self._pending.clear()
            self._building.clear()
            ray_connection.disconnect()

    def _publish(self, round: int, parameters: Tensor) -> Any:
        return self._ray.put(pack_parameters(round, parameters))

    def _submit(self, host: int, method: str, *args: Any) -> None:
        most = math.inf
        if method == "compute":
            most = most_bytes(len(self._ids[host]), self._row_bytes)
        ref = getattr(self._actors[host], method).remote(*args)
        self._pending[ref] = host, method, most

    def _next(self, timeout: float | None) -> tuple[int, Any | Failure] | None:
        done, _ = self._ray.wait(list(self._pending), num_returns=1, timeout=timeout)
        if not done:
            return None
        host, method, most = self._pending[done[0]]
        answer = self._fetch(done[0], host, most)
        # Last, so that whatever interrupts the fetching leaves the answer to be fetched.
        del self._pending[done[0]]
        if method == "compute" and not isinstance(answer, Failure):
            self._left[host] = self._restarts
        return host, answer

    def _coming(self) -> set[int]:
        return {*self._building.values()}

    def _readmit(self, timeout: float | None) -> None:
        building = list(self._building)
        if building:
            self._ray.wait(building, num_returns=1, timeout=timeout)
            building, _ = self._ray.wait(building, num_returns=len(building), timeout=0)
        for ref in building:
            host = self._building[ref]
            try:
                self._where[host] = self._ray.get(ref)
                self._lost.pop(host, None)
                _log.warning("host %d is built anew on %s", host, self._where[host])
            except self._ray.exceptions.RayError as error:
                self._ray.kill(self._actors[host])  # one that is only cut off once more, too
                self._fails(host, error)
            del self._building[ref]

    def _rebuild(self) -> None:
        """Ask Ray for other actors, which it places when it can."""
        for host in self._lost.keys() - self._coming():
            if self._left[host] > 0:
                self._left[host] -= 1
                try:
                    actor = self._started(host)
                    self._building[actor.ready.remote()] = host
                    self._actors[host] = actor
                except self._ray.exceptions.RayError as error:
                    self._fails(host, error)

    def _fails(self, host: int, error: Exception) -> None:
        """For the ledger, of a host that is lost and does not come back."""
        _log.debug("host %d is not built anew", host, exc_info=error)
        self._lost[host] = f"lost: host {host} is not built anew: {ray_compat.last_words(error)}"

    def _fetch(self, ref: Any, host: int, most: float) -> Any | Failure:
        found = ray_compat.object_bytes(ref)
        if found > most:
            return Failure(f"oversize: host {host} answers {found} bytes, at most {most} expected")
        try:
            return self._ray.get(ref)
        except self._ray.exceptions.RayError as error:
            _log.debug("host %d failed", host, exc_info=True)
            reason, gone = ray_compat.reason(error)
            if gone:
                return Failure(f"on {self._where[host]}: {reason}", gone=True)
            return Failure(f"failed: host {host}: {reason}")

    def _open(self, reply: Any, schema: Schema) -> Iterator[Update | MessageError]:
        return open_rows(reply, schema)

    def _pack_states(self, states: Mapping[int, State]) -> bytes:
        return pack_states(states)

    def _unpack_states(self, reply: Any) -> Mapping[int, State]:
        return unpack_states(reply)


class HostActor:
    """A host in a process of its own; becomes an actor in :class:`RayHosts`."""

    def __init__(self, spec: bytes, path: Sequence[str]) -> None:
        ray_compat.add_to_path(path)
        # From the driver, which Ray's processes obey anyway.
        unpacked: HostSpec = pickle.loads(spec)
        torch.set_num_threads(unpacked.threads)
        self._host = unpacked.build()

    def ready(self) -> str:
        """The address of its node; answers once the host is built."""
        return ray_compat.node_address()

    def compute(
        self, round: int, parameters: bytes, active: Sequence[int], accepted: Mapping[int, int]
    ) -> bytes:
        return self._host.reply(round, unpack_parameters(parameters).row, active, accepted)

    def state(self) -> bytes:
        return pack_states(self._host.state())

    def load_state(self, states: bytes) -> None:
        self._host.load_state(unpack_states(states))
