"""Directions away from the honest mean, and what bounds how far one may go."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from attacks.moments import mean_and_std, unit
from attacks.threat import View

Perturbation = Literal["std", "unit", "sign"]
"""``-σ`` per coordinate, ``-ḡ/‖ḡ‖₂`` or ``-sign(ḡ)``: Shejwalkar and Houmansadr (NDSS 2021)."""


def mean_and_direction(rows: Tensor, perturbation: Perturbation) -> tuple[Tensor, Tensor]:
    """ḡ and the perturbation, both ``(d,)`` float64, the latter of length 1 (or 0).

    Its length does not matter where the factor before it is the largest that distances allow.
    """
    if perturbation == "std":
        mean, std = mean_and_std(rows)
        return mean.double(), unit(-std)
    mean = rows.mean(dim=0).double()
    return mean, unit(-mean if perturbation == "unit" else -mean.sign())


def compared_rows(who: str, view: View) -> Tensor:
    """The honest rows, at least 2 of them, or there is no distance to stay within.

    Raises:
        ValueError: there is 1.
    """
    rows = view.honest
    if len(rows) < 2:
        raise ValueError(
            f"{who}: a distance between honest rows needs 2 of them, found 1 of n={view.n}"
        )
    return rows


def products(rows: Tensor, direction: Tensor, *, about: Tensor | None = None) -> Tensor:
    """``<x_i - a, p>`` for each of the rows ``(h, d)``, ``(h,)`` float64 on the CPU.

    A row at a time: in float64, all would be twice the rows. a is 0 if ``about`` is None.
    """
    found = [
        torch.dot(row.double() if about is None else row.double() - about, direction)
        for row in rows
    ]
    return torch.stack(found).cpu()


def squared_deviations(squared_distances: Tensor) -> Tensor:
    """``‖x_i - ḡ‖²`` of h rows from their ``‖x_i - x_j‖²``: ``Σ_j D_ij/h - Σ_jk D_jk/(2h²)``."""
    h = len(squared_distances)
    sums = squared_distances.sum(dim=1)
    return (sums / h - sums.sum() / (2 * h * h)).clamp(min=0)
