"""``robust-agg cluster bitflip``: one of four ranks has bad hardware; what is left of the model?"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from math import log
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, Self

from experiments.cluster import bitflip_report as report
from experiments.cluster.ddp import train
from experiments.cluster.setting import Setting
from experiments.cluster.step_times import in_turns
from experiments.language.corpus import Corpus, load
from experiments.processes import on_ranks
from experiments.studies.study import Claim, Piece, Preset, Row, Study, Table, Tick

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LR = {"sgd": 0.3, "adamw": 0.01}
"""The best of 0.1, 0.3, 1 and of 0.001, 0.003, 0.01 for the mean without faults."""


class Cell(NamedTuple):
    """What is trained, with each seed."""

    optimizer: Literal["sgd", "adamw"]
    flips: float
    defence: str

    @property
    def name(self) -> str:
        """Also the piece's file."""
        fault = f"flips {self.flips:g}" if self.flips else "clean"
        return f"{self.optimizer}, {fault}, {self.defence}"


@dataclass(frozen=True, kw_only=True)
class BitFlip(Study):
    """Four ranks train a transformer on PTB with `experiments.cluster.ddp`, an ordinary DDP script.
    The hardware of one flips bits of its gradients. Data, weights and flips of a seed are the same
    for every defence; learning rates were chosen for the mean without faults."""

    title: ClassVar[str] = "One of four ranks flips bits"

    ranks: int = 4
    bad: tuple[int, ...] = (3,)
    rates: tuple[float, ...] = (1e-5, 1e-4)
    defences: tuple[str, ...] = (
        "mean", "clip", "CoordinateWiseMedian", "GeometricMedian", "VClip"
    )  # fmt: skip
    with_adamw: tuple[str, ...] = ("mean", "CoordinateWiseMedian")
    words: int = 2000
    columns: int = 16
    steps: int = 80
    seeds: int = 3
    validation_words: int = 8960
    turns: int = 20

    @classmethod
    def preset(cls, name: Preset) -> Self:
        if name == "smoke":
            return cls(
                decides=False,
                rates=(1e-2,),
                defences=("mean", "CoordinateWiseMedian"),
                with_adamw=(),
                words=200,
                columns=2,
                steps=3,
                seeds=2,
                validation_words=128,
                turns=2,
            )
        if name == "default":
            return cls()
        return cls(words=10_000, steps=415, seeds=5, validation_words=70_000, turns=100)

    @property
    def fingerprint(self) -> str:
        return self._text.fingerprint

    @property
    def _text(self) -> Corpus:
        return load("ptb", words=self.words)

    @property
    def cells(self) -> list[Cell]:
        """All of them: with AdamW without faults, and at the highest rate."""
        sgd = [Cell("sgd", rate, name) for rate in (0.0, *self.rates) for name in self.defences]
        extremes = (0.0, max(self.rates))
        return sgd + [Cell("adamw", rate, name) for rate in extremes for name in self.with_adamw]

    def pieces(self, folder: Path) -> Mapping[str, Piece]:
        trainings = {cell.name: partial(self._train, cell) for cell in self.cells}
        return {**trainings, "step times": self._time}

    def _setting(self, cell: Cell, seed: int, out: Path) -> Setting:
        return Setting(
            defence=cell.defence,
            bad=self.bad if cell.flips else (),
            flips=cell.flips,
            steps=self.steps,
            optimizer=cell.optimizer,
            lr=LR[cell.optimizer],
            columns=self.columns,
            words=self.words,
            validation_words=self.validation_words,
            evaluate_every=max(1, self.steps // 8),
            checkpoint_every=self.steps,
            seed=seed,
            out=out,
        )

    def _train(self, cell: Cell, tick: Tick) -> list[Row]:
        named = {"optimizer": cell.optimizer, "flips": cell.flips, "defence": cell.defence}
        with tempfile.TemporaryDirectory() as folder:
            settings = [
                self._setting(cell, seed, Path(folder, str(seed))) for seed in range(self.seeds)
            ]
            watch = partial(_watch, settings, tick)
            found, *_ = on_ranks(self.ranks, _trained, settings, look=watch)
        rows: list[Row] = []
        for seed, (losses, flagged) in enumerate(found):
            rows += [
                {**named, "seed": seed, "step": step, "loss": self._bounded(loss)}
                for step, loss in losses
            ]
            if cell.defence not in report.PLAIN:
                rows += [
                    {**named, "seed": seed, "rank": rank, "flagged": flagged.get(rank, 0.0)}
                    for rank in range(self.ranks)
                ]
        return rows

    def _bounded(self, loss: float | None) -> float:
        """A loss that is not finite is as bad as one twice that of a guess, and none is worse."""
        return min(2 * self.guess, 2 * self.guess if loss is None else loss)

    @property
    def guess(self) -> float:
        """The loss of a uniform guess."""
        return log(self.words)

    def _time(self, tick: Tick) -> list[Row]:
        cell = Cell("sgd", 0.0, "mean")
        settings = [
            self._setting(cell._replace(defence=defence), 0, Path()) for defence in self.defences
        ]
        times: list[dict[str, float]]
        times, *_ = on_ranks(self.ranks, in_turns, settings, self.turns)
        return [
            {"turn": turn, "defence": defence, "ms": 1e3 * seconds}
            for turn, of_turn in enumerate(times)
            for defence, seconds in of_turn.items()
        ]

    def figures(self, rows: Sequence[Row]) -> Mapping[str, Figure]:
        return report.draw(rows, self.guess)

    def claims(self, rows: Sequence[Row]) -> list[Claim]:
        return report.claims(rows, self.bad)

    def tables(self, rows: Sequence[Row]) -> Mapping[str, Table]:
        return report.tables(rows, self.bad)

    def notes(self, rows: Sequence[Row]) -> list[str]:
        setting = self._setting(self.cells[0], 0, Path())
        return [
            self._text.note,
            f"{self.ranks} ranks over gloo, a thread each; batches of {self.ranks} x "
            f"{self.columns} x {setting.length} words in the order of the text; {self.steps} "
            f"steps; validation loss on {self.validation_words:,} words; the test text is not used",
            f"rank {', '.join(map(str, self.bad))} is bad: in every step each number of its "
            "gradient has, with the probability that is given, one of the 32 bits of its float32 "
            "representation flipped, any with the same probability",
            f"SGD with momentum 0.9 at lr {LR['sgd']}, AdamW at lr {LR['adamw']}; clip: the norm "
            f"of the averaged gradient clipped to {setting.clip:g}; f = {setting.f}",
            "a loss counts with at most twice that of a uniform guess, and so does a training that "
            "diverges",
            f"± is the 95 % interval of the mean difference by seed (t, {self.seeds} seeds), which "
            "decides a verdict, if anything",
            "flagged: the share of the last 100 steps in which a rank's row was rejected or lay "
            "further from the result than three times the median distance; a rank is reported, and "
            f"its share counted, from {setting.share:.0%}",
        ]


def _trained(settings: Sequence[Setting]) -> list[tuple[Any, dict[int, float]]]:
    """On each rank: one training after another; losses, and how often each rank was flagged."""
    found = []
    for setting in settings:
        setting.out.mkdir(parents=True, exist_ok=True)
        outcome = train(setting)
        flagged = {each.rank: each.flagged / each.steps for each in outcome.suspects}
        found.append((outcome.losses, flagged))
    return found


def _watch(settings: Sequence[Setting], tick: Callable[[float], None]) -> None:
    """Tell how far the trainings are, by what they have written."""
    steps = 0.0
    for setting in settings:
        with suppress(OSError):
            steps += json.loads((setting.out / "losses.json").read_text(encoding="utf-8"))[-1][0]
    tick(min(0.99, steps / sum(setting.steps for setting in settings)))
