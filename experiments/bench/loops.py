"""One federated training as whole loops: this library's, and ByzFL's own clients and server."""

from __future__ import annotations

import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from attacks import Adversary, Identities, SignFlip
from experiments.bench.peers import part
from experiments.data import Split
from experiments.simulation import Simulation
from robust_agg import (
    Aggregator,
    GeometricMedian,
    Momentum,
    NearestNeighborMixing,
    Server,
    TrimmedMean,
    chain,
)
from workers.host import HostSpec
from workers.inline import InlineHosts
from workers.worker import LogicalWorker, Shard


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What both train; the honest rows carry a worker's momentum, the others send minus their mean.

    Attributes:
        model: ByzFL's name of it.
        rule: a name in ``RULES``.
        hosts: that compute our gradients side by side, and share torch's threads.
    """

    model: str
    rule: str
    honest: int = 10
    f: int = 2
    batch_size: int = 25
    lr: float = 0.1
    momentum: float = 0.9
    seed: int = 0
    hosts: int = 1

    def shards(self, train: Split) -> list[Split]:
        """A share of the samples for each honest worker; they are in no order."""
        inputs, targets = train.inputs.chunk(self.honest), train.targets.chunk(self.honest)
        return [Split(x, y) for x, y in zip(inputs, targets, strict=True)]


class Loop(ABC):
    """A training that goes round by round."""

    @abstractmethod
    def round(self) -> None:
        """Gradients, attack, aggregation, step."""

    @abstractmethod
    def logits(self, inputs: Tensor) -> Tensor:
        """Of the model as it is now, up to a constant for each sample."""

    @abstractmethod
    def close(self) -> None:
        """Free what the loop holds."""


def _mlp() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 100), nn.ReLU(), nn.Linear(100, 10))


def _cnn() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(1, 20, 5), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(20, 50, 5), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(800, 500), nn.ReLU(), nn.Linear(500, 10)),
    )


MODELS: Mapping[str, Callable[[], nn.Module]] = {"fc_mnist": _mlp, "cnn_mnist": _cnn}
"""The layers of ByzFL's models of these names; its log-softmax is in our loss."""

RULES: Mapping[str, Callable[[int], Aggregator]] = {
    "NNM + TrimmedMean": lambda f: chain(NearestNeighborMixing(f=f), TrimmedMean(f=f)),
    "GeometricMedian": lambda f: GeometricMedian(),
}
_BYZFL_RULES: Mapping[str, tuple[str, list[str]]] = {
    "NNM + TrimmedMean": ("TrMean", ["NNM"]),
    "GeometricMedian": ("GeometricMedian", []),
}


class OurLoop(Loop):
    """As ``robust-agg run --transport inline`` does it; without evaluation, checkpoint, ledger."""

    def __init__(self, setting: Setting, train: Split) -> None:
        build = MODELS[setting.model]
        n = setting.honest + setting.f
        shards = setting.shards(train)
        # The Byzantine ones have data as well, but are not asked to compute: nor does the peer's.
        workers = [
            LogicalWorker(id=i, shard=Shard(split.inputs, split.targets))
            for i, split in enumerate([*shards, *shards[: setting.f]])
        ]
        # Dealt out in turn, so that each host has as many that do.
        dealt = sorted(workers, key=lambda worker: worker.id % setting.hosts)
        spec = HostSpec(
            workers=tuple(dealt),
            model=build,
            loss=nn.functional.cross_entropy,
            pure=True,
            seed=setting.seed,
            batch_size=setting.batch_size,
            threads=max(1, torch.get_num_threads() // setting.hosts),
            estimator=Momentum(beta=setting.momentum),
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(setting.seed)
            self._model = build()
        byzantine = Identities(workers=n, count=setting.f)
        self._folder = tempfile.TemporaryDirectory()
        self._hosts = InlineHosts(spec.split(setting.hosts))
        self._loop = Simulation(
            server=Server(
                self._model,
                torch.optim.SGD(self._model.parameters(), lr=setting.lr),
                RULES[setting.rule](setting.f),
                f=setting.f,
                device="cpu",
            ),
            transport=self._hosts,
            adversary=Adversary(attack=SignFlip(of="mean"), byzantine=byzantine.at(0)),
            byzantine=byzantine,
            model=self._model,
            evaluated=train,
            folder=Path(self._folder.name),
            seed=setting.seed,
        )

    def round(self) -> None:
        _, record = self._loop.one_round()
        assert record.skipped is None, record.skipped

    def logits(self, inputs: Tensor) -> Tensor:
        found: Tensor = self._model(inputs)
        return found

    def close(self) -> None:
        self._hosts.close()
        self._folder.cleanup()


class ByzFLLoop(Loop):
    """ByzFL's clients and server, called as its own training function calls them.

    Raises:
        MissingPeerError: it is not installed.
    """

    def __init__(self, setting: Setting, train: Split) -> None:
        framework: Any = part("byzfl", "fed_framework")
        rule, mixings = _BYZFL_RULES[setting.rule]
        f = {"f": setting.f}
        of_rule = {"name": rule, "parameters": f if mixings else {}}
        of_model = {
            "model_name": setting.model,
            "device": "cpu",
            "optimizer_name": "SGD",
            "learning_rate": setting.lr,
            "weight_decay": 0.0,
            "milestones": [],
            "learning_rate_decay": 1.0,
        }

        def loader(split: Split) -> Any:
            data = torch.utils.data.TensorDataset(split.inputs, split.targets)
            return torch.utils.data.DataLoader(data, batch_size=setting.batch_size, shuffle=True)

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(setting.seed)
            self._server = framework.Server(
                {
                    **of_model,
                    "test_loader": loader(train),
                    "aggregator_info": of_rule,
                    "pre_agg_list": [{"name": name, "parameters": f} for name in mixings],
                }
            )
            self._clients = [
                framework.Client(
                    {
                        **of_model,
                        "loss_name": "NLLLoss",
                        "LabelFlipping": False,
                        "nb_labels": 10,
                        "momentum": setting.momentum,
                        "training_dataloader": loader(split),
                        "store_per_client_metrics": False,
                    }
                )
                for split in setting.shards(train)
            ]
            self._attacker = framework.ByzantineClient(
                {"name": "SignFlipping", "f": setting.f, "parameters": {}}
            )
        self._publish()

    def round(self) -> None:
        for client in self._clients:
            client.compute_gradients()
        honest = [client.get_flat_gradients_with_momentum() for client in self._clients]
        self._server.update_model_with_gradients([*honest, *self._attacker.apply_attack(honest)])
        self._publish()

    def logits(self, inputs: Tensor) -> Tensor:
        found: Tensor = self._server.model(inputs)
        return found

    def close(self) -> None:
        """There is nothing that does not go by itself."""

    def _publish(self) -> None:
        weights = self._server.get_dict_parameters()
        for client in self._clients:
            client.set_model_state(weights)
