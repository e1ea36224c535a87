"""``robust-agg attack-search``: which attack hurts a defence most?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import isfinite
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, ClassVar, Self

from experiments.data import SplitName, loaded
from experiments.robustness.training import train
from experiments.search.config import SearchConfig
from experiments.search.families import FAMILIES
from experiments.search.trials import Trials, Tried
from experiments.studies.canvas import new_figure
from experiments.studies.paired import difference, interval
from experiments.studies.study import Claim, Piece, Preset, Row, Study, Table, Tick
from experiments.sweeps.cells import command
from experiments.sweeps.config import NONE

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_MARKERS = "osD^vPX*"


@dataclass(frozen=True, kw_only=True)
class AttackSearch(Study):
    """Families of attacks and their parameters are searched for what leaves a defence the least
    validation accuracy at the end of a training. The worst attack, and none, are then tried on
    seeds that took no part in the search, and on the test set: the worst of many numbers is low by
    chance too. Byzantine identities vary with the seed."""

    title: ClassVar[str] = "The worst attack that was found"

    config: SearchConfig

    @classmethod
    def preset(cls, name: Preset) -> Self:
        if name == "smoke":
            small = SearchConfig(
                trials=3, seeds=1, fresh=1, rounds=5, families=("SignFlip", "Mimic")
            )
            return cls(config=small, decides=False)
        return cls(
            config=SearchConfig(trials=200, seeds=5, rounds=400, families=tuple(FAMILIES))
            if name == "full"
            else SearchConfig()
        )

    @property
    def fingerprint(self) -> str:
        return loaded(self.config.dataset).fingerprint

    def pieces(self, folder: Path) -> Mapping[str, Piece]:
        config = self.config
        first = range(config.seed, config.seed + config.seeds)
        fresh = range(first.stop, first.stop + config.fresh)
        trials: list[Trials] = []

        def opened() -> Trials:
            # The folder is there when the first piece is done, not when pieces are listed.
            if not trials:
                trials.append(Trials(folder, config.families, config.seed))
            return trials[0]

        def tried(place: int, tick: Tick) -> list[Row]:
            kept = opened()[place]
            found = kept or opened().next(partial(self._accuracy, first, "validation", tick))
            return [_row("trial", found, trial=place)]

        def without(tick: Tick) -> list[Row]:
            found = self._accuracy(first, "validation", tick, NONE)
            return [_row("no attack", Tried(NONE, found))]

        def again(tick: Tick) -> list[Row]:
            worst = min(opened().done, key=lambda found: found.accuracy).attack
            rows = []
            for place, attack in enumerate((NONE, worst)):
                part = partial(_part, tick, place, 2)
                found = self._accuracies(fresh, "test", part, attack)
                rows += [
                    _row("fresh", Tried(attack, accuracy), seed=seed)
                    for seed, accuracy in zip(fresh, found, strict=True)
                ]
            return rows

        searched = {f"trial {k + 1}": partial(tried, k) for k in range(config.trials)}
        return {"no attack": without, **searched, "the worst, on fresh seeds": again}

    def _accuracy(self, seeds: Sequence[int], split: SplitName, tick: Tick, attack: str) -> float:
        return fmean(self._accuracies(seeds, split, tick, attack))

    def _accuracies(
        self, seeds: Sequence[int], split: SplitName, tick: Tick, attack: str
    ) -> list[float]:
        return [
            train(
                self.config.run(attack, seed, split), partial(_part, tick, place, len(seeds))
            ).accuracy
            for place, seed in enumerate(seeds)
        ]

    def tables(self, rows: Sequence[Row]) -> Mapping[str, Table]:
        (without,) = (row["accuracy"] for row in rows if row["part"] == "no attack")
        worst = sorted(_worst_by_family(rows).values(), key=lambda row: float(row["accuracy"]))
        found = _fresh(rows)
        fresh = [
            (attack, *map(_percent, interval(own)), _percent(min(own)), _percent(max(own)))
            for attack, own in found.items()
        ]
        if len(found) == 2:
            gap, error = difference(*found.values())
            fresh.append(("lost, by seed", _percent(gap), _percent(error), "", ""))
        return {
            "The worst of each family": [
                ("attack", "validation accuracy", "lost"),
                *(
                    (row["attack"], f"{row['accuracy']:.1%}", _points(without - row["accuracy"]))
                    for row in worst
                ),
                (NONE, f"{without:.1%}", ""),
            ],
            "On fresh seeds": [("attack", "test accuracy", "± (95 %)", "least", "most"), *fresh],
        }

    def figures(self, rows: Sequence[Row]) -> Mapping[str, Figure]:
        trials = [row for row in rows if row["part"] == "trial"]
        (without,) = (row["accuracy"] for row in rows if row["part"] == "no attack")
        figure = new_figure(8, 4.2)
        axes = figure.subplots()
        for place, family in enumerate(dict.fromkeys(row["family"] for row in trials)):
            own = [row for row in trials if row["family"] == family]
            axes.scatter(
                [row["trial"] + 1 for row in own],
                [100 * row["accuracy"] for row in own],
                color=_COLOURS[place % len(_COLOURS)],
                marker=_MARKERS[place % len(_MARKERS)],
                label=family,
                s=28,
            )
        least = [min(100 * row["accuracy"] for row in trials[: k + 1]) for k in range(len(trials))]
        axes.step(range(1, len(trials) + 1), least, where="post", color="#555555", label="least")
        axes.axhline(100 * without, color="#555555", linestyle=":", label="no attack")
        axes.set(xlabel="trial", ylabel="validation accuracy (%)", ylim=(0, 100))
        axes.legend(frameon=False, fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
        return {"search": figure}

    def claims(self, rows: Sequence[Row]) -> list[Claim]:
        return []

    def notes(self, rows: Sequence[Row]) -> list[str]:
        config = self.config
        attack = list(_fresh(rows))[-1]
        return [
            f"defence: {config.defence}; {config.byzantine} of {config.workers} workers are "
            f"Byzantine, {config.f} declared; {config.rounds} rounds; validation accuracies are "
            f"means of {config.seeds} seeds, test accuracies of {config.fresh} others",
            loaded(config.dataset).note,
            f"the worst attack again: `{command(config.run(attack, config.seed))}`",
            "a search finds what its families hold, in the trials it has: no more is shown than "
            "that nothing worse was found",
        ]


def _row(part: str, tried: Tried, **more: int) -> Row:
    family = tried.attack.partition("(")[0]
    return {
        "part": part,
        "attack": tried.attack,
        "family": family,
        "accuracy": tried.accuracy,
        **more,
    }


def _part(tick: Tick, place: int, count: int, share: float) -> None:
    tick((place + share) / count)


def _percent(share: float) -> str:
    return f"{share:.1%}" if isfinite(share) else "unknown"


def _points(share: float) -> str:
    return f"{100 * share:+.1f} pts"


def _worst_by_family(rows: Sequence[Row]) -> dict[str, Row]:
    found: dict[str, Row] = {}
    for row in rows:
        if row["part"] == "trial" and (
            row["family"] not in found or row["accuracy"] < found[row["family"]]["accuracy"]
        ):
            found[row["family"]] = row
    return found


def _fresh(rows: Sequence[Row]) -> dict[str, list[float]]:
    """Accuracies on fresh seeds by attack: none, then the worst."""
    found: dict[str, list[float]] = {}
    for row in rows:
        if row["part"] == "fresh":
            found.setdefault(row["attack"], []).append(row["accuracy"])
    return found
