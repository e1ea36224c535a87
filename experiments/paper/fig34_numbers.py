"""Curves, plateaus and times to an error, read off the rows of figures 3 and 4."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from experiments.studies.study import Row

METHODS = ("momentum", "bias-corrected momentum", "VClip", "CClip")


@dataclass(frozen=True)
class Point:
    """A method at one τ: where its error ends, and when it first was at a given level."""

    tau: float
    plateau: float
    reached: int | None


def curve(rows: Sequence[Row], method: str, size: int, tau: float) -> tuple[list[int], list[float]]:
    """Iterations and errors of a method at one τ."""
    own = [
        row
        for row in rows
        if (row.get("method"), row.get("batch"), row.get("tau")) == (method, size, tau)
    ]
    return [row["iteration"] for row in own], [row["error"] for row in own]


def noise(rows: Sequence[Row], size: int) -> float:
    """The root mean square of ‖g - ḡ‖₂/‖ḡ‖₂ of minibatches."""
    found: float = next(row["noise"] for row in rows if row.get("noise_of") == size)
    return found


def level(rows: Sequence[Row], size: int) -> float:
    """The error that methods are timed to: half the noise, that of a mean of four minibatches."""
    return noise(rows, size) / 2


def sweep(rows: Sequence[Row], method: str, size: int) -> list[Point]:
    """Every τ of a method, ascending; its plateau is the mean error of the last fifth."""
    of_method = [row for row in rows if (row.get("method"), row.get("batch")) == (method, size)]
    goal = level(rows, size)
    found = []
    for tau in sorted({row["tau"] for row in of_method}):
        t, error = curve(rows, method, size, tau)
        last = [e for i, e in zip(t, error, strict=True) if i >= 0.8 * t[-1]]
        reached = next((i for i, e in zip(t, error, strict=True) if e <= goal), None)
        found.append(Point(tau, sum(last) / len(last), reached))
    return found


def error_at(rows: Sequence[Row], method: str, size: int, tau: float, iteration: int) -> float:
    """The error after an iteration that was noted."""
    t, error = curve(rows, method, size, tau)
    return error[t.index(iteration)]
