"""Scenarios: what a sweep varies beside the defence, the attack, the seed and what it tunes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from experiments.sweeps.report.cells import UNATTACKED, Cell, Sweep

_OWN_AXES = frozenset({"defence", "attack", "seed"})
_FIRST = ("f", "partition", "model", "dataset")
_SPEAKING = frozenset({"partition", "model", "dataset"})
# Values that say what they are.


@dataclass(frozen=True)
class Scenario:
    """Values of the parameters that scenarios differ in; none where there is only one scenario."""

    values: tuple[tuple[str, Any], ...] = ()

    @property
    def label(self) -> str:
        return ", ".join(
            str(value) if name in _SPEAKING else f"{name}={value}" for name, value in self.values
        )

    def get(self, name: str) -> Any:
        return dict(self.values).get(name)

    def has(self, cell: Cell) -> bool:
        """Whether a cell is a training in this scenario.

        One that is not attacked has no Byzantine workers, however many the scenario has.
        """
        return all(
            value_of(cell, name) == value
            for name, value in self.values
            if cell.attack != UNATTACKED or name != "byzantine"
        )


def value_of(cell: Cell, name: str) -> Any:
    """A parameter of a cell; ``honest`` is the number of workers that are not Byzantine."""
    if name == "honest":
        workers, byzantine = cell.config.get("workers"), cell.config.get("byzantine")
        return None if workers is None or byzantine is None else workers - byzantine
    return cell.config.get(name)


def scenarios(sweep: Sweep) -> tuple[Scenario, ...]:
    """All scenarios: numbers from small to large, texts as they come in the sweep.

    They are asked of the attacked cells, if there are any: that no worker is Byzantine without an
    attack makes no scenario of its own.
    """
    cells = [cell for cell in sweep.cells if cell.attack != UNATTACKED] or sweep.cells
    searched = ["f"] if sweep.section("breakdown") else []
    given = [name for name in (*searched, *sweep.section("grid")) if name not in _OWN_AXES]
    orders = {name: ordered(value_of(cell, name) for cell in cells) for name in given}
    axes = [name for name, order in orders.items() if len(order) > 1]
    axes.sort(key=lambda name: _FIRST.index(name) if name in _FIRST else len(_FIRST))
    found = {tuple((name, value_of(cell, name)) for name in axes) for cell in cells}
    return tuple(
        Scenario(values)
        for values in sorted(found, key=lambda each: [orders[n].index(v) for n, v in each])
    )


def ordered(values: Iterable[Any]) -> list[Any]:
    """Each value once: numbers from small to large, else in the order they came."""
    once = list(dict.fromkeys(values))
    numbers = all(isinstance(value, int | float) for value in once)
    return sorted(once) if numbers else once
