"""Label flipping: honest gradients of wrong labels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from attacks.attack import DataAttack


@dataclass(frozen=True, kw_only=True)
class LabelFlip(DataAttack):
    """Replace every label y by another class; the inputs stay.

    Without a mapping, all to all: y → C - 1 - y (9 - y for ten classes; Karimireddy,
    He, Jaggi 2022, ByzFL, Blades), which leaves the middle class of an odd C alone. With one,
    source to target (Tolpegin et al., ESORICS 2020): labels that are no source stay as they are.

    Args:
        num_classes: the number C of classes, >= 2.
        mapping: from source labels to target labels, all in [0, C).

    Raises:
        ValueError: ``num_classes`` < 2, an empty mapping or one that leaves [0, C); in a batch,
            targets that are not integers in [0, C).
    """

    num_classes: int
    mapping: Mapping[int, int] | None = None

    def __post_init__(self) -> None:
        if self.num_classes < 2:
            raise ValueError(f"LabelFlip: num_classes must be >= 2, found {self.num_classes}")
        if self.mapping is None:
            return
        labels = {*self.mapping.keys(), *self.mapping.values()}
        if not labels or not labels <= set(range(self.num_classes)):
            raise ValueError(
                f"LabelFlip: mapping must map labels in [0, {self.num_classes}), "
                f"found {dict(self.mapping)}"
            )

    def __call__(
        self, inputs: Tensor, targets: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        if targets.is_floating_point() or targets.is_complex():
            raise ValueError(f"LabelFlip: targets must be integer labels, found {targets.dtype}")
        # As int64: a uint8 or bool tensor would index as a mask.
        labels = targets.long()
        if labels.numel() and not (0 <= int(labels.min()) <= int(labels.max()) < self.num_classes):
            raise ValueError(
                f"LabelFlip: targets must be labels in [0, {self.num_classes}), "
                f"found {int(labels.min())} to {int(labels.max())}"
            )
        return inputs, self._table().to(targets.device)[labels].to(targets.dtype)

    def _table(self) -> Tensor:
        if self.mapping is None:
            return torch.arange(self.num_classes - 1, -1, -1)
        return torch.tensor([self.mapping.get(y, y) for y in range(self.num_classes)])
