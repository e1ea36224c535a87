"""What is used of torch.distributed though it does not promise to keep it; each has a smoke test.

Apart from :mod:`robust_agg.torch_compat`: there is torch without torch.distributed.
"""

from __future__ import annotations

from datetime import timedelta

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import GradBucket as GradBucket
from torch._C._distributed_c10d import PrefixStore as PrefixStore  # documented, not exported
from torch._C._distributed_c10d import ProcessGroup
from torch._C._distributed_c10d import Store as Store
from torch._C._distributed_c10d import TCPStore as TCPStore
from torch.distributed import distributed_c10d


def store_of_the_world(prefix: str) -> Store:
    """A corner of the key-value store through which the processes of the default group have met."""
    return PrefixStore(prefix, distributed_c10d._get_default_store())


# The older name warns that it is the older one.
all_gather_single = getattr(dist, "all_gather_single", dist.all_gather_into_tensor)


def default_group() -> ProcessGroup:
    """The process group of all processes, once it is initialised."""
    return distributed_c10d._get_default_group()


def backend_of(group: ProcessGroup, device: str) -> str | None:
    """The name of the group's backend for tensors on a kind of device, None where it has none."""
    pairs = (part.split(":") for part in dist.get_backend_config(group).split(","))
    return dict(pairs).get(device)


def carries_cpu_tensors(group: ProcessGroup) -> bool:
    """Whether the group sends what is in the memory of the CPU by gloo."""
    try:
        return bool(group._get_backend(torch.device("cpu")).name() == "gloo")
    except RuntimeError:
        return False


def gloo_group(store: Store, rank: int, size: int, *, timeout: float, host: str) -> ProcessGroup:
    """A gloo group that is nobody's default, all its ranks being there.

    Args:
        store: where the ranks meet; used by nothing else.
        rank: of this process.
        size: of the group.
        timeout: seconds to connect to the others, and the default of what is waited for later.
        host: the name or address of this machine by which the others reach it.
    """
    options = dist.ProcessGroupGloo._Options()  # type: ignore[attr-defined]  # torch's stubs leave it out
    options._timeout = timedelta(seconds=timeout)
    options._devices = [dist.ProcessGroupGloo.create_device(hostname=host)]
    backend = dist.ProcessGroupGloo(store, rank, size, options)
    group = ProcessGroup(store, rank, size)
    group._register_backend(torch.device("cpu"), ProcessGroup.BackendType.GLOO, backend)
    return group
