"""Every rule under every attack: what is left of the accuracy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, ClassVar, Self

from experiments.config import RunConfig
from experiments.robustness.training import train
from experiments.studies.canvas import new_figure
from experiments.studies.study import Claim, Piece, Preset, Row, Study, Table, Tick

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NONE = "none"
"""Stands for no attack."""
WORST = "worst"

# SignMajority is not among the rules, for its rows of ±1 want another learning rate, nor are MoNNA
# and FLTrust, which trust a row.
AGGREGATORS = (
    "Mean",
    "CoordinateWiseMedian",
    "TrimmedMean",
    "MeanAroundMedian",
    "Phocas",
    "GeometricMedian",
    "MedoidMedian",
    "Krum",
    "MultiKrum",
    "Bulyan",
    "MinimumDiameterAveraging",
    "SMEA",
    "CAF",
    "CGE",
    "CenteredClipping",
    "DivideAndConquer",
    "SignGuard",
    "FLAME",
    "AdaptiveClip + GeometricMedian",
    "Bucketing(s=2) + GeometricMedian",
    "NearestNeighborMixing + GeometricMedian",
    "NearestNeighborMixing + TrimmedMean",
)
ESTIMATORS = ("VClip", "VClip(fusion='batch')", "CClip", "ClippedClustering")
ATTACKS = (
    NONE,
    "SignFlip",
    "InnerProductManipulation(epsilon=0.5)",
    "ALittleIsEnough(z=1.5)",
    "MinMax",
    "Mimic",
    "ROP",
    "LabelFlip",
)
MORE_ATTACKS = ("OptimalIPM", "OptimalALIE", "BitFlip", "GaussianNoise")
"""In the full study: the first two ask the defence dozens of times a round."""


@dataclass(frozen=True, kw_only=True)
class Matrix(Study):
    """Test accuracy at the end of a training on the digits that come with scikit-learn, with 20
    workers of whom 4 are Byzantine and data that is divided by Dir(1); every defence is declared to
    bear 4, has its default parameters, and sees the same data, batches and attackers. Nothing is
    tuned, and nothing is chosen by these numbers."""

    title: ClassVar[str] = "Rules under attack"

    aggregators: tuple[str, ...] = AGGREGATORS
    estimators: tuple[str, ...] = ESTIMATORS
    attacks: tuple[str, ...] = ATTACKS
    workers: int = 20
    byzantine: int = 4
    rounds: int = 100
    seeds: int = 2

    @classmethod
    def preset(cls, name: Preset) -> Self:
        if name == "smoke":
            return cls(
                decides=False,
                aggregators=("Mean", "TrimmedMean"),
                estimators=("VClip",),
                attacks=(NONE, "SignFlip"),
                rounds=5,
                seeds=1,
            )
        if name == "full":
            return cls(attacks=(*ATTACKS, *MORE_ATTACKS), rounds=400, seeds=10)
        return cls()

    def pieces(self, folder: Path) -> Mapping[str, Piece]:
        return {
            f"{defence}, {attack}": partial(self._trained, defence, attack)
            for attack in self.attacks
            for defence in (*self.aggregators, *self.estimators)
        }

    def _trained(self, defence: str, attack: str, tick: Tick) -> list[Row]:
        rows: list[Row] = []
        for seed in range(self.seeds):
            found = train(self._run(defence, attack, seed), self._part_of(tick, seed))
            rows.append(
                {
                    "defence": defence,
                    "attack": attack,
                    "seed": seed,
                    "accuracy": found.accuracy,
                    "byzantine_weight": found.byzantine_weight,
                    "skipped": found.skipped,
                }
            )
        return rows

    def _part_of(self, tick: Tick, seed: int) -> Tick:
        """Of one of several trainings."""
        return lambda share: tick((seed + share) / self.seeds)

    def _run(self, defence: str, attack: str, seed: int) -> RunConfig:
        online = defence in self.estimators
        attacked = attack != NONE
        return RunConfig(
            workers=self.workers,
            byzantine=self.byzantine if attacked else 0,
            f=self.byzantine,
            attack=attack if attacked else "SignFlip",
            aggregator=() if online else (defence,),
            estimator=(defence,) if online else (),
            transport="inline",
            hosts=1,
            rounds=self.rounds,
            seed=seed,
        )

    def tables(self, rows: Sequence[Row]) -> Mapping[str, Table]:
        attacks = self._attacks(rows)
        lines = [
            (defence, *(_percent(found.get(attack)) for attack in attacks), _percent(found[WORST]))
            for defence, found in _accuracies(rows).items()
        ]
        return {"Accuracy (%) under each attack": [("defence", *attacks, WORST), *lines]}

    def _attacks(self, rows: Sequence[Row]) -> list[str]:
        return [attack for attack in self.attacks if any(row["attack"] == attack for row in rows)]

    def figures(self, rows: Sequence[Row]) -> Mapping[str, Figure]:
        attacks = [*self._attacks(rows), WORST]
        found = sorted(_accuracies(rows).items(), key=lambda item: -item[1][WORST])
        figure = new_figure(0.62 * len(attacks) + 4.2, 0.3 * len(found) + 2.6)
        axes = figure.subplots()
        shares = [[100 * values.get(attack, 0.0) for attack in attacks] for _, values in found]
        axes.imshow(shares, cmap="cividis", vmin=0, vmax=100, aspect="auto")
        for i, line in enumerate(shares):
            for j, share in enumerate(line):
                colour = "black" if share > 60 else "white"
                axes.text(j, i, f"{share:.0f}", ha="center", va="center", color=colour, fontsize=8)
        axes.axvline(len(attacks) - 1.5, color="white", linewidth=3)
        axes.set_xticks(range(len(attacks)), attacks, rotation=40, ha="right", fontsize=8)
        axes.set_yticks(range(len(found)), [defence for defence, _ in found], fontsize=8)
        axes.set_title("test accuracy (%), the best worst case first", fontsize=10)
        return {"rules_under_attack": figure}

    def claims(self, rows: Sequence[Row]) -> list[Claim]:
        return []

    def notes(self, rows: Sequence[Row]) -> list[str]:
        return [
            f"{self.workers} workers, {self.byzantine} Byzantine, {self.rounds} rounds, means of "
            f"{self.seeds} seeds; MLP(hidden=(64,)), batches of 32, learning rate 1, "
            "Momentum(beta=0.9) at every worker",
            "without an attack the same defence aggregates 20 honest rows, and is still declared "
            "to bear 4",
            "one data set and one model: an attack that does little here may do much elsewhere",
        ]


def _accuracies(rows: Sequence[Row]) -> dict[str, dict[str, float]]:
    """Of each defence, by attack and in the worst case over the attacks: means over the seeds."""
    found: dict[str, dict[str, list[float]]] = {}
    for row in rows:
        of_attack = found.setdefault(row["defence"], {}).setdefault(row["attack"], [])
        of_attack.append(row["accuracy"])
    means = {
        defence: {attack: fmean(each) for attack, each in by_attack.items()}
        for defence, by_attack in found.items()
    }
    return {
        defence: {**each, WORST: min(each.values(), default=0.0)} for defence, each in means.items()
    }


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.0f}"
