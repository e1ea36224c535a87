"""Against clipping: just inside the radius, and always the same way."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from attacks.attack import Attack
from attacks.direction import steady, undrawn
from attacks.moments import unit, wide_dtype, wide_rows
from attacks.threat import Knowledge, View
from robust_agg import L1, L2
from robust_agg.errors import check_choice, check_positive, check_share
from robust_agg.types import State

Norm = Literal["l2", "linf"]
Direction = Literal["against", "fixed"]


@dataclass(frozen=True, kw_only=True)
class AntiClip(Attack):
    """Every row is ``m + c τ u``: within the radius τ about the estimate m, in a direction u.

    What clips about m (:class:`~robust_agg.VClip`, :class:`~robust_agg.CClip`, centered clipping of
    Karimireddy, He, Jaggi, ICML 2021) bounds how far one row moves it and takes in full what is
    nearer than τ: k rows at the edge move m by c τ k/n a round, while honest rows beyond the edge
    are shortened. m is what the defence answered last, 0 before it has answered.

    - ``norm="l2"``: ‖u‖₂ = 1, for rules that clip a row's length (VClip, centered clipping);
    - ``norm="linf"``: |u_j| = 1 in every coordinate, for those that clip each alone (CClip);
    - ``direction="against"``: u = -ḡ/‖ḡ‖₂ or -sign(ḡ), the opposite of the honest mean;
    - ``direction="fixed"``: a random u for the whole run, which needs no honest row.

    Args:
        radius: τ > 0. None for the ⌈n/2⌉-th smallest distance of an honest row from m, in the scale
            of L2 or L1: the largest median of all n distances, which an adaptive τ is, that a
            minority can bring about.
        share: c in (0, 1], how close to the edge.
        norm: what is clipped.
        direction: where to.

    Raises:
        ValueError: a parameter out of range.
    """

    radius: float | None = None
    share: float = 0.99
    norm: Norm = "l2"
    direction: Direction = "against"

    def __post_init__(self) -> None:
        if self.radius is not None:
            check_positive("AntiClip", "radius", self.radius)
        check_share("AntiClip", "share", self.share, one=True)
        check_choice("AntiClip", "norm", self.norm, get_args(Norm))
        check_choice("AntiClip", "direction", self.direction, get_args(Direction))

    @property
    def knows(self) -> Knowledge:
        if self.radius is not None and self.direction == "fixed":
            return Knowledge.ESTIMATE
        return Knowledge.ESTIMATE | Knowledge.HONEST

    def init(self, like: Tensor) -> State:
        """A fixed u is drawn in the first round."""
        return {} if self.direction == "against" else undrawn(like)

    def __call__(
        self, view: View, state: State, generator: torch.Generator
    ) -> tuple[Tensor, State]:
        last = view.estimate
        if last is None:
            last = torch.zeros(view.dim, dtype=view.dtype, device=view.device)
        centre = last.to(wide_dtype(view))
        if self.direction == "against":
            towards = -wide_rows(view).mean(dim=0)
        else:
            towards, state = steady(state, generator)
        direction = towards.sign() if self.norm == "linf" else unit(towards)
        row = centre + self.share * self._radius(view, centre) * direction
        return row.to(view.dtype).expand(view.byzantine, -1), state

    def _radius(self, view: View, centre: Tensor) -> float:
        if self.radius is not None:
            return self.radius
        divergence = L2() if self.norm == "l2" else L1()
        # The defence gets several rows, which it measures otherwise than one that is alone.
        rows = view.honest if len(view.honest) > 1 else view.honest.expand(2, -1)
        gaps = divergence.gaps(rows, centre).sort().values
        return float(gaps[min(-(-view.n // 2), len(gaps)) - 1])
