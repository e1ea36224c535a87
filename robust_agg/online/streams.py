"""Estimates of their own for many senders, side by side: one message to each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, TypeAlias

import torch
from torch import Tensor

from robust_agg.kernels import approaches
from robust_agg.span import too_far
from robust_agg.types import State

Generators: TypeAlias = Callable[[int], torch.Generator]
"""Makes the generator of a stream by its place; asked only where the stream draws."""


class Steps(Protocol):
    """Of an estimator all that streams need."""

    def step(
        self,
        rows: Tensor,
        state: State,
        *,
        senders: Sequence[int] | None = None,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, State]: ...


def step_alone(
    estimator: Steps,
    row: Tensor,
    state: State,
    *,
    sender: int,
    generator: torch.Generator,
    out: Tensor,
) -> State:
    """Write the estimate after one row ``(d,)`` to ``out`` ``(d,)``; the new state."""
    estimate, new = estimator.step(row[None], state, senders=(sender,), generator=generator)
    out.copy_(estimate)
    return new


def step_in_turn(
    estimator: Steps,
    rows: Tensor,
    states: Sequence[State],
    *,
    senders: Sequence[int],
    generators: Generators,
    out: Tensor,
) -> list[State]:
    """As :meth:`~robust_agg.online.estimator.Estimator.step_streams`, for what can only step."""
    return [
        step_alone(
            estimator, row, state, sender=sender, generator=generators(place), out=out[place]
        )
        for place, (row, state, sender) in enumerate(zip(rows, states, senders, strict=True))
    ]


def approach(
    rows: Tensor, points: Sequence[Tensor], share: float, out: Tensor
) -> list[Tensor | None]:
    """``p_i + s (x_i - p_i)`` for k rows and a point for each, reading both once.

    None for a row or a point whose largest entries do not show that their distance can be measured,
    and for all where the rows are few, or not such as are compiled: those have to be worked through
    one by one. Takes what :func:`~robust_agg.kernels.approaches.approach` takes.
    """
    if not approaches.takes(rows, points, out):
        return [None] * len(rows)
    moved, reaches = approaches.approach(rows, points, share, out)
    measured = (reaches <= too_far(rows.dtype)).tolist()
    return [point if fine else None for point, fine in zip(moved, measured, strict=True)]
