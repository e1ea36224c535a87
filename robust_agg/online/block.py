"""A divergence per block of coordinates, such as the layers of a model."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from robust_agg.aggregator import Invariance
from robust_agg.errors import check_count, shown
from robust_agg.online.coordinate import median_of_positive
from robust_agg.online.divergence import Averaging, Method
from robust_agg.online.radial import L2
from robust_agg.shards import WHOLE, Shards
from robust_agg.solvers import SolverReport
from robust_agg.span import too_far

_SMALL = 2048
# Coordinates a block, on average, below which all blocks are worked through at once.


@dataclass(frozen=True)
class BlockL2(Averaging):
    """``D(v) = Σ_b ‖v_b‖₂`` over consecutive blocks b: VClip layer by layer.

    One block is ``L2``, blocks of one coordinate are ``L1``. Prox and batch separate over blocks.

    Attributes:
        sizes: the blocks' lengths, which must sum to d; for a model,
            ``[p.numel() for p in model.parameters()]``.
    """

    sizes: tuple[int, ...]
    _block: L2 = field(default=L2(), init=False, repr=False)

    def __post_init__(self) -> None:
        given: object = self.sizes
        object.__setattr__(self, "sizes", tuple(given) if isinstance(given, Iterable) else ())
        if not self.sizes:
            raise ValueError(f"BlockL2: sizes must be one integer or more, found {shown(given)}")
        for size in self.sizes:
            check_count("BlockL2", "every size", size, minimum=1)

    @cached_property
    def _block_of(self) -> Tensor:
        """``(d,)``: the block of every coordinate."""
        return torch.repeat_interleave(torch.tensor(self.sizes, dtype=torch.int64, device="cpu"))

    @property
    def invariances(self) -> frozenset[Invariance]:
        return frozenset(Invariance) - {Invariance.ROTATION}

    def gaps(self, rows: Tensor, m: Tensor, *, shards: Shards = WHOLE) -> Tensor:
        """``(n,)``: the median of ‖(g_i - m)_b‖₂ over the blocks where it is not 0."""
        per_block = [self._block.gaps(g, part) for g, part in self._blocks(rows, m)]
        gaps = torch.stack(per_block, dim=1).nan_to_num(nan=torch.inf, posinf=torch.inf)
        return median_of_positive(gaps)

    def averaged(
        self,
        rows: Tensor,
        m: Tensor,
        tau: float,
        method: Method,
        gaps: Tensor | None = None,
        *,
        shards: Shards = WHOLE,
    ) -> tuple[Tensor, Tensor | None]:
        if m.shape[0] >= _SMALL * len(self.sizes):
            blocks = self._blocks(rows, m)
            return torch.cat([self._block.averaged(*b, tau, method)[0] for b in blocks]), None
        # Many small blocks: a kernel call for each would cost more than its numbers.
        self._check(m)
        place = self._block_of.to(m.device)
        gap = rows.to(m.dtype) - m
        lengths = torch.tensor(self.sizes, device=m.device)
        # Not index_add, whose order of summation on CUDA changes from call to call.
        r = torch.segment_reduce(gap.double().square().T, "sum", lengths=lengths).sqrt_().T
        measured = r <= too_far(m.dtype)
        factors = self._block.factors(torch.where(measured, r, 1.0), tau, method)
        weights = torch.where(measured, factors, 0.0).to(m.dtype)[:, place]
        moves = torch.where(weights > 0, gap * weights, 0.0)  # 0 times NaN would be NaN
        return m + moves.mean(dim=0), None

    def batch(
        self, rows: Tensor, m: Tensor, tau: float, *, shards: Shards = WHOLE
    ) -> tuple[Tensor, Tensor | None, SolverReport | None]:
        parts = [self._block.batch(g, part, tau) for g, part in self._blocks(rows, m)]
        reports = [report for _, _, report in parts if report is not None]
        worst = max(reports, key=lambda report: report.residual, default=None)
        return torch.cat([y for y, _, _ in parts]), None, worst

    def _blocks(self, rows: Tensor, m: Tensor) -> list[tuple[Tensor, Tensor]]:
        self._check(m)
        sizes = list(self.sizes)
        return list(zip(torch.split(rows, sizes, dim=1), torch.split(m, sizes), strict=True))

    def _check(self, m: Tensor) -> None:
        if sum(self.sizes) != m.shape[0]:
            raise ValueError(
                f"BlockL2: sizes must sum to d={m.shape[0]}, found a sum of {sum(self.sizes)}"
            )
