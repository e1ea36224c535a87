"""Smallest maximum eigenvalue averaging (SMEA)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from robust_agg.aggregator import Invariance, Weighing, Weighted
from robust_agg.budget import Budget
from robust_agg.covariance import main_spread
from robust_agg.errors import check_count, check_honest_majority
from robust_agg.solvers import Matrix, SolverReport, Vector
from robust_agg.span import Geometry

MOST_STEPS = 500_000
"""Of one search at most: some 25 seconds of one core. A step is a node of 30 points."""

_SQUARE, _CUBE = 250, 50_000
# Of m points, m²/_SQUARE steps more is what a node costs, and m³/_CUBE an eigenvalue.

_TIE = 1e-9
# Eigenvalues nearer than that, of themselves, are the same: of such sets the first is taken.

_NOISE = 1e-13
# Of the squared lengths that it is a difference of: an eigenvalue below is 0.

_NUMBERS = 1 << 20
# Of the Gram matrices of sets that are looked at together.

Places: TypeAlias = NDArray[np.int64]


def smallest_top_eigenvalue(gram: Matrix, count: int, *, who: str) -> tuple[list[int], int]:
    """The ``count`` points whose covariance has the least largest eigenvalue.

    Of several such sets, to one part in 10⁹, the lexicographically lowest. By branch and bound over
    the sets in lexicographic order: the scatter ``Σ_i (x_i - x̄)(x_i - x̄)ᵀ`` only grows with the
    set, so that one is left out with all that begin with it as soon as its largest eigenvalue
    reaches that of a set which is known, at first by leaving out points that are far out and by
    exchanging points one by one.

    Args:
        gram: ``(m, m)``, <x_i - o, x_j - o> for an o that is about as near to them as they are to
            each other; some x_i may be arbitrarily far.
        count: how many, 1 <= ``count`` <= m.
        who: whose search it is, to begin an error message with.

    Returns:
        The set, ascending, and the number of search nodes.

    Raises:
        SearchLimitError: more than ``MOST_STEPS`` search steps are needed.
    """
    if count == len(gram):
        return list(range(count)), 0
    budget = Budget(who, MOST_STEPS)
    known = _exchanged(gram, _thinned(gram, count, budget), budget)
    noise = _NOISE * float(gram.diagonal()[known].max())
    least = float(_top(gram, known[None])[0])
    if least <= noise:
        lengths = gram.diagonal()
        apart = lengths - 2 * gram[known[0]] + lengths[known[0]]
        return np.flatnonzero(apart <= noise)[:count].tolist() or known.tolist(), 0
    search = _Search(gram, count, budget)
    best, bound = known.tolist(), least * (1 + _TIE)
    while (found := search.first_below(bound)) is not None:
        best = found
        bound = min(bound, float(_top(gram, np.array([found]))[0])) * (1 - _TIE)
    return best, search.nodes


def _top(gram: Matrix, sets: Places) -> Vector:
    """The largest eigenvalue of each set's scatter, ``(k,)``, for ``sets`` ``(k, count)``."""
    some = max(1, _NUMBERS // sets.shape[1] ** 2)
    values = []
    for begin in range(0, len(sets), some):
        part = sets[begin : begin + some]
        inner = gram[part[:, :, None], part[:, None, :]]
        inner = inner - inner.mean(axis=1, keepdims=True)
        inner = inner - inner.mean(axis=2, keepdims=True)
        values.append(np.linalg.eigvalsh(inner)[:, -1])
    return np.concatenate(values)


def _eigenvalue_steps(count: int) -> int:
    return 1 + count**3 // _CUBE


def _thinned(gram: Matrix, count: int, budget: Budget) -> Places:
    """All points, without those, one after the other, that are farthest out where they spread."""
    kept = np.arange(len(gram))
    while len(kept) > count:
        budget.spend(_eigenvalue_steps(len(kept)))
        shares = np.full(len(kept), 1 / len(kept))
        _, along = main_spread(gram[np.ix_(kept, kept)], shares)
        kept = np.delete(kept, along.argmax())
    return kept


def _exchanged(gram: Matrix, kept: Places, budget: Budget) -> Places:
    """The set after exchanging one point for another for as long as that helps.

    It need not be the best, so that no more than a tenth of what may be spent goes into it.
    """
    others = np.setdiff1d(np.arange(len(gram)), kept)
    steps = len(kept) * len(others) * _eigenvalue_steps(len(kept))
    least = _top(gram, kept[None])[0]
    for _ in range(budget.limit // (10 * steps)):
        budget.spend(steps)
        sets = np.repeat(kept[None], len(kept) * len(others), axis=0)
        each = np.arange(len(sets))
        sets[each, each // len(others)] = others[each % len(others)]
        values = _top(gram, sets)
        best = values.argmin()
        if not values[best] < least * (1 - _TIE):
            break
        kept, least = sets[best], values[best]
        others = np.setdiff1d(np.arange(len(gram)), kept)
    return np.sort(kept)


class _Search:
    """Sets of points whose scatter's largest eigenvalue is below a bound t.

    It is where ``t I - G`` is positive definite on the coefficients that sum to 0, G being the
    set's Gram matrix. Over the differences to its first point that is the positive definiteness of
    ``t (I + 1) - <x_i - x_0, x_j - x_0>``, whose Schur complement over the points that may follow
    is carried along: a pivot that is not positive is a point that cannot follow, a minor of two
    that is not positive a pair.
    """

    def __init__(self, gram: Matrix, count: int, budget: Budget) -> None:
        self.gram, self.count, self.budget = gram, count, budget
        self.nodes = 0

    def first_below(self, bound: float) -> list[int] | None:
        """The lexicographically lowest of the sets; None if there is none."""
        # Not by recursion, for sets may have more points than Python has levels.
        levels = [self._single(bound)]
        while levels:
            node = next(levels[-1], None)
            if node is None:
                levels.pop()
            elif len(node.kept) == self.count:
                return node.kept
            else:
                levels.append(self._following(node))
        return None

    def _single(self, bound: float) -> Iterator[_Node]:
        """The sets of one point that enough others come after."""
        for first in range(len(self.gram) - self.count + 1):
            left = np.arange(first + 1, len(self.gram))
            inner = self.gram[np.ix_(left, left)]
            to_first = self.gram[left, first]
            inner = inner - to_first - to_first[:, None] + self.gram[first, first]
            yield _Node([first], left, bound * (np.eye(len(left)) + 1) - inner)

    def _following(self, node: _Node) -> Iterator[_Node]:
        """The sets with one point more, ascending, that may become one of those looked for."""
        self.nodes += 1
        kept, left, schur = node
        missing = self.count - len(kept)
        joined = self._joined(schur, missing)
        for place in np.flatnonzero(joined.diagonal()):
            later = np.flatnonzero(joined[place, place + 1 :]) + place + 1
            if len(later) < missing - 1:
                continue
            row = schur[place, later]
            after = schur[np.ix_(later, later)] - np.outer(row, row) / schur[place, place]
            yield _Node([*kept, int(left[place])], left[later], after)

    def _joined(self, schur: Matrix, missing: int) -> NDArray[np.bool_]:
        """Which points can follow, on the diagonal, and which two of them together.

        A point that has not enough of the others to follow with cannot follow either.
        """
        pivots = schur.diagonal()
        joined = (np.outer(pivots, pivots) > schur**2) & (pivots > 0) & (pivots > 0)[:, None]
        np.fill_diagonal(joined, pivots > 0)
        while True:
            self.budget.spend(1 + len(pivots) ** 2 // _SQUARE)
            enough = joined.sum(axis=1) >= missing
            if enough[joined.diagonal()].all():
                return joined
            joined &= enough & enough[:, None]


class _Node(NamedTuple):
    """A set that is to be continued.

    Attributes:
        kept: its points, ascending.
        left: the points that may follow, ascending.
        schur: ``(len(left), len(left))``, the Schur complement over them.
    """

    kept: list[int]
    left: Places
    schur: Matrix


@dataclass(frozen=True, kw_only=True)
class SMEA(Weighted):
    """The mean of the n - f rows whose covariance has the smallest largest eigenvalue.

    Allouah, Guerraoui, Gupta, Pinot & Stephan, "On the Privacy-Robustness-Utility Trilemma in
    Distributed Learning", ICML 2023, section 5. Exact, by branch and bound in weight space; ties to
    the lexicographically lowest set. ByzFL looks at all sets, with one power iteration from a
    random vector for each eigenvalue.

    Rows among which f stand out take 0.01 s of one core up to n = 30. Independent rows are all
    alike, which is the worst case: 0.1 s for n = 20 and f = 5, 0.5 s for n = 25 and f = 5, 1.4 s
    for n = 30 and f = 5, 11 s for n = 30 and f = 10, in thousands of dimensions.

    Attributes:
        f: declared number of Byzantine rows; n >= 2f + 1 is required. A search that would take
            longer than some 25 seconds is an error.
    """

    f: int

    def __post_init__(self) -> None:
        check_count(self.name, "f", self.f, minimum=0)

    @property
    def invariances(self) -> frozenset[Invariance]:
        return frozenset(Invariance)

    def check(self, n: int) -> None:
        check_honest_majority(self.name, n, self.f)

    def max_rejected(self, n: int) -> int:
        return self.f

    def kappa(self, n: int, f: int) -> float | None:
        """``4f/(n-2f)``, of the largest eigenvalue λ_H of the honest covariance alone.

        The set S has λ <= λ_H, and k <= f of the h = n - f honest rows are not in it. Without k of
        them, the mean of h rows moves in any direction by √(k/(h-k)) standard deviations at most:
        from x̄ to the mean of the rows in both by √(k/(h-k) λ_H), and from there to that of S by as
        much. And λ_H is at most the honest variance.
        """
        return 4 * self.f / (n - 2 * self.f) if f <= self.f and n > 2 * self.f else None

    def weigh(self, geometry: Geometry, generator: torch.Generator | None) -> Weighing:
        places, gram = geometry.accepted_gram()
        count = len(geometry) - self.f
        chosen, nodes = smallest_top_eigenvalue(gram.numpy(), count, who=self.name)
        weights = torch.zeros(len(geometry), dtype=torch.float64, device="cpu")
        weights[places[chosen]] = 1 / count
        return Weighing(weights, SolverReport(nodes, 0.0, True, "exhausted"))
