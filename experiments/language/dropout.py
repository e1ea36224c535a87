"""Dropout whose masks are arguments: a gradient is a function of weights, batch and seed alone.

Every column of a batch draws its masks from a generator of its own, so that cutting the batch into
groups of columns changes none of them, and on the CPU, so that every device has the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import TypeAlias

import torch
from torch import Tensor

from robust_agg import seeding
from robust_agg.errors import check_share

Masks: TypeAlias = Mapping[str, Tensor]
"""Factors 0 or 1/(1 - rate) by the name of their site, ``(B, *shape)`` or ``(1, *shape)``."""

_LEVELS = 1 << 16


@dataclass(frozen=True, kw_only=True)
class Site:
    """A place in a model where dropout acts.

    Args:
        shape: of what it acts on, for one column of the batch.
        rate: the share that becomes 0.
        shared: whether one mask serves all columns (what it acts on has no batch dimension).

    Raises:
        ValueError: ``rate`` is not in [0, 1).
    """

    shape: tuple[int, ...]
    rate: float
    shared: bool = False

    def __post_init__(self) -> None:
        check_share("Site", "rate", self.rate, zero=True)


def draw(
    sites: Mapping[str, Site],
    columns: Sequence[int],
    seed: int,
    *,
    device: torch.device | None = None,
) -> dict[str, Tensor]:
    """The masks of some columns of a batch: float32 ``(len(columns), *shape)``, or ``(1, *shape)``.

    The masks of a column depend on ``seed``, its number and the sites; shared ones on ``seed`` and
    the sites. A site of rate 0 has no mask. Sixteen random bits decide on an entry, so rates are
    rounded to 1/65536 (0.2 is 0.199997), and the factor is that of the rounded rate: means are
    kept exactly.

    Args:
        sites: by name; their order decides which random numbers each one gets.
        columns: numbers of the columns within the whole batch.
        seed: decides all masks, with no global random state involved.
        device: where the masks go; None is the CPU.
    """
    masks = {}
    for shared in (False, True):
        wanted = {n: s for n, s in sites.items() if s.shared == shared and _dropped(s.rate)}
        if not wanted:
            continue
        generators = (
            [seeding.generator(seed, "shared dropout")]
            if shared
            else [seeding.generator(seed, "dropout", column) for column in columns]
        )
        lengths = [prod(site.shape) for site in wanted.values()]
        bits = _bits(sum(lengths), generators).to(device)
        for part, (name, site) in zip(
            torch.split(bits, lengths, dim=1), wanted.items(), strict=True
        ):
            dropped = _dropped(site.rate)
            # The bits are read as signed numbers, -32768 the smallest.
            kept = (part >= dropped - _LEVELS // 2).float().mul_(_LEVELS / (_LEVELS - dropped))
            masks[name] = kept.view(len(generators), *site.shape)
    return masks


def drop(values: Tensor, masks: Masks, name: str) -> Tensor:
    """``values`` times the mask called ``name``; without such a mask, ``values`` themselves."""
    mask = masks.get(name)
    return values if mask is None else values * mask.to(values.dtype)


def _dropped(rate: float) -> int:
    return min(round(rate * _LEVELS), _LEVELS - 1)


def _bits(length: int, generators: Sequence[torch.Generator]) -> Tensor:
    """Rows of random numbers of 16 bits, int16 ``(len(generators), length)``."""
    whole = torch.empty(len(generators), -(-length // 4), dtype=torch.int64)
    for row, generator in zip(whole, generators, strict=True):
        row.random_(-(1 << 63), None, generator=generator)
    return whole.view(torch.int16)[:, :length]
