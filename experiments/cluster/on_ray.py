"""Runs a training script on Ray: an actor a rank, wherever the cluster has room.

    python -m experiments.cluster.on_ray ddp --ranks 4 --max-restarts 1 --bad 3

The script is the one that torchrun runs. When a rank is lost all are started again, up to
``--max-restarts`` times, and ``ddp`` goes on from its last checkpoint; ``--out`` is a folder that
all machines share.
"""

from __future__ import annotations

import importlib
import os
import socket
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any, Literal, NamedTuple

import torch
import torch.distributed as dist
from cyclopts import App, Parameter

from experiments.cluster.command import join
from experiments.cluster.setting import Setting
from experiments.data import DATA_VARIABLE
from robust_agg.errors import check_count
from workers import ray_compat
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


def run(
    script: Script,
    setting: Setting,
    *,
    ranks: int = 4,
    max_restarts: int = 0,
    num_cpus: float = 1,
    num_gpus: float = 0,
    address: str | None = None,
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

    Raises:
        ImportError: Ray is not installed.
        HostError: a rank was lost once more than that, or has raised.
    """
    check_count("on_ray", "ranks", ranks, minimum=1)
    check_count("on_ray", "max_restarts", max_restarts, minimum=0)
    setting = replace(setting, out=setting.out.absolute())
    ray = ray_compat.require()
    ray_compat.connect(cpus=num_cpus * ranks, address=address)
    try:
        remote = ray.remote(_Rank).options(num_cpus=num_cpus, num_gpus=num_gpus)
        restarts = 0
        while True:
            # New processes every time: one that has lost its peers cannot meet others.
            actors = [remote.remote(sys.path, max(1, int(num_cpus))) for _ in range(ranks)]
            try:
                losses, suspects = _attempt(ray, actors, script, setting)
                return Report(losses, suspects, restarts)
            except HostError:
                if restarts == max_restarts:
                    raise
                restarts += 1
            finally:
                for actor in actors:
                    ray.kill(actor)
    finally:
        ray_compat.disconnect()


def _attempt(ray: Any, actors: Sequence[Any], script: Script, setting: Setting) -> Any:
    """What rank 0 answers when all ranks have ended well."""
    where = None
    try:
        where, port = ray.get(actors[0].address.remote())
        environment = {"MASTER_ADDR": where, "MASTER_PORT": str(port)}
        if DATA_VARIABLE in os.environ:
            environment[DATA_VARIABLE] = os.environ[DATA_VARIABLE]
        pending = [
            actor.train.remote(
                {**environment, "RANK": str(rank), "WORLD_SIZE": str(len(actors))}, script, setting
            )
            for rank, actor in enumerate(actors)
        ]
        first = pending[0]
        while pending:
            done, pending = ray.wait(pending)
            ray.get(done)
        return ray.get(first)
    except ray.exceptions.RayError as error:
        raise HostError(f"on_ray: a rank is lost: {ray_compat.reason(error)[0]}") from error


class _Rank:
    """The process of a rank; becomes an actor."""

    def __init__(self, path: Sequence[str], threads: int) -> None:
        sys.path += [each for each in path if each not in sys.path]
        torch.set_num_threads(threads)

    def address(self) -> tuple[str, int]:
        """Where the ranks can meet: this machine as Ray knows it, and a port that is free."""
        import ray

        with socket.socket() as probe:
            probe.bind(("", 0))
            return ray.util.get_node_ip_address(), probe.getsockname()[1]

    def train(
        self, environment: Mapping[str, str], script: Script, setting: Setting
    ) -> tuple[list[list[float | None]], list[str]]:
        """Be a rank of the script."""
        # An actor sees no GPU but its own.
        os.environ.update({**environment, "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"})
        setting.out.mkdir(parents=True, exist_ok=True)
        join()
        outcome = importlib.import_module(f"experiments.cluster.{script}").train(setting)
        dist.destroy_process_group()
        return outcome.losses, list(map(str, outcome.suspects))


def main() -> None:
    """The command line; ends with 1 and a line on standard error where a rank is lost."""
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
            )
        except HostError as error:
            print(error, file=sys.stderr)
            sys.exit(1)
        for step, loss in report.losses:
            print(f"step {step}: validation loss {loss}")
        for suspect in report.suspects:
            print(suspect)

    app()


if __name__ == "__main__":
    main()
