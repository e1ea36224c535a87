"""A training whose processes ``torchrun`` starts: rank 0 has the server, every other one a host.

``torchrun --nproc-per-node 4 -m experiments.torchrun``, or on several machines with what
``torchrun`` needs to know of them; each builds the same specifications from the same seed.
"""

from __future__ import annotations

import os
import sys

import torch
from torch import nn

from attacks import LabelFlip
from experiments.data import Dataset, load
from experiments.models import MLP
from experiments.partitions import Dirichlet
from robust_agg import GeometricMedian, Momentum, NearestNeighborMixing, Server, chain
from robust_agg.seeding import generator
from workers import HostSpec, LogicalWorker, RankHosts, Shard, serve
from workers.rank_meeting import LauncherError, meet_as_told

WORKERS, F, ROUNDS, SEED = 20, 4, 100, 0


def model() -> nn.Module:
    """A small network for the digits."""
    return MLP(hidden=(64,)).build((1, 8, 8), 10, generator(SEED, "model"))


def specification(data: Dataset) -> HostSpec:
    """Twenty workers, the last four with wrong labels, on a GPU of this process' own."""
    own = int(os.environ.get("LOCAL_RANK", "0")) % max(1, torch.cuda.device_count())
    train = data.train
    shards = Dirichlet(alpha=1.0)(train.targets, WORKERS, generator(SEED, "partition"))
    flip = LabelFlip(num_classes=data.num_classes)
    return HostSpec(
        workers=tuple(
            LogicalWorker(
                i,
                Shard(train.inputs[chosen], train.targets[chosen]),
                flip if i >= WORKERS - F else None,
            )
            for i, chosen in enumerate(shards)
        ),
        model=model,
        loss=nn.functional.cross_entropy,
        seed=SEED,
        batch_size=32,
        estimator=Momentum(beta=0.9),
        device=f"cuda:{own}" if torch.cuda.is_available() else "cpu",
    )


def main() -> None:
    """Serve, or train and print the accuracy, as this process' rank says.

    Ends with 2 and a line on standard error where no launcher has told it its rank.
    """
    try:
        group = meet_as_told()
    except LauncherError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
    if group.size() < 2:
        sys.exit("torchrun: WORLD_SIZE must be at least 2, one rank for the server, found 1")
    data = load("digits")
    specs = specification(data).split(group.size() - 1)
    if group.rank() > 0:
        serve(specs[group.rank() - 1], group)
        return
    network = model()
    server = Server(
        network,
        torch.optim.SGD(network.parameters(), lr=1.0),
        chain(NearestNeighborMixing(f=F), GeometricMedian()),
        f=F,
    )
    with RankHosts(specs, group, deadline=60.0) as hosts:
        for number in range(ROUNDS):
            found = hosts.collect(number, server.parameters())
            server.step(found.updates, senders=found.asked, refused=found.refused)
    with torch.inference_mode():
        labels = server.model(data.test.inputs.to(server.device)).argmax(dim=1).cpu()
    accuracy = (labels == data.test.targets).double().mean()
    print(f"{len(specs)} hosts, {ROUNDS} rounds, {F} of {WORKERS} liars: accuracy {accuracy:.1%}")


if __name__ == "__main__":
    main()
