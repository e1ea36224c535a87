"""What a rank is about to ask for, in a few numbers that all ranks compare before data moves."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from robust_agg.distributed.layout import Layout
from robust_agg.errors import shown

_DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
_UNUSABLE = -1
REFUSAL = -2
"""Stands for a dtype, or a rule, where the rank cannot take part."""


class Header(NamedTuple):
    """Six numbers of 64 bits; equal on two ranks where what they ask for is.

    Attributes:
        step: which step this is.
        tensors: how many tensors the rank gives.
        numbers: how many numbers they have in all.
        dtype: a code for the narrowest dtype that holds them; -1 where they are no rows.
        layout: a digest of all shapes and dtypes.
        rule: a digest of the rule, its parameters and the options that it is used with.
    """

    step: int
    tensors: int
    numbers: int
    dtype: int
    layout: int
    rule: int

    @classmethod
    def of(cls, tensors: Sequence[object], *, step: int, rule: str, usable: bool = True) -> Header:
        """That of whatever a rank was given, which it may know to be unusable.

        ``rule`` says which rule.
        """
        layout = layout_of(tensors) if usable else None
        if layout is None:
            return cls(step, len(tensors), 0, _UNUSABLE, 0, digest(rule))
        text = repr((tuple(map(tuple, layout.shapes)), layout.dtypes))
        code = _DTYPES.index(layout.dtype)
        return cls(step, len(tensors), layout.d, code, digest(text), digest(rule))

    @property
    def words(self) -> str:
        """The numbers as an error message names them."""
        if self.dtype == REFUSAL:
            return "a rule or options that cannot be"
        if self.dtype == _UNUSABLE:
            given = f"{self.tensors} tensors that are no rows"
        else:
            given = f"{self.numbers} numbers of {_DTYPES[self.dtype]} in {self.tensors} tensors"
        shapes, rule = self.layout & 0xFFFF, self.rule & 0xFFFF
        return f"step {self.step} with {given} (shapes #{shapes:04x}, rule #{rule:04x})"


def digest(text: str) -> int:
    """63 bits of a SHA-256 of the text."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def rule_in_words(numbers: Sequence[int]) -> str:
    """The digest of a rule, and the step, as an error message names them."""
    if numbers[0] == REFUSAL:
        return "a rule or options that cannot be"
    return f"rule #{numbers[0] & 0xFFFF:04x} at step {numbers[1]}"


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
        kinds = [
            f"{t.dtype}, {t.layout} of shape {tuple(t.shape)}"
            if isinstance(t, Tensor)
            else shown(t)
            for t in tensors
        ]
        raise ValueError(
            f"{who}: tensor must be one or more dense tensors of a floating dtype of 16 bits or "
            f"more, with a number in all, found {'; '.join(kinds) or 'none'}"
        )
    return layout
