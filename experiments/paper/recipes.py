"""Ways to train: the paper's estimators as optimizers (eq. 17), and what they are compared with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.optim import SGD, Adam, Optimizer

from robust_agg import AdaptiveMomentum, CClip, Momentum, OnlineMedian, SignedIncrement, VClip
from robust_agg.optim import OnlineEstimate

Change = Callable[[Sequence[nn.Parameter]], None]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """An optimizer and what its gradients go through.

    Attributes:
        lr: the learning rate that a search begins with.
        tau: the τ that it begins with; None where there is none to be found.
        estimator: of a τ, whose estimate the optimizer steps by. By default, and without τ, that is
            the latest gradient that was finite: all recipes have the same guard.
        bias_correction: of that estimate.
        clip: the norm to which a gradient is clipped before.
        change: what becomes of the estimate before the step.
        optimizer: made from parameters and ``lr``.
    """

    lr: float
    tau: float | None = None
    estimator: Callable[..., OnlineMedian] = Momentum
    bias_correction: bool = False
    clip: float | None = None
    change: Change | None = None
    optimizer: Callable[..., Optimizer] = SGD

    def attach(
        self, parameters: Sequence[nn.Parameter], lr: float, tau: float | None
    ) -> Callable[[], None]:
        """The step to take once the parameters have their gradients."""
        optimizer = self.optimizer(parameters, lr=lr)
        estimator = self.estimator(tau=1.0 if tau is None else tau)
        OnlineEstimate(optimizer, estimator, bias_correction=self.bias_correction)
        if self.change is not None:
            change = self.change
            optimizer.register_step_pre_hook(lambda *_: change(parameters))

        def step() -> None:
            if self.clip is not None:
                torch.nn.utils.clip_grad_norm_(parameters, self.clip)
            optimizer.step()

        return step


def sign(parameters: Sequence[nn.Parameter]) -> None:
    """Every coordinate of the estimate becomes its sign."""
    for parameter in parameters:
        if parameter.grad is not None:
            parameter.grad = parameter.grad.sign()


def normalise(parameters: Sequence[nn.Parameter]) -> None:
    """The estimate becomes a unit vector."""
    gradients: list[Any] = [p.grad for p in parameters if p.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients).clamp(min=1e-12)
    for parameter in parameters:
        if parameter.grad is not None:
            parameter.grad = parameter.grad / norm


RECIPES: dict[str, Recipe] = {
    "SGD": Recipe(lr=0.3),
    "momentum": Recipe(lr=3.0, tau=0.1),
    "bias-corrected momentum": Recipe(lr=1.0, tau=0.1, bias_correction=True),
    "VClip": Recipe(lr=3.0, tau=0.1, estimator=VClip),
    "adaptive momentum": Recipe(lr=3.0, tau=0.1, estimator=AdaptiveMomentum),
    "CClip": Recipe(lr=3.0, tau=1e-4, estimator=CClip),
    "signed increment": Recipe(lr=3.0, tau=1e-4, estimator=SignedIncrement),
    "clip, then momentum": Recipe(lr=10.0, tau=0.1, clip=0.25),
    "normalised momentum": Recipe(lr=0.3, tau=0.1, change=normalise),
    "Signum": Recipe(lr=3e-3, tau=0.1, change=sign),
    "Adam": Recipe(lr=4e-3, optimizer=Adam),
}
"""By name."""
