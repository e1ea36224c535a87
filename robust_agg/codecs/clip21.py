"""Clip21: clipped differences to a shift, private with noise."""

from __future__ import annotations

from dataclasses import dataclass, field

from robust_agg.codecs.clipping import Clipping
from robust_agg.codecs.compressor import Compressor
from robust_agg.codecs.shifted import Shifted
from robust_agg.errors import check_positive


@dataclass(frozen=True, kw_only=True)
class Clip21(Shifted):
    """``c = clip_τ(g - v)`` is sent, both sides step ``v ← v + c``, v₀ = 0, and v is the row.

    Khirirat, Gorbunov, Horváth, Islamov, Karray, Richtárik, "Clip21: Error feedback for gradient
    clipping", 2023. The row is g itself as soon as ‖g - v‖₂ <= τ, which for a g that stays is after
    ⌈‖g‖₂/τ⌉ messages; clipped gradients stay biased for ever. Whatever a sender is, its row moves
    by at most τ a message, for the server clips too; a sender that begins anew, as one may, is at
    most τ from 0.

    With ``noise`` a message is ``c = clip_τ(g - v) + σζ``, ζ standard normal and σ = noise·τ, and
    is differentially private: see :mod:`~robust_agg.codecs.privacy`. The shift moves by what is
    sent, its noise included: both sides keep the same v, and the next difference takes out of the
    row what noise is in it. A worker that moved its own by the clipped part alone would leave the
    sum of all noises in the server's. A step may then be τ + σ(√d + 9.2) long, for a server cannot
    tell noise from lies. The generator of the noise, and the seed it is derived from, must be the
    worker's secret; torch's generators are not made to withstand cryptanalysis.

    Attributes:
        tau: τ > 0, in the units of the rows.
        noise: σ/τ >= 0; 0 for none.

    Raises:
        ValueError: a number that is none.
    """

    compressor: Compressor = field(init=False, repr=False)
    tau: float
    noise: float = 0.0

    def __post_init__(self) -> None:
        check_positive(self.name, "tau", self.tau)
        check_positive(self.name, "noise", self.noise, zero=True)
        clipping = Clipping(tau=float(self.tau), noise=float(self.noise))
        object.__setattr__(self, "compressor", clipping)
