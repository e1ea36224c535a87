"""Who is Byzantine: the same workers always, or others in every run or round."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch

from robust_agg.errors import check_choice
from robust_agg.seeding import generator

Choice = Literal["last", "run", "round"]


@dataclass(frozen=True, kw_only=True)
class Identities:
    """Which of the workers 0, ..., n-1 are Byzantine in which round.

    Args:
        workers: n.
        count: how many of them are Byzantine, in [0, n].
        choice: ``"last"`` for the last ones, so that the honest workers and their data are the same
            whatever the attack; ``"run"`` for a draw from the seed that holds for all rounds;
            ``"round"`` for a new draw in every round, independent of the others.
        seed: of the draws.

    Raises:
        ValueError: a parameter out of range.
    """

    workers: int
    count: int
    choice: Choice = "last"
    seed: int = 0

    def __post_init__(self) -> None:
        check_choice("Identities", "choice", self.choice, get_args(Choice))
        byzantine_ids(self.workers, self.count)

    def at(self, round: int) -> frozenset[int]:
        """The ids of the Byzantine workers in a round."""
        if self.choice == "last":
            return byzantine_ids(self.workers, self.count)
        place = (round,) if self.choice == "round" else ()
        draw = generator(self.seed, "byzantine", *place)
        return byzantine_ids(self.workers, self.count, draw)


def byzantine_ids(n: int, count: int, generator: torch.Generator | None = None) -> frozenset[int]:
    """Which of the workers 0, ..., n-1 are Byzantine.

    Without a generator the last ``count``, so that the first n - count are honest, with the same
    data, whatever the attack; with one a uniformly random choice, for one draw per run.

    Raises:
        ValueError: not 0 <= count <= n.
    """
    if not 0 <= count <= n:
        raise ValueError(f"byzantine_ids: 0 <= count <= n is required, found n={n}, count={count}")
    if generator is None:
        return frozenset(range(n - count, n))
    return frozenset(torch.randperm(n, generator=generator, device="cpu")[:count].tolist())
