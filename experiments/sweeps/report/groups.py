"""Groups: the cells of one defence under one attack in one scenario, and their mean over seeds."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from experiments.studies.paired import interval
from experiments.sweeps.report.cells import UNATTACKED, Cell, Sweep
from experiments.sweeps.report.scenarios import Scenario, scenarios


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds, and half the length of its 95 % interval; None for a single seed."""

    mean: float
    half: float | None
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Estimate | None:
        """None of no values."""
        if not values:
            return None
        middle, half = interval(values)
        return cls(middle, half if math.isfinite(half) else None, len(values))

    @property
    def low(self) -> float:
        return self.mean - (self.half or 0.0)

    @property
    def high(self) -> float:
        return self.mean + (self.half or 0.0)


@dataclass(frozen=True)
class Group:
    """Trainings that differ in the seed, and in tuned parameters.

    Attributes:
        anchor: where they are listed on the page.
        scenario, defence, attack: what they have in common.
        cells: all of them, the settings that were not chosen too.
    """

    anchor: str
    scenario: Scenario
    defence: str
    attack: str
    cells: tuple[Cell, ...]

    @property
    def attacked(self) -> bool:
        return self.attack != UNATTACKED

    @cached_property
    def chosen(self) -> tuple[Cell, ...]:
        return tuple(cell for cell in self.cells if cell.chosen)

    @cached_property
    def by_seed(self) -> Mapping[int, float]:
        """Test accuracies of the chosen setting."""
        return {cell.seed: cell.test for cell in self.chosen if cell.test is not None}

    @cached_property
    def test(self) -> Estimate | None:
        """Of the test accuracy; None as long as there is none."""
        return Estimate.of(list(self.by_seed.values()))

    @property
    def whole(self) -> bool:
        """Whether a setting was chosen, and all of its trainings have a test accuracy."""
        return bool(self.chosen) and all(cell.test is not None for cell in self.chosen)

    def mean(self, measure: str) -> float | None:
        """Over the chosen trainings that have the measure."""
        found = [cell.measured[measure] for cell in self.chosen if measure in cell.measured]
        # Divided first: the sum of what an attack can do need not be finite.
        return sum(value / len(found) for value in found) if found else None


@dataclass(frozen=True)
class Worst:
    """The lowest mean over seeds among groups.

    Attributes:
        group: whose it is.
        whole: whether no group was left out or in part, so that none can be lower still.
    """

    group: Group
    test: Estimate
    whole: bool


def worst(groups: Iterable[Group]) -> Worst | None:
    """The group with the lowest mean, the first of equals; None where none has one."""
    groups = list(groups)
    found = [(group, group.test) for group in groups if group.test is not None]
    if not found:
        return None
    group, test = min(found, key=lambda pair: pair[1].mean)
    return Worst(group, test, all(each.whole for each in groups))


def groups_of(sweep: Sweep) -> list[Group]:
    """All groups; a training without an attack belongs to every scenario that it is alike to."""
    found: dict[tuple[Scenario, str, str], list[Cell]] = {}
    cells = list({cell.cell: cell for cell in sweep.cells}.values())
    for scenario in scenarios(sweep):
        for cell in cells:
            if scenario.has(cell):
                found.setdefault((scenario, cell.defence, cell.attack), []).append(cell)
    return [
        Group(f"g{place}", *key, tuple(cells)) for place, (key, cells) in enumerate(found.items())
    ]


def split(groups: Iterable[Group], key: Callable[[Group], str]) -> dict[str, list[Group]]:
    """Groups by what ``key`` says of them, in the order they come."""
    found: dict[str, list[Group]] = {}
    for group in groups:
        found.setdefault(key(group), []).append(group)
    return found


def comparable(groups: Sequence[Group], *, finished: bool) -> list[Group]:
    """The groups that say something about one defence beside another.

    Left out are scenarios in which not every defence met every attack of the sweep, as a bisection
    over f leaves them; and, once all is finished, attacks in scenarios in which of several defences
    none has a test accuracy: an attack that cannot be carried out there is no worst case of any.
    """
    pairs = {(group.defence, group.attack) for group in groups}
    left = []
    for own in split(groups, lambda group: group.scenario.label).values():
        if {(group.defence, group.attack) for group in own} != pairs:
            continue
        for alike in split(own, lambda group: group.attack).values():
            silent = all(group.test is None for group in alike)
            if not (finished and silent and len(alike) > 1):
                left += alike
    return left


def left_out(groups: Sequence[Group], kept: Sequence[Group]) -> list[str]:
    """What :func:`comparable` left out: scenarios, or attacks in them."""
    places = {(group.scenario, group.attack) for group in kept}
    found: dict[str, None] = {}
    for group in groups:
        scenario = group.scenario
        if (scenario, group.attack) in places:
            continue
        whole = bool(scenario.label) and all(scenario != other for other, _ in places)
        within = f"{group.attack} ({scenario.label})" if scenario.label else group.attack
        found[scenario.label if whole else within] = None
    return list(found)
