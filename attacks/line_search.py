"""The strongest of a family of attacks with one parameter, found by asking the defence."""

from __future__ import annotations

from collections.abc import Callable
from math import inf, sqrt

import torch
from torch import Tensor

from attacks.moments import wide_rows
from attacks.threat import View
from robust_agg.errors import ConstraintError, SearchLimitError, TooManyRejectedError
from robust_agg.span import Geometry, measure

COARSE = 24
"""Values of the coarse search."""

_RATIO = 2.0**0.625
# Of each to the next: they span a factor of 2·10⁴.


def maximise(damage: Callable[[float], float], *, largest: float, refinements: int) -> float:
    """The s in (0, ``largest``] of the largest ``damage(s)`` that was found.

    Coarsely over 24 values, each 1.54 times the one before, up to ``largest``; then ``refinements``
    times at the two neighbours of the best, at ratios 1.54^(1/2), 1.54^(1/4), … from it. Where a
    defence selects, the damage rises with s to a cliff: from below, the steps close in on it. A
    peak narrower than the coarse steps may be missed. Of equal damages the smaller s counts, and
    none that is NaN.
    """
    best, most = largest * _RATIO ** (1 - COARSE), -inf
    for j in reversed(range(COARSE)):
        s = largest * _RATIO**-j
        found = damage(s)
        if found > most:
            best, most = s, found
    for step in range(1, refinements + 1):
        ratio = _RATIO ** (0.5**step)
        for s in (best / ratio, min(best * ratio, largest)):
            found = damage(s)
            if found > most:
                best, most = s, found
    return best


class Line:
    """What the defence makes of attackers that all send ``ḡ + t (p - ḡ)``, for any t.

    ḡ is the mean of the honest rows and p a point ``(d,)``, in at least float32; the damage of t is
    ``‖defence(rows) - ḡ‖₂``, and 0 where the defence would skip the round. The rows are as the
    attackers send them, whatever a codec will make of them on the way. They are combinations of the
    honest rows and p: where the defence decides in weight space, one Gram matrix of these h + 1
    points answers for every t. Where it must see rows, they are all made.

    Args:
        view: the round; ``Knowledge.HONEST`` and ``Knowledge.DEFENCE`` are read.
        point: p.
    """

    def __init__(self, view: View, point: Tensor) -> None:
        self._view, self._point = view, point
        self._mean = wide_rows(view).mean(dim=0)
        self._geometry, _ = measure(view.honest, point)
        self._exact = False
        self._rows: Tensor | None = None

    def row(self, t: float) -> Tensor:
        """``ḡ + t (p - ḡ)``, ``(d,)`` of the rows' dtype."""
        return torch.lerp(self._mean, self._point, t).to(self._view.dtype)

    def damage(self, t: float) -> float:
        """``‖defence(rows) - ḡ‖₂``."""
        try:
            found = self._in_weight_space(t)
            return self._over_rows(t) if found is None else found
        except (ConstraintError, SearchLimitError, TooManyRejectedError):
            return 0.0

    def _in_weight_space(self, t: float) -> float | None:
        found = self._with(self._geometry, t)
        if found is None and not self._exact and bool(self._geometry.accepted.all()):
            # Clipping about an origin that is far away needs more digits, and gets them.
            points = torch.cat([self._view.honest.to(self._point.dtype), self._point[None]])
            self._geometry = self._geometry.about_origin(points, self._geometry.accepted)
            self._exact = True
            found = self._with(self._geometry, t)
        return found

    def _with(self, points: Geometry, t: float) -> float | None:
        """The damage as the geometry of honest rows and p tells it."""
        view = self._view
        if not bool(points.accepted.all()):
            return None
        h = view.n - view.byzantine
        mean = torch.zeros(h + 1, dtype=torch.float64, device="cpu")
        mean[:h] = 1 / h
        sent = (1 - t) * mean
        sent[h] = t
        honest = torch.eye(h, h + 1, dtype=torch.float64, device="cpu")
        mixing = torch.cat([honest, sent.expand(view.byzantine, -1)])
        accepted = torch.ones(view.n, dtype=torch.bool, device="cpu")
        weights = view.defence.weights_from(points.mixed(mixing, accepted))
        if weights is None:
            return None
        both = points.mixed(torch.stack([weights @ mixing, mean]), accepted[:1].expand(2))
        return sqrt(float(both.squared_distances[0, 1]))

    def _over_rows(self, t: float) -> float:
        h = self._view.n - self._view.byzantine
        if self._rows is None:
            honest = self._view.honest
            self._rows = honest.new_empty(self._view.n, self._view.dim)
            self._rows[:h] = honest
        self._rows[h:] = self.row(t)
        answer = self._view.defence.aggregate(self._rows)
        return float((answer.to(self._mean.device).double() - self._mean.double()).norm())
