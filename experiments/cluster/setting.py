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
    """The size of the vocabulary; less frequent words are <unk>."""
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
    """The folder of checkpoint, losses and evidence; a training that was stopped goes on there."""

    def __post_init__(self) -> None:
        wrong = mismatch(Setting, vars(self))
        if wrong is not None:
            raise ConfigError(wrong)
        for name in (
            "steps", "columns", "length", "words", "validation_words", "evaluate_every",
            "checkpoint_every",
        ):  # fmt: skip
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, found {getattr(self, name)}")
        for name in ("lr", "clip", "timeout"):
            if not 0 < getattr(self, name) < math.inf:
                raise ConfigError(f"{name} must be a positive number, found {getattr(self, name)}")
        if not 0 <= self.flips < 1:
            raise ConfigError(f"flips must be in [0, 1), found {self.flips}")
        self.rule()

    @property
    def kept(self) -> dict[str, str]:
        """What a training that goes on must have as before: all but its length and its folder."""
        free = ("steps", "out", "evaluate_every", "checkpoint_every", "timeout", "share")
        return {name: repr(value) for name, value in vars(self).items() if name not in free}

    def check_continues(self, kept: Mapping[str, str]) -> None:
        """Raise :class:`ConfigError` unless this goes on with a training that kept these."""
        for name, value in self.kept.items():
            if kept.get(name) != value:
                raise ConfigError(
                    f"out: {self.out} holds a training with {name}={kept.get(name)}, found {value}"
                )

    def rule(self) -> Aggregator | Estimator | None:
        """The rule that is the defence; None of a plain one."""
        return None if self.defence in PLAIN else parse_defence(self.defence, f=self.f)

    def optimizer_of(self, parameters: Iterable[nn.Parameter]) -> Optimizer:
        """The optimizer of these parameters."""
        if self.optimizer == "adamw":
            return AdamW(parameters, lr=self.lr)
        return SGD(parameters, lr=self.lr, momentum=0.9)
