"""How the paper's figures look: one colour a method, the same in all of them."""

from __future__ import annotations

from typing import Any

# Okabe & Ito's colours, which colour-blind readers tell apart; the two forms of a divergence share
# one and differ in their dashes.
STYLES: dict[str, dict[str, Any]] = {
    "momentum": {"color": "#D55E00"},
    "momentum (prox)": {"color": "#D55E00", "linestyle": ":"},
    "bias-corrected momentum": {"color": "#E69F00"},
    "VClip": {"color": "#0072B2"},
    "adaptive momentum": {"color": "#0072B2", "linestyle": ":"},
    "CClip": {"color": "#009E73"},
    "signed increment": {"color": "#009E73", "linestyle": ":"},
    "sample mean": {"color": "#555555", "linestyle": (0, (1, 3))},
    "coordinate-wise median": {"color": "#555555", "linestyle": "--"},
    "geometric median": {"color": "#555555", "linestyle": "-."},
}
