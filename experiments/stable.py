"""Symmetric α-stable noise: the heavy tails of the paper's section 4.1, and a corruption to train
under.

A variable X is SαS with scale σ where ``E exp(itX) = exp(-|σt|^α)``: α = 2 is N(0, 2σ²), α = 1
Cauchy. For α < 2 the variance is infinite, for α <= 1 the mean does not exist either.
"""

from __future__ import annotations

from math import pi

import torch
from torch import Tensor


def symmetric_stable(alpha: float, *shape: int, generator: torch.Generator) -> Tensor:
    """Independent SαS numbers of scale 1, float64.

    ``sin(αV)/cos(V)^{1/α} · (cos((1-α)V)/W)^{(1-α)/α}`` with V uniform on (-π/2, π/2) and W
    exponential: Chambers, Mallows and Stuck, JASA 71 (1976), equation (2.3) for β = 0.

    Raises:
        ValueError: alpha is not in (0, 2].
    """
    _check(alpha)
    v = (_uniform(shape, generator) - 0.5) * pi
    w = _exponential(shape, generator)
    tail = (torch.cos((1 - alpha) * v) / w) ** ((1 - alpha) / alpha)
    return torch.sin(alpha * v) / torch.cos(v) ** (1 / alpha) * tail


def elliptical_stable(alpha: float, *shape: int, generator: torch.Generator) -> Tensor:
    """Vectors along the last dimension that are SαS in every direction, of scale 1; float64.

    Sub-Gaussian: ``√(2A) G`` with G standard normal and one A a vector, positive (α/2)-stable with
    ``E exp(-sA) = exp(-s^{α/2})`` (Samorodnitsky and Taqqu 1994, proposition 2.5.2). A is drawn as
    ``sin(aU)/sin(U)^{1/a} · (sin((1-a)U)/W)^{(1-a)/a}``, a = α/2 and U uniform on (0, π)
    (Kanter, Annals of Probability 3 (1975), corollary 4.1).

    Raises:
        ValueError: alpha is not in (0, 2].
    """
    _check(alpha)
    *each, _ = shape
    a = alpha / 2
    u = _uniform((*each, 1), generator) * pi
    w = _exponential((*each, 1), generator)
    scale = torch.sin(a * u) / torch.sin(u) ** (1 / a)
    scale = scale * (torch.sin((1 - a) * u) / w) ** ((1 - a) / a)
    gaussian = torch.randn(*shape, generator=generator, dtype=torch.float64)
    return (2 * scale).sqrt() * gaussian


def _check(alpha: float) -> None:
    if not 0 < alpha <= 2:
        raise ValueError(f"stable noise: alpha must be in (0, 2], found {alpha}")


def _uniform(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """In (0, 1): the ends, at which the formulas divide by zero, are left out."""
    tiny = 2.0**-54
    drawn = torch.rand(*shape, generator=generator, dtype=torch.float64)
    return drawn.clamp_(tiny, 1 - 2 * tiny)


def _exponential(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return -torch.log(_uniform(shape, generator))
