"""What a sweep has left in its folder, as its report reads it."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from experiments.config import ConfigError

SWEEP = "sweep.json"
RESULTS = "results.parquet"
CURVES = "curves.parquet"
BREAKDOWN = "breakdown.parquet"

UNATTACKED = "none"
STATES = ("done", "failed", "running", "pending")

Curve: TypeAlias = Sequence[tuple[int, float]]
"""Rounds and the validation accuracies after them."""
Row: TypeAlias = Mapping[str, Any]

_REQUIRED = ("cell", "state", "defence", "attack")
_CONFIG = "config."


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One training of a sweep.

    Attributes:
        cell: its name.
        state: done, failed, running or pending.
        reason: of a failed one, in a line.
        command: what runs it alone.
        defence: the rule, chain or estimator.
        attack: ``none`` where no worker is Byzantine.
        tuned: the values of the tuned parameters; empty where nothing is tuned.
        chosen: whether its setting is the one that selection on the validation split took; where
            nothing is tuned there is nothing to take.
        config: the parameters that are not the same in all cells, and a few that always count.
        measured: what came of it, by the names of the columns; without what was not measured.
        version: of the package that trained it; several where another one went on with it.
    """

    cell: str
    state: str
    reason: str
    command: str
    defence: str
    attack: str
    tuned: str
    chosen: bool
    config: Mapping[str, Any]
    measured: Mapping[str, float]
    version: str = ""

    @property
    def seed(self) -> Any:
        """What pairs it with the cells of other defences."""
        return self.config.get("seed")

    @property
    def f(self) -> Any:
        """How many Byzantine workers the defence was declared to bear."""
        return self.config.get("f")

    @property
    def test(self) -> float | None:
        """Accuracy on the test split; None unless its setting was chosen."""
        return self.measured.get("test_accuracy") if self.chosen else None


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """A folder's content.

    Attributes:
        about: the configuration that the folder is bound to.
        cells: all that are known so far, in the sweep's order.
        curves: of the cells that have one.
        breakdown: the smallest f at which each defence falls, a row a defence and attack.
    """

    about: Mapping[str, Any] = field(default_factory=dict)
    cells: Sequence[Cell] = ()
    curves: Mapping[str, Curve] = field(default_factory=dict)
    breakdown: Sequence[Row] = ()

    @property
    def title(self) -> str:
        return str(self.about.get("title") or "Sweep")

    @property
    def notes(self) -> tuple[str, ...]:
        notes = self.about.get("notes") or ()
        return (notes,) if isinstance(notes, str) else tuple(map(str, notes))

    @property
    def tuned(self) -> frozenset[str]:
        """The names of the parameters that selection chose."""
        return frozenset(self.section("tune"))

    def section(self, name: str) -> Mapping[str, Any]:
        """A table of the sweep's file; empty where there is none."""
        found = self.about.get(name)
        return found if isinstance(found, Mapping) else {}

    @property
    def data(self) -> tuple[str, ...]:
        """Where the samples came from."""
        found = self.section("data").items()
        return tuple(
            f"{name}: {about['note']}"
            for name, about in found
            if isinstance(about, Mapping) and about.get("note")
        )

    @property
    def versions(self) -> tuple[str, ...]:
        """Of the package, by which cells were trained."""
        each = (name for cell in self.cells for name in cell.version.split(", ") if name)
        return tuple(dict.fromkeys(each))

    @property
    def where(self) -> tuple[str, ...]:
        """Machines, versions and commits that carried the sweep out; Ray may have had others."""
        return tuple(map(str, self.about.get("where") or ()))

    def count(self, state: str) -> int:
        return sum(cell.state == state for cell in self.cells)

    @property
    def unfinished(self) -> bool:
        """Whether there is still work, so that the report will change."""
        return (
            not self.cells
            or self.count("pending") + self.count("running") > 0
            or any(
                cell.state == "done" and cell.chosen and cell.test is None for cell in self.cells
            )
            or any(row.get("finished") is False for row in self.breakdown)
        )

    @property
    def command(self) -> str:
        """What carries the sweep out; empty where that is not kept."""
        return str(self.about.get("command") or "")


def check(folder: Path) -> None:
    """Raise :class:`ConfigError` where there is no sweep."""
    if not (folder / SWEEP).exists():
        raise ConfigError(f"folder must hold a sweep ({SWEEP}), found none in {folder}")


def read(folder: Path) -> Sweep:
    """The sweep in ``folder``, whether or not it has finished, or even begun.

    Raises:
        ConfigError: there is no sweep in it, or one of its files is damaged.
    """
    check(folder)
    results = _table(folder / RESULTS)
    if results:
        lacking = [name for name in _REQUIRED if name not in results[0]]
        if lacking:
            raise ConfigError(
                f"{folder / RESULTS} must have the columns {', '.join(_REQUIRED)}, "
                f"found no {lacking[0]}"
            )
    about = _about(folder / SWEEP)
    return Sweep(
        about=about,
        cells=tuple(_cell(row, tuned=bool(about.get("tune"))) for row in results),
        curves=_curves(_table(folder / CURVES)),
        breakdown=_table(folder / BREAKDOWN),
    )


def _about(path: Path) -> Mapping[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        content = None
    if not isinstance(content, dict):
        raise ConfigError(f"{path} must be a sweep's configuration, found a damaged file")
    return content


def _table(path: Path) -> list[dict[str, Any]]:
    import pyarrow
    from pyarrow import parquet

    if not path.exists():
        return []
    try:
        rows: list[dict[str, Any]] = parquet.read_table(path).to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise ConfigError(f"{path} must be a Parquet file, found {error}") from None
    return rows


def _cell(row: Row, *, tuned: bool) -> Cell:
    config = {
        name.removeprefix(_CONFIG): value for name, value in row.items() if name.startswith(_CONFIG)
    }
    return Cell(
        cell=str(row["cell"]),
        state=str(row["state"]),
        reason=str(row.get("failure") or ""),
        command=str(row.get("command") or ""),
        defence=str(row["defence"]),
        attack=str(row["attack"]),
        tuned=str(row.get("tuned") or ""),
        chosen=bool(row.get("chosen")) or not tuned,
        config=config,
        version=str(row.get("version") or ""),
        measured={
            name: float(value)
            for name, value in row.items()
            if not name.startswith(_CONFIG) and name != "chosen" and _is_number(value)
        },
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _curves(rows: Iterable[Row]) -> dict[str, list[tuple[int, float]]]:
    found: dict[str, list[tuple[int, float]]] = {}
    for row in rows:
        if _is_number(row.get("round")) and _is_number(row.get("accuracy")):
            place = (int(row["round"]), float(row["accuracy"]))
            found.setdefault(str(row["cell"]), []).append(place)
    return {cell: sorted(curve) for cell, curve in found.items()}
