"""Time against robustness: what a defence costs the server, and its worst case."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from experiments.sweeps.report.groups import Estimate, Group, split
from experiments.sweeps.report.leaderboard import Entry


@dataclass(frozen=True)
class Point:
    """A defence.

    Attributes:
        rank: in the leaderboard.
        defence: which.
        seconds: of the server's aggregation in a round, the mean over its chosen trainings.
        worst: its worst case.
        front: whether no other is as fast and as robust, and better in one of the two.
    """

    rank: int
    defence: str
    seconds: float
    worst: Estimate
    front: bool


def tradeoff(entries: Sequence[Entry], groups: Sequence[Group]) -> list[Point]:
    """The ranked defences that have a time, in the order of the leaderboard."""
    own = split(groups, lambda group: group.defence)
    found = [
        (entry.rank, entry.defence, seconds, entry.worst.test)
        for entry in entries
        if entry.rank is not None and entry.worst is not None
        if (seconds := _seconds(own[entry.defence])) is not None
    ]
    places = [(seconds, test.mean) for _, _, seconds, test in found]
    return [Point(*each, _on_front((each[2], each[3].mean), places)) for each in found]


def _on_front(place: tuple[float, float], places: Sequence[tuple[float, float]]) -> bool:
    """Whether nothing is at least as good in both ways, and better in one."""
    return not any(
        time <= place[0] and worst >= place[1] and (time, worst) != place for time, worst in places
    )


def _seconds(groups: Sequence[Group]) -> float | None:
    """Attacked or not: a server aggregates all the same."""
    found = [
        cell.measured["aggregate_seconds"]
        for group in groups
        for cell in group.chosen
        if cell.measured.get("aggregate_seconds", 0.0) > 0
    ]
    return sum(found) / len(found) if found else None
