"""One vector of gradients and its online estimate: a step, and what it remembers, on the device."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from functools import cached_property
from itertools import accumulate
from typing import NamedTuple, cast

import torch
from torch import Tensor

from robust_agg.online.block import BlockL2
from robust_agg.online.coordinate import L1
from robust_agg.online.estimator import STEPS, OnlineMedian
from robust_agg.online.radial import L2, Radial, Squared
from robust_agg.online.tau import HISTORY, Adaptive
from robust_agg.optim import passes
from robust_agg.optim.pieces import Part
from robust_agg.span import too_far

REJECTED = "rejected"

SAMPLED = 16_384
"""Coordinates from which the scale of a gradient is read, those that ``L1.gaps`` reads."""


class Member(NamedTuple):
    """A parameter's gradient and estimate, and where in the vector it begins."""

    gradient: Tensor
    estimate: Tensor
    start: int


class Vector:
    """The estimator's steps on one vector, whose members are the tensors of several parameters.

    A step is ``estimator.step`` on the gradients as a single row, but for one thing: a gradient
    that is not finite or, except for ‖·‖₁, too long to measure, leaves the estimate and the history
    as they are, whatever the divergence. Nothing waits for the device, and what is remembered stays
    where it is in memory.

    Attributes:
        state: ``steps`` and ``rejected``, ``()`` int64, and the history of an adaptive τ; empty
            before the first step.
    """

    def __init__(self, estimator: OnlineMedian, *, bias_correction: bool = False) -> None:
        self.estimator = estimator
        self.bias_correction = bias_correction
        self.state: dict[str, Tensor] = {}
        self._ranks: Tensor | None = None
        self._places: dict[tuple[int, int, int, torch.device], Tensor] = {}

    def start(self, device: torch.device) -> dict[str, Tensor]:
        """The state before the first step."""
        state = {
            name: torch.zeros((), dtype=torch.int64, device="cpu") for name in (STEPS, REJECTED)
        }
        adaptive = self.estimator.adaptive
        state.update({} if adaptive is None else adaptive.init())
        return {name: value.to(device) for name, value in state.items()}

    def step(self, members: Sequence[Member], allowed: Tensor | None = None) -> None:
        """Move the members' estimates, unless ``allowed``, ``()`` bool, rejects the gradient."""
        home = members[0].estimate.device
        if not self.state:
            self.state = self.start(home)
        if allowed is not None:
            allowed = allowed.to(home)
        if isinstance(self.estimator.divergence, L1):
            accepted = self._move_coordinates(members, allowed)
        else:
            accepted = self._move_blocks(members, allowed)
        self.state[STEPS].add_(1)
        self.state[REJECTED].add_(accepted.logical_not().to(self.state[REJECTED].device))

    def cuts(self, start: int, size: int) -> list[tuple[int, int]]:
        """What ``size`` coordinates from ``start`` are divided into: ``(block, length)``."""
        if not self._ends:
            return [(0, size)]
        cuts, stop = [], start + size
        while start < stop:
            block = bisect_right(self._ends, start)
            length = min(self._ends[block], stop) - start
            cuts.append((block, length))
            start += length
        return cuts

    @cached_property
    def _ends(self) -> list[int]:
        divergence = self.estimator.divergence
        return list(accumulate(divergence.sizes)) if isinstance(divergence, BlockL2) else []

    def _move_blocks(self, members: Sequence[Member], allowed: Tensor | None) -> Tensor:
        """A step of a divergence of distances; whether the gradient is accepted."""
        divergence, method = self.estimator.divergence, self.estimator.method
        parts = [part for member in members for part in self._parts(member)]
        # Momentum needs no distance, and a length is one pass less.
        r = passes.lengths(parts) if isinstance(divergence, Squared) else passes.distances(parts)
        reach = min(too_far(part.estimate.dtype) for part in parts)
        accepted = _both((r <= reach).all(), allowed)
        r = torch.where(accepted, r, 1.0)
        adaptive = self.estimator.adaptive
        if adaptive is None:
            tau: object = self.estimator.tau
        else:
            tau = self._follow(adaptive, _median_of_positive(r), accepted)
        # τ may be a number on the device: factors are made of arithmetic that takes both.
        radial = divergence if isinstance(divergence, Radial) else L2()
        factors = radial.factors(r, cast(float, tau), method)
        if self.bias_correction:
            factors = self._corrected(factors)
        passes.move_towards(parts[::-1], factors, accepted)  # what was read last is in the cache
        return accepted

    def _corrected(self, factor: Tensor) -> Tensor:
        """``s/(1 - (1-s)^t)`` at the t-th accepted gradient: its steps end in ``m_t/(1 - β^t)``.

        For ``m_t = β m_{t-1} + (1-β) g``, s = 1 - β: divide by 1 - β^t and collect.
        """
        t = self.state[STEPS] - self.state[REJECTED] + 1
        return factor / (1 - (1 - factor) ** t.to(factor.device))

    def _move_coordinates(self, members: Sequence[Member], allowed: Tensor | None) -> Tensor:
        """A step of ‖·‖₁; whether the gradient is accepted."""
        parts = [Part(member.gradient, member.estimate) for member in members]
        accepted = _both(passes.all_finite(parts), allowed)
        parts.reverse()  # what was read last is in the cache
        adaptive = self.estimator.adaptive
        if adaptive is None:
            tau: float | Tensor = float(cast(float, self.estimator.tau))
        else:
            gap = self._sampled_gap(members)
            measured = gap <= too_far(members[0].estimate.dtype)
            tau = self._follow(adaptive, gap, accepted & measured)
        if self.estimator.method == "prox":
            passes.move_clipped(parts, tau, accepted)
        else:
            passes.move_by_sign(parts, tau, accepted)
        return accepted

    def _parts(self, member: Member) -> list[Part]:
        gradient, estimate, start = member
        cuts = self.cuts(start, estimate.numel())
        if len(cuts) == 1:
            return [Part(gradient, estimate, cuts[0][0])]
        sizes = [length for _, length in cuts]
        pieces = zip(
            torch.split(gradient.view(-1), sizes),
            torch.split(estimate.view(-1), sizes),
            strict=True,
        )
        return [Part(*piece, block) for piece, (block, _) in zip(pieces, cuts, strict=True)]

    def _follow(self, adaptive: Adaptive, gap: Tensor, measured: Tensor) -> Tensor:
        """``()`` float64: τ of a single row, as ``Adaptive.step`` finds it, and its history kept.

        Args:
            gap: ``()`` float64, the row's distance.
            measured: ``()`` bool, whether it joins the history.
        """
        history, window = self.state[HISTORY], adaptive.window
        home, gap, measured = gap.device, gap.to(history.device), measured.to(history.device)
        if self._ranks is None or self._ranks.device != history.device:
            ranks = [1, *(adaptive.rank(n) for n in range(1, window + 1))]
            self._ranks = torch.tensor(ranks, device=history.device)
        place = torch.arange(window, device=history.device) == self.state[STEPS] % window
        history.copy_(torch.where(place & measured, gap, history))
        seen = history.isnan().logical_not().sum()
        # Not indexed, for an index on the device would be waited for. NaN sorts last.
        rank = self._ranks.gather(0, seen[None])
        quantile = history.sort().values.gather(0, rank - 1)[0]
        rho = 0.1 if adaptive.rho is None else adaptive.rho
        return torch.where(seen > 0, rho * quantile, 0.0).to(home)

    def _sampled_gap(self, members: Sequence[Member]) -> Tensor:
        sizes = [member.estimate.numel() for member in members]
        d = sum(sizes)  # of those that are present: others have no distance
        gaps = []
        for (gradient, estimate, _), stop, size in zip(
            members, accumulate(sizes), sizes, strict=True
        ):
            g, m = gradient.reshape(-1), estimate.reshape(-1)
            if d > SAMPLED:
                places = self._chosen(stop - size, size, d, m.device)
                g, m = g.index_select(0, places), m.index_select(0, places)
            gaps.append((g.to(m.dtype) - m).abs().to(self.state[HISTORY]))
        return _median_of_positive(torch.cat(gaps))

    def _chosen(self, start: int, size: int, d: int, device: torch.device) -> Tensor:
        key = start, size, d, device
        if key not in self._places:
            places = torch.linspace(0, d - 1, SAMPLED, dtype=torch.float64, device="cpu").long()
            mine = (places >= start) & (places < start + size)
            self._places[key] = (places[mine] - start).to(device)
        return self._places[key]


def _both(accepted: Tensor, allowed: Tensor | None) -> Tensor:
    return accepted if allowed is None else accepted & allowed


def _median_of_positive(gaps: Tensor) -> Tensor:
    """``()``: the median of the gaps that are not 0; 0 where all are."""
    positive = gaps.masked_fill(gaps == 0, torch.nan)
    return positive.nanmedian().nan_to_num(nan=0.0, posinf=torch.inf)
