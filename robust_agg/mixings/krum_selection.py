"""The rows that Krum selects, one after the other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor

from robust_agg.aggregator import Invariance
from robust_agg.errors import ConstraintError, check_choice, check_count
from robust_agg.mixings.mixing import Mixed, Mixing
from robust_agg.span import Geometry
from robust_agg.weightings.krum import krum_scores

Rounds: TypeAlias = Literal["one by one", "at once"]


def krum_selection(squared_distances: Tensor, f: int, count: int) -> list[int]:
    """The rows Krum selects in ``count`` rounds, each from those that are left.

    Of m rows that are left a score is that of the m - f - 2 nearest others, or of the nearest one
    where that is none: the last rounds have fewer rows than Krum asks for; this is our choice.

    Args:
        squared_distances: ``(n, n)``; Inf to rejected rows, of which there are at most f.
        f: declared number of Byzantine rows.
        count: rounds, at most n - 2f.

    Source: El Mhamdi et al., ICML 2018, section 4.
    """
    left = list(range(len(squared_distances)))
    selected = []
    for _ in range(count):
        distances = squared_distances[left][:, left]
        scores = krum_scores(distances, max(1, len(left) - f - 2))
        # torch's argmin may be any of the least.
        selected.append(left.pop(int(scores.numpy().argmin())))
    return selected


@dataclass(frozen=True, kw_only=True)
class KrumSelection(Mixing):
    """The n - 2f rows that Krum selects: the first stage of ``Bulyan``.

    El Mhamdi, Guerraoui & Rouault, "The Hidden Vulnerability of Distributed Learning in Byzantium",
    ICML 2018, section 4, run Krum n - 2f times, each time without the rows selected before; Flower
    runs Multi-Krum once. Ties go to the lowest index. A rejected row is not selected.

    Attributes:
        f: declared number of Byzantine rows; n >= 2f + 3 is required.
        rounds: "one by one" (the paper) or "at once" (Flower).
    """

    f: int
    rounds: Rounds = "one by one"

    def __post_init__(self) -> None:
        check_count(self.name, "f", self.f, minimum=0)
        check_choice(self.name, "rounds", self.rounds, get_args(Rounds))

    @property
    def invariances(self) -> frozenset[Invariance]:
        # Not permutation where the last rounds have one neighbour or none to go by: the nearest two
        # rows have the same score then, and the lowest is selected.
        tied = self.rounds == "one by one" and 0 < self.f < 3
        return frozenset(Invariance) - ({Invariance.PERMUTATION} if tied else set())

    def check(self, n: int) -> int:
        if n < 2 * self.f + 3:
            raise ConstraintError(f"{self.name}: n >= 2f + 3 is required, found n={n}, f={self.f}")
        return n - 2 * self.f

    def max_rejected(self, n: int) -> int:
        return self.f

    def mix(self, geometry: Geometry, generator: torch.Generator | None) -> Mixed:
        n = len(geometry)
        count = n - 2 * self.f
        if self.rounds == "at once":
            scores = krum_scores(geometry.squared_distances, n - self.f - 2)
            selected = scores.argsort(stable=True)[:count].tolist()
        else:
            selected = krum_selection(geometry.squared_distances, self.f, count)
        coefficients = torch.zeros(count, n, dtype=torch.float64, device="cpu")
        coefficients[torch.arange(count, device="cpu"), selected] = 1
        return Mixed(coefficients, torch.ones(count, dtype=torch.bool, device="cpu"))
