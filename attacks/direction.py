"""A direction that is drawn in the first round, and stays for the whole run."""

from __future__ import annotations

import torch
from torch import Tensor

from attacks.moments import unit
from robust_agg.types import State

_DIRECTION = "direction"


def undrawn(like: Tensor) -> State:
    """The state before the first round, for rows like the ``(d,)`` tensor ``like``: u is 0."""
    wide = torch.promote_types(like.dtype, torch.float32)
    return {_DIRECTION: torch.zeros_like(like, dtype=wide)}


def steady(state: State, generator: torch.Generator) -> tuple[Tensor, State]:
    """The run's u ``(d,)``, uniform on the sphere ‖u‖₂ = 1, and the state that keeps it."""
    direction = state[_DIRECTION]
    if not bool(direction.any()):
        # Drawn on the CPU, where the generator is, so that every device draws the same.
        drawn = torch.randn(direction.shape, dtype=torch.float64, generator=generator, device="cpu")
        direction = unit(drawn).to(direction)
    return direction, {**state, _DIRECTION: direction}
