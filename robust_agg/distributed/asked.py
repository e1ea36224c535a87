"""What a rank is about to ask for, in words that all ranks compare before data moves."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from robust_agg.distributed.layout import Layout

_DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def asked_for(tensors: Sequence[object], *, step: int, rule: str, usable: bool = True) -> str:
    """Equal on two ranks where what they ask for is.

    Args:
        tensors: whatever the rank was given.
        step: which step this is.
        rule: the rule, its parameters and the options that it is used with, in words.
        usable: whether the tensors may be rows, as far as the rank knows.
    """
    layout = layout_of(tensors) if usable else None
    if layout is None:
        return f"step {step} of {rule} with {_counted(len(tensors))} that cannot be reduced"
    if len(tensors) == 1:
        return f"step {step} of {rule} with {layout}"
    return f"step {step} of {rule} with {layout.d} numbers in {len(tensors)} tensors: {layout}"


def _counted(tensors: int) -> str:
    return "a tensor" if tensors == 1 else f"{tensors} tensors"


def layout_of(tensors: Sequence[object]) -> Layout | None:
    """The tensors' layout, or None unless all are dense, floating, and hold a number in all."""
    rows = [t for t in tensors if isinstance(t, Tensor)]
    if len(rows) < len(tensors) or any(
        t.dtype not in _DTYPES or t.layout != torch.strided for t in rows
    ):
        return None
    layout = Layout.of(rows)
    return layout if layout.d else None


def are_on(device: torch.device, tensors: Sequence[object]) -> bool:
    """Whether every tensor among them is on the device."""
    return all(t.device == device for t in tensors if isinstance(t, Tensor))


def check_usable(who: str, tensors: Sequence[object], *, device: torch.device) -> Layout:
    """The tensors' layout.

    Raises:
        ValueError: they are no rows, or elsewhere than where the group's collectives want them.
    """
    if not are_on(device, tensors):
        places = {str(t.device) for t in tensors if isinstance(t, Tensor)}
        raise ValueError(
            f"{who}: tensor must be on {device}, as the group's collectives are, "
            f"found {', '.join(sorted(places))}"
        )
    layout = layout_of(tensors)
    if layout is None:
        kinds = dict.fromkeys(map(described, tensors))  # a list of a million numbers is one kind
        raise ValueError(
            f"{who}: tensor must be one or more dense tensors of a floating dtype of 16 bits or "
            f"more, with a number in all, found {'; '.join(kinds) or 'none'}"
        )
    return layout


def described(value: object) -> str:
    """What a value is, without its numbers: they may be many, and nobody else's business."""
    if isinstance(value, Tensor):
        dense = value.layout == torch.strided
        strided = "" if not dense or value.is_contiguous() else ", not contiguous"
        kind = f"{value.dtype}, {value.layout}{strided} of shape {tuple(value.shape)}"
        return f"{kind} on {value.device}"
    dtype, shape = (getattr(value, name, None) for name in ("dtype", "shape"))
    kind = type(value).__name__
    return kind if shape is None else f"{kind} of {dtype}, of shape {shape}"
