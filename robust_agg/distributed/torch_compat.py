"""What is used of torch.distributed though it does not promise to keep it; each has a smoke test.

Apart from :mod:`robust_agg.torch_compat`: there is torch without torch.distributed.
"""

from __future__ import annotations

import torch.distributed as dist
from torch._C._distributed_c10d import GradBucket as GradBucket
from torch._C._distributed_c10d import PrefixStore, ProcessGroup, Store
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
