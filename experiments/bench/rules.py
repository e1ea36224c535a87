"""What is measured: this library's rules, by the names of their plain forms."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeAlias

import torch
from torch import Tensor

from experiments.bench.plain import CLIPPING_STEPS, ENTRY, clipping_radius
from robust_agg import (
    L1,
    L2,
    AdaptiveClip,
    CenteredClipping,
    CoordinateWiseMedian,
    Estimator,
    GeometricMedian,
    Krum,
    Mean,
    MeanAroundMedian,
    MultiKrum,
    NearestNeighborMixing,
    OnlineMedian,
    Phocas,
    TrimmedMean,
    VClip,
    chain,
)

Form: TypeAlias = Callable[[Tensor], Tensor]
"""A rule as it is called: rows ``(n, d)`` to ``(d,)``."""


def _step(estimator: Estimator, rows: Tensor) -> Form:
    """A step of an online median from zero, whose state a server holds before the rows arrive.

    The estimate and the state that follow, ``(d,)`` each, are part of the price.
    """
    state = estimator.init(torch.zeros_like(rows[0]))
    return lambda rows: estimator.step(rows, state)[0]


def ours(name: str, rows: Tensor, f: int) -> Form:
    """The rule of that name for such rows."""
    return _OURS[name](rows, f)


_OURS: Mapping[str, Callable[[Tensor, int], Form]] = {
    "Mean": lambda rows, f: Mean(),
    "CoordinateWiseMedian": lambda rows, f: CoordinateWiseMedian(),
    "TrimmedMean": lambda rows, f: TrimmedMean(f=f),
    "MeanAroundMedian": lambda rows, f: MeanAroundMedian(f=f),
    "Phocas": lambda rows, f: Phocas(f=f),
    "L1 batch": lambda rows, f: _step(
        OnlineMedian(divergence=L1(), tau=ENTRY, fusion="batch"), rows
    ),
    "GeometricMedian": lambda rows, f: GeometricMedian(),
    "Krum": lambda rows, f: Krum(f=f),
    "MultiKrum": lambda rows, f: MultiKrum(f=f),
    "CenteredClipping": lambda rows, f: CenteredClipping(
        radius=clipping_radius(rows), iterations=CLIPPING_STEPS
    ),
    "AdaptiveClip + Mean": lambda rows, f: chain(AdaptiveClip(f=f), Mean()),
    "NNM + TrimmedMean": lambda rows, f: chain(NearestNeighborMixing(f=f), TrimmedMean(f=f)),
    "VClip": lambda rows, f: _step(VClip(tau=clipping_radius(rows)), rows),
    "L2 batch": lambda rows, f: _step(
        OnlineMedian(divergence=L2(), tau=clipping_radius(rows), fusion="batch"), rows
    ),
}

RULES = tuple(_OURS)
COORDINATEWISE = (
    "CoordinateWiseMedian",
    "TrimmedMean",
    "MeanAroundMedian",
    "Phocas",
    "L1 batch",
)
