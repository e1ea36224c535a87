"""Clipping to a ball, with or without noise: the C of Clip21."""

from __future__ import annotations

from dataclasses import dataclass
from math import log, sqrt

import torch
from torch import Tensor

from robust_agg.codecs.compressor import Compressor, Expanded, length, working_dtype
from robust_agg.codecs.layout import Field, Layout, Payload
from robust_agg.errors import check_positive
from robust_agg.span import too_far

_VALUES = "values"
_UNLIKELY = sqrt(2 * 60 * log(2))
# A Gaussian vector of d numbers is longer than √d + t with a probability of at most exp(-t²/2):
# 2⁻⁶⁰ here.


@dataclass(frozen=True, kw_only=True)
class Clipping(Compressor):
    """``C(x) = clip_τ(x) + σζ``, ``clip_τ(x) = x min(1, τ/‖x‖₂)``, ζ standard normal, σ = noise·τ.

    All d numbers are sent. What is longer than such a C(x) can be is clipped where it is expanded:
    to τ, or, with noise, to τ + σ(√d + 9.2), which an honest message does not reach in 2⁶⁰.

    Attributes:
        tau: τ > 0, in the units of the rows.
        noise: σ/τ >= 0.

    Raises:
        ValueError: a number that is none.
    """

    tau: float
    noise: float = 0.0

    def __post_init__(self) -> None:
        check_positive(self.name, "tau", self.tau)
        check_positive(self.name, "noise", self.noise, zero=True)

    @property
    def private(self) -> bool:
        return self.noise > 0

    def takes(self, x: Tensor) -> bool:
        """Whatever is finite is clipped, however long it is."""
        return bool(x.isfinite().all())

    def contraction(self, dim: int) -> float | None:
        return None  # α would depend on ‖x‖: it is 1 up to τ, and goes to 0 beyond

    def layout(self, dim: int, dtype: torch.dtype) -> Layout:
        return Layout((Field(_VALUES, dtype, dim),))

    def compress(
        self, x: Tensor, dtype: torch.dtype, generator: torch.Generator | None = None
    ) -> Payload:
        clipped = clip(x, self.tau)
        if self.noise > 0:
            if generator is None:
                raise ValueError(f"{self.name}: generator is required with noise, found None")
            drawn = torch.randn(x.shape, generator=generator, dtype=x.dtype, device="cpu")
            clipped = clipped + self.noise * self.tau * drawn.to(x.device)
        return {_VALUES: clipped.to(dtype)}

    def expand(self, payload: Payload, like: Tensor) -> Expanded:
        sent = payload[_VALUES]
        x, radius = sent.to(working_dtype(sent.dtype)), self.radius(sent.numel())
        if not self.takes(x):
            return Expanded(torch.full_like(x, torch.nan))
        if length(sent) <= _as_rounded(radius, sent):
            return Expanded(x)
        return Expanded(clip(x, radius), clipped=True)

    def forge(
        self, x: Tensor, dtype: torch.dtype, generator: torch.Generator | None = None
    ) -> Payload:
        return {_VALUES: clip(x, self.radius(x.numel())).to(dtype)}

    def radius(self, dim: int) -> float:
        """How long a step of ``dim`` coordinates may be."""
        return self.tau * (1 + self.noise * (sqrt(dim) + _UNLIKELY)) if self.noise else self.tau


def clip(x: Tensor, tau: float) -> Tensor:
    """``x min(1, τ/‖x‖₂)``, however long x is."""
    found = length(x)
    if found <= tau:
        return x
    if found > too_far(x.dtype):
        # Its square, or τ/‖x‖₂, would be beyond what the dtype can say.
        x = x / x.abs().max()
        found = length(x)
    return x * (tau / found)


def _as_rounded(radius: float, sent: Tensor) -> float:
    """How long a vector of that length may be once its numbers are rounded to those of ``sent``.

    Rounding moves a number by half of ``eps`` of it, or by half of the smallest number there is;
    three roundings lie between a step and its length.
    """
    numbers = torch.finfo(sent.dtype)
    relative = max(1.5 * numbers.eps, 1e-9)
    return radius * (1 + relative) + sqrt(sent.numel()) * numbers.tiny * numbers.eps
