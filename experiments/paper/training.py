"""Training "in the wild" (eq. 17): the estimators as optimizers, beside what people use."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import count
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
from experiments.paper.search import search
from experiments.studies.study import Claim, ModelStudy, Piece, Preset, Row, Table, Tick
from robust_agg.seeding import derive, generator

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_CURVE = 8
# Points of a training's validation curve.
_DIVERGED = 1e9


@dataclass(frozen=True)
class _Run:
    """Steps with validation losses, and the step at which the loss was no longer finite."""

    losses: list[tuple[int, float]]
    diverged: int | None


@dataclass(frozen=True, kw_only=True)
class Training(ModelStudy):
    """A transformer on PTB is trained with each method, clean and with three kinds of corrupted
    gradients. Learning rate and τ are searched on validation loss, with the same number of trials
    for each method and corruption; the best are trained again, with several seeds."""

    title: ClassVar[str] = "Training in the wild: a transformer on PTB"

    exact: bool = False
    words: int | None = 2000
    columns: int = 16
    bptt: int = 35
    trials: int = 8
    search_steps: int = 24
    steps: int = 80
    seeds: int = 3
    validation_words: int = 2240
    methods: tuple[str, ...] = tuple(RECIPES)
    corruptions: tuple[str, ...] = tuple(CORRUPTIONS)

    @classmethod
    def preset(cls, name: Preset) -> Self:
        if name == "smoke":
            return cls(
                decides=False,
                words=200,
                columns=4,
                trials=3,
                search_steps=2,
                steps=4,
                seeds=2,
                validation_words=140,
                methods=("momentum", *training_report.MEDIANS, "clip, then momentum", "Adam"),
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

    @property
    def fingerprint(self) -> str:
        return self.text.fingerprint

    @cached_property
    def text(self) -> Corpus:
        return load("ptb", words=self.words)

    @property
    def _guess(self) -> float:
        """The loss of a uniform guess."""
        return math.log(len(self.text.vocabulary))

    @property
    def specification(self) -> EncoderLM:
        return EncoderLM() if self.exact else SMALL

    @cached_property
    def _batches(self) -> list[tuple[Tensor, Tensor]]:
        return batches(self.text.train, self.columns, self.bptt)

    @cached_property
    def _validation(self) -> list[tuple[Tensor, Tensor]]:
        tokens = self.text.validation[: self.validation_words + self.columns]
        return batches(tokens, self.columns, self.bptt)

    def pieces(self, folder: Path) -> Mapping[str, Piece]:
        return {
            f"{corruption}, {method}": partial(self._method, corruption, method)
            for corruption in self.corruptions
            for method in self.methods
        }

    def _method(self, corruption: str, method: str, tick: Tick) -> list[Row]:
        recipe = RECIPES[method]
        work = self.trials * self.search_steps + self.seeds * self.steps
        done = count()

        def cost(lr: float, tau: float | None) -> float:
            run = self._train(corruption, method, lr, tau, seed=0, steps=self.search_steps)
            tick((next(done) + 1) * self.search_steps / work)
            if run.diverged is None:
                return run.losses[-1][1]
            # Any of these is worse than any loss; the sooner, the worse.
            return _DIVERGED * (2 - run.diverged / self.search_steps)

        tried = search(cost, recipe.lr, recipe.tau, budget=self.trials)
        best = min(tried, key=lambda trial: trial.cost)
        named = {"corruption": corruption, "method": method}
        rows: list[Row] = [
            {**named, "lr": each.lr, "tau": each.tau, "trial": place, "cost": each.cost}
            for place, each in enumerate(tried)
        ]
        for seed in range(1, self.seeds + 1):
            run = self._train(
                corruption, method, best.lr, best.tau, seed=seed, steps=self.steps, points=_CURVE
            )
            rows += [
                {
                    **named,
                    "lr": best.lr,
                    "tau": best.tau,
                    "seed": seed,
                    "step": step,
                    "loss": loss,
                }
                for step, loss in run.losses
            ]
            tick((self.trials * self.search_steps + seed * self.steps) / work)
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
        points: int = 1,
    ) -> _Run:
        """A training, at whose end, and at ``points - 1`` steps before, the loss is taken."""
        model = self._model(seed)
        parameters = list(model.parameters())
        take_step = RECIPES[method].attach(parameters, lr, tau)
        worst = 2 * self._guess
        losses = [(0, self._loss(model))] if points > 1 else []
        first = derive(seed, "first batch") % len(self._batches)
        for step in range(steps):
            inputs, targets = (
                part.to(self.device) for part in self._batches[(first + step) % len(self._batches)]
            )
            mask = derive(seed, "dropout", step)
            value, row = loss_and_gradient(model, inputs, targets, seed=mask)
            if not math.isfinite(value):
                return _Run([*losses, (steps, worst)], step)
            row = CORRUPTIONS[corruption](row, generator(seed, f"corruption {corruption}", step))
            _assign(parameters, row)
            take_step()
            if (step + 1) % max(1, steps // points) == 0 or step + 1 == steps:
                value = self._loss(model)
                if not math.isfinite(value):
                    return _Run([*losses, (steps, worst)], step)
                losses.append((step + 1, min(value, worst) if points > 1 else value))
        return _Run(losses, None)

    def _model(self, seed: int) -> LanguageModel:
        built = self.specification.build(len(self.text.vocabulary), generator(seed, "weights"))
        return built.to(self.device)

    def _loss(self, model: LanguageModel) -> float:
        """Per word of the validation text, in pieces as long as those that are trained on."""
        total = 0.0
        for inputs, targets in self._validation:
            value = loss(model, inputs.to(self.device), targets.to(self.device))
            total += value * targets.numel()
        return total / self._words

    @property
    def _words(self) -> int:
        return sum(targets.numel() for _, targets in self._validation)

    def figures(self, rows: Sequence[Row]) -> Mapping[str, Figure]:
        return training_report.draw(rows, self.corruptions, self.methods, self._guess)

    def claims(self, rows: Sequence[Row]) -> list[Claim]:
        return training_report.claims(rows, self.corruptions, self.methods, self._guess)

    def tables(self, rows: Sequence[Row]) -> Mapping[str, Table]:
        title = "Final validation loss, mean (least to largest) over seeds, at the setting found"
        return {title: training_report.table(rows, self.corruptions, self.methods)}

    def notes(self, rows: Sequence[Row]) -> list[str]:
        return [
            self.text.note,
            f"{self.specification}, batches of {self.columns} x {self.bptt} words in the order of "
            f"the text; validation loss on {self._words:,} words, dropout off",
            f"{self.trials} trials of {self.search_steps} steps for each method and corruption "
            f"(Nelder and Mead's simplex, from a start near each method's best on the clean text), "
            f"then {self.steps} steps with {self.seeds} seeds; the test text is not used",
            "a loss counts with at most twice that of a uniform guess, and so does a training that "
            "diverges",
            f"± is the 95 % interval of the mean difference by seed (t, {self.seeds} seeds), which "
            "decides a verdict, if anything",
            "a gradient that is not finite is rejected in all methods",
            "stable noise: α = 1.2, of scale ‖g‖/√d in each coordinate; garbage: noise of norm "
            "100 ‖g‖ instead of the gradient; bit flips: one bit of one coordinate a step",
        ]


def _assign(parameters: Sequence[nn.Parameter], row: Tensor) -> None:
    """The parts of ``row`` become the parameters' gradients."""
    start = 0
    for parameter in parameters:
        part = row[start : start + parameter.numel()]
        parameter.grad = part.view_as(parameter)
        start += parameter.numel()
