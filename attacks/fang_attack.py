"""Local model poisoning: the aggregate goes where the model would not have gone."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf, isfinite, sqrt
from typing import Literal, get_args

import torch
from torch import Tensor

from attacks.attack import Attack
from attacks.moments import Of, check_scatter, mean_and_std, wide_dtype, wide_rows
from attacks.perturbations import products
from attacks.threat import Knowledge, UnfitRoundError, View
from robust_agg.errors import check_choice, check_positive
from robust_agg.span import measure
from robust_agg.types import State
from robust_agg.weightings.krum import krum_scores

Against = Literal["trimmed_mean", "krum"]


@dataclass(frozen=True, kw_only=True)
class FangAttack(Attack):
    """Rows against the sign of every coordinate of the mean, ``s = sign(ḡ)`` with sign(0) = 1.

    Fang, Cao, Jia, Gong, "Local Model Poisoning Attacks to Byzantine-Robust Federated Learning"
    (USENIX Security 2020), in terms of gradients, of which a step subtracts.

    - ``against="trimmed_mean"`` (section 4.3; of the median too): coordinate j of every row is
      drawn just outside of all honest values, below them where s_j = 1 and above where s_j = -1:
      uniform between the outermost value v and v·b or v/b, whichever is farther out. With
      ``of="own"``, the paper's partial knowledge, between 3 and 4 standard deviations from the
      mean of the attackers' own rows.
    - ``against="krum"`` (section 4.2): all rows are ``-λ s``. λ begins at the paper's upper bound
      ``√(min_i Σ_l ‖x_i - x_l‖² / ((n-2k-1) d)) + max_i ‖x_i‖/√d``, the sum over the n - k - 2
      honest rows nearest to x_i, and is halved until Krum of f = k would choose such a row, or λ is
      below ``threshold``. The paper's compromised models differ from each other by at most an ε;
      here ε = 0, which is what it takes for granted when it looks for λ.

    Args:
        against: the rule that is attacked.
        of: whose rows the attackers know; ``"own"`` with ``against="trimmed_mean"`` only.
        b: > 1, how far out the values are drawn.
        threshold: the smallest λ that is tried, > 0, in the rows' units.

    Raises:
        ValueError: a parameter out of range.
        UnfitRoundError: in a round, with ``of="own"`` fewer than 2 own rows, against Krum
            n < 2k + 3.
    """

    against: Against = "trimmed_mean"
    of: Of = "honest"
    b: float = 2.0
    threshold: float = 1e-5

    def __post_init__(self) -> None:
        check_choice("FangAttack", "against", self.against, get_args(Against))
        check_choice("FangAttack", "of", self.of, get_args(Of))
        if self.of == "own" and self.against == "krum":
            raise ValueError("FangAttack: of='own' needs against='trimmed_mean', found 'krum'")
        if not 1 < self.b < inf:
            raise ValueError(f"FangAttack: b must be a finite number > 1, found {self.b}")
        check_positive("FangAttack", "threshold", self.threshold)

    @property
    def knows(self) -> Knowledge:
        return Knowledge.HONEST if self.of == "honest" else Knowledge.OWN

    def check(self, byzantine: int, honest: int) -> None:
        super().check(byzantine, honest)
        n, k = byzantine + honest, byzantine
        if self.against == "krum" and n < 2 * k + 3:
            raise UnfitRoundError(
                f"FangAttack: against='krum' needs n >= 2k + 3 rows, found n={n}, k={k}"
            )
        if self.of == "own":
            check_scatter("FangAttack", "own", byzantine, honest)

    def __call__(
        self, view: View, state: State, generator: torch.Generator
    ) -> tuple[Tensor, State]:
        self.check(view.byzantine, view.n - view.byzantine)
        if self.against == "krum":
            return self._chosen_by_krum(view), state
        near, far = self._own_bounds(view) if self.of == "own" else self._bounds(view)
        # Drawn on the CPU, where the generator is, so that every device draws the same.
        shares = torch.rand(
            view.byzantine, view.dim, dtype=near.dtype, generator=generator, device="cpu"
        )
        return torch.lerp(near, far, shares.to(view.device)).to(view.dtype), state

    def _bounds(self, view: View) -> tuple[Tensor, Tensor]:
        """The outermost honest value of each coordinate, and the farthest that is drawn."""
        rows = wide_rows(view)
        down = rows.mean(dim=0) >= 0
        near = torch.where(down, rows.amin(dim=0), rows.amax(dim=0))
        # Out of the values' range, which is towards 0 where all of them are beyond 0.
        far = torch.where(down == (near > 0), near / self.b, near * self.b)
        return near, far

    def _own_bounds(self, view: View) -> tuple[Tensor, Tensor]:
        mean, std = mean_and_std(wide_rows(view, "own"))
        away = torch.where(mean >= 0, -std, std)
        return mean + 3 * away, mean + 4 * away

    def _chosen_by_krum(self, view: View) -> Tensor:
        n, k = view.n, view.byzantine
        rows = view.honest
        towards = -torch.where(wide_rows(view).mean(dim=0) >= 0, 1.0, -1.0).double()
        distances = measure(rows)[0].squared_distances
        squares = torch.stack([row.double().square().sum() for row in rows]).cpu()
        along = products(rows, towards)
        sums = distances.sort(dim=1).values[:, 1 : n - k - 1].sum(dim=1)
        factor = sqrt(float(sums.min()) / ((n - 2 * k - 1) * view.dim))
        factor += sqrt(float(squares.max()) / view.dim)
        # Of rows that are not finite nothing is known.
        while isfinite(factor) and factor >= self.threshold:
            to_honest = squares - 2 * factor * along + factor**2 * view.dim
            if _chosen(distances, to_honest.clamp(min=0), k):
                break
            factor /= 2
        row = (factor * towards).to(wide_dtype(view)).to(view.dtype)
        return row.expand(k, -1)


def _chosen(distances: Tensor, to_honest: Tensor, k: int) -> bool:
    """Whether Krum of f = k chooses one of k equal rows rather than an honest one.

    Args:
        distances: ``(h, h)``, squared, between the honest rows.
        to_honest: ``(h,)``, squared, from the crafted row.
        k: how many crafted rows there are.
    """
    h = len(distances)
    everyone = torch.zeros(h + k, h + k, dtype=torch.float64, device="cpu")
    everyone[:h, :h] = distances
    everyone[h:, :h] = to_honest
    everyone[:h, h:] = to_honest[:, None]
    scores = krum_scores(everyone, h - 2)  # n - f - 2 neighbours
    return bool(scores[h:].min() < scores[:h].min())
