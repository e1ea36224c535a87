"""Families of attacks, and what of their parameters a search may choose."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from experiments.config import ConfigError
from experiments.specs import nearest

if TYPE_CHECKING:
    from optuna import Trial

DIGITS = 3
"""Significant digits of a parameter that is chosen, so that its attack can be typed."""


@dataclass(frozen=True)
class Range:
    """A real parameter between two positive bounds, of which only the order of magnitude counts."""

    low: float
    high: float


@dataclass(frozen=True)
class Family:
    """An attack of which a search chooses parameters; the others have their defaults."""

    ranges: Mapping[str, Range] = field(default_factory=dict)
    choices: Mapping[str, Sequence[str | int]] = field(default_factory=dict)
    dear: bool = False
    """Whether it asks the defence dozens of times a round."""


_DIRECTIONS = ("unit", "sign", "std")

FAMILIES: Mapping[str, Family] = {
    "SignFlip": Family({"scale": Range(0.1, 100)}, {"of": ("own", "mean")}),
    "InnerProductManipulation": Family({"epsilon": Range(0.01, 100)}),
    "ALittleIsEnough": Family({"z": Range(0.1, 10)}, {"sign": (-1, 1)}),
    "MinMax": Family(choices={"perturbation": _DIRECTIONS}),
    "MinSum": Family(choices={"perturbation": _DIRECTIONS}),
    "Mimic": Family(),
    "ROP": Family({"z": Range(0.1, 10), "angle": Range(1, 180)}),
    "AntiClip": Family({"share": Range(0.1, 1)}, {"direction": ("against", "fixed")}),
    "Drift": Family({"strength": Range(0.05, 5)}),
    "GaussianNoise": Family({"scale": Range(0.001, 1000)}, {"around": ("zero", "own")}),
    "Scale": Family({"factor": Range(0.01, 1000)}),
    "Zero": Family(),
    "LabelFlip": Family(),
    "OptimalIPM": Family(dear=True),
    "OptimalALIE": Family(choices={"sign": (-1, 1)}, dear=True),
}
"""The families by the attack's name."""

CHEAP = tuple(name for name, family in FAMILIES.items() if not family.dear)


def check(names: Sequence[str]) -> None:
    """Raise :class:`ConfigError` for a name that is no family's."""
    for name in names:
        if name not in FAMILIES:
            raise ConfigError(f"families: unknown family {name!r}{nearest(name, FAMILIES)}")
    if len(set(names)) < len(names):
        raise ConfigError(f"families must be different, found {', '.join(names)}")
    if not names:
        raise ConfigError("families: at least one is required, found none")


def choose(trial: Trial, names: Sequence[str]) -> str:
    """The specification of an attack, as a trial of the search draws it."""
    name = str(trial.suggest_categorical("family", list(names)))
    family = FAMILIES[name]
    given = [
        f"{parameter}={_rounded(trial, f'{name}.{parameter}', bounds)}"
        for parameter, bounds in family.ranges.items()
    ]
    for parameter, values in family.choices.items():
        given.append(f"{parameter}={trial.suggest_categorical(f'{name}.{parameter}', values)!r}")
    return f"{name}({', '.join(given)})" if given else name


def _rounded(trial: Trial, name: str, bounds: Range) -> float:
    drawn = trial.suggest_float(name, bounds.low, bounds.high, log=True)
    return min(max(float(f"{drawn:.{DIGITS}g}"), bounds.low), bounds.high)
