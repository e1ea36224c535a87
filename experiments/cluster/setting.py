"""What a training is: the options of the scripts."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from torch import nn
from torch.optim import SGD, AdamW, Optimizer

from experiments.annotations import mismatch
from experiments.config import ConfigError
from experiments.specs import parse_defence
from robust_agg import Aggregator, Estimator

PLAIN = ("mean", "clip")
"""Defences that are no rule."""
VALIDATION_COLUMNS = 64
"""Pieces into which the validation text is cut, more where there are more ranks."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """A training of a small transformer on PTB by several ranks, some of them with bad hardware."""

    defence: str = "CoordinateWiseMedian"
    """mean; clip, the mean with its norm clipped; or a rule of 'robust-agg list'."""
    f: int = 1
    """How many bad ranks a rule is declared to withstand."""
    bad: tuple[int, ...] = ()
    """The ranks whose hardware flips bits."""
    flips: float = 1e-5
    """The probability with which a number of their gradients has a bit flipped, in each step."""
    steps: int = 100
    """Steps of the optimizer."""
    optimizer: Literal["sgd", "adamw"] = "sgd"
    """SGD with momentum 0.9, or AdamW."""
    lr: float = 0.3
    """The learning rate."""
    clip: float = 1.0
    """The norm to which the defence clip clips."""
    columns: int = 16
    """Pieces of text in a rank's batch."""
    length: int = 35
    """Words of each piece."""
    words: int = 2000
    """The size of the vocabulary; less frequent words are one unknown word."""
    validation_words: int = 8960
    """Words of the validation text that the loss is taken on."""
    evaluate_every: int = 10
    """Steps between two losses."""
    checkpoint_every: int = 20
    """Steps between two checkpoints, of ddp."""
    share: float = 0.05
    """A rank is reported that stands out in so large a share of the last 100 steps."""
    timeout: float = 60.0
    """Seconds a collective of a rule may take, the wait for the slowest rank included."""
    seed: int = 0
    """Of the weights, of where the text begins, and of the flips."""
    out: Path = Path("runs/cluster/training")
    """The folder of losses and evidence, and of the checkpoint from which ddp goes on."""

    def __post_init__(self) -> None:
        wrong = mismatch(Setting, vars(self))
        if wrong is not None:
            raise ConfigError(wrong)
        for name in ("steps", "columns", "length", "words", "evaluate_every", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, found {getattr(self, name)}")
        if self.validation_words < VALIDATION_COLUMNS:
            raise ConfigError(
                f"validation_words must be at least {VALIDATION_COLUMNS}, "
                f"found {self.validation_words}"
            )
        for name in ("lr", "clip", "timeout"):
            if not 0 < getattr(self, name) < math.inf:
                raise ConfigError(f"{name} must be a positive number, found {getattr(self, name)}")
        if not 0 <= self.flips < 1:
            raise ConfigError(f"flips must be in [0, 1), found {self.flips}")
        if not 0 < self.share < 1:
            raise ConfigError(f"share must be in (0, 1), found {self.share}")
        if len(set(self.bad)) < len(self.bad):
            raise ConfigError(f"bad must be different ranks, found {self.bad}")
        self.rule()

    def check_ranks(self, count: int) -> None:
        """Raise :class:`ConfigError` unless this can be a training by so many ranks."""
        if not all(0 <= rank < count for rank in self.bad):
            raise ConfigError(f"bad must be ranks in [0, {count}), found {self.bad}")

    def options(self, ranks: int) -> dict[str, str]:
        """What all of so many ranks must have alike: all but the folder, whose path may differ."""
        told = {"ranks": ranks, **vars(self)}
        return {name: repr(value) for name, value in told.items() if name != "out"}

    def kept(self, ranks: int) -> dict[str, str]:
        """What a training that goes on must have as before: all but its length and its folder."""
        free = ("steps", "evaluate_every", "checkpoint_every", "timeout", "share")
        return {name: value for name, value in self.options(ranks).items() if name not in free}

    def check_continues(self, kept: Mapping[str, str], ranks: int) -> None:
        """Raise :class:`ConfigError` unless this goes on with a training that kept these."""
        for name, value in self.kept(ranks).items():
            if kept.get(name) != value:
                raise ConfigError(
                    f"out: {self.out} holds a training with {name}={kept.get(name)}, found {value}"
                )

    def rule(self) -> Aggregator | Estimator | None:
        """The rule that is the defence; None of a plain one."""
        if self.defence in PLAIN:
            return None
        try:
            return parse_defence(self.defence, f=self.f)
        except ValueError as error:
            raise ConfigError(f"defence: {error}") from error

    def optimizer_of(self, parameters: Iterable[nn.Parameter]) -> Optimizer:
        """The optimizer of these parameters."""
        if self.optimizer == "adamw":
            return AdamW(parameters, lr=self.lr)
        return SGD(parameters, lr=self.lr, momentum=0.9)
