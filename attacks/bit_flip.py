"""Bit flips: silent corruption of numbers in memory or on the way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from attacks.attack import Attack
from attacks.chance import happens
from attacks.threat import Knowledge, View
from robust_agg.errors import check_share
from robust_agg.types import State

_WORDS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


@dataclass(frozen=True, kw_only=True)
class BitFlip(Attack):
    """Row i is g_i, the row worker i would have sent, with some bits flipped.

    Each number is hit with a probability, independent of all others; of one that is hit one bit of
    its representation flips, each of ``bits`` with the same probability. No malice is needed: it is
    what the silent data corruptions of a processor or a memory do (Hochschild et al., "Cores that
    don't count", HotOS 2021). The top bit of a float32's exponent, 30, makes about 10³⁴ of 10⁻⁴ and
    2 of a zero; most flips of the fraction change nothing that matters.

    Not the "bit-flipping attack" of Karimireddy, He, Jaggi (2022), which flips signs:
    :class:`SignFlip`.

    Args:
        probability: that a number is hit, in (0, 1].
        bits: the bits that may flip, from 0, the last of the fraction; all if None.

    Raises:
        ValueError: a parameter out of range; in a round, a bit that the rows' dtype does not have.
    """

    knows: ClassVar[Knowledge] = Knowledge.OWN

    probability: float = 0.001
    bits: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        check_share("BitFlip", "probability", self.probability, one=True)
        if self.bits is not None and not (self.bits and all(0 <= bit < 64 for bit in self.bits)):
            raise ValueError(f"BitFlip: bits must be one or more of 0 ... 63, found {self.bits}")

    def __call__(
        self, view: View, state: State, generator: torch.Generator
    ) -> tuple[Tensor, State]:
        width = 8 * view.dtype.itemsize
        if self.bits is not None and max(self.bits) >= width:
            raise ValueError(
                f"BitFlip: bits must be below {width} for rows of {view.dtype}, found {self.bits}"
            )
        return flipped(view.own, self.probability, generator, self.bits), state


def flipped(
    numbers: Tensor,
    probability: float,
    generator: torch.Generator,
    bits: Sequence[int] | None = None,
) -> Tensor:
    """A copy in which each number has, with a probability, one of its bits flipped.

    Args:
        numbers: floating, of 16, 32 or 64 bits.
        probability: that a number is hit.
        generator: on the CPU, so that every device draws the same.
        bits: those that may flip, each as likely as any other; all if None.
    """
    found = numbers.clone(memory_format=torch.contiguous_format)
    words = found.view(_WORDS[found.itemsize]).view(-1)
    hit = happens(probability, words.shape, generator)
    places = hit.nonzero().flatten()
    if bits is None:
        bits = range(8 * found.itemsize)
    chosen = torch.randint(len(bits), places.shape, generator=generator, device="cpu")
    masks = (1 << torch.tensor(list(bits), device="cpu")[chosen]).to(words.dtype).to(words.device)
    words[places.to(words.device)] ^= masks
    return found
