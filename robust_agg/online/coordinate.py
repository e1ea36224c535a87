"""The divergence ‖·‖₁: every step moves each coordinate alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from robust_agg import kernels
from robust_agg.aggregator import Invariance
from robust_agg.online.divergence import Averaging, Method
from robust_agg.shards import WHOLE, Shards
from robust_agg.solvers import SolverReport

_SAMPLED = 16_384
# Coordinates from which the scale of a row is read: median and 0.99 quantile of so many that are
# normal have 1 % of error.
_CHUNK = 1 << 18


@dataclass(frozen=True)
class L1(Averaging):
    """``D(v) = ‖v‖₁``: CClip (prox, eq. 15) or the signed increment (appendix B).

    The expected divergence is minimised by the coordinate-wise median. NaN is taken for +Inf, as
    everywhere among coordinate-wise rules, and clipped like any other number.
    """

    separable = True

    @property
    def invariances(self) -> frozenset[Invariance]:
        return frozenset(Invariance) - {Invariance.ROTATION}

    def gaps(self, rows: Tensor, m: Tensor, *, shards: Shards = WHOLE) -> Tensor:
        """``(n,)``: a quantile of |g_ij - m_j| over up to 16,384 coordinates where it is not 0.

        The 0.99 quantile of each of several messages: coordinates of one gradient differ in scale,
        and all must be within reach of a step; a sequential fusion goes a share of the way by its
        smaller ρ. The median of a message that is alone: only small steps average its noise away
        over time. Gradients of embeddings or of dead units are mostly zeros, which say nothing of
        the scale. A message of which more than a hundredth is not finite is too far to measure.
        """
        # Evenly spaced, hence deterministic; a row can only choose its own scale by it.
        places = shards.spread(m.shape[0], _SAMPLED)
        if isinstance(places, Tensor):
            places = places.to(m.device)
        gaps = (rows[:, places].to(m.dtype) - m[places]).abs()
        gaps = gaps.nan_to_num(nan=torch.inf, posinf=torch.inf)
        gaps = shards.join(gaps)
        return median_of_positive(gaps) if len(gaps) == 1 else _highest_but_few(gaps)

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
        out = torch.empty_like(m)
        tau = min(tau, torch.finfo(m.dtype).max / len(rows))  # so that n clipped gaps can be added
        for part in _columns(rows):
            gap = (rows[:, part].to(m.dtype) - m[part]).nan_to_num_(nan=torch.inf, posinf=torch.inf)
            gap = gap.clamp_(-tau, tau) if method == "prox" else gap.sign_().mul_(tau)
            out[part] = m[part] + gap.mean(dim=0)
        return out, None

    def batch(
        self, rows: Tensor, m: Tensor, tau: float, *, shards: Shards = WHOLE
    ) -> tuple[Tensor, Tensor | None, SolverReport | None]:
        """The median of g_1, …, g_n and the n + 1 numbers ``m + τ(n-2k)/n``, k = 0…n."""
        return kernels.pulled_median(rows, m, tau), None, None


def median_of_positive(gaps: Tensor) -> Tensor:
    """``(n,)`` float64 on the CPU: the median of each row's positive entries; 0 where all are 0."""
    positive = gaps.masked_fill(gaps == 0, torch.nan)
    return positive.nanmedian(dim=1).values.nan_to_num(nan=0.0, posinf=torch.inf).double().cpu()


def _highest_but_few(gaps: Tensor) -> Tensor:
    """``(n,)`` float64 on the CPU: the 0.99 quantile of each row's positive entries, or 0."""
    above = gaps.count_nonzero(dim=1) // 100
    largest = gaps.topk(gaps.shape[1] // 100 + 1, dim=1).values
    return largest.gather(1, above[:, None])[:, 0].double().cpu()


def _columns(rows: Tensor) -> Iterator[slice]:
    width = max(64, _CHUNK // rows.shape[0])
    for start in range(0, rows.shape[1], width):
        yield slice(start, min(start + width, rows.shape[1]))
