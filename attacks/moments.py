"""What many attacks begin with: the mean of some rows and how far they scatter about it."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from attacks.threat import UnfitRoundError, View

Of = Literal["honest", "own"]
"""Whose rows an attack estimates from: all honest ones, or those the attackers would have sent."""


def wide_dtype(view: View) -> torch.dtype:
    """The dtype to compute in: at least float32, for sums in a narrow one lose small shifts."""
    return torch.promote_types(view.dtype, torch.float32)


def wide_rows(view: View, of: Of = "honest") -> Tensor:
    """The rows, ``(m, d)``, in :func:`wide_dtype`; to be read only."""
    return (view.honest if of == "honest" else view.own).to(wide_dtype(view))


def check_scatter(who: str, of: Of, byzantine: int, honest: int) -> None:
    """Raise :class:`~attacks.UnfitRoundError` unless there are 2 of the rows, or more.

    One row has no scatter: the attack would send an honest row without a word.
    """
    found = honest if of == "honest" else byzantine
    if found < 2:
        raise UnfitRoundError(
            f"{who}: at least 2 {of} rows are required, for one has no scatter, "
            f"found {found} of n={byzantine + honest}"
        )


def mean_and_std(rows: Tensor, *, ddof: int = 0) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each coordinate, ``(d,)``, of rows ``(m, d)``.

    The sum of squares is divided by m - ``ddof``.
    """
    std, mean = torch.std_mean(rows, dim=0, correction=ddof)
    return mean, std


def unit(vector: Tensor) -> Tensor:
    """``v / ‖v‖₂`` in float64; 0 of the zero vector, which has no direction."""
    vector = vector.double()
    length = vector.norm()
    return vector / length if length > 0 else torch.zeros_like(vector)
