"""The report's plain tables: what was chosen, measures beyond accuracy, published numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from experiments.sweeps.report.cells import Sweep
from experiments.sweeps.report.groups import Estimate, Group, Worst, split, worst
from experiments.sweeps.report.leaderboard import Entry, p_text, percent, where
from experiments.sweeps.report.scenarios import value_of

NONE = "–"


@dataclass(frozen=True)
class Table:
    """Headings and lines of texts; the first ``names`` columns say what a line is about."""

    title: str
    headings: tuple[str, ...]
    lines: tuple[tuple[str, ...], ...]
    names: int = 1

    @property
    def spans(self) -> tuple[int, ...]:
        """Lines that the first cell of each line stands for; 0 where one above does."""
        first = [line[0] for line in self.lines]
        if self.names < 2:
            return (1,) * len(first)
        return tuple(
            0
            if place and first[place - 1] == text
            else next(
                (n for n, other in enumerate(first[place:]) if other != text), len(first) - place
            )
            for place, text in enumerate(first)
        )


_SHARES = {"byzantine_weight", "accepted", "success"}
_MEASURES = {
    "error": "error",
    "kappa": "κ",
    "byzantine_weight": "Byzantine weight",
    "accepted": "accepted attackers",
    "rounds_to_target": "rounds to target",
    "success": "backdoor success",
    "bytes": "messages, MB",
    "skipped": "rounds skipped",
    "missing": "rows missing",
    "spared": "rounds spared",
    "epsilon": "ε",
    "aggregate_seconds": "aggregation, ms",
}
_WHEN_ANY = {"skipped", "missing", "spared", "bytes"}
# Not worth a column while it is 0 everywhere.
MEANINGS = {
    "error": "error: mean over evaluated rounds of ‖m - ḡ‖ / ‖ḡ‖, m: the estimate the model is "
    "stepped by, ḡ: the mean of the honest rows",
    "kappa": "κ: mean of ‖m - ḡ‖² over the honest rows' mean squared distance to ḡ",
    "byzantine_weight": "Byzantine weight: share of Σ|w| that the Byzantine rows had; – for rules "
    "without weights",
    "accepted": "accepted attackers: share of the Byzantine rows with a weight above 0",
    "rounds_to_target": "rounds to target: of the seeds that reached the target accuracy on the "
    "validation split; in brackets how many did",
    "success": "backdoor success: share of the attacker's samples of the validation split that are "
    "labelled as it wants",
    "spared": "rounds spared: too small for the attack, whose attackers sent honest rows",
    "epsilon": "ε: that the data of the worker asked most often have spent, at the run's δ",
}


def measures(sweep: Sweep, groups: Sequence[Group]) -> list[Table]:
    """Means over seeds of the chosen trainings, a table a scenario."""
    known = _known(sweep, groups)
    if not known:
        return []
    return [
        Table(
            label,
            ("defence", "attack", *(_MEASURES[name] for name in known)),
            tuple(
                (group.defence, group.attack, *(_measure(group, name) for name in known))
                for group in own
                if group.chosen
            ),
            names=2,
        )
        for label, own in split(groups, lambda group: group.scenario.label).items()
        if any(group.chosen for group in own)
    ]


def meanings(sweep: Sweep, groups: Sequence[Group]) -> list[str]:
    """What the columns of :func:`measures` are."""
    known = _known(sweep, groups)
    return [said for name, said in MEANINGS.items() if name in known]


def _known(sweep: Sweep, groups: Sequence[Group]) -> list[str]:
    """The measures that any group has; a target that nobody reached is worth a column."""
    reached = sweep.about.get("target") is not None and any(
        cell.state == "done" for group in groups for cell in group.chosen
    )
    return [
        name
        for name in _MEASURES
        if any(_counts(name, group) for group in groups) or (name == "rounds_to_target" and reached)
    ]


def _counts(name: str, group: Group) -> bool:
    found = group.mean(name)
    return found is not None and not (name in _WHEN_ANY and found == 0)


def _measure(group: Group, name: str) -> str:
    value = group.mean(name)
    if name == "rounds_to_target":
        there = sum(name in cell.measured for cell in group.chosen)
        count = f"({there} of {len(group.chosen)})"
        return f"never {count}" if value is None else f"{value:.0f} {count}"
    if value is None:
        return NONE
    if name in _SHARES:
        return f"{value:.1%}".replace("%", " %")
    if name == "bytes":
        return number(value / 1e6)
    return milliseconds(value) if name == "aggregate_seconds" else number(value)


def milliseconds(seconds: float) -> str:
    """A time in ms, without the unit."""
    return number(1e3 * seconds)


def number(value: float) -> str:
    """Three digits, without an exponent where one reads as well without."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    if not 1e-3 <= abs(value) < 1e6:
        return f"{value:.1e}"
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:.{digits}f}"


# --- the leaderboard ------------------------------------------------------------------------------


def entries_table(entries: Sequence[Entry]) -> Table:
    """The leaderboard as texts."""
    missing = any(entry.missing for entry in entries)
    headings = ("", "defence", "worst case, %", "under", "behind the first", "average", "no attack")
    lines = []
    for entry in entries:
        line = [
            str(entry.rank or NONE),
            entry.defence,
            estimate_text(None if entry.worst is None else entry.worst.test),
            NONE if entry.worst is None else where(entry.worst.group),
            behind(entry),
            *(share_text(value) for value in (entry.average, entry.unattacked)),
        ]
        lines.append((*line, *([str(entry.missing)] if missing else [])))
    return Table("", (*headings, *(["missing"] if missing else [])), tuple(lines), names=2)


def behind(entry: Entry) -> str:
    """The gap to the first, in points, and whether the seeds tell it from none."""
    if entry.gap is None:
        return NONE
    half = "" if entry.gap.half is None else f" ± {100 * entry.gap.half:.1f}"
    p = "" if entry.gap.p is None else f" ({p_text(entry.gap.p)})"
    return f"{100 * entry.gap.mean:.1f}{half}{p}"


# --- what selection chose -------------------------------------------------------------------------


def selection(groups: Sequence[Group]) -> Table | None:
    """The chosen setting of every defence in every scenario, and what it was chosen among."""
    lines = []
    for own in split(groups, lambda group: f"{group.scenario}{group.defence}").values():
        tuned = dict.fromkeys(cell.tuned for group in own for cell in group.cells)
        chosen = next((c.tuned for g in own for c in g.chosen), None)
        left = any(c.state in ("pending", "running") for g in own for c in g.cells)
        if not any(tuned) or (chosen is None and left):
            continue
        scores = {text: _validation(own, text) for text in tuned}
        rest = [score for text, score in scores.items() if text != chosen and score is not None]
        lines.append(
            (
                *(own[0].scenario.label, own[0].defence, chosen or "none", str(len(tuned))),
                share_text(None if chosen is None else scores[chosen]),
                share_text(max(rest, default=None)),
            )
        )
    headings = ("scenario", "defence", "chosen", "of", "its validation", "next best")
    return _without_blank(Table("", headings, tuple(lines), names=2)) if lines else None


def _validation(groups: Sequence[Group], tuned: str) -> float | None:
    """Worst case over attacks of the mean over seeds of the final validation accuracy."""
    means = []
    for group in groups:
        found = [c.measured.get("accuracy", 0.0) for c in group.cells if c.tuned == tuned]
        if found:
            means.append(sum(found) / len(found))
    return min(means, default=None)


def share_text(value: float | None) -> str:
    """In percent, without the sign."""
    return NONE if value is None else f"{100 * value:.1f}"


# --- published numbers ----------------------------------------------------------------------------


def published(sweep: Sweep, groups: Sequence[Group]) -> Table | None:
    """Numbers of a source beside ours, a line for every defence and scenario they are about."""
    lines = []
    for row in sweep.section("published").get("rows") or ():
        about, value = dict(row.get("where") or {}), float(row["value"])
        named = ", ".join(f"{key}={text}" for key, text in about.items()) or "all"
        ours = _ours(sweep, groups, about)
        for case in ours:
            gap = 100 * (case.test.mean - value)
            lines.append(
                (
                    *(named, case.group.defence, where(case.group)),
                    *(f"{100 * value:.1f}", _with_note(case), f"{gap:+.1f}"),
                )
            )
        if not ours:
            lines.append((named, NONE, NONE, f"{100 * value:.1f}", "not run", NONE))
    headings = ("published for", "defence", "ours under", "published", "ours", "difference")
    return Table("", headings, tuple(lines), names=3) if lines else None


def _ours(sweep: Sweep, groups: Sequence[Group], about: Mapping[str, Any]) -> list[Worst]:
    fitting = [group for group in groups if _fits(sweep, group, about)]
    cases = split(fitting, lambda group: f"{group.scenario}{group.defence}").values()
    return [case for own in cases if (case := worst(own)) is not None]


def _fits(sweep: Sweep, group: Group, about: Mapping[str, Any]) -> bool:
    for name, value in about.items():
        if name in ("attack", "defence"):
            found = getattr(group, name)
        else:
            # What is the same in all cells may have no column of its own.
            found = value_of(group.cells[0], name)
            found = sweep.section("base").get(name) if found is None else found
        if _plain(found) != _plain(value):
            return False
    return True


def _plain(value: Any) -> str:
    """A text that is the same for ``SignFlip`` and ``SignFlip()``, for 1 and 1.0."""
    if isinstance(value, int | float):
        return f"{value:g}"
    return "".join(str(value).split()).removesuffix("()")


def _with_note(case: Worst) -> str:
    return percent(case.test) if case.whole else f"{percent(case.test)} (not complete)"


def _without_blank(table: Table) -> Table:
    """Without the first column where it says nothing in any line."""
    if any(line[0] for line in table.lines):
        return table
    lines = tuple(line[1:] for line in table.lines)
    return Table(table.title, table.headings[1:], lines, table.names - 1)


def estimate_text(estimate: Estimate | None) -> str:
    """Mean and half interval in percent."""
    return NONE if estimate is None else percent(estimate)
