"""A backdoor: a mark in a corner makes an image what the attacker says it is."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, isfinite
from typing import Literal, get_args

import torch
from torch import Tensor

from attacks.attack import DataAttack
from robust_agg.errors import check_choice, check_count, check_share

Corner = Literal["top left", "top right", "bottom left", "bottom right"]


@dataclass(frozen=True, kw_only=True)
class Backdoor(DataAttack):
    """Mark a share of the images of a batch in a corner and label them ``target``.

    A trigger of ``size`` x ``size`` pixels of one value, in every channel: BadNets (Gu,
    Dolan-Gavitt, Garg, 2017), in federated learning Bagdasaryan et al. (AISTATS 2020). The model is
    to stay right about clean images, so accuracy does not show it: its success is the share of
    marked test images, of other classes than the target, that the model takes for the target.

    Of a batch of m images, ⌈share · m⌉ drawn at random are marked.

    Args:
        num_classes: the number C of classes, >= 2.
        target: the label of marked images, in [0, C).
        share: of a batch, in (0, 1].
        size: side of the mark in pixels, >= 1.
        value: of the mark's pixels, in the units of the inputs, finite.
        corner: where the mark is.

    Raises:
        ValueError: a parameter out of range; in a batch, inputs that are no images ``(m, ..., H,
            W)`` as large as the mark, or targets that are not ``(m,)``.
    """

    num_classes: int
    target: int = 0
    share: float = 0.5
    size: int = 2
    value: float = 1.0
    corner: Corner = "bottom right"

    def __post_init__(self) -> None:
        check_count("Backdoor", "num_classes", self.num_classes, minimum=2)
        if not 0 <= self.target < self.num_classes:
            raise ValueError(
                f"Backdoor: target must be a label in [0, {self.num_classes}), found {self.target}"
            )
        check_share("Backdoor", "share", self.share, one=True)
        check_count("Backdoor", "size", self.size, minimum=1)
        if not isfinite(self.value):
            raise ValueError(f"Backdoor: value must be finite, found {self.value}")
        check_choice("Backdoor", "corner", self.corner, get_args(Corner))

    def __call__(
        self, inputs: Tensor, targets: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        self._check(inputs, targets)
        # 0.1 · 30 is a little more than 3 in floating point.
        count = ceil(self.share * len(inputs) * (1 - 1e-12))
        chosen = torch.randperm(len(inputs), generator=generator, device="cpu")[:count].to(
            inputs.device
        )
        marked, labels = inputs.clone(), targets.clone()
        marked[chosen] = self.marked(inputs[chosen])
        labels[chosen.to(labels.device)] = self.target
        return marked, labels

    def marked(self, inputs: Tensor) -> Tensor:
        """A copy of the images ``(m, ..., H, W)`` with the mark on all of them."""
        vertical, horizontal = self.corner.split()
        rows = slice(0, self.size) if vertical == "top" else slice(-self.size, None)
        columns = slice(0, self.size) if horizontal == "left" else slice(-self.size, None)
        found = inputs.clone()
        found[..., rows, columns] = self.value
        return found

    def goal(self, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """The images of other classes, marked, and the target for all of them."""
        self._check(inputs, targets)
        others = targets != self.target
        marked = self.marked(inputs[others.to(inputs.device)])
        return marked, torch.full_like(targets[others], self.target)

    def _check(self, inputs: Tensor, targets: Tensor) -> None:
        if inputs.dim() < 3 or min(inputs.shape[-2:]) < self.size:
            raise ValueError(
                f"Backdoor: inputs must be images (m, ..., H, W) with sides of at least "
                f"{self.size}, found {tuple(inputs.shape)}"
            )
        if targets.shape != inputs.shape[:1]:
            raise ValueError(
                f"Backdoor: targets must be ({len(inputs)},), found {tuple(targets.shape)}"
            )
