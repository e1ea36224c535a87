"""Mimic: all copy one honest worker, whose data then counts more than that of the others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from attacks.attack import Attack
from attacks.moments import unit, wide_rows
from attacks.threat import Knowledge, View
from robust_agg.errors import check_count
from robust_agg.types import State

_ROUNDS, _CENTRE, _DIRECTION, _TARGET = "rounds", "centre", "direction", "target"
_NOBODY = -1


@dataclass(frozen=True, kw_only=True)
class Mimic(Attack):
    """Every row is the row of one honest worker, the same one round after round.

    Karimireddy, He, Jaggi, "Byzantine-Robust Learning on Heterogeneous Datasets via Bucketing"
    (ICLR 2022), section 3.2: nothing about such a row is suspicious, but where workers' data differ
    the aggregate is biased. The worker to copy is the one farthest out in the direction z in which
    the honest rows vary most. z is found online in the first ``warmup`` rounds t = 0, 1, … (the
    paper's rule of Oja, with the sum normalised as in the authors' code, so that the rows' units do
    not matter), from a random start::

        μ ← t/(t+1) μ + 1/(t+1) x̄
        z ← t/(t+1) z + 1/(t+1) u/‖u‖   with   u = Σ_i <x_i - μ, z> (x_i - μ);   z ← z/‖z‖

    In these rounds ``argmax_i <z, x_i>`` is copied, from then on the one that was copied last.
    Where it sends nothing (it was not sampled, say) the farthest of the others is copied instead.
    ByzFL and ByzPy copy a worker that is given, as here with ``target``.

    Args:
        warmup: rounds in which z is learnt, >= 1.
        target: the id of the worker to copy; None to find one.

    Raises:
        ValueError: a parameter out of range.
    """

    knows: ClassVar[Knowledge] = Knowledge.HONEST

    warmup: int = 20
    target: int | None = None

    def __post_init__(self) -> None:
        check_count("Mimic", "warmup", self.warmup, minimum=1)
        if self.target is not None:
            check_count("Mimic", "target", self.target, minimum=0)

    def init(self, like: Tensor) -> State:
        """Nobody is copied yet; μ and z are 0."""
        if self.target is not None:
            return {}
        zero = torch.zeros_like(like, dtype=torch.promote_types(like.dtype, torch.float32))
        return {
            _ROUNDS: torch.zeros((), dtype=torch.int64, device="cpu"),
            _CENTRE: zero,
            _DIRECTION: zero.clone(),
            _TARGET: torch.tensor(_NOBODY, dtype=torch.int64, device="cpu"),
        }

    def __call__(
        self, view: View, state: State, generator: torch.Generator
    ) -> tuple[Tensor, State]:
        if self.target is not None:
            place = _place(view, self.target)
            return view.honest[0 if place is None else place].expand(view.byzantine, -1), state
        rows, rounds = wide_rows(view), int(state[_ROUNDS])
        direction, target = state[_DIRECTION], int(state[_TARGET])
        place = None
        if rounds < self.warmup:
            centre, direction = self._learn(rows, rounds, state, generator)
            state = {**state, _CENTRE: centre, _DIRECTION: direction}
        else:
            place = _place(view, target)
        if place is None:
            place = int((rows @ direction).argmax())
        if rounds < self.warmup:
            state = {**state, _TARGET: torch.tensor(view.honest_senders[place], device="cpu")}
        state = {**state, _ROUNDS: torch.tensor(rounds + 1, device="cpu")}
        return view.honest[place].expand(view.byzantine, -1), state

    def _learn(
        self, rows: Tensor, rounds: int, state: State, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """μ and z after one more round."""
        old = 1 - 1 / (rounds + 1)
        centre = old * state[_CENTRE] + rows.mean(dim=0) / (rounds + 1)
        direction = state[_DIRECTION]
        if rounds == 0:
            direction = torch.randn(rows.shape[1], generator=generator, device="cpu").to(rows)
        apart = rows - centre
        spread = unit((apart @ direction) @ apart)
        return centre, unit(old * direction + spread / (rounds + 1)).to(rows)


def _place(view: View, sender: int) -> int | None:
    """Where the row of a sender is among the honest ones; None where it is not there."""
    return view.honest_senders.index(sender) if sender in view.honest_senders else None
