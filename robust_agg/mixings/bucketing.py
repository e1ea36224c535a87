"""Bucketing: means of random groups of rows."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

import torch

from robust_agg.aggregator import Invariance
from robust_agg.errors import check_count
from robust_agg.mixings.mixing import Mixed, Mixing
from robust_agg.span import Geometry


@dataclass(frozen=True, kw_only=True)
class Bucketing(Mixing):
    """The ⌈n/s⌉ means of s rows each, grouped by a random permutation; the last may have fewer.

    Up to f buckets hold a Byzantine row, so the rule that follows needs the same f with fewer
    points: a share of s·f/n, as in lemma 1 of the paper. A bucket is the mean of its accepted rows
    and is rejected where it has none. Karimireddy, He & Jaggi, "Byzantine-Robust Learning on
    Heterogeneous Datasets via Bucketing", ICLR 2022, algorithm 1.

    Attributes:
        s: rows a bucket; 1 leaves the rows as they are, in another order.
    """

    s: int

    def __post_init__(self) -> None:
        check_count(self.name, "s", self.s, minimum=1)

    @property
    def invariances(self) -> frozenset[Invariance]:
        # Not permutation: the same draw puts other rows together.
        return frozenset(Invariance) - ({Invariance.PERMUTATION} if self.s > 1 else set())

    def check(self, n: int) -> int:
        return ceil(n / self.s)

    def max_rejected(self, n: int) -> int:
        return n - 1

    def mix(self, geometry: Geometry, generator: torch.Generator | None) -> Mixed:
        if generator is None:
            raise ValueError(f"{self.name}: generator is required, found None")
        n = len(geometry)
        order = torch.randperm(n, generator=generator, device="cpu")
        members = torch.zeros(ceil(n / self.s), n, dtype=torch.float64, device="cpu")
        members[torch.arange(n, device="cpu") // self.s, order] = 1
        members *= geometry.accepted
        sizes = members.sum(dim=1, keepdim=True)
        return Mixed(members / sizes.clamp(min=1), sizes.flatten() > 0)
