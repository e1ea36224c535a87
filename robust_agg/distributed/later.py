"""Tensors that are on their way."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


class Later(Protocol):
    """A tensor that is on its way."""

    def result(self) -> Tensor:
        """Wait for it."""
        ...


@dataclass(frozen=True)
class Then:
    """A tensor that is made of another when that is there."""

    first: Later
    then: Callable[[Tensor], Tensor]

    def result(self) -> Tensor:
        return self.then(self.first.result())


@dataclass(frozen=True)
class Here:
    """A tensor that is there."""

    tensor: Tensor

    def result(self) -> Tensor:
        return self.tensor
