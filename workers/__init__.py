"""Workers: gradients and local estimators on hosts, and the transports that reach them."""

from __future__ import annotations

from workers.gradients import Gradients, Loss
from workers.host import Host, HostSpec, LocalEstimator, LocalSGD
from workers.inline import InlineHosts
from workers.local_ranks import LocalRanks
from workers.rank_hosts import RankHosts
from workers.rank_serve import serve
from workers.ray_hosts import RayHosts
from workers.ray_ranks import RayRanks
from workers.transport import Collection, HostError, Transport
from workers.worker import LogicalWorker, Shard

__all__ = [
    "Collection",
    "Gradients",
    "Host",
    "HostError",
    "HostSpec",
    "InlineHosts",
    "LocalEstimator",
    "LocalRanks",
    "LocalSGD",
    "LogicalWorker",
    "Loss",
    "RankHosts",
    "RayHosts",
    "RayRanks",
    "Shard",
    "Transport",
    "serve",
]
