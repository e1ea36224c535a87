"""Many independent streams through one of the library's estimators at once.

Streams are laid side by side in one vector. To the divergences of coordinates they are independent
there as they are; ‖·‖₂ becomes a sum of ‖·‖₂ over the streams' blocks. So B streams cost one step
of one estimator, and it is the estimator that users have.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from robust_agg import L1, L2, BlockL2, Divergence, OnlineMedian, Squared
from robust_agg.online.divergence import Method
from robust_agg.online.estimator import ESTIMATE, Fusion


@dataclass(frozen=True, kw_only=True)
class Update:
    """A row of the paper's table: divergence and method, and how a minibatch is fused."""

    divergence: Divergence
    method: Method = "prox"
    fusion: Fusion = "averaged"

    def rule(self, *, tau: float, streams: int, d: int) -> OnlineMedian:
        """The estimator for that many streams of d numbers, side by side."""
        divergence = self.divergence
        if isinstance(divergence, L2):
            divergence = BlockL2((d,) * streams)
        return OnlineMedian(divergence=divergence, method=self.method, fusion=self.fusion, tau=tau)


UPDATES = {
    "momentum": Update(divergence=Squared(), method="subgradient"),
    "momentum (prox)": Update(divergence=Squared()),
    "VClip": Update(divergence=L2()),
    "adaptive momentum": Update(divergence=L2(), method="subgradient"),
    "CClip": Update(divergence=L1()),
    "signed increment": Update(divergence=L1(), method="subgradient"),
}
"""The paper's table 1."""


def follow(
    rules: Mapping[str, OnlineMedian],
    samples: Iterator[Tensor],
    *,
    start: Tensor,
    at: Collection[int],
    tau: Callable[[int], float] | None = None,
) -> Iterator[tuple[int, str, Tensor]]:
    """The estimates ``(B, d)`` of each rule after the iterations ``at``, all on the same samples.

    Args:
        rules: estimators of ``B * d`` numbers, by name.
        samples: ``(b, B, d)`` for each iteration, b messages a stream.
        start: m₀, ``(B, d)``.
        at: the iterations to answer at; 0 is before the first sample.
        tau: τ of iteration t = 0, 1, …; the rules' own if None.
    """
    flat = start.reshape(-1)
    states = {name: rule.init(flat, start=flat) for name, rule in rules.items()}
    for t in range(max(at) + 1):
        if t in at:
            for name, state in states.items():
                yield t, name, state[ESTIMATE].reshape(start.shape).clone()
        if t < max(at):
            rows = next(samples).reshape(-1, flat.shape[0])
            for name, rule in rules.items():
                now = rule if tau is None else replace(rule, tau=tau(t))
                _, states[name] = now.step(rows, states[name])


def log_spaced(last: int, count: int) -> tuple[int, ...]:
    """About ``count`` iterations from 1 to ``last``, evenly on a logarithmic axis; and 0.

    The powers of ten are among them.
    """
    places = torch.logspace(0, torch.tensor(float(last)).log10().item(), count)
    powers = {10**k for k in range(len(str(last)))}
    return tuple(sorted({0, last, *powers, *places.round().long().tolist()}))
