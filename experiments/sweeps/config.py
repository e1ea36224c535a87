"""What a sweep is: values for the parameters of runs, checked before anything starts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from typing import Any, TypeAlias, get_type_hints

from experiments import specs
from experiments.annotations import conforms, described
from experiments.config import ConfigError, RunConfig

Value: TypeAlias = str | int | float | None
Values: TypeAlias = Mapping[str, Value]
Lists: TypeAlias = Mapping[str, tuple[Value, ...]]

NONE = "none"
"""The attack that is none."""

_HINTS: dict[str, Any] = {
    **{
        name: hint
        for name, hint in get_type_hints(RunConfig).items()
        if name in {each.name for each in fields(RunConfig)} - {"aggregator", "estimator", "split"}
    },
    "defence": str,
    "honest": int,
}
NAMES = tuple(_HINTS)
"""What a sweep can give values for: the parameters of a run, but one ``defence``; ``honest``."""

_PARSED: dict[str, Callable[[str], object]] = {
    # A rule that bears one liar: how many it bears is for every cell to say.
    "defence": lambda text: specs.parse_defence(text, f=1),
    "attack": lambda text: text == NONE or specs.parse_attack(text, num_classes=10),
    "partition": specs.parse_partition,
    "model": specs.parse_model,
    "local_estimator": lambda text: _is_none(text) or specs.parse_estimator(text),
    "codec": lambda text: _is_none(text) or specs.parse_codec(text),
}


@dataclass(frozen=True, kw_only=True)
class Breakdown:
    """A search for the smallest f at which the mean accuracy over the seeds is too low.

    Attributes:
        accuracy: of validation, below which a defence has broken down, in (0, 1].
        most: the largest f that is tried, at least 1.
    """

    accuracy: float
    most: int

    def __post_init__(self) -> None:
        _check_share("breakdown.accuracy", self.accuracy)
        if not conforms(self.most, int) or self.most < 1:
            raise ConfigError(f"breakdown.most must be an integer >= 1, found {self.most!r}")


@dataclass(frozen=True, kw_only=True)
class PublishedRow:
    """An accuracy of the source, and the values of the names of a sweep that it is for."""

    where: Values
    value: float

    def __post_init__(self) -> None:
        for name, value in self.where.items():
            _check_value("published.rows.where", name, value)
        if not conforms(self.value, float):
            raise ConfigError(f"published.rows.value must be a number, found {self.value!r}")


@dataclass(frozen=True, kw_only=True)
class Published:
    """Numbers to stand beside ours; one without an attack is a worst case over attacks."""

    source: str
    rows: tuple[PublishedRow, ...]

    def __post_init__(self) -> None:
        if not isinstance(self.source, str):
            raise ConfigError(f"published.source must be text, found {self.source!r}")


@dataclass(frozen=True, kw_only=True)
class SweepConfig:
    """A grid of trainings, each with one defence, and what is chosen among them.

    ``workers`` may be given as ``honest``: workers = honest + byzantine. ``byzantine`` is f where
    it is not given, and 0 where ``attack`` is ``"none"``.

    Attributes:
        title: of the report.
        notes: what its reader must know.
        target: an accuracy; the rounds until it is reached are counted.
        base: one value a name.
        grid: the values of a name, all combinations of which are trained.
        tune: the values of a hyper-parameter, chosen on validation data by the worst case over
            the attacks.
        breakdown: instead of f in the grid, a search.
        published: numbers of a source.

    Raises:
        ConfigError: a name is none, is given twice or has a value that cannot be.
    """

    title: str = "Sweep"
    notes: tuple[str, ...] = ()
    target: float | None = None
    base: Values = field(default_factory=dict)
    grid: Lists = field(default_factory=dict)
    tune: Lists = field(default_factory=dict)
    breakdown: Breakdown | None = None
    published: Published | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.title, str):
            raise ConfigError(f"title must be text, found {self.title!r}")
        if not all(isinstance(note, str) for note in self.notes):
            raise ConfigError(f"notes must be a list of texts, found {self.notes!r}")
        if self.target is not None:
            _check_share("target", self.target)
        self._check_names()
        for name, value in self.base.items():
            _check_value("base", name, value)
        for section, lists in (("grid", self.grid), ("tune", self.tune)):
            for name, values in lists.items():
                if not values or len(set(map(repr, values))) < len(values):
                    raise ConfigError(
                        f"{section}.{name} must be a list of different values, found {[*values]!r}"
                    )
                for value in values:
                    _check_value(section, name, value)
                _check_different(f"{section}.{name}", name, values)

    def _check_names(self) -> None:
        given = [*self.base, *self.grid, *self.tune]
        for name in given:
            if given.count(name) > 1:
                raise ConfigError(
                    f"{name} must be given once, in base, grid or tune, found {given.count(name)}"
                )
        if "defence" not in given:
            raise ConfigError("defence must be given in base, grid or tune, found none")
        if {"honest", "workers"} <= {*given}:
            raise ConfigError("honest is given instead of workers, found both")
        for name in ("attack", "seed"):
            if name in self.tune:
                raise ConfigError(f"tune must not hold {name}, which nobody chooses, found it")
        if self.breakdown is not None and "f" in given:
            raise ConfigError("f must not be given beside breakdown, which looks for it, found it")
        if self.breakdown is not None and self.tune:
            raise ConfigError(f"tune must be empty beside breakdown, found {', '.join(self.tune)}")

    def values_of(self, name: str) -> tuple[Value, ...]:
        """All values that a name has in the sweep; none where it is not given."""
        if name in self.base:
            return (self.base[name],)
        return self.grid.get(name, self.tune.get(name, ()))

    @property
    def varied(self) -> tuple[str, ...]:
        """Names with several values to compare: those of the grid, but for attack and seed."""
        return tuple(name for name in self.grid if name not in ("attack", "seed"))


def as_value(name: str, given: Any) -> Any:
    """A value as the run's parameter has it: 1 is 1.0 for a float, and so is the text '1e0'.

    What a file can say in several ways is one configuration; YAML reads 1e-4 as a text.
    """
    hint = _HINTS.get(name)
    if hint not in (float, float | None) or isinstance(given, bool):
        return given
    if isinstance(given, str):
        try:
            return float(given)
        except ValueError:
            return given
    return float(given) if isinstance(given, int) and conforms(given, float) else given


def _check_value(section: str, name: str, value: Value) -> None:
    if name not in _HINTS:
        raise ConfigError(f"{section}: unknown name {name!r}{specs.nearest(name, _HINTS)}")
    if not conforms(value, _HINTS[name]):
        hint = described(_HINTS[name])
        raise ConfigError(f"{section}.{name} must be {hint}, found {value!r}")
    if name in _PARSED and isinstance(value, str):
        with _about(f"{section}.{name}"):
            _PARSED[name](value)


def _check_different(where: str, name: str, values: tuple[Value, ...]) -> None:
    """Refuse two texts for one thing: it would be trained twice, and compared with itself."""
    if name not in _PARSED:
        return
    known: list[tuple[Value, object]] = []
    for value in values:
        made = _PARSED[name](str(value))
        for text, other in known:
            if type(made) is type(other) and made == other:
                raise ConfigError(
                    f"{where} must be a list of different values, found {text!r} and {value!r}, "
                    "which are the same"
                )
        known.append((value, made))


def _check_share(name: str, value: object) -> None:
    if not conforms(value, float) or not 0 < value <= 1:  # type: ignore[operator]  # a float by now
        raise ConfigError(f"{name} must be a number in (0, 1], found {value!r}")


def _is_none(text: str) -> bool:
    return text.strip().lower() == NONE


@contextmanager
def _about(parameter: str) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise ConfigError(f"{parameter}: {error}") from error


def own_files(sweep: SweepConfig) -> set[str]:
    """The attacks of the sweep that are a user's own."""
    texts = sweep.values_of("attack")
    return {text for text in texts if isinstance(text, str) and specs.own_file(text)[0] is not None}
