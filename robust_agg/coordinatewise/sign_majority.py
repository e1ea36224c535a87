"""The majority vote of the signs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from robust_agg.aggregator import Coordinatewise, Invariance
from robust_agg.kernels.reference import chunks


@dataclass(frozen=True, kw_only=True)
class SignMajority(Coordinatewise):
    """``sign(Σ_i sign(x_ij))`` of each coordinate j: -1, 0 or 1.

    Bernstein, Zhao, Azizzadenesheli & Anandkumar, "signSGD with Majority Vote is Communication
    Efficient and Fault Tolerant", ICLR 2019, algorithm 1. It is a direction, no estimate of the
    mean: the step size is all in the learning rate. A tie is 0, a NaN votes for nothing, and an
    infinite number has the sign that it has. For f < n/2.
    """

    @property
    def invariances(self) -> frozenset[Invariance]:
        return frozenset({Invariance.PERMUTATION})

    def check(self, n: int) -> None:
        """Any n >= 1 will do; f does not enter."""

    def max_rejected(self, n: int) -> int:
        return (n - 1) // 2

    def of_rows(self, rows: Tensor) -> Tensor:
        out = torch.empty_like(rows[0], memory_format=torch.contiguous_format)
        bearable = self.max_rejected(len(rows))
        for part in chunks(rows, per_column=2 * len(rows)):
            values = rows[:, part]
            votes = (values > 0).sum(dim=0) - (values < 0).sum(dim=0)
            bad = len(rows) - values.isfinite().sum(dim=0)
            out[part] = votes.sign().to(rows.dtype).masked_fill_(bad > bearable, torch.nan)
        return out
