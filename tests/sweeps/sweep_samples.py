"""Small sweeps for the tests, and what of a sweep's folder must not change."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pyarrow import parquet

from experiments.sweeps.carry_out import Means, carry_out
from experiments.sweeps.cells import Cell
from experiments.sweeps.config import SweepConfig
from experiments.sweeps.export import CLOCK, CURVES, RESULTS
from experiments.sweeps.known import Result, Tally

BASE: dict[str, Any] = {
    "honest": 5,
    "f": 2,
    "model": "LogisticRegression",
    "rounds": 12,
    "batch_size": 8,
    "evaluate_every": 4,
    "checkpoint_every": 5,
}


def small(**sections: Any) -> SweepConfig:
    """A grid of two defences under two attacks, of a few rounds."""
    given: dict[str, Any] = {
        "base": BASE,
        "grid": {
            "defence": ("Mean", "VClip(fusion='sequential')"),
            "attack": ("none", "GaussianNoise(scale=3.0)"),
            "seed": (0, 1),
        },
    }
    return SweepConfig(**{**given, **sections})


class Told:
    """A watcher that remembers."""

    def __init__(self) -> None:
        self.tallies: list[Tally] = []
        self.failures: list[tuple[Cell, str]] = []

    def look(self, tally: Tally) -> None:
        self.tallies.append(tally)

    def failed(self, cell: Cell, reason: str) -> None:
        self.failures.append((cell, reason))


def carried_out(sweep: SweepConfig, folder: Path, told: Told | None = None, **means: Any) -> Result:
    given = {"jobs": 2, "stall": 120.0, "command": "again", **means}
    return carry_out(sweep, folder, Means(**given), told or Told())


def rows(folder: Path, name: str = RESULTS) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = parquet.read_table(folder / name).to_pylist()
    return found


def timeless(folder: Path) -> dict[str, Any]:
    """All that a sweep has found, without the times in it and the folder's name."""
    return {
        CURVES: rows(folder, CURVES),
        RESULTS: [
            {
                name: value.replace(str(folder), "") if isinstance(value, str) else value
                for name, value in row.items()
                if name not in CLOCK
            }
            for row in rows(folder)
        ],
    }
