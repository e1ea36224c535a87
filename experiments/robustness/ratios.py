"""How far a rule is from the mean of honest rows, whichever these are, and a search for the worst.

A rule is (f, κ)-robust if for every set H of n - f rows ``‖out - x̄_H‖² <= κ · V_H``, with
``V_H = mean_{i∈H} ‖x_i - x̄_H‖²`` (Allouah et al., "Fixing by Mixing", AISTATS 2023, Definition 2).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import combinations
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from robust_agg import Aggregator

Matrix: TypeAlias = NDArray[np.float64]
Ratio: TypeAlias = Callable[[Matrix], float]

_SAME = 1e-10
# Of the squared size of an input: honest rows that vary by less are one point.
_NOTHING = 1e-20
# A squared size: all rows are one point, but for rounding.
_FAR = 1e3
# Rounding has no part in a ratio while no row is farther out, in units of the others.


def honest_sets(n: int, f: int) -> NDArray[np.int64]:
    """All sets of n - f rows: ``(sets, n - f)``."""
    return np.array(list(combinations(range(n), n - f)))


def ratio_of(rule: Aggregator, sets: NDArray[np.int64]) -> Ratio:
    """``max_H ‖out - x̄_H‖²/V_H`` of rows ``(n, d)``, as a function of them.

    Sets whose rows are one point have no ratio; the rule must answer with that point, or it is
    infinite. A rule that draws does so alike each time.
    """
    draw = torch.Generator()

    def ratio(rows: Matrix) -> float:
        rows = rows - rows.mean(axis=0)  # for rounding to have no part in it
        out = rule(torch.from_numpy(rows), generator=draw.manual_seed(0)).numpy()
        honest = rows[sets]
        means = honest.mean(axis=1)
        spreads = np.square(honest - means[:, None]).sum(axis=2).mean(axis=1)
        errors = np.square(out - means).sum(axis=1)
        size = float(np.square(rows).sum(axis=1).max())
        if size < _NOTHING:
            return 0.0
        apart = spreads > _SAME * size
        if (errors[~apart] > 1e4 * _SAME * size).any():
            return float("inf")
        return float((errors[apart] / spreads[apart]).max(initial=0.0))

    return ratio


def inputs(n: int, f: int, count: int, draw: np.random.Generator) -> Iterator[Matrix]:
    """``count`` inputs: one that no rule is better at, then random ones in 1 to 3 dimensions."""
    yield np.repeat([[0.0], [1.0]], [n - f, f], axis=0)
    families = (_bad_in_one_place, _lattice, _few_places, _heavy_tailed, _mimics)
    for place in range(count - 1):
        yield families[place % len(families)](n, f, int(draw.integers(1, 4)), draw)


def climb(
    ratio: Ratio, start: Matrix, steps: int, draw: np.random.Generator
) -> tuple[Matrix, float]:
    """Steps of a random local search that go up, or at least not down.

    A step moves some numbers by a length that follows its success, or puts one row where another
    is: the worst inputs have rows in the same place, where steps alone would not put them.
    """
    rows, best = start, ratio(start)
    length = 0.3 * float(start.std())
    for _ in range(steps):
        if draw.random() < 0.15:
            trial = rows.copy()
            one, other = draw.integers(len(rows), size=2)
            trial[one] = rows[other]
        else:
            moved = draw.random(rows.shape) < draw.choice([0.15, 0.5, 1.0])
            trial = rows + length * moved * draw.normal(size=rows.shape)
        trial = np.clip(trial, -_FAR, _FAR)
        found = ratio(trial)
        length *= 1.3 if found > best else 0.97
        if found >= best:
            rows, best = trial, found
    return rows, best


def _bad_in_one_place(n: int, f: int, d: int, draw: np.random.Generator) -> Matrix:
    rows = draw.normal(size=(n, d))
    direction = draw.normal(size=d)
    distance = 10 ** draw.uniform(-1, 2.5)
    rows[n - f :] = rows[: n - f].mean(axis=0) + distance * direction / np.linalg.norm(direction)
    return rows


def _lattice(n: int, f: int, d: int, draw: np.random.Generator) -> Matrix:
    return draw.integers(-2, 3, size=(n, d)).astype(np.float64)


def _few_places(n: int, f: int, d: int, draw: np.random.Generator) -> Matrix:
    places: Matrix = draw.normal(size=(int(draw.integers(2, 5)), d))
    return places[draw.integers(len(places), size=n)]


def _heavy_tailed(n: int, f: int, d: int, draw: np.random.Generator) -> Matrix:
    return np.clip(draw.standard_cauchy(size=(n, d)), -_FAR, _FAR)


def _mimics(n: int, f: int, d: int, draw: np.random.Generator) -> Matrix:
    """The bad rows stand with the honest one that is farthest out, or a little beyond."""
    rows = draw.normal(size=(n, d))
    centre = rows[: n - f].mean(axis=0)
    farthest = np.linalg.norm(rows[: n - f] - centre, axis=1).argmax()
    rows[n - f :] = centre + draw.choice([1.0, 1.1, 1.5]) * (rows[farthest] - centre)
    return rows
