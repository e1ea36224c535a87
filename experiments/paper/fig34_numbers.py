"""Curves, plateaus and times to an error, read off the rows of figures 3 and 4."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from experiments.paper.study import Row

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


def plateaus(rows: Sequence[Row], method: str, size: int, level: float) -> list[Point]:
    """Every τ of a method, ascending; its plateau is the mean error of the last fifth."""
    of_method = [row for row in rows if (row.get("method"), row.get("batch")) == (method, size)]
    found = []
    for tau in sorted({row["tau"] for row in of_method}):
        t, error = curve(rows, method, size, tau)
        last = [e for i, e in zip(t, error, strict=True) if i >= 0.8 * t[-1]]
        reached = next((i for i, e in zip(t, error, strict=True) if e <= level), None)
        found.append(Point(tau, sum(last) / len(last), reached))
    return found


def error_at(rows: Sequence[Row], method: str, size: int, tau: float, iteration: int) -> float:
    """The error at the noted iteration that is nearest."""
    t, error = curve(rows, method, size, tau)
    place = min(range(len(t)), key=lambda i: abs(t[i] - iteration))
    return error[place]


def fastest(rows: Sequence[Row], method: str, size: int, level: float) -> int | None:
    """The fewest iterations to an error of ``level`` at any τ."""
    times = [point.reached for point in plateaus(rows, method, size, level)]
    return min((time for time in times if time is not None), default=None)


def best_plateau(rows: Sequence[Row], method: str, size: int, level: float) -> float:
    """The lowest plateau at any τ."""
    return min(point.plateau for point in plateaus(rows, method, size, level))
