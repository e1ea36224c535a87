"""Resampling: means of random rows, each of them used as often as any."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from robust_agg.aggregator import Invariance
from robust_agg.errors import check_count
from robust_agg.mixings.mixing import Mixed, Mixing
from robust_agg.span import Geometry


@dataclass(frozen=True, kw_only=True)
class Resample(Mixing):
    """n means of s rows each, drawn at random such that every row is drawn s times in all.

    Of n·s places, s for each row, a random permutation is cut into n groups, as in the authors'
    code; a row that is twice in a group counts twice. He, Karimireddy & Jaggi, "Byzantine-Robust
    Learning on Heterogeneous Datasets via Resampling", 2020, the first version of their paper on
    ``Bucketing`` (ICLR 2022), which leaves fewer points, each row in one of them.

    Up to s·f of the n points hold a Byzantine row, so the rule that follows must bear that many: a
    rule that knows an f is given s·f. A point is the mean of its accepted rows and is rejected
    where it has none.

    Attributes:
        s: rows a mean; 1 leaves the rows as they are, in another order.
    """

    s: int

    def __post_init__(self) -> None:
        check_count(self.name, "s", self.s, minimum=1)

    @property
    def invariances(self) -> frozenset[Invariance]:
        # Not permutation: the same draw puts other rows together.
        return frozenset(Invariance) - ({Invariance.PERMUTATION} if self.s > 1 else set())

    def check(self, n: int) -> int:
        return n

    def max_rejected(self, n: int) -> int:
        return n - 1

    def spoiled(self, f: int) -> int:
        return self.s * f

    def mix(self, geometry: Geometry, generator: torch.Generator | None) -> Mixed:
        if generator is None:
            raise ValueError(f"{self.name}: generator is required, found None")
        n = len(geometry)
        drawn = torch.randperm(n * self.s, generator=generator, device="cpu") // self.s
        counts = torch.zeros(n, n, dtype=torch.float64, device="cpu")
        ones = torch.ones(n, self.s, dtype=torch.float64, device="cpu")
        counts.scatter_add_(1, drawn.view(n, self.s), ones)
        counts *= geometry.accepted
        sizes = counts.sum(dim=1, keepdim=True)
        return Mixed(counts / sizes.clamp(min=1), sizes.flatten() > 0)
