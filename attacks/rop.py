"""Relocated orthogonal perturbation: inside the clipping radius, and across the way."""

from __future__ import annotations

from dataclasses import dataclass
from math import cos, isfinite, radians, sin
from typing import ClassVar

import torch
from torch import Tensor

from attacks.attack import Attack
from attacks.moments import unit, wide_rows
from attacks.threat import Knowledge, View
from robust_agg.errors import check_positive, check_share
from robust_agg.types import State


@dataclass(frozen=True, kw_only=True)
class ROP(Attack):
    """Every row is ``π m + (1-π) ḡ + z q``: near the defence's reference m, off by z.

    Özfatura, Özfatura, Küpçü, Gündüz, "Byzantines can also Learn from History: Fall of Centered
    Clipping in Federated Learning" (IEEE TIFS 2024). m is what the defence answered last, about
    which centered clipping clips (ḡ before it has answered). With ``r = λ m + (1-λ) ḡ``, p the
    part of (1, …, 1) that is orthogonal to r, and both of length 1, ``q = sin(θ) p + cos(θ) r``:
    clipping looks at lengths and not at angles, and p stays nearly the same from round to round.

    z is in the rows' units; the authors' code takes :func:`~attacks.z_max` for it where none is
    given.

    Args:
        z: the length of the perturbation, > 0.
        relocation: π, in [0, 1]: 1 at the reference, 0 at the honest mean.
        memory: λ, in [0, 1]: the share of the reference in what q is orthogonal to.
        angle: θ in degrees: 90 is orthogonal, 180 reverses.

    Raises:
        ValueError: a parameter out of range.
    """

    knows: ClassVar[Knowledge] = Knowledge.HONEST | Knowledge.ESTIMATE

    z: float = 1.0
    relocation: float = 1.0
    memory: float = 0.9
    angle: float = 90.0

    def __post_init__(self) -> None:
        check_positive("ROP", "z", self.z)
        for name in ("relocation", "memory"):
            check_share("ROP", name, getattr(self, name), zero=True, one=True)
        if not isfinite(self.angle):
            raise ValueError(f"ROP: angle must be finite, found {self.angle}")

    def __call__(
        self, view: View, state: State, generator: torch.Generator
    ) -> tuple[Tensor, State]:
        mean = wide_rows(view).mean(dim=0).double()
        last = view.estimate
        reference = mean if last is None else last.double()
        along = unit(torch.lerp(mean, reference, self.memory))
        ones = torch.ones_like(along)
        across = ones - (ones @ along) * along
        if across.norm() < 1e-9 * ones.norm():
            across = torch.zeros_like(ones)  # r is parallel to them: the rest is rounding
        theta = radians(self.angle)
        perturbation = sin(theta) * unit(across) + cos(theta) * along
        row = torch.lerp(mean, reference, self.relocation) + self.z * perturbation
        return row.to(view.dtype).expand(view.byzantine, -1), state
