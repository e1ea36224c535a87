"""Runs a training script on Ray: an actor a rank, wherever the cluster has room.

    python -m experiments.cluster.on_ray ddp --ranks 4 --max-restarts 1 --bad 3

The script is the one that torchrun runs. When a rank is lost all are started again, up to
``--max-restarts`` times, and ``ddp`` goes on from its last checkpoint; ``--out`` is a folder that
all machines share.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Any, Literal, NamedTuple

import torch
import torch.distributed as dist
from cyclopts import App, Parameter

from experiments.cluster.command import START, called, is_loss, join
from experiments.cluster.outcome import in_a_line
from experiments.cluster.setting import Setting
from experiments.data import DATA_VARIABLE
from robust_agg.errors import check_count, check_positive
from workers import ray_compat, ray_connection
from workers.rank_meeting import open_store, reach_store
from workers.transport import HostError

Script = Literal["ddp", "fsdp"]


class Report(NamedTuple):
    """What rank 0 has to show.

    Attributes:
        losses: as :class:`~experiments.cluster.outcome.Outcome` has them.
        suspects: the ranks that stood out, in words.
        restarts: how often all ranks were started again.
    """

    losses: list[list[float | None]]
    suspects: list[str]
    restarts: int

    def __str__(self) -> str:
        """The lines that the script prints under torchrun."""
        return "\n".join([*(in_a_line(*pair) for pair in self.losses), *self.suspects])


def run(
    script: Script,
    setting: Setting,
    *,
    ranks: int = 4,
    max_restarts: int = 0,
    num_cpus: float = 1,
    num_gpus: float = 0,
    address: str | None = None,
    start_timeout: float = 120.0,
) -> Report:
    """Train on Ray actors.

    Args:
        script: which.
        setting: its options.
        ranks: how many.
        max_restarts: how often to start again after the loss of a rank.
        num_cpus: CPUs that a rank reserves.
        num_gpus: GPUs that it reserves; with 1 ranks meet over nccl.
        address: the cluster; ``RAY_ADDRESS`` or a new cluster of this machine alone if None.
        start_timeout: seconds for all actors to be placed.

    Raises:
        ImportError: Ray is not installed.
        HostError: a rank cannot be placed, or was lost once more than that.
        Exception: what a rank raises that a new start would not help against, as it raised it.
    """
    check_count("on_ray", "ranks", ranks, minimum=1)
    check_count("on_ray", "max_restarts", max_restarts, minimum=0)
    check_positive("on_ray", "start_timeout", start_timeout)
    setting.check_ranks(ranks)
    setting = replace(setting, out=setting.out.absolute())
    ray = ray_compat.require()
    ray_connection.connect(cpus=num_cpus * ranks, address=address)
    try:
        remote = ray.remote(_Rank).options(num_cpus=num_cpus, num_gpus=num_gpus)
        restarts = 0
        while True:
            # New processes every time: one that has lost its peers cannot meet others.
            actors = [remote.remote(sys.path, max(1, int(num_cpus))) for _ in range(ranks)]
            try:
                ready = {f"rank {i}": actor.ready.remote() for i, actor in enumerate(actors)}
                ray_compat.await_start("on_ray", ready, start_timeout)
                losses, suspects = _attempt(ray, actors, script, setting)
                return Report(losses, suspects, restarts)
            except _LossError:
                if restarts == max_restarts:
                    raise
                restarts += 1
            finally:
                for actor in actors:
                    ray.kill(actor)
    finally:
        ray_connection.disconnect()


class _LossError(HostError):
    """A rank is lost; another attempt may end well."""


def _attempt(ray: Any, actors: Sequence[Any], script: Script, setting: Setting) -> Any:
    """What rank 0 answers when all ranks have ended well."""
    data = os.environ.get(DATA_VARIABLE)
    try:
        store = ray.get(actors[0].open.remote())
        pending = [
            actor.train.remote(store, rank, len(actors), data, script, setting)
            for rank, actor in enumerate(actors)
        ]
        first = pending[0]
        while pending:
            done, pending = ray.wait(pending)
            ray.get(done)
        return ray.get(first)
    except ray.exceptions.RayError as error:
        raised = error.cause if isinstance(error, ray.exceptions.RayTaskError) else None
        if raised is not None and not is_loss(raised):
            raise raised from None
        raise _LossError(f"on_ray: a rank is lost: {ray_compat.reason(error)[0]}") from error


class _Rank:
    """The process of a rank; becomes an actor."""

    def __init__(self, path: Sequence[str], threads: int) -> None:
        ray_compat.add_to_path(path)
        torch.set_num_threads(threads)

    def ready(self) -> None:
        """Nothing; answers once the actor is placed."""

    def open(self) -> tuple[str, int]:
        """Where the ranks meet: a store that this one holds."""
        own = ray_compat.node_address()
        self._store = open_store(own, START)
        return own, self._store.port

    def train(
        self,
        store: tuple[str, int],
        rank: int,
        ranks: int,
        data: str | None,
        script: Script,
        setting: Setting,
    ) -> tuple[list[list[float | None]], list[str]]:
        """Be a rank of the script."""
        # An actor sees no GPU but its own.
        os.environ.update({"LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"})
        if data is not None:
            os.environ[DATA_VARIABLE] = data
        setting.out.mkdir(parents=True, exist_ok=True)
        join(reach_store(*store, START), rank, ranks, timeout=setting.timeout)
        outcome = importlib.import_module(f"experiments.cluster.{script}").train(setting)
        dist.destroy_process_group()
        return outcome.losses, list(map(str, outcome.suspects))


def main() -> None:
    """The command line; ends with 1 and a line on standard error where a rank is lost, and with 2
    and a line where what is asked for cannot be."""
    app = App(help=(__doc__ or "").partition("\n")[0])

    @app.default
    def train(
        script: Script,
        setting: Annotated[Setting | None, Parameter(name="*")] = None,
        *,
        ranks: int = 4,
        max_restarts: int = 0,
        num_cpus: float = 1,
        num_gpus: float = 0,
        address: str | None = None,
        start_timeout: float = 120.0,
    ) -> None:
        try:
            report = run(
                script,
                Setting() if setting is None else setting,
                ranks=ranks,
                max_restarts=max_restarts,
                num_cpus=num_cpus,
                num_gpus=num_gpus,
                address=address,
                start_timeout=start_timeout,
            )
        except HostError as error:
            print(error, file=sys.stderr)
            sys.exit(1)
        print(report)

    called(app)


if __name__ == "__main__":
    main()
