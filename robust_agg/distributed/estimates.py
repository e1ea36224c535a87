"""The estimate of a model's gradient, in slices that follow the parts it is exchanged in."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from robust_agg.distributed.exchanges import Exchange


class Part(NamedTuple):
    """The estimate for some parameters: this rank's slice of it, ``(k,)``."""

    parameters: tuple[Tensor, ...]
    own: Tensor


class Estimates:
    """An estimate by parameters, whichever parts they are in: DDP's change after the first step.

    All ranks see the same parts, and call the same methods in the same order.

    Args:
        exchange: how rows meet: which slices are whose.
        fixed: whether a parameter is in the same part in all steps; a step may then be without some
            parts, whose estimates stay. Otherwise every step has all parameters.
    """

    def __init__(self, exchange: Exchange, *, fixed: bool = False) -> None:
        self._exchange, self._fixed = exchange, fixed
        self._parts: dict[tuple[int, ...], Part] = {}
        self._whole: dict[int, Tensor] = {}
        # By parameter, where the parts are not known yet, or not any more.

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
                    f"{self._exchange.ranks.who}: a group of parameters must have all its "
                    f"gradients in every step, found {len(start)} numbers after {len(own)}"
                )
            return own
        if self._fixed:
            return start
        if self._parts:
            self._whole = {id(parameter): value for parameter, value in self.collected()}
            self._parts = {}
        if not self._whole:
            return start
        return self._exchange.own(torch.cat([self._whole[i] for i in key])).clone()

    def put(self, parts: Iterable[Part]) -> None:
        """Make the estimate that of these parts."""
        new = {tuple(map(id, part.parameters)): part for part in parts}
        self._parts = {**self._parts, **new} if self._fixed else new
        self._whole = {}

    def collected(self) -> list[tuple[Tensor, Tensor]]:
        """Every parameter and its estimate, flat; the ranks' slices are collected."""
        found: list[tuple[Tensor, Tensor]] = []
        for part in self._parts.values():
            sizes = [parameter.numel() for parameter in part.parameters]
            vector = self._exchange.whole(part.own, sum(sizes)).result()
            found += zip(part.parameters, torch.split(vector, sizes), strict=True)
        return found

    def load(self, whole: Mapping[int, Tensor]) -> None:
        """Make the estimate this one: flat tensors by the ``id`` of their parameter."""
        self._parts, self._whole = {}, dict(whole)
