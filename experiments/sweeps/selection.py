"""Which setting of the tuned parameters is chosen, by validation data alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import inf
from statistics import fmean
from typing import TypeAlias

from experiments.sweeps.cells import Point
from experiments.sweeps.plan import Pairs

Measured: TypeAlias = Callable[[Point], float | None]
"""An accuracy of a point; None where its cell has failed, or there is no such run."""


@dataclass(frozen=True)
class Setting:
    """The points of one group with one setting of the tuned parameters."""

    group: Pairs
    tuned: Pairs
    points: tuple[Point, ...]


def settings(points: Iterable[Point]) -> list[Setting]:
    """All settings of all groups, in the order of the sweep's lists."""
    alike: dict[tuple[Pairs, Pairs], list[Point]] = {}
    for point in points:
        alike.setdefault((point.group, point.tuned), []).append(point)
    return [Setting(group, tuned, tuple(each)) for (group, tuned), each in alike.items()]


def worst(setting: Setting, accuracy: Measured) -> tuple[str, list[float]]:
    """The attack with the lowest mean over the seeds, the first of those, and its accuracies.

    A failed cell counts as 0.
    """
    by_attack: dict[str, list[float]] = {}
    for point in setting.points:
        by_attack.setdefault(point.attack, []).append(accuracy(point) or 0.0)
    return min(by_attack.items(), key=lambda item: fmean(item[1]))


def chosen(points: Sequence[Point], accuracy: Measured) -> list[Setting]:
    """Of each group the setting with the best worst case over the attacks of validation accuracy.

    ``argmax over settings of min over attacks of mean over seeds``; the first of those in the order
    of the sweep's lists. A setting with a failed cell is not chosen, so a group may have none;
    where nothing is tuned every group has the one setting, failed cells or not.

    Args:
        points: of the sweep, all finished, without those whose attack cannot be made.
        accuracy: the final one on validation data.
    """
    best: dict[Pairs, tuple[float, Setting]] = {}
    for setting in settings(points):
        if setting.tuned and any(accuracy(point) is None for point in setting.points):
            continue
        value = fmean(worst(setting, accuracy)[1])
        if value > best.get(setting.group, (-inf, setting))[0]:
            best[setting.group] = value, setting
    return [setting for _, setting in best.values()]
