"""The estimate of a model's gradient, in slices that follow the parts it is exchanged in."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from robust_agg.distributed.exchanges import Exchange


class Part(NamedTuple):
    """The estimate for some parameters: this rank's slice of it, ``(k,)``."""

    parameters: tuple[Tensor, ...]
    own: Tensor


class Placement(Protocol):
    """Which numbers of a part's parameters each rank has."""

    def own(self, parameters: Sequence[Tensor], values: Sequence[Tensor]) -> Tensor:
        """This rank's slice ``(k,)`` of the parameters' whole values."""

    def whole(self, parameters: Sequence[Tensor], own: Tensor) -> Sequence[Tensor]:
        """The parameters' whole values, of which every rank has its slice."""


class OneVector:
    """The parameters of a part are one vector, of which each rank has a slice.

    Each has its numbers in the order of its memory, as in DDP's buckets: another one than that of
    its indices where it is channels_last, say.

    Args:
        exchange: how rows meet: which slices are whose.
    """

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange

    def own(self, parameters: Sequence[Tensor], values: Sequence[Tensor]) -> Tensor:
        vectors = []
        for parameter, value in zip(parameters, values, strict=True):
            ordered = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
            vectors.append(ordered.as_strided((value.numel(),), (1,)))
        return self._exchange.own(torch.cat(vectors))

    def whole(self, parameters: Sequence[Tensor], own: Tensor) -> Sequence[Tensor]:
        sizes = [parameter.numel() for parameter in parameters]
        vectors = torch.split(self._exchange.whole(own, sum(sizes)).result(), sizes)
        values = []
        for parameter, vector in zip(parameters, vectors, strict=True):
            order = torch.empty_like(parameter, device="meta").stride()
            values.append(vector.as_strided(parameter.shape, order, vector.storage_offset()))
        return [value.contiguous() for value in values]


class Estimates:
    """An estimate by parameters, whichever parts they are in: DDP's change after the first step.

    All ranks see the same parts, and call the same methods in the same order.

    Args:
        who: whose they are, in errors.
        placement: which numbers are whose.
        fixed: whether a parameter is in the same part in all steps; a step may then be without some
            parts, whose estimates stay. Otherwise every step has all parameters.
    """

    def __init__(self, who: str, placement: Placement, *, fixed: bool = False) -> None:
        self._who, self._placement, self._fixed = who, placement, fixed
        self._parts: dict[tuple[int, ...], Part] = {}
        self._whole: dict[int, tuple[Tensor, Tensor]] = {}
        # Parameters, and their estimates, whose parts are not known yet, or not any more.

    def of(self, parameters: Sequence[Tensor], start: Tensor) -> Tensor:
        """This rank's slice ``(k,)`` of the estimate for a part with these parameters.

        Args:
            parameters: of the part, in its order.
            start: the slice of an estimate that does not exist yet.

        Raises:
            ValueError: the part has another length than before.
        """
        key = tuple(map(id, parameters))
        if key in self._parts:
            own = self._parts[key].own
            if own.shape != start.shape:
                raise ValueError(
                    f"{self._who}: a group of parameters must have all its "
                    f"gradients in every step, found {len(start)} numbers after {len(own)}"
                )
            return own
        if self._parts and not self._fixed:
            self.load(self.collected())
        if not any(i in self._whole for i in key):
            return start
        values = []
        for i, parameter in zip(key, parameters, strict=True):
            known = i in self._whole  # or it is trained only now
            fresh = torch.zeros(parameter.shape, dtype=start.dtype, device=start.device)
            values.append(self._whole[i][1] if known else fresh)
        return self._placement.own(parameters, values).clone()

    def put(self, parts: Iterable[Part]) -> None:
        """Make the estimate that of these parts."""
        new = {tuple(map(id, part.parameters)): part for part in parts}
        self._parts = {**self._parts, **new} if self._fixed else new
        known = {i for key in new for i in key}
        self._whole = {i: pair for i, pair in self._whole.items() if i not in known}

    def collected(self) -> list[tuple[Tensor, Tensor]]:
        """Every parameter and its estimate, of its shape; the ranks' slices are collected."""
        found = list(self._whole.values())
        for part in self._parts.values():
            values = self._placement.whole(part.parameters, part.own)
            found += zip(part.parameters, values, strict=True)
        return found

    def load(self, whole: Iterable[tuple[Tensor, Tensor]]) -> None:
        """Make the estimate this one: parameters and their values."""
        self._parts = {}
        self._whole = {id(parameter): (parameter, value) for parameter, value in whole}
