"""``robust-agg bench train``: rounds a second of a whole training, beside ByzFL's own loop."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, ClassVar, Self

import torch

from experiments.bench.images import images
from experiments.bench.loops import ByzFLLoop, Loop, OurLoop, Setting
from experiments.bench.peers import MissingPeerError
from experiments.data import Split
from experiments.studies.canvas import new_figure
from experiments.studies.study import Claim, Piece, Preset, Row, Study, Table, Tick

if TYPE_CHECKING:
    from matplotlib.figure import Figure

OURS = "robust-agg"
TARGETS = {"cnn_mnist": 3.0, "fc_mnist": 10.0}
"""At least so many times as many rounds a second, with NNM + TrimmedMean."""


@dataclass(frozen=True, kw_only=True)
class Training(Study):
    """The same federated training as whole loops in one process: gradients of 10 honest workers on
    batches of 25, momentum at each worker, 2 Byzantine ones that send minus the honest mean,
    aggregation, step. The two loops take turns; rounds a second are medians over the turns."""

    title: ClassVar[str] = "Training beside ByzFL"

    settings: tuple[Setting, ...]
    turns: int = 5
    seconds: float = 4.0
    """Of each turn."""

    @classmethod
    def preset(cls, name: Preset) -> Self:
        settings = [
            # A small network keeps one thread busy with Python, which two would only share.
            Setting(model=model, rule=rule, hosts=hosts)
            for rule in ("NNM + TrimmedMean", "GeometricMedian")
            for model, hosts in (("fc_mnist", 1), ("cnn_mnist", 2))
        ]
        if name == "smoke":
            return cls(settings=tuple(settings[:1]), turns=2, seconds=0.1, decides=False)
        return cls(settings=tuple(settings))

    def pieces(self, folder: Path) -> Mapping[str, Piece]:
        train, test, note = images()
        return {
            f"{setting.model}, {setting.rule}": partial(self._measure, setting, train, test, note)
            for setting in self.settings
        }

    def _measure(
        self, setting: Setting, train: Split, test: Split, note: str, tick: Tick
    ) -> list[Row]:
        loops: dict[str, Loop] = {OURS: OurLoop(setting, train)}
        missing: dict[str, str] = {}
        try:
            loops["ByzFL"] = ByzFLLoop(setting, train)
        except MissingPeerError as error:
            missing["ByzFL"] = str(error)
        speeds: dict[str, list[float]] = {who: [] for who in loops}
        rounds = dict.fromkeys(loops, 0)
        try:
            for turn in range(1 + self.turns):  # the first compiles and allocates
                for who, loop in loops.items():
                    done, seconds = _for_a_while(loop, self.seconds)
                    rounds[who] += done
                    if turn:
                        speeds[who].append(done / seconds)
                tick((turn + 1) / (1 + self.turns))
            shown = {"model": setting.model, "rule": setting.rule, "data": note}
            measured = [
                {
                    **shown,
                    "who": who,
                    "rounds_per_second": median(speeds[who]),
                    "slowest_turn": min(speeds[who]),
                    "fastest_turn": max(speeds[who]),
                    "rounds": rounds[who],
                    "accuracy": _accuracy(loop, test),
                }
                for who, loop in loops.items()
            ]
            return [*measured, *({**shown, "who": who, "note": missing[who]} for who in missing)]
        finally:
            for loop in loops.values():
                loop.close()

    def tables(self, rows: Sequence[Row]) -> Mapping[str, Table]:
        lines = []
        for own, peer in _pairs(rows):
            lines.append(
                (
                    own["model"],
                    own["rule"],
                    _speed(own),
                    peer["note"] if "rounds_per_second" not in peer else _speed(peer),
                    _ratio(own, peer),
                    f"{own['accuracy']:.1%} after {own['rounds']}",
                    ""
                    if "rounds_per_second" not in peer
                    else f"{peer['accuracy']:.1%} after {peer['rounds']}",
                )
            )
        headings = (
            *("model", "rule", "ours, rounds a second (least to most)", "ByzFL", "x ByzFL"),
            *("test accuracy, ours, after rounds", "ByzFL"),
        )
        return {"Rounds a second": [headings, *lines]}

    def figures(self, rows: Sequence[Row]) -> Mapping[str, Figure]:
        pairs = _pairs(rows)
        figure = new_figure(8, 0.9 * len(pairs) + 1.4)
        axes = figure.subplots()
        for place, pair in enumerate(pairs):
            for row, colour, shift in zip(pair, ("#0072B2", "#D55E00"), (-0.2, 0.2), strict=True):
                speed = row.get("rounds_per_second") or 0.0
                label = row["who"] if place == 0 else None
                axes.barh(place + shift, speed, 0.36, color=colour, label=label)
                axes.text(speed, place + shift, f" {speed:.3g}", va="center", fontsize=8)
        names = [f"{own['model']}\n{own['rule']}" for own, _ in pairs]
        axes.set_yticks(range(len(pairs)), names)
        axes.set(xlabel="rounds a second")
        axes.margins(x=0.12)  # for the numbers beside the longest bars
        axes.invert_yaxis()
        axes.legend(frameon=False)
        return {"train": figure}

    def claims(self, rows: Sequence[Row]) -> list[Claim]:
        return [
            Claim(
                statement=f"{own['model']} with {own['rule']}: at least {target:g} times as many "
                "rounds a second as ByzFL",
                source="this project",
                measured=f"{_ratio(own, peer)} times",
                holds=own["rounds_per_second"] >= target * peer["rounds_per_second"],
            )
            for own, peer in _pairs(rows)
            if own["rule"] == "NNM + TrimmedMean" and "rounds_per_second" in peer
            for target in [TARGETS[own["model"]]]
        ]

    def notes(self, rows: Sequence[Row]) -> list[str]:
        return [
            next(row["data"] for row in rows),
            "our geometric median is exact; ByzFL's is 3 smoothed Weiszfeld steps",
        ]


def _for_a_while(loop: Loop, seconds: float) -> tuple[int, float]:
    begun = time.perf_counter()
    done = 0
    while (spent := time.perf_counter() - begun) < seconds:
        loop.round()
        done += 1
    return done, spent


def _accuracy(loop: Loop, test: Split) -> float:
    with torch.inference_mode():
        hits = loop.logits(test.inputs).argmax(dim=1) == test.targets
    return float(hits.double().mean())


def _pairs(rows: Sequence[Row]) -> list[tuple[Row, Row]]:
    ours = [row for row in rows if row["who"] == OURS]
    peers = [row for row in rows if row["who"] != OURS]
    return list(zip(ours, peers, strict=True))


def _speed(row: Row) -> str:
    least, most = row["slowest_turn"], row["fastest_turn"]
    return f"{row['rounds_per_second']:.3g} ({least:.3g} to {most:.3g})"


def _ratio(own: Row, peer: Row) -> str:
    if "rounds_per_second" not in peer:
        return ""
    return f"{own['rounds_per_second'] / peer['rounds_per_second']:.1f}"
