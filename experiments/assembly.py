"""From a configuration to the objects it stands for: model, server, hosts, adversary, training."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from attacks import Adversary, DataAttack, Fault, FaultyWorkers, Identities
from experiments import specs
from experiments.config import ConfigError, RunConfig
from experiments.data import Dataset, Split
from experiments.simulation import LEDGER, Aggregating, Simulation
from robust_agg import Aggregator, Estimator, Ledger, Server
from robust_agg.codecs import Codec
from robust_agg.seeding import derive, generator
from workers import ray_compat, ray_connection
from workers.host import HostSpec, LocalSGD
from workers.inline import InlineHosts
from workers.local_ranks import LocalRanks
from workers.ray_hosts import RayHosts
from workers.ray_server import RayServer
from workers.transport import Transport
from workers.worker import LogicalWorker, Shard

_RESTARTS = 3
# Of a host on Ray that dies again before it has answered: by then it is not the machine's fault.


@dataclass(frozen=True)
class ModelFactory:
    """Builds the run's model, with the same initial parameters wherever it is called."""

    model: str
    seed: int
    input_shape: tuple[int, ...]
    num_classes: int

    @classmethod
    def of(cls, config: RunConfig, data: Dataset) -> ModelFactory:
        return cls(config.model, config.seed, data.input_shape, data.num_classes)

    def __call__(self) -> nn.Module:
        """The model.

        Raises:
            ConfigError: a size is too large for torch or for the memory.
        """
        spec = specs.parse_model(self.model)
        try:
            return spec.build(self.input_shape, self.num_classes, generator(self.seed, "model"))
        except (RuntimeError, TypeError) as error:
            raise ConfigError(f"model: {self.model} cannot be built: {error}") from error


@dataclass(frozen=True)
class ServerFactory:
    """Builds the server of one training, in this process or in an actor."""

    model: ModelFactory
    rule: Aggregator | Estimator
    f: int
    lr: float
    quorum: int
    device: str | None
    codec: Codec | None = None
    ledger: Ledger | None = None
    weight_decay: float = 0.0

    def __call__(self) -> Server:
        network = self.model()
        weights = network.parameters()
        return Server(
            network,
            torch.optim.SGD(weights, lr=self.lr, weight_decay=self.weight_decay),
            self.rule,
            f=self.f,
            seed=derive(self.model.seed, "server"),
            device=self.device,
            ledger=self.ledger,
            quorum=self.quorum,
            codec=self.codec,
        )


@contextmanager
def server(
    config: RunConfig, defence: str, model: ModelFactory, ledger: Ledger
) -> Iterator[Aggregating]:
    """The server of one training; its ledger is this process' file wherever it lives."""
    on_driver = config.server == "driver"
    build = ServerFactory(
        model=model,
        rule=config.defence(defence),
        f=config.f,
        lr=config.lr,
        quorum=config.quorum,
        device=None if config.device == "auto" else config.device,
        codec=config.row_codec(),
        ledger=ledger if on_driver else None,
        weight_decay=config.weight_decay,
    )
    if on_driver:
        yield build()
        return
    gpus = 1.0 if config.device.startswith("cuda") else 0.0
    remote = RayServer(build, ledger=ledger, num_gpus=gpus)
    try:
        yield remote
    finally:
        remote.close()


@contextmanager
def cluster(config: RunConfig) -> Iterator[None]:
    """One connection to Ray, where it is needed, for all that is opened and closed meanwhile."""
    if "ray" not in (config.transport, config.server):
        yield
        return
    ray_connection.connect(cpus=config.hosts + 1)
    try:
        with ray_compat.hushed():  # of hosts that die the transport tells
            yield
    finally:
        ray_connection.disconnect()


def attacks_data(config: RunConfig) -> bool:
    """Whether Byzantine workers compute honestly on bad data."""
    return isinstance(config.attack_on(num_classes=10), DataAttack) and config.byzantine > 0


def transport(config: RunConfig, data: Dataset, *, attacked: bool) -> Transport:
    """The workers on their data; bad data where the attack is one on data."""
    attack = config.attack_on(num_classes=data.num_classes)
    bad = frozenset[int]()
    if attacked and isinstance(attack, DataAttack):
        bad = byzantine(config).at(0)  # and in every other round: the configuration sees to it
    shards = specs.parse_partition(config.partition)(
        data.train.targets, config.workers, generator(config.seed, "partition")
    )
    logical = tuple(
        LogicalWorker(
            id=i,
            shard=Shard(data.train.inputs[chosen], data.train.targets[chosen]),
            data_attack=attack if i in bad and isinstance(attack, DataAttack) else None,
        )
        for i, chosen in enumerate(shards)
    )
    spec = HostSpec(
        workers=logical,
        model=ModelFactory.of(config, data),
        loss=nn.functional.cross_entropy,
        pure=True,
        seed=derive(config.seed, "workers"),
        batch_size=config.batch_size,
        local=None
        if config.local_steps == 1
        else LocalSGD(steps=config.local_steps, lr=config.local_lr),
        estimator=config.worker_estimator(),
        codec=config.row_codec(),
        device="cuda" if config.num_gpus > 0 else "cpu",
        threads=config.threads,
    )
    hosts = spec.split(config.hosts)
    if config.transport == "inline":
        return InlineHosts(hosts, deadline=config.deadline, quorum=config.quorum)
    if config.transport == "ranks":
        file = specs.own_file(config.attack)[0] if bad else None
        return LocalRanks(
            hosts,
            deadline=config.deadline,
            quorum=config.quorum,
            prepare=None if file is None else partial(specs.load_own, file.resolve()),
        )
    return RayHosts(
        hosts,
        deadline=config.deadline,
        # With fewer the server skips a round: better to wait for a machine that starts again.
        quorum=max(config.quorum, 2 * config.f + 1),
        num_gpus=config.num_gpus,
        by_value=specs.own_modules(attack),
        restarts=_RESTARTS,
    )


def adversary(config: RunConfig, data: Dataset) -> Adversary | FaultyWorkers | None:
    """Who replaces rows or loses messages; None where nobody does, or the attack is one on data."""
    attack = config.attack_on(num_classes=data.num_classes)
    bad = byzantine(config).at(0)
    if not bad or isinstance(attack, DataAttack):
        return None
    if isinstance(attack, Fault):
        return FaultyWorkers(fault=attack, byzantine=bad)
    return Adversary(attack=attack, byzantine=bad)


def byzantine(config: RunConfig, *, attacked: bool = True) -> Identities:
    """Which workers are Byzantine, round by round; nobody where there is no attack."""
    return Identities(
        workers=config.workers,
        count=config.byzantine if attacked else 0,
        choice=config.identities,
        seed=config.seed,
    )


def goal(config: RunConfig, data: Dataset, evaluated: Split) -> tuple[Tensor, Tensor] | None:
    """What a model is asked to measure the attack's success, where it has a goal of its own."""
    attack = config.attack_on(num_classes=data.num_classes)
    if not isinstance(attack, DataAttack):
        return None
    try:
        return attack.goal(evaluated.inputs, evaluated.targets)
    except ValueError as error:
        raise ConfigError(f"attack: {error}") from error


@contextmanager
def training(
    config: RunConfig,
    defence: str,
    data: Dataset,
    workers: Transport,
    folder: Path,
    *,
    attacked: bool = True,
) -> Iterator[Simulation]:
    """One training of a configuration, at its beginning: a server for workers that are there.

    Args:
        config: what is trained.
        defence: one of the configuration's.
        data: the workers' and the evaluation's.
        workers: of :func:`transport`; as they are when this ends.
        folder: where ledger, metrics and checkpoint are.
        attacked: whether the Byzantine workers do what the attack says.

    Raises:
        ConfigError: the attack has a goal that these data do not allow.
    """
    evaluated: Split = getattr(data, config.split)
    model = ModelFactory.of(config, data)
    with server(config, defence, model, Ledger(folder / LEDGER)) as own:
        yield Simulation(
            server=own,
            transport=workers,
            adversary=adversary(config, data) if attacked else None,
            byzantine=byzantine(config, attacked=attacked),
            model=model(),
            evaluated=evaluated,
            folder=folder,
            seed=config.seed,
            sample=config.sample,
            goal=goal(config, data, evaluated),
            codec=config.row_codec(),
            delta=config.delta,
        )
