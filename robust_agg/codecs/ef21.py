"""EF21: compressed differences to a shift."""

from __future__ import annotations

from dataclasses import dataclass

from robust_agg.codecs.shifted import Shifted, check_contractive


@dataclass(frozen=True, kw_only=True)
class EF21(Shifted):
    """``c = C(g - v)`` is sent, both sides step ``v ← v + c``, v₀ = 0, and v is the row.

    Richtárik, Sokolov, Fatkhullin, "EF21: A new, simpler, theoretically better, and practically
    faster error feedback", 2021, Algorithm 2, where the first message is C(∇f): v₀ = 0.

    Attributes:
        compressor: C, contractive: ``TopK``, ``RandomK``, ``Sign``.

    Raises:
        ValueError: C is not contractive.
    """

    def __post_init__(self) -> None:
        check_contractive(self.name, self.compressor)
