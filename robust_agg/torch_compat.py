"""What is used of torch though it does not promise to keep it; each has a smoke test."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import GradBucket as GradBucket
from torch._C._distributed_c10d import PrefixStore as PrefixStore
from torch._C._distributed_c10d import ProcessGroup, Store
from torch.distributed import distributed_c10d
from torch.optim import Optimizer

# On lists of tensors, in one launch where the device has launches.
foreach_norm = torch._foreach_norm
foreach_copy_ = torch._foreach_copy_
foreach_sub = torch._foreach_sub
foreach_sub_ = torch._foreach_sub_
foreach_sign_ = torch._foreach_sign_
foreach_clamp_min_ = torch._foreach_clamp_min_
foreach_clamp_max_ = torch._foreach_clamp_max_


def fused_step_(
    values: list[Tensor], steps: list[Tensor], factor: Tensor, called_off: Tensor, *, towards: bool
) -> None:
    """``v += s·d``, or ``v += s(d - v)`` if ``towards``: one pass, none if ``called_off`` is not 0.

    Torch's fused SGD: with a weight decay of -1 the gradient is ``d - v``.

    Args:
        values: v.
        steps: d, alike in shapes and dtype.
        factor: s, ``()``.
        called_off: ``()`` float32.
        towards: which of the two.
    """
    torch._fused_sgd_(
        values,
        steps,
        [],
        weight_decay=-1.0 if towards else 0.0,
        momentum=0.0,
        lr=-factor,
        dampening=0.0,
        nesterov=False,
        maximize=False,
        is_first_step=False,
        found_inf=called_off,
    )


def version(tensor: Tensor) -> int:
    """How often a tensor was written to."""
    return tensor._version


def has_step_hooks(optimizer: Optimizer) -> bool:
    """Whether anything is hooked to this optimizer's steps."""
    return bool(optimizer._optimizer_step_pre_hooks or optimizer._optimizer_step_post_hooks)


def store_of_the_world(prefix: str) -> Store:
    """A corner of the key-value store through which the processes of the default group have met."""
    return PrefixStore(prefix, distributed_c10d._get_default_store())


# The older name warns that it is the older one.
all_gather_single = getattr(dist, "all_gather_single", dist.all_gather_into_tensor)


def default_group() -> ProcessGroup:
    """The process group of all processes, once it is initialised."""
    return distributed_c10d._get_default_group()
