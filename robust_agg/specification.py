"""A rule and its parameters as text, so that a checkpoint tells one rule from another."""

from __future__ import annotations

import hashlib
from dataclasses import fields, is_dataclass
from numbers import Integral, Real

import torch
from torch import Tensor


def specification(value: object) -> str:
    """``Krum(f=1, m=1)``: the same text for the same parameters, in every process.

    Dataclasses are written field by field, but for fields that have no ``repr``; numbers by their
    value, whatever their type; tensors by shape, dtype and a digest of their numbers. Any other
    object is its ``repr`` or, where that holds an address or several lines, the name of its class.
    """
    if is_dataclass(value) and not isinstance(value, type):
        shown = (
            f"{field.name}={specification(getattr(value, field.name))}"
            for field in fields(value)
            if field.repr
        )
        return f"{type(value).__name__}({', '.join(shown)})"
    if isinstance(value, Tensor):
        return _tensor(value)
    if isinstance(value, list | tuple):
        return f"({', '.join(map(specification, value))})"
    if isinstance(value, bool) or value is None:
        return repr(value)
    if isinstance(value, Integral):
        return str(int(value))
    if isinstance(value, Real):
        return repr(float(value)).removesuffix(".0")
    text = repr(value)
    return type(value).__name__ if " at 0x" in text or "\n" in text else text


def _tensor(value: Tensor) -> str:
    numbers = value.detach().to("cpu").contiguous()
    digest = hashlib.sha256(numbers.view(-1).view(torch.uint8).numpy().tobytes())
    return f"tensor({tuple(value.shape)}, {value.dtype}, {digest.hexdigest()[:16]})"
