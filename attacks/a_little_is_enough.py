"""A Little Is Enough: a shift that stays within the scatter of the honest rows."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal, get_args

import torch
from torch import Tensor

from attacks.attack import Attack
from attacks.moments import Of, check_scatter, mean_and_std, wide_rows
from attacks.threat import Knowledge, UnfitRoundError, View
from robust_agg.errors import check_choice
from robust_agg.types import State


def z_max(n: int, byzantine: int) -> float:
    """The largest shift, in standard deviations, that a majority still surrounds.

    ``z_max = Φ⁻¹((n - k - s) / (n - k))`` with ``s = ⌊n/2 + 1⌋ - k``.

    s honest "supporters", which lie further out than the attackers, make a majority with the k of
    them (Baruch et al., 2019, whose code takes z as a parameter).

    Args:
        n: the number of rows.
        byzantine: the number k of Byzantine rows among them.

    Raises:
        UnfitRoundError: k < 1; k > n/2, when no supporter is needed and z is unbounded; or so few
            attackers (k <= 2 for even n, k = 1 for odd n) that the formula gives no positive z.
    """
    supporters = n // 2 + 1 - byzantine
    if byzantine < 1 or supporters < 1:
        raise UnfitRoundError(
            "ALittleIsEnough: z_max needs 1 <= k <= n/2 Byzantine rows, "
            f"found n={n}, k={byzantine}; give z"
        )
    honest = n - byzantine
    share = (honest - supporters) / honest
    if share <= 0.5:
        raise UnfitRoundError(
            "ALittleIsEnough: z_max > 0 needs k > 2 Byzantine rows of an even n, k > 1 of an odd "
            f"one, found n={n}, k={byzantine}; give z"
        )
    return NormalDist().inv_cdf(share)


@dataclass(frozen=True, kw_only=True)
class ALittleIsEnough(Attack):
    """Every row is μ + sign · z σ, coordinate by coordinate.

    μ and σ are the mean and the standard deviation of the rows the attackers
    estimate them from. Baruch, Baruch, Goldberg, "A Little Is Enough: Circumventing Defenses For
    Distributed Learning" (NeurIPS 2019), the attack that prevents convergence; also called ALIE,
    LIE or Little.

    Variants, and who uses which:

    - ``of``: the paper's attackers are not omniscient and estimate from their own rows, ``"own"``.
      ``"honest"``, all honest rows, is the stronger attack that Karimireddy, He, Jaggi (2022),
      Blades, ByzFL and ByzPy run, and the default here.
    - ``sign``: the paper's algorithm, Blades, ByzFL and ByzPy add (+1); the paper's code and
      Karimireddy et al. subtract (-1), the default here.
    - ``z``: the default is :func:`z_max` of the round's n and k, as in Karimireddy et al. and
      Blades. ByzPy takes Φ⁻¹((n-s)/n), which is larger; ByzFL and the paper's code
      take a constant, by default 1.5.
    - ``ddof``: the paper's code and ByzPy divide by the number of rows (0), the default here;
      Karimireddy et al., Blades and ByzFL by one less (1).

    Args:
        z: the shift in standard deviations, >= 0; None for :func:`z_max`.
        sign: the direction of the shift.
        ddof: the standard deviation divides by the number of rows less ``ddof``.
        of: the rows the mean and the standard deviation are taken of.

    Raises:
        ValueError: a parameter out of range.
        UnfitRoundError: in a round, fewer than 2 rows to estimate from, or no positive ``z_max``.
    """

    z: float | None = None
    sign: Literal[-1, 1] = -1
    ddof: Literal[0, 1] = 0
    of: Of = "honest"

    def __post_init__(self) -> None:
        if self.z is not None and not (self.z >= 0 and math.isfinite(self.z)):
            raise ValueError(f"ALittleIsEnough: z must be finite and >= 0, found {self.z}")
        if self.sign not in (-1, 1):
            raise ValueError(f"ALittleIsEnough: sign must be -1 or 1, found {self.sign}")
        if self.ddof not in (0, 1):
            raise ValueError(f"ALittleIsEnough: ddof must be 0 or 1, found {self.ddof}")
        check_choice("ALittleIsEnough", "of", self.of, get_args(Of))

    @property
    def knows(self) -> Knowledge:
        return Knowledge.HONEST if self.of == "honest" else Knowledge.OWN

    def check(self, byzantine: int, honest: int) -> None:
        super().check(byzantine, honest)
        check_scatter("ALittleIsEnough", self.of, byzantine, honest)
        if self.z is None:
            z_max(byzantine + honest, byzantine)

    def __call__(
        self, view: View, state: State, generator: torch.Generator
    ) -> tuple[Tensor, State]:
        self.check(view.byzantine, view.n - view.byzantine)
        z = z_max(view.n, view.byzantine) if self.z is None else self.z
        mean, std = mean_and_std(wide_rows(view, self.of), ddof=self.ddof)
        row = (mean + self.sign * z * std).to(view.dtype)
        return row.expand(view.byzantine, -1), state
