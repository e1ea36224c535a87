"""The cells of a sweep: what each one trains, and what it is known by."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Literal, TypeAlias

from experiments import specs
from experiments.config import RunConfig, UnfitAttackError, UnfitDefenceError
from experiments.data import loaded
from experiments.sweeps.config import NONE, Value, Values
from robust_agg import Estimator

DEFAULTS: Values = {
    "transport": "inline",
    "hosts": 1,
    "identities": "run",
    "deadline": None,
    "split": "validation",
}
"""Of a cell, where a run has others: many cells share a machine, on which a deadline would let the
load decide what counts; Byzantine identities vary with the seed; and what cells are chosen by is
not the test data."""

_UNUSED = "SignFlip"
# What nobody does where nobody is Byzantine: a run must name something.


@dataclass(frozen=True)
class Point:
    """One value for every name that a sweep gives.

    Attributes:
        values: all of them, in the sweep's order.
        group: those of the grid's names but attack and seed, and but what is searched for.
        tuned: those of the names that are tuned.
    """

    values: tuple[tuple[str, Value], ...]
    group: tuple[tuple[str, Value], ...]
    tuned: tuple[tuple[str, Value], ...] = ()

    @cached_property
    def given(self) -> Mapping[str, Value]:
        """The values by their names."""
        return dict(self.values)

    @property
    def attack(self) -> str:
        """As it is shown; ``"none"`` where nobody attacks."""
        text = str(self.given.get("attack", RunConfig.attack))
        file, rest = specs.own_file(text)
        return text if file is None else f"{file.name}:{rest}"

    @property
    def defence(self) -> str:
        return str(self.given["defence"])

    @property
    def group_label(self) -> str:
        return label(self.group)

    @property
    def tuned_label(self) -> str:
        return label(self.tuned)


def label(pairs: tuple[tuple[str, Value], ...]) -> str:
    """``"lr=0.1, model=MLP"``."""
    return ", ".join(f"{name}={value}" for name, value in pairs)


Refuser: TypeAlias = Literal["defence", "attack", "run"]
"""Whose refusal a cell without a run is. A defence that is not for so many Byzantine workers has
fallen; an attack that cannot be made harms nobody; of anything else nothing is known."""


@dataclass(frozen=True)
class Cell:
    """One training.

    Attributes:
        id: sixteen hexadecimal digits of the SHA-256 of the whole configuration and of the data.
        point: whose values it has.
        config: what is trained; None where there is no such run.
        refusal: why there is none.
        refuser: by whom.
    """

    id: str
    point: Point
    config: RunConfig | None
    refusal: str | None = None
    refuser: Refuser | None = None

    @property
    def rounds(self) -> int:
        return 0 if self.config is None else self.config.rounds


class Cells:
    """The cells of a sweep's points; two points of one configuration are one cell."""

    def __init__(self) -> None:
        self._known: dict[Point, Cell] = {}

    def of(self, point: Point) -> Cell:
        """The cell of a point.

        Raises:
            DataError: there are no such data.
        """
        if point not in self._known:
            self._known[point] = self._build(point)
        return self._known[point]

    def _build(self, point: Point) -> Cell:
        data = loaded(str(point.given.get("dataset", RunConfig.dataset))).fingerprint
        try:
            config = run_config(point.given)
        except ValueError as error:
            # It has no configuration to be known by; its values are as good.
            text = json.dumps(["refused", *point.values])
            return Cell(_id(text, data), point, None, f"ConfigError: {error}", _refuser(error))
        return Cell(_id(config.sha256, data), point, config)


def run_config(values: Values) -> RunConfig:
    """The run of one defence that these values describe.

    Raises:
        ConfigError: there is no such run.
    """
    given = {**DEFAULTS, **values}
    text = str(given.pop("defence"))
    f = int(given.get("f", RunConfig.f) or 0)
    if str(given.get("attack", RunConfig.attack)).strip().lower() == NONE:
        given |= {"attack": _UNUSED, "byzantine": 0}
    byzantine = int(given.setdefault("byzantine", f) or 0)
    if "honest" in given:
        given["workers"] = int(given.pop("honest") or 0) + byzantine
    given.setdefault("device", "cuda" if float(given.get("num_gpus") or 0) > 0 else "cpu")
    try:
        online = isinstance(specs.parse_defence(text, f=f), Estimator)
    except ValueError as error:
        raise UnfitDefenceError(f"defence: {error}") from error
    defences = {"aggregator": () if online else (text,), "estimator": (text,) if online else ()}
    return RunConfig(**{**given, **defences})  # type: ignore[arg-type]  # checked by RunConfig


def _refuser(error: ValueError) -> Refuser:
    if isinstance(error, UnfitDefenceError):
        return "defence"
    return "attack" if isinstance(error, UnfitAttackError) else "run"


def command(config: RunConfig) -> str:
    """A shell command that trains the cell alone: all parameters that are not a run's defaults.

    Threads count, for sums of floats are taken in another order by more of them.
    """
    words = ["env", f"OMP_NUM_THREADS={config.threads}", "robust-agg", "run"]
    for each in fields(RunConfig):
        value = getattr(config, each.name)
        if value == each.default:
            continue
        shown = value if isinstance(value, tuple) else (value,)
        shown = (NONE,) if shown in ((), (None,)) else shown
        words += [f"--{each.name.replace('_', '-')}", *map(str, shown)]
    return shlex.join(words)


def plain(config: RunConfig) -> dict[str, object]:
    """The configuration as JSON has it."""
    return {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in dataclasses.asdict(config).items()
    }


def _id(text: str, data: str) -> str:
    return hashlib.sha256(f"{text}/{data}".encode()).hexdigest()[:16]
