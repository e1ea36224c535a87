"""``robust-agg bench transport``: what a round of many workers takes, here and on Ray."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, ClassVar, Self

import torch
from torch import nn

from experiments.bench.clock import peak_extra
from experiments.bench.images import images
from experiments.data import Split
from experiments.models import MLP
from experiments.studies.canvas import new_figure
from experiments.studies.study import Claim, Piece, Preset, Row, Study, Table, Tick
from robust_agg import GeometricMedian, Server
from robust_agg.seeding import generator
from workers import ray_connection
from workers.host import HostSpec
from workers.inline import InlineHosts
from workers.ray_hosts import RayHosts
from workers.transport import Transport
from workers.worker import LogicalWorker, Shard

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STAGES = ("collect", "admit", "aggregate", "step")


@dataclass(frozen=True, kw_only=True)
class Federation:
    """Workers with 32 images each, all of them their batch.

    Attributes:
        transport: inline or ray.
        hidden: width of the network's hidden layer.
    """

    transport: str
    workers: int
    hosts: int
    hidden: int = 100


@dataclass(frozen=True, kw_only=True)
class Transports(Study):
    """Rounds of many logical workers: `collect` is from the parameters to all rows here, gradients
    included, the rest is the server's. Medians over rounds after two that do not count; memory is
    what a round adds to this process at its peak."""

    title: ClassVar[str] = "A round of many workers"

    federations: tuple[Federation, ...]
    rounds: int = 7

    @classmethod
    def preset(cls, name: Preset) -> Self:
        counts = (20,) if name == "smoke" else (20, 100, 1000)
        federations = tuple(
            Federation(transport=transport, workers=n, hosts=hosts)
            for n in counts
            for transport, hosts in (("inline", 1), ("inline", 2), ("ray", 2))
        )
        return cls(
            federations=federations, rounds=2 if name == "smoke" else 7, decides=name != "smoke"
        )

    def pieces(self, folder: Path) -> Mapping[str, Piece]:
        train, _, note = images()
        return {
            f"{each.workers} workers, {each.transport}, {each.hosts} hosts": partial(
                self._measure, each, train, note
            )
            for each in self.federations
        }

    def _measure(self, each: Federation, train: Split, note: str, tick: Tick) -> list[Row]:
        draw = generator(0, "bench transport")
        logical = []
        for i in range(each.workers):
            chosen = torch.randint(len(train), (32,), generator=draw)
            shard = Shard(train.inputs[chosen], train.targets[chosen])
            logical.append(LogicalWorker(id=i, shard=shard))
        build = partial(_network, each.hidden)
        network = build()
        server = Server(
            network,
            torch.optim.SGD(network.parameters(), lr=0.1),
            GeometricMedian(),
            f=each.workers // 5,
            device="cpu",
        )
        spec = HostSpec(
            workers=tuple(logical),
            model=build,
            loss=nn.functional.cross_entropy,
            seed=0,
            threads=max(1, torch.get_num_threads() // each.hosts),
        )
        stages: dict[str, list[float]] = {stage: [] for stage in STAGES}
        with _transport(each, spec) as transport:
            for number in range(2 + self.rounds):
                seconds = _round(transport, server, number)
                if number >= 2:
                    for stage in STAGES:
                        stages[stage].append(seconds[stage])
                tick((number + 1) / (3 + self.rounds))
            extra = peak_extra(lambda: _round(transport, server, 2 + self.rounds))
        d = server.parameters().numel()
        return [
            {
                "transport": each.transport,
                "workers": each.workers,
                "hosts": each.hosts,
                "d": d,
                "row_bytes": 4 * d * each.workers,
                **{f"{stage}_ms": 1e3 * median(stages[stage]) for stage in STAGES},
                "extra_bytes": extra,
                "data": note,
            }
        ]

    def tables(self, rows: Sequence[Row]) -> Mapping[str, Table]:
        headings = (
            *("transport", "workers", "hosts", "rows MB"),
            *(f"{stage} ms" for stage in STAGES),
            *("round ms", "rows a second", "peak MB"),
        )
        lines = [
            (
                *(row["transport"], str(row["workers"]), str(row["hosts"])),
                f"{row['row_bytes'] / 1e6:.1f}",
                *(f"{row[f'{stage}_ms']:.1f}" for stage in STAGES),
                f"{_whole(row):.1f}",
                f"{1e3 * row['workers'] / _whole(row):.0f}",
                "" if row["extra_bytes"] is None else f"{row['extra_bytes'] / 1e6:.0f}",
            )
            for row in rows
        ]
        return {f"Rounds of a network of {rows[0]['d']:,} parameters": [headings, *lines]}

    def figures(self, rows: Sequence[Row]) -> Mapping[str, Figure]:
        figure = new_figure(8, 0.45 * len(rows) + 1.4)
        axes = figure.subplots()
        colours = dict(zip(STAGES, ("#0072B2", "#E69F00", "#009E73", "#555555"), strict=True))
        for place, row in enumerate(rows):
            start = 0.0
            for stage in STAGES:
                share = row[f"{stage}_ms"] / row["workers"]
                label = stage if place == 0 else None
                axes.barh(place, share, left=start, color=colours[stage], label=label)
                start += share
        names = [f"{row['workers']} {row['transport']}, {row['hosts']} hosts" for row in rows]
        axes.set_yticks(range(len(rows)), names)
        axes.set(xlabel="milliseconds a worker and round")
        axes.invert_yaxis()
        axes.legend(frameon=False)
        return {"transport": figure}

    def claims(self, rows: Sequence[Row]) -> list[Claim]:
        return []

    def notes(self, rows: Sequence[Row]) -> list[str]:
        return [rows[0]["data"], "geometric median of all rows; f = a fifth of the workers, honest"]


def _network(hidden: int) -> nn.Module:
    return MLP(hidden=(hidden,)).build((1, 28, 28), 10, generator(0, "bench transport model"))


@contextmanager
def _transport(each: Federation, spec: HostSpec) -> Iterator[Transport]:
    hosts = spec.split(each.hosts)
    if each.transport == "inline":
        with InlineHosts(hosts) as inline:
            yield inline
        return
    ray_connection.connect(cpus=each.hosts + 1)
    try:
        with RayHosts(hosts) as remote:
            yield remote
    finally:
        ray_connection.disconnect()


def _round(transport: Transport, server: Server, number: int) -> dict[str, float]:
    begun = time.perf_counter()
    collection = transport.collect(number, server.parameters())
    collected = time.perf_counter() - begun
    record = server.step(collection.updates, senders=transport.workers, refused=collection.refused)
    assert record.skipped is None, record.skipped
    return {"collect": collected, **record.seconds}


def _whole(row: Row) -> float:
    return float(sum(row[f"{stage}_ms"] for stage in STAGES))
