"""``robust-agg bench optim``: how much an online estimate adds to an optimizer step."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, ClassVar, Self

import torch
from torch import Tensor, nn

from experiments.studies.canvas import new_figure
from experiments.studies.study import Claim, Piece, Preset, Row, Study, Table, Tick
from robust_agg import (
    Adaptive,
    AdaptiveMomentum,
    BlockL2,
    CClip,
    Huber,
    Momentum,
    OnlineMedian,
    SignedIncrement,
    VClip,
)
from robust_agg.optim import OnlineEstimate
from robust_agg.seeding import generator

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NONE = "none, momentum 0"
FUSED = "none, momentum 0.9, fused=True"


@dataclass(frozen=True, kw_only=True)
class OptimizerSteps(Study):
    """The time of `SGD(momentum=0)` with an estimate attached, beside that of `SGD(momentum=0.9)`
    without, both at `foreach=True`, in one process and in turns. New gradients are copied into
    `.grad` before each step, and that is not timed. Other processes only ever add to a time, so
    that the ratio is that of the fastest turns; the median of the turns' own ratios stands
    beside it. With one thread it is the time of this process alone that is taken."""

    title: ClassVar[str] = "A step by an online estimate beside a step with momentum"

    parameters: int = 10_000_000
    turns: int = 25

    @classmethod
    def preset(cls, name: Preset) -> Self:
        if name == "smoke":
            return cls(parameters=2000, turns=2, decides=False)
        return cls(parameters=100_000_000) if name == "full" else cls()

    def pieces(self, folder: Path) -> Mapping[str, Piece]:
        return {name: partial(self._measure, name) for name in [NONE, FUSED, *self._estimators]}

    @property
    def _sizes(self) -> list[tuple[int, ...]]:
        return shapes(self.parameters)

    @property
    def _count(self) -> int:
        return sum(torch.Size(size).numel() for size in self._sizes)

    @property
    def _estimators(self) -> dict[str, tuple[OnlineMedian, bool]]:
        return estimators(self._sizes, self._count**0.5)

    def _measure(self, name: str, tick: Tick) -> list[Row]:
        draw = generator(0, "bench optim")
        gradients = [[torch.randn(size, generator=draw) for size in self._sizes] for _ in range(2)]
        # Both anew for each row: memory that has been in use for long is in larger pages.
        trained, beside = Trained(self._sizes, gradients), Trained(self._sizes, gradients)
        beside.optimizer = torch.optim.SGD(beside.parameters, lr=1e-3, momentum=0.9, foreach=True)
        if name == FUSED:
            trained.optimizer = torch.optim.SGD(
                trained.parameters, lr=1e-3, momentum=0.9, fused=True
            )
        elif name != NONE:
            estimator, corrected = self._estimators[name]
            OnlineEstimate(trained.optimizer, estimator, bias_correction=corrected)
        times = []
        for turn in range(-2, self.turns):  # the first two allocate
            times.append((trained.seconds(turn), beside.seconds(turn)))
            tick((turn + 3) / (self.turns + 3))
        own, other = (min(column) for column in zip(*times[2:], strict=True))
        return [
            {
                "estimate": name,
                "parameters": self._count,
                "ms": 1e3 * own,
                "momentum_ms": 1e3 * other,
                "ratio": own / other,
                "median_ratio": median(ours / theirs for ours, theirs in times[2:]),
            }
        ]

    def tables(self, rows: Sequence[Row]) -> Mapping[str, Table]:
        headings = ("estimate", "ms", "x SGD(momentum=0.9)", "median of turns")
        lines = [
            (
                row["estimate"],
                f"{row['ms']:.1f}",
                f"{row['ratio']:.2f}",
                f"{row['median_ratio']:.2f}",
            )
            for row in rows
        ]
        return {f"A step of SGD of {self._count:,} float32 parameters": [headings, *lines]}

    def figures(self, rows: Sequence[Row]) -> Mapping[str, Figure]:
        figure = new_figure(7, 0.35 * len(rows) + 1.2)
        axes = figure.subplots()
        axes.barh(
            [row["estimate"] for row in rows], [row["ratio"] for row in rows], color="#0072B2"
        )
        axes.axvline(1.0, color="black", linestyle=":", label="SGD(momentum=0.9)")
        axes.set(xlabel="times a step of SGD(momentum=0.9, foreach=True)")
        axes.invert_yaxis()
        axes.legend(frameon=False)
        return {"optim": figure}

    def claims(self, rows: Sequence[Row]) -> list[Claim]:
        estimates = [row for row in rows if row["estimate"] not in (NONE, FUSED)]
        worst = max(estimates, key=lambda row: float(row["ratio"]))
        return [
            Claim(
                statement="No estimate makes a step longer than 1.4 times one with momentum "
                "(foreach=True)",
                source="this project",
                measured=f"{worst['ratio']:.2f} at most ({worst['estimate']})",
                holds=worst["ratio"] <= 1.4,
            )
        ]

    def notes(self, rows: Sequence[Row]) -> list[str]:
        return [
            "ten square layers with biases",
            "estimates are attached to any optimizer and so stand beside torch's general form of "
            "a step; its fused form has a line of its own",
        ]


def shapes(parameters: int) -> list[tuple[int, ...]]:
    """Ten square layers with biases, of about so many parameters."""
    width = max(1, round((parameters / 10) ** 0.5))
    return [(width, width), (width,)] * 10


class Trained:
    """Parameters with an optimizer, and the gradients that it is given in turn."""

    def __init__(self, sizes: list[tuple[int, ...]], gradients: list[list[Tensor]]) -> None:
        self.parameters = [nn.Parameter(torch.zeros(size)) for size in sizes]
        for parameter in self.parameters:
            parameter.grad = torch.zeros_like(parameter)
        self.gradients = gradients
        self.optimizer = torch.optim.SGD(self.parameters, lr=1e-3, foreach=True)

    def seconds(self, turn: int) -> float:
        """The time of one step."""
        chosen = self.gradients[turn % len(self.gradients)]
        for parameter, gradient in zip(self.parameters, chosen, strict=True):
            assert parameter.grad is not None
            parameter.grad.copy_(gradient)
        clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
        begun = clock()
        self.optimizer.step()
        return clock() - begun


def estimators(sizes: list[tuple[int, ...]], scale: float) -> dict[str, tuple[OnlineMedian, bool]]:
    """Every estimator, with whether its bias is corrected; ``scale`` is a usual ‖g - m‖₂."""
    lengths = tuple(torch.Size(size).numel() for size in sizes)
    entry = scale / sum(lengths) ** 0.5
    return {
        "Momentum, eq. 7": (Momentum(beta=0.9), False),
        "Momentum, eq. 11": (Momentum(beta=0.9, method="prox"), False),
        "Momentum, bias corrected": (Momentum(beta=0.9), True),
        "VClip": (VClip(tau=0.1 * scale), False),
        "VClip, adaptive": (VClip(tau=Adaptive()), False),
        "CClip": (CClip(tau=0.1 * entry), False),
        "CClip, adaptive": (CClip(tau=Adaptive()), False),
        "SignedIncrement": (SignedIncrement(tau=0.1 * entry), False),
        "AdaptiveMomentum": (AdaptiveMomentum(tau=0.1 * scale), False),
        "Huber": (OnlineMedian(divergence=Huber(delta=scale), tau=0.1), False),
        "BlockL2, a block a tensor": (
            OnlineMedian(divergence=BlockL2(lengths), tau=0.1 * scale),
            False,
        ),
    }
