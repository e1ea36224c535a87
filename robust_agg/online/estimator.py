"""The online median: an estimate of where the rows are centred, one step per round."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

import torch
from torch import Tensor

from robust_agg import kernels
from robust_agg.aggregator import Explanation, Invariance, explained
from robust_agg.eager import eager
from robust_agg.errors import (
    check_choice,
    check_count,
    check_instance,
    check_positive,
    check_rows,
    shown,
)
from robust_agg.online import streams
from robust_agg.online.divergence import Divergence, Method
from robust_agg.online.radial import L2
from robust_agg.online.streams import Generators
from robust_agg.online.tau import HISTORY, Adaptive
from robust_agg.shards import WHOLE, Shards
from robust_agg.solvers import SolverReport
from robust_agg.span import too_far
from robust_agg.types import State

Fusion = Literal["sequential", "averaged", "batch"]
"""How the n messages of a round act together; see :class:`OnlineMedian`."""

ESTIMATE = "estimate"
STEPS = "steps"


class Estimator(ABC):
    """A rule with memory, kept outside of it: steps are pure, so anyone may query a defence."""

    @property
    def name(self) -> str:
        """How the estimator is called in error messages, ledgers and tables."""
        return type(self).__name__

    @property
    def shardable(self) -> bool:
        """Whether holders of some columns each can step together: see ``robust_agg.shards``."""
        return False

    @property
    def separable(self) -> bool:
        """Whether some columns of the rows step as they do among all, whatever the others are."""
        return False

    @abstractmethod
    def init(self, like: Tensor) -> State:
        """The state before the first round, for rows of the size, dtype and device of ``like``."""

    @abstractmethod
    def explain(
        self,
        rows: Tensor,
        state: State,
        *,
        senders: Sequence[int] | None = None,
        generator: torch.Generator | None = None,
        distances: bool = True,
        shards: Shards = WHOLE,
    ) -> tuple[Explanation, State]:
        """The step with weights and, unless they are not wanted, distances to the new estimate.

        ``shards`` says who holds the columns; rows, state and estimate have those that are here.
        """

    @eager
    def step(
        self,
        rows: Tensor,
        state: State,
        *,
        senders: Sequence[int] | None = None,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, State]:
        """The new estimate ``(d,)``, in the rows' dtype, and the new state.

        Args:
            rows: ``(n, d)``, one message a row, n >= 1; not changed.
            state: from :meth:`init` or an earlier step; not changed.
            senders: who sent the rows, for estimators that remember senders.
            generator: for fusions that draw; on the CPU.

        Raises:
            ValueError: wrong shape or dtype, no generator where one is needed, or a subgradient
                step so long that the estimate is no number any more.
        """
        why, new = self.explain(rows, state, senders=senders, generator=generator, distances=False)
        return why.output, new

    def step_streams(
        self,
        rows: Tensor,
        states: Sequence[State],
        *,
        senders: Sequence[int],
        generators: Generators,
        out: Tensor,
    ) -> list[State]:
        """:meth:`step` for k estimates that know nothing of each other, with one message to each.

        Args:
            rows: ``(k, d)``, the message to each; not changed.
            states: one for each; not changed.
            senders: who sent each row.
            generators: ``generators(i)`` makes the generator of estimate i.
            out: ``(k, d)``, apart from ``rows``, gets the new estimates.

        Returns:
            The new states.

        Raises:
            ValueError: as :meth:`step`.
        """
        return streams.step_in_turn(
            self, rows, states, senders=senders, generators=generators, out=out
        )


@dataclass(frozen=True, kw_only=True)
class OnlineMedian(Estimator):
    """An online solution of ``argmin_m E[D(m - g)]``, one step a round (Schaipp et al., 2023).

    One message g moves m by the proximal point step ``argmin_y D(y-g) + ‖y-m‖²/(2τ)`` (eq. 8) or
    by the subgradient step ``m - τ ∂D(m-g)`` (eq. 6). The n messages of a round are fused

    - ``"sequential"``: one step per message, in an order drawn from the generator;
    - ``"averaged"``: ``(1/n) Σ_i`` of the n single steps, repeated ``iterations`` times (for ‖·‖₂
      that is centered clipping with memory: Karimireddy et al., ICML 2021);
    - ``"batch"``: ``argmin_y (1/n) Σ_i D(y-g_i) + ‖y-m‖²/(2τ)``, the exact proximal step; as τ→∞
      the geometric (‖·‖₂) or coordinate-wise (‖·‖₁) median of the round.

    Rows that are non-finite or too far to measure do not move the estimate and still count in n;
    to ‖·‖₁, which looks at coordinates alone, they are numbers that it clips (NaN is +Inf).
    The state is kept in at least float32: a thousand steps of 1e-3 from 1 leave 1 in bfloat16.

    Attributes:
        divergence: D, an object with ``prox`` and ``subgradient``.
        method: ``"prox"`` or ``"subgradient"``.
        tau: τ > 0; a number, or :class:`Adaptive`. None is ``Adaptive()``.
        fusion: see above.
        iterations: repetitions of an averaged step within a round.
    """

    divergence: Divergence = field(default_factory=L2)
    method: Method = "prox"
    tau: float | Adaptive | None = None
    fusion: Fusion = "averaged"
    iterations: int = 1

    def __post_init__(self) -> None:
        check_instance(self.name, "divergence", self.divergence, Divergence)
        check_choice(self.name, "method", self.method, get_args(Method))
        check_choice(self.name, "fusion", self.fusion, get_args(Fusion))
        if self.fusion == "batch" and self.method == "subgradient":
            raise ValueError(
                f"{self.name}: fusion='batch' is a proximal step, found method='subgradient'; "
                "the subgradient of the round's average is fusion='averaged'"
            )
        check_count(self.name, "iterations", self.iterations, minimum=1)
        if self.iterations > 1 and self.fusion != "averaged":
            raise ValueError(
                f"{self.name}: iterations > 1 needs fusion='averaged', found {self.fusion!r}"
            )
        if self.tau is None or isinstance(self.tau, Adaptive):
            if not self.divergence.adaptive:
                raise ValueError(
                    f"{self.name}: tau must be a number, the divergence "
                    f"{type(self.divergence).__name__} has no adaptive tau; found {shown(self.tau)}"
                )
        else:
            check_positive(self.name, "tau", self.tau)

    @property
    def adaptive(self) -> Adaptive | None:
        """How τ adapts; None where it is a number."""
        if self.tau is None:
            return Adaptive()
        return self.tau if isinstance(self.tau, Adaptive) else None

    @property
    def shardable(self) -> bool:
        return self.divergence.shardable

    @property
    def separable(self) -> bool:
        """True of a separable divergence with a τ that is a number, but for non-finite rows."""
        return self.divergence.separable and self.adaptive is None

    @property
    def invariances(self) -> frozenset[Invariance]:
        """Of a step as a map of rows and estimate together."""
        kept = set(self.divergence.invariances)
        if self.fusion == "sequential":
            kept.discard(Invariance.PERMUTATION)
        if self.adaptive is None and not self.divergence.scale_free:
            kept.discard(Invariance.SCALING)
        return frozenset(kept)

    def init(self, like: Tensor, *, start: Tensor | None = None) -> State:
        """The state before the first round, with m₀ = ``start`` ``(d,)``, or 0.

        The first sample is a bad start: one heavy-tailed or Byzantine row there and the estimate
        needs arbitrarily many steps to come back.
        """
        check_instance(self.name, "like", like, Tensor)
        if like.dim() != 1 or not like.is_floating_point():
            raise ValueError(
                f"{self.name}: like must be a floating (d,) tensor, "
                f"found {like.dtype} of shape {tuple(like.shape)}"
            )
        dtype = torch.promote_types(like.dtype, torch.float32)
        m = torch.zeros_like(like, dtype=dtype)
        if start is not None:
            m = start.detach().to(like.device, dtype).clone()
            if start.shape != like.shape or not bool(m.isfinite().all()):
                raise ValueError(
                    f"{self.name}: start must be finite of shape {tuple(like.shape)}, "
                    f"found shape {tuple(start.shape)}"
                )
        state = {ESTIMATE: m, STEPS: torch.zeros((), dtype=torch.int64, device="cpu")}
        return state if self.adaptive is None else {**state, **self.adaptive.init()}

    def explain(
        self,
        rows: Tensor,
        state: State,
        *,
        senders: Sequence[int] | None = None,
        generator: torch.Generator | None = None,
        distances: bool = True,
        shards: Shards = WHOLE,
    ) -> tuple[Explanation, State]:
        check_rows(self.name, rows)
        self._check_state(state)
        m = state[ESTIMATE]
        if rows.shape[1:] != m.shape:
            raise ValueError(
                f"{self.name}: rows must have d={m.shape[0]} columns, found {rows.shape[1]}"
            )
        rows = rows.detach()
        weights: Tensor | None = None
        solver: SolverReport | None = None
        # τ is set once a round from the rows' distances to the estimate before it; each repetition
        # of an averaged step sets it anew.
        for _ in range(self.iterations):
            tau, gaps, state = self._tau(rows, m, state, shards)
            if tau == 0:
                break  # adaptive, among rows that are where m is
            if self.fusion == "sequential":
                for place in _order(self.name, len(rows), generator):
                    m = self.divergence.step(rows[place], m, tau, self.method, shards=shards)
            elif self.fusion == "batch":
                m, weights, solver = self.divergence.batch(rows, m, tau, shards=shards)
            else:
                m, weights = self.divergence.averaged(
                    rows, m, tau, self.method, gaps, shards=shards
                )
        if self.iterations > 1:
            weights = None  # those of the last repetition are relative to an m that moved
        overshoots = self.divergence.overshoots(tau, self.method)
        if overshoots and not shards.finite(kernels.largest(m)):
            raise ValueError(
                f"{self.name}: tau must be so small that the estimate is finite in {m.dtype}, "
                f"found {tau:.3g}"
            )
        state = {**state, ESTIMATE: m, STEPS: state[STEPS] + 1}
        # A step may be longer than what 16 bits hold.
        limit = torch.finfo(rows.dtype).max
        output = m.clamp(-limit, limit).to(rows.dtype)
        explanation = explained(
            output, rows, distances=distances, weights=weights, solver=solver, shards=shards
        )
        return explanation, state

    def step_streams(
        self,
        rows: Tensor,
        states: Sequence[State],
        *,
        senders: Sequence[int],
        generators: Generators,
        out: Tensor,
    ) -> list[State]:
        share = self._share()
        if share is None:
            return super().step_streams(
                rows, states, senders=senders, generators=generators, out=out
            )
        points = [state[ESTIMATE] for state in states]
        moved = streams.approach(rows.detach(), points, share, out)
        new: list[State] = []
        for i, (m, state, sender) in enumerate(zip(moved, states, senders, strict=True)):
            if m is not None:
                new.append({**state, ESTIMATE: m, STEPS: state[STEPS] + 1})
                continue
            draw = generators(i)
            new.append(
                streams.step_alone(self, rows[i], state, sender=sender, generator=draw, out=out[i])
            )
        return new

    def _check_state(self, state: State) -> None:
        check_instance(self.name, "state", state, Mapping)
        expected = {ESTIMATE, STEPS} if self.adaptive is None else {ESTIMATE, STEPS, HISTORY}
        if not expected <= state.keys():
            raise ValueError(
                f"{self.name}: state must have {sorted(expected)}, found {sorted(state)}"
            )

    def _share(self) -> float | None:
        """The s of every step ``m + s (g - m)`` of one row, where there is one."""
        own = (type(self).step, type(self).explain) != (Estimator.step, OnlineMedian.explain)
        if own or self.iterations > 1 or self.tau is None or isinstance(self.tau, Adaptive):
            return None  # a subclass may have a step of its own
        return self.divergence.share(self.tau, self.method)

    def _tau(
        self, rows: Tensor, m: Tensor, state: State, shards: Shards
    ) -> tuple[float, Tensor | None, State]:
        """τ, the distances it was read from, and the state with their history."""
        if self.tau is not None and not isinstance(self.tau, Adaptive):
            return float(self.tau), None, state
        adaptive = self.tau or Adaptive()
        gaps = self.divergence.gaps(rows, m, shards=shards)
        gaps = torch.where(gaps <= too_far(m.dtype), gaps, torch.inf)
        alone = len(rows) == 1 or self.fusion == "sequential"
        tau, state = adaptive.step(gaps, state, steps=int(state[STEPS]), one_at_a_time=alone)
        return tau, gaps, state


def _order(who: str, n: int, generator: torch.Generator | None) -> list[int]:
    if n == 1:
        return [0]
    if generator is None:
        raise ValueError(f"{who}: generator is required for fusion='sequential', found None")
    order: list[int] = torch.randperm(n, generator=generator, device="cpu").tolist()
    return order
