"""Training "in the wild" (eq. 17): the estimators as optimizers, beside what people use."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Self

from torch import Tensor, nn

from experiments.language.corpus import Corpus, batches, load
from experiments.language.encoder import SMALL, EncoderLM
from experiments.language.gradient import loss, loss_and_gradient
from experiments.language.model import LanguageModel
from experiments.paper import training_report
from experiments.paper.corruption import CORRUPTIONS
from experiments.paper.recipes import RECIPES
from experiments.paper.study import Claim, ModelStudy, Piece, Preset, Row, Tick
from robust_agg.seeding import derive, generator

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_CURVE = 8
# Points of a training's validation curve.


@dataclass(frozen=True, kw_only=True)
class Training(ModelStudy):
    """A transformer on PTB is trained with each method, clean and with three kinds of corrupted
    gradients. Learning rate and τ are searched on validation loss, with the same number of trials
    for each method and corruption; the winners are trained again with several seeds."""

    title: ClassVar[str] = "Training in the wild: a transformer on PTB"

    exact: bool = False
    words: int | None = 2000
    columns: int = 16
    bptt: int = 35
    search_steps: int = 20
    steps: int = 80
    seeds: int = 3
    validation_words: int = 2240
    methods: tuple[str, ...] = tuple(RECIPES)
    corruptions: tuple[str, ...] = tuple(CORRUPTIONS)

    @classmethod
    def preset(cls, name: Preset) -> Self:
        if name == "smoke":
            return cls(
                words=200,
                columns=4,
                search_steps=2,
                steps=4,
                seeds=2,
                validation_words=140,
                methods=("SGD", "VClip", "Signum", "Adam"),
                corruptions=("none", "bit flips"),
            )
        if name == "default":
            return cls()
        return cls(
            exact=True,
            words=None,
            columns=64,
            search_steps=415,
            steps=4150,
            validation_words=70_000,
        )

    @cached_property
    def text(self) -> Corpus:
        return load("ptb", words=self.words)

    @property
    def specification(self) -> EncoderLM:
        return EncoderLM() if self.exact else SMALL

    @cached_property
    def _batches(self) -> list[tuple[Tensor, Tensor]]:
        return batches(self.text.train, self.columns, self.bptt)

    @cached_property
    def _validation(self) -> tuple[Tensor, Tensor]:
        tokens = self.text.validation[: self.validation_words + self.columns]
        parts = batches(tokens, self.columns, len(tokens) // self.columns)
        return parts[0]

    def pieces(self, folder: Path) -> Mapping[str, Piece]:
        return {
            f"{corruption}, {method}": partial(self._method, corruption, method)
            for corruption in self.corruptions
            for method in self.methods
        }

    def _method(self, corruption: str, method: str, tick: Tick) -> list[Row]:
        trials = RECIPES[method].trials
        work = len(trials) * self.search_steps + self.seeds * self.steps
        found = []
        for place, (lr, tau) in enumerate(trials):
            curve = self._train(
                corruption, method, lr, tau, seed=0, steps=self.search_steps, points=1
            )
            found.append((curve[-1][1], place))
            tick((place + 1) * self.search_steps / work)
        _, best = min(found)
        lr, tau = trials[best]
        rows: list[Row] = []
        # A winner at the edge of its grid may have lost to a value that was not tried.
        edge = lr in (min(RECIPES[method].lrs), max(RECIPES[method].lrs))
        for seed in range(1, self.seeds + 1):
            curve = self._train(
                corruption, method, lr, tau, seed=seed, steps=self.steps, points=_CURVE
            )
            rows += [
                {
                    "corruption": corruption,
                    "method": method,
                    "lr": lr,
                    "tau": tau,
                    "edge": edge,
                    "seed": seed,
                    "step": step,
                    "loss": value,
                }
                for step, value in curve
            ]
            tick((len(trials) * self.search_steps + seed * self.steps) / work)
        return rows

    def _train(
        self,
        corruption: str,
        method: str,
        lr: float,
        tau: float | None,
        *,
        seed: int,
        steps: int,
        points: int,
    ) -> list[tuple[int, float]]:
        """Steps and validation losses; a training that diverges ends, at the loss of a guess."""
        model = self._model(seed)
        parameters = list(model.parameters())
        take_step = RECIPES[method].attach(parameters, lr, tau)
        worst = math.log(len(self.text.vocabulary))
        curve = [(0, self._loss(model))]
        first = derive(seed, "first batch") % len(self._batches)
        for step in range(steps):
            inputs, targets = (
                part.to(self.device) for part in self._batches[(first + step) % len(self._batches)]
            )
            mask = derive(seed, "dropout", step)
            _, row = loss_and_gradient(model, inputs, targets, seed=mask)
            row = CORRUPTIONS[corruption](row, generator(seed, f"corruption {corruption}", step))
            _assign(parameters, row)
            take_step()
            if (step + 1) % max(1, steps // points) == 0 or step + 1 == steps:
                value = self._loss(model)
                finite = math.isfinite(value)
                curve.append((step + 1, min(value, 2 * worst) if finite else 2 * worst))
                if not finite:
                    return [*curve, (steps, 2 * worst)]
        return curve

    def _model(self, seed: int) -> LanguageModel:
        built = self.specification.build(len(self.text.vocabulary), generator(seed, "weights"))
        return built.to(self.device)

    def _loss(self, model: LanguageModel) -> float:
        inputs, targets = (part.to(self.device) for part in self._validation)
        return loss(model, inputs, targets)

    def figures(self, rows: Sequence[Row]) -> Mapping[str, Figure]:
        return training_report.draw(rows, self.corruptions)

    def claims(self, rows: Sequence[Row]) -> list[Claim]:
        return training_report.claims(rows, self.corruptions, self.methods)

    def notes(self, rows: Sequence[Row]) -> list[str]:
        trials = len(RECIPES["SGD"].trials)
        return [
            self.text.note,
            f"{self.specification}, batches of {self.columns} x {self.bptt} words in the order of "
            f"the text; validation loss on {self._validation[0].numel():,} words, dropout off",
            f"{trials} trials of {self.search_steps} steps for each method and corruption, then "
            f"{self.steps} steps with {self.seeds} seeds; the test text is not used",
            "a training that diverges counts with twice the loss of a uniform guess",
            *training_report.table(rows, self.corruptions, self.methods),
        ]


def _assign(parameters: Sequence[nn.Parameter], row: Tensor) -> None:
    """The parts of ``row`` become the parameters' gradients."""
    start = 0
    for parameter in parameters:
        part = row[start : start + parameter.numel()]
        parameter.grad = part.view_as(parameter)
        start += parameter.numel()
