"""Which defence keeps most in its worst case, and whether the seeds tell it from the next."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from experiments.studies.paired import difference, p_value
from experiments.sweeps.report.groups import Estimate, Group, Worst, split, worst


@dataclass(frozen=True)
class Gap:
    """What a defence loses to another, seed by seed, each in its own worst case.

    Attributes:
        mean: of the differences.
        half: half the length of its 95 % interval; None for fewer than two seeds.
        p: of the paired t-test, two-sided; None where there is nothing to test by.
        seeds: in how many both have a test accuracy.
    """

    mean: float
    half: float | None
    p: float | None
    seeds: int

    @classmethod
    def between(cls, ours: Mapping[int, float], theirs: Mapping[int, float]) -> Gap | None:
        """None where they have no seed in common."""
        seeds = [seed for seed in ours if seed in theirs]
        if not seeds:
            return None
        pairs = [ours[seed] for seed in seeds], [theirs[seed] for seed in seeds]
        middle, half = difference(*pairs)
        return cls(middle, half if math.isfinite(half) else None, p_value(*pairs), len(seeds))


@dataclass(frozen=True)
class Entry:
    """A line of the leaderboard.

    Attributes:
        rank: from 1; None while trainings are missing, whose outcome could only lower it.
        defence: whose line it is.
        worst: the lowest mean over attacks and scenarios; None while nothing is known.
        average: mean over attacks and scenarios of the means.
        unattacked: the same without an attack; None where that was not run.
        missing: chosen trainings without a test accuracy, and groups of which none was chosen.
        gap: to the first; None for the first, and for what is not ranked.
    """

    rank: int | None
    defence: str
    worst: Worst | None
    average: float | None
    unattacked: float | None
    missing: int
    gap: Gap | None


def leaderboard(groups: Sequence[Group]) -> list[Entry]:
    """The defences, the best worst case first; equals by their average, then as they come.

    To do nothing is one of the things that attackers may do.
    """
    lines = [
        _entry(defence, own) for defence, own in split(groups, lambda group: group.defence).items()
    ]
    lines.sort(key=_place)
    ranked: list[Entry] = []
    for line in lines:
        if line.worst is None or line.missing:
            ranked.append(line)
            continue
        first = ranked[0].worst if ranked else None
        gap = None if first is None else Gap.between(first.group.by_seed, line.worst.group.by_seed)
        ranked.append(
            Entry(
                len(ranked) + 1,
                *(line.defence, line.worst, line.average, line.unattacked, 0, gap),
            )
        )
    return ranked


def _entry(defence: str, groups: Sequence[Group]) -> Entry:
    calm = [group for group in groups if not group.attacked]
    missing = sum(
        sum(cell.test is None for cell in group.chosen) if group.chosen else 1 for group in groups
    )
    return Entry(
        *(None, defence, worst(groups), _average(groups)),
        *(_average(calm), missing, None),
    )


def _average(groups: Sequence[Group]) -> float | None:
    means = [group.test.mean for group in groups if group.test is not None]
    return sum(means) / len(means) if means else None


def _place(entry: Entry) -> tuple[bool, bool, float, float]:
    """Ranked ones first; of what is missing, the worst is not known."""
    nothing = entry.worst is None
    lowest = -1.0 if entry.worst is None else entry.worst.test.mean
    return nothing, entry.missing > 0, -lowest, -(entry.average or 0.0)


def verdict(entries: Sequence[Entry]) -> list[str]:
    """What the leaderboard says, in sentences."""
    ranked = [entry for entry in entries if entry.rank is not None and entry.worst is not None]
    if not ranked:
        return ["No defence has all of its test accuracies, so none is ranked."]
    first = ranked[0]
    assert first.worst is not None
    said = [f"{first.defence} keeps most in its worst case: {_words(first.worst)}."]
    if len(ranked) > 1:
        said.append(_compared(first, ranked[1]))
    left = [entry.defence for entry in entries if entry.rank is None]
    if left:
        said.append(f"Not ranked, as trainings are missing: {'; '.join(left)}.")
    return said


def _words(case: Worst) -> str:
    return f"{percent(case.test)} % under {where(case.group)}"


def where(group: Group) -> str:
    """Attack and scenario of a group."""
    scenario = group.scenario.label
    return f"{group.attack} ({scenario})" if scenario else group.attack


def percent(estimate: Estimate) -> str:
    """Mean and half interval in percent, without the sign."""
    half = "" if estimate.half is None else f" ± {100 * estimate.half:.1f}"
    return f"{100 * estimate.mean:.1f}{half}"


def _compared(first: Entry, second: Entry) -> str:
    gap = second.gap
    if gap is None:
        return f"It has no seed in common with the second, {second.defence}."
    said = f"The second, {second.defence}, is {100 * gap.mean:.1f} points behind"
    if gap.half is None:
        return f"{said}; with one seed in common nothing says whether that is chance."
    low, high = 100 * (gap.mean - gap.half), 100 * (gap.mean + gap.half)
    said += f" (95 % interval {low:.1f} to {high:.1f})"
    if gap.p is None:
        return f"{said}; over the {gap.seeds} seeds the difference does not vary."
    meaning = "the seeds tell the two apart" if gap.p < _LEVEL else "that may be chance"
    return f"{said}; paired t-test over {gap.seeds} seeds: {p_text(gap.p)}, {meaning}."


def p_text(p: float) -> str:
    """As it is printed: with its name, and never as 0."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}" if p < 0.1 else f"p = {p:.2f}"


_LEVEL = 0.05
