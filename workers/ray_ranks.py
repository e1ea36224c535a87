"""Ranks in Ray actors: Ray places and ends them, tensors move between them over gloo."""

from __future__ import annotations

import pickle
import sys
import time
from collections.abc import Iterable, Sequence
from types import ModuleType
from typing import Any

from robust_agg.distributed.torch_compat import TCPStore
from workers import ray_compat, ray_connection
from workers.host import HostSpec
from workers.rank_hosts import RankPool
from workers.rank_meeting import meet, open_store, reach_store
from workers.rank_serve import serve_what
from workers.transport import HostError


class RayRanks(RankPool):
    """One Ray actor per host, on the ranks of a gloo group that is theirs alone.

    As :class:`~workers.rank_hosts.RankHosts`: Ray starts the actors, with their specifications, and
    ends them; parameters, rows and states pass it by. The actors must reach this process and each
    other by TCP, at the addresses that Ray has for their nodes, and be trusted: neither gloo nor
    the store through which they meet asks who one is.

    Args:
        specs: one per host; each is sent once, when its actor starts.
        deadline: seconds a call may take; None waits for ever.
        quorum: rows without which a round does not count.
        num_cpus: CPUs that each actor reserves.
        num_gpus: GPUs, whole or a fraction, that each actor reserves; say ``device="cuda"`` in the
            specs then.
        address: as :class:`~workers.ray_hosts.RayHosts`.
        start_timeout: seconds for all actors to be placed and to build their hosts.
        by_value: as :class:`~workers.ray_hosts.RayHosts`.

    Raises:
        ImportError: Ray is not installed.
        ValueError: as :class:`~workers.pool.HostPool`.
        HostError: a host cannot be placed or built.
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
    ) -> None:
        super().__init__(specs, deadline=deadline, quorum=quorum)
        begun = time.monotonic()
        self._ray = ray_compat.require()
        ray_connection.connect(cpus=num_cpus * len(specs), address=address)
        self._actors: list[Any] = []
        self._serving: list[Any] = []
        try:
            remote = self._ray.remote(RankActor).options(
                num_cpus=num_cpus, num_gpus=num_gpus, scheduling_strategy="SPREAD"
            )
            own, size = ray_compat.node_address(), len(specs) + 1
            store: TCPStore = open_store(own, start_timeout)
            modules = tuple(by_value)
            for rank, spec in enumerate(specs, start=1):
                actor = remote.remote(sys.path)
                self._actors.append(actor)
                packed = ray_compat.pickled(spec, modules)
                given = (packed, own, store.port, rank, size, start_timeout)
                self._serving.append(actor.serve.remote(*given))
            group = meet(
                store,
                0,
                size,
                timeout=start_timeout,
                host=own,
                begun=begun,
                look=self._check_alive,
            )
            self._connect(group, start_timeout, begun)
        except BaseException:
            self.close()
            raise

    def _check_alive(self) -> None:
        ended, _ = self._ray.wait(self._serving, num_returns=1, timeout=0)
        for ref in ended:
            host = self._serving.index(ref)
            try:
                self._ray.get(ref)
            except self._ray.exceptions.RayError as error:
                said = ray_compat.reason(error)[0]
                raise HostError(
                    f"RayRanks: host {host} on rank {host + 1} did not start: {said}"
                ) from error

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        try:
            self._kill(self._actors[host] for host in {*self._busy, *self._lost})
            super().close()
        finally:
            self._kill(self._actors)
            self._actors.clear()
            ray_connection.disconnect()

    def _kill(self, actors: Iterable[Any]) -> None:
        if self._ray.is_initialized():
            for actor in actors:
                self._ray.kill(actor)


class RankActor:
    """A process for one rank; becomes an actor in :class:`RayRanks`."""

    def __init__(self, path: Sequence[str]) -> None:
        ray_compat.add_to_path(path)

    def serve(
        self, spec: bytes, host: str, port: int, rank: int, size: int, timeout: float
    ) -> None:
        """Serve the specification's host until the driver is closed."""
        store = reach_store(host, port, timeout)
        own = ray_compat.node_address()
        group = meet(store, rank, size, timeout=timeout, host=own)
        # From the driver, which Ray's processes obey anyway.
        serve_what(lambda: pickle.loads(spec), group)
