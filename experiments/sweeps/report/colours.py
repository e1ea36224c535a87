"""Colours that colour-blind readers tell apart: cividis for shares, Okabe & Ito's for lines."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

Dash: TypeAlias = "tuple[float, ...]"
"""Lengths of strokes and gaps in line widths; empty for a line without gaps."""

# Okabe & Ito's, without the yellow that white swallows.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000", "#E69F00", "#56B4E9")
# Dashes too: what is printed in grey, or seen by few cones, has them still.
_DASHES: tuple[Dash, ...] = ((), (5, 1.5), (1.5, 1.2), (7, 1.5, 1.5, 1.5), (), (5, 1.5), (1.5, 1.2))
STYLED = len(_COLOURS)
"""Lines that get a colour; more of them would be told apart by nobody."""


@dataclass(frozen=True)
class Style:
    """How a defence's line looks in all figures."""

    colour: str
    dash: Dash
    width: float

    @property
    def line(self) -> dict[str, Any]:
        """For matplotlib."""
        dash: Any = (0, self.dash) if self.dash else "-"
        return {"color": self.colour, "linestyle": dash, "linewidth": self.width}


def style(place: int) -> Style:
    """Of the defence at a place of the leaderboard, from 0; those far down are grey."""
    if place >= STYLED:
        return Style("#9A9A9A", (), 0.9)
    return Style(_COLOURS[place], _DASHES[place], 1.8)


def cividis(share: float) -> str:
    """The background of a share of 1, as ``#rrggbb``."""
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    return to_hex(colormaps["cividis"](min(max(share, 0.0), 1.0)))


def ink(background: str) -> str:
    """Black or white, whichever has more contrast; at least 4.5 to 1 for any background."""
    luminance = _luminance(background)
    return "#000000" if (luminance + 0.05) / 0.05 >= 1.05 / (luminance + 0.05) else "#ffffff"


def _luminance(colour: str) -> float:
    """Relative luminance by WCAG 2."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return sum(w * p for w, p in zip((0.2126, 0.7152, 0.0722), linear, strict=True))
