"""The server in a Ray actor: placed where a GPU is, when the driver has none."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from robust_agg import (
    ConstraintError,
    Ledger,
    Record,
    Rejection,
    SearchLimitError,
    Server,
    TooManyRejectedError,
    Update,
)
from robust_agg.span import Geometry
from workers import ray_compat, ray_connection
from workers.transport import HostError


class RayServer:
    """A :class:`robust_agg.Server` in an actor of its own, with the same methods.

    The ledger stays with the driver: a record comes back with every step and is written here. What
    passes between driver and server is pickled by Ray, which trusts the processes of its cluster;
    the workers' messages were decoded and checked before.

    Args:
        build: makes the server, in the actor; its ``ledger`` must be None.
        ledger: one line a round, in the driver.
        num_gpus: GPUs, whole or a fraction, that the actor reserves.
        num_cpus: CPUs that it reserves.
        threads: of torch, in the actor; those of this process if None, so that sums come out as
            they would here.
        address: as :class:`~workers.ray_hosts.RayHosts`.
        start_timeout: seconds for the actor to be placed and to build its server.

    Raises:
        ImportError: Ray is not installed.
        HostError: the server cannot be placed or built; later, its actor has died.
    """

    def __init__(
        self,
        build: Callable[[], Server],
        *,
        ledger: Ledger | None = None,
        num_gpus: float = 0,
        num_cpus: float = 1,
        threads: int | None = None,
        address: str | None = None,
        start_timeout: float = 120.0,
    ) -> None:
        self._ray = ray_compat.require()
        self._closed = False
        ray_connection.connect(cpus=num_cpus, address=address)
        self._ledger = ledger
        self._actor: Any = None
        try:
            remote = self._ray.remote(_ServerActor)
            options = remote.options(num_cpus=num_cpus, num_gpus=num_gpus)
            self._actor = options.remote(build, threads or torch.get_num_threads())
            ready = {"the server": self._actor.facts.remote()}
            ((self.f, self.round),) = ray_compat.await_start("RayServer", ready, start_timeout)
        except BaseException:
            self.close()
            raise

    def parameters(self) -> Tensor:
        found: Tensor = self._call("parameters")
        return found

    @property
    def estimate(self) -> Tensor | None:
        found: Tensor | None = self._call("estimate")
        return found

    @property
    def accepted(self) -> dict[int, int]:
        found: dict[int, int] = self._call("accepted")
        return found

    def read(self, updates: Iterable[Update]) -> list[Update]:
        found: list[Update] = self._call("read", list(updates))
        return found

    def write(self, updates: Sequence[Update]) -> list[Update]:
        found: list[Update] = self._call("write", list(updates))
        return found

    def aggregate(self, rows: Tensor) -> Tensor:
        found: Tensor = self._call("aggregate", rows.cpu())
        return found

    def weights_from(self, geometry: Geometry) -> Tensor | None:
        found: Tensor | None = self._call("weights_from", geometry)
        return found

    def step(
        self,
        updates: Sequence[Update],
        *,
        senders: Iterable[int] | None = None,
        refused: Iterable[Rejection] = (),
    ) -> Record:
        record: Record
        asked = None if senders is None else list(senders)
        record, error = self._call("step", list(updates), asked, tuple(refused))
        self.round = record.round + 1
        if self._ledger is not None:
            self._ledger.append(record)
        if error is not None:
            raise error
        return record

    def state_dict(self) -> dict[str, Any]:
        tree: dict[str, Any] = self._call("state_dict")
        return tree

    def load_state_dict(self, tree: dict[str, Any]) -> None:
        self._call("load_state_dict", tree)
        self.f, self.round = self._call("facts")

    def close(self) -> None:
        """Stop the actor; closing twice is nothing."""
        if self._closed:
            return
        self._closed = True
        try:
            if self._actor is not None and self._ray.is_initialized():
                self._ray.kill(self._actor)
        finally:
            ray_connection.disconnect()

    def _call(self, method: str, *args: Any) -> Any:
        try:
            return self._ray.get(getattr(self._actor, method).remote(*args))
        except self._ray.exceptions.RayTaskError as error:
            # The server's own error, as a server in this process would have raised it.
            raise error.cause from None
        except self._ray.exceptions.RayError as error:
            raise HostError(
                f"RayServer: the server is lost: {ray_compat.reason(error)[0]}"
            ) from error


class _LastLine(Ledger):
    """Keeps the record of the round in memory: the file is the driver's."""

    def __init__(self) -> None:
        super().__init__(os.devnull)

    def append(self, record: Record) -> None:
        self.record = record


class _ServerActor:
    """What runs in the actor: tensors leave it on the CPU."""

    def __init__(self, build: Callable[[], Server], threads: int) -> None:
        torch.set_num_threads(threads)
        self._server = build()
        self._line = self._server.ledger = _LastLine()

    def facts(self) -> tuple[int, int]:
        return self._server.f, self._server.round

    def parameters(self) -> Tensor:
        return self._server.parameters()

    def estimate(self) -> Tensor | None:
        found = self._server.estimate
        return None if found is None else found.cpu()

    def accepted(self) -> dict[int, int]:
        return self._server.accepted

    def read(self, updates: list[Update]) -> list[Update]:
        return self._server.read(updates)

    def write(self, updates: list[Update]) -> list[Update]:
        return self._server.write(updates)

    def aggregate(self, rows: Tensor) -> Tensor:
        return self._server.aggregate(rows).cpu()

    def weights_from(self, geometry: Geometry) -> Tensor | None:
        return self._server.weights_from(geometry)

    def step(
        self, updates: list[Update], senders: list[int] | None, refused: tuple[Rejection, ...]
    ) -> tuple[Record, Exception | None]:
        """The round's line and, with ``on_failure="raise"``, why it was skipped."""
        try:
            self._server.step(updates, senders=senders, refused=refused)
        except (ConstraintError, SearchLimitError, TooManyRejectedError) as error:
            return self._line.record, error
        return self._line.record, None

    def state_dict(self) -> dict[str, Any]:
        tree: dict[str, Any] = _on_cpu(self._server.state_dict())
        return tree

    def load_state_dict(self, tree: dict[str, Any]) -> None:
        self._server.load_state_dict(tree)


def _on_cpu(tree: Any) -> Any:
    if isinstance(tree, Tensor):
        return tree.cpu()
    if isinstance(tree, dict):
        return {key: _on_cpu(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return type(tree)(_on_cpu(value) for value in tree)
    return tree
