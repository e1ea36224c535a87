"""What is used of torch though it does not promise to keep it; each has a smoke test."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.fx.node import map_aggregate
from torch.optim import Optimizer
from torch.utils._python_dispatch import TorchDispatchMode as DispatchMode

__all__ = ["DispatchMode", "map_aggregate"]

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


def in_memory(tensor: Tensor) -> bool:
    """Whether a tensor's numbers are what lies at its address: machine code may read them there.

    Not those of a subclass (FakeTensor), of a view that negates on reading, or of the zeros of an
    undefined gradient, which have no memory at all.
    """
    return type(tensor) is Tensor and not (tensor.is_neg() or tensor._is_zerotensor())


def version(tensor: Tensor) -> int:
    """How often a tensor was written to."""
    return tensor._version


def has_step_hooks(optimizer: Optimizer) -> bool:
    """Whether anything is hooked to this optimizer's steps."""
    return bool(optimizer._optimizer_step_pre_hooks or optimizer._optimizer_step_post_hooks)
