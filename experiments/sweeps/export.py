"""A sweep's numbers as Parquet files: a row a cell, a row an evaluated round, a row a search."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from experiments.config import RunConfig
from experiments.files import replacing
from experiments.metrics import read_metrics
from experiments.sweeps.cells import DEFAULTS, Cell, command
from experiments.sweeps.config import SweepConfig
from experiments.sweeps.folder import CELLS
from experiments.sweeps.outcome import Outcome, rounds_to
from experiments.sweeps.plan import Search
from experiments.sweeps.store import Entry

RESULTS = "results.parquet"
CURVES = "curves.parquet"
BREAKDOWN = "breakdown.parquet"

CLOCK = ("seconds", "seconds_per_round", "aggregate_seconds")
"""The columns that tell the time, which another run of the same sweep has others of."""

_ALWAYS = ("defence", "attack", "f", "byzantine", "workers", "partition", "model", "lr", "seed")
_MEASURES = tuple(field.name for field in fields(Outcome))
_CURVES = (
    "accuracy",
    "loss",
    "error",
    "kappa",
    "byzantine_weight",
    "accepted",
    "success",
)


@dataclass(frozen=True)
class Row:
    """A cell, what is known of it, and whether its setting was chosen."""

    cell: Cell
    entry: Entry
    chosen: bool


def export(
    folder: Path, sweep: SweepConfig, rows: Sequence[Row], searches: Sequence[Search]
) -> None:
    """Write the files anew, each by a rename."""
    _write(folder / RESULTS, _results(folder, sweep, rows))
    _write(folder / CURVES, _curves(folder, rows), ("cell", "round", *_CURVES))
    if sweep.breakdown is not None:
        _write(folder / BREAKDOWN, _breakdowns(sweep, searches))


def _results(folder: Path, sweep: SweepConfig, rows: Sequence[Row]) -> list[dict[str, Any]]:
    configurations = [_configuration(row.cell) for row in rows]
    varied = [
        name
        for name in (*_ALWAYS, *(field.name for field in fields(RunConfig)))
        if name in _ALWAYS or len({each.get(name) for each in configurations}) > 1
    ]
    lines = []
    for row, configuration in zip(rows, configurations, strict=True):
        point, entry = row.cell.point, row.entry
        outcome = {} if entry.outcome is None else asdict(entry.outcome)
        lines.append(
            {
                "cell": row.cell.id,
                "state": entry.state,
                "failure": None if entry.reason is None else entry.reason.strip().splitlines()[-1],
                "command": None if row.cell.config is None else command(row.cell.config),
                "defence": point.defence,
                "attack": point.attack,
                "group": point.group_label,
                "tuned": point.tuned_label,
                "chosen": row.chosen,
                "version": entry.version,
                **{f"config.{n}": configuration.get(n) for n in dict.fromkeys(varied)},
                **{name: outcome.get(name) for name in _MEASURES},
                "test_accuracy": entry.test_accuracy if row.chosen else None,
                "rounds_to_target": _rounds_to(folder, sweep, row),
            }
        )
    return lines


def _configuration(cell: Cell) -> dict[str, Any]:
    """The cell's parameters; where there is no such run, as far as they were given."""
    values = {**DEFAULTS, **cell.point.given} if cell.config is None else vars(cell.config)
    shown = {
        name: str(value) if isinstance(value, tuple) else value
        for name, value in values.items()
        if name not in ("aggregator", "estimator", "honest")
    }
    return {**shown, "defence": cell.point.defence, "attack": cell.point.attack}


def _rounds_to(folder: Path, sweep: SweepConfig, row: Row) -> int | None:
    if sweep.target is None or row.entry.state != "done":
        return None
    return rounds_to(sweep.target, read_metrics(folder / CELLS / row.cell.id))


def _curves(folder: Path, rows: Iterable[Row]) -> list[dict[str, Any]]:
    return [
        {
            "cell": row.cell.id,
            "round": metrics.round,
            **{name: getattr(metrics, name) for name in _CURVES},
        }
        for row in rows
        if row.entry.state == "done"
        for metrics in read_metrics(folder / CELLS / row.cell.id)
    ]


def _breakdowns(sweep: SweepConfig, searches: Iterable[Search]) -> list[dict[str, Any]]:
    breakdown = sweep.breakdown
    assert breakdown is not None, "a sweep that searches"
    return [
        {
            "defence": search.first.defence,
            "attack": search.first.attack,
            "group": search.first.group_label,
            **{f"config.{name}": value for name, value in search.first.group},
            "breakdown_f": search.found,
            "finished": search.finished,
            "most": breakdown.most,
            "accuracy": breakdown.accuracy,
        }
        for search in searches
    ]


def _write(path: Path, rows: Sequence[Mapping[str, Any]], columns: Sequence[str] = ()) -> None:
    """A table with the columns of its rows, and with those that it has without a row."""
    import pyarrow
    from pyarrow import parquet

    names = dict.fromkeys((*columns, *(name for row in rows for name in row)))
    table = pyarrow.table({name: [row.get(name) for row in rows] for name in names})
    with replacing(path) as file:
        parquet.write_table(table, file)
