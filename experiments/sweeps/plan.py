"""Which cells a sweep wants: all of its grid, or what its searches ask for by what they know."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from statistics import fmean
from typing import TypeAlias

from experiments.sweeps.cells import Point
from experiments.sweeps.config import SweepConfig, Value

Accuracy: TypeAlias = Callable[[Point], float | None]
"""The final validation accuracy of a point; 0 where its defence is not for so many Byzantine
workers, infinite where its attack cannot be made. None where it is not known: before its cell is
done, or for good where that has failed."""
Pairs: TypeAlias = tuple[tuple[str, Value], ...]


def wanted(sweep: SweepConfig, accuracy: Accuracy) -> list[Point]:
    """The points that the sweep wants trained, as far as it can tell now; seeds vary slowest.

    Without a search all of its grid, whatever is known. With one, those that the searches have
    asked for and the next ones: to be asked again when more is known.
    """
    if sweep.breakdown is None:
        return _sorted_by_seed(sweep, _points(sweep))
    searches = searched(sweep, accuracy)
    return _sorted_by_seed(sweep, (point for search in searches for point in search.points))


@dataclass(frozen=True)
class Search:
    """The search for one breakdown, as far as it has come.

    Attributes:
        first: a point of it, without f.
        points: what it has asked for, in order.
        finished: whether it needs no more; it waits for ever where a cell has failed.
        found: the smallest f that is too many; None if there is none, or it is not yet known.
    """

    first: Point
    points: tuple[Point, ...]
    finished: bool
    found: int | None


def searched(sweep: SweepConfig, accuracy: Accuracy) -> list[Search]:
    """The searches of a sweep with a breakdown: one for each attack and group of its grid."""
    breakdown = sweep.breakdown
    assert breakdown is not None, "a sweep that searches"
    alike: dict[tuple[Pairs, Value], list[Point]] = {}
    for point in _points(sweep):
        alike.setdefault((point.group, point.given.get("attack")), []).append(point)
    found = []
    for seeds in alike.values():

        def below(f: int, seeds: Sequence[Point] = seeds) -> bool | None:
            known = [accuracy(_with_f(point, f)) for point in seeds]
            done = [value for value in known if value is not None]
            return fmean(done) < breakdown.accuracy if len(done) == len(known) else None

        asked, result, finished = bisect(below, breakdown.most)
        points = tuple(_with_f(point, f) for f in asked for point in seeds)
        found.append(Search(seeds[0], points, finished, result))
    return found


def bisect(below: Callable[[int], bool | None], most: int) -> tuple[list[int], int | None, bool]:
    """The smallest f in 1, ..., ``most`` at which ``below(f)`` holds, by halving.

    It is the smallest one if ``below`` holds for every f above it; else it is one of those with
    ``below(f)`` and not ``below(f - 1)``.

    Args:
        below: whether it holds; None where that is not known yet.
        most: the largest f.

    Returns:
        The f that were asked for, the one that was found (None if ``below`` holds for none), and
        whether the search has come to its end: it waits for an answer to the last one otherwise.
    """
    low, high = 1, most + 1
    asked = []
    while low < high:
        middle = (low + high) // 2
        asked.append(middle)
        answer = below(middle)
        if answer is None:
            return asked, None, False
        low, high = (low, middle) if answer else (middle + 1, high)
    return asked, low if low <= most else None, True


def _points(sweep: SweepConfig) -> Iterator[Point]:
    """All combinations, the grid's names before the tuned ones."""
    names = (*sweep.grid, *sweep.tune)
    for values in product(*(sweep.values_of(name) for name in names)):
        chosen: Mapping[str, Value] = dict(zip(names, values, strict=True))
        yield Point(
            values=(*sweep.base.items(), *chosen.items()),
            group=tuple((name, chosen[name]) for name in sweep.varied),
            tuned=tuple((name, chosen[name]) for name in sweep.tune),
        )


def _with_f(point: Point, f: int) -> Point:
    return Point((*point.values, ("f", f)), point.group, point.tuned)


def _sorted_by_seed(sweep: SweepConfig, points: Iterable[Point]) -> list[Point]:
    """All of the first seed first: a table is whole early, and gains seeds."""
    places = {seed: place for place, seed in enumerate(sweep.values_of("seed"))}
    return sorted(points, key=lambda point: places.get(point.given.get("seed"), 0))
