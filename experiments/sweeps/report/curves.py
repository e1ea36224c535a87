"""Curves: the validation accuracy of chosen settings against rounds, a panel an attack."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from experiments.sweeps.report.cells import Curve
from experiments.sweeps.report.groups import Group, split


@dataclass(frozen=True)
class Line:
    """A defence under one attack: the mean over seeds, and the least and largest of them."""

    defence: str
    rounds: tuple[int, ...]
    mean: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]


@dataclass(frozen=True)
class Panel:
    """The defences under one attack in one scenario."""

    attack: str
    lines: tuple[Line, ...]


def panels(groups: Sequence[Group], curves: Mapping[str, Curve]) -> dict[str, list[Panel]]:
    """Panels by the label of their scenario; none without a line."""
    found: dict[str, list[Panel]] = {}
    for label, own in split(groups, lambda group: group.scenario.label).items():
        for attack, alike in split(own, lambda group: group.attack).items():
            lines = tuple(line for group in alike if (line := _line(group, curves)) is not None)
            if lines:
                found.setdefault(label, []).append(Panel(attack, lines))
    return found


def _line(group: Group, curves: Mapping[str, Curve]) -> Line | None:
    """Over the rounds that all finished seeds have."""
    own = [
        dict(curves[cell.cell])
        for cell in group.chosen
        if cell.state == "done" and cell.cell in curves
    ]
    rounds = sorted(set.intersection(*map(set, own))) if own else []
    if not rounds:
        return None
    values = [[curve[each] for curve in own] for each in rounds]
    return Line(
        group.defence,
        tuple(rounds),
        tuple(sum(each) / len(each) for each in values),
        tuple(map(min, values)),
        tuple(map(max, values)),
    )
