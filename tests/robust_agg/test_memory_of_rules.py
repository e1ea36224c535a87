"""What rules keep in memory of as many numbers as a row while they pass over the rows again."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import robust_agg as ra
from robust_agg import kernels

N, D = 9, 50


def online(rows: Tensor) -> Tensor:
    estimator = ra.OnlineMedian(divergence=ra.L2(), tau=0.5, fusion="batch")
    return estimator.step(rows, estimator.init(rows[0]))[0]


@pytest.mark.parametrize(
    "rule",
    [
        ra.GeometricMedian(),
        ra.CenteredClipping(radius=1.0, start=torch.zeros(D)),
        ra.chain(ra.NearestNeighborMixing(f=2), ra.Krum(f=2)),
        ra.chain(ra.NearestNeighborMixing(f=2), ra.TrimmedMean(f=2)),
        ra.Bulyan(f=1),
        online,
    ],
    ids=lambda rule: getattr(rule, "name", "L2 batch"),
)
def test_the_centre_of_the_rows_is_gone_before_the_result_is_made(
    rule: Callable[[Tensor], Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    centres: list[weakref.ref[Tensor]] = []
    alive: list[bool] = []
    measure = kernels.centred_gram

    def watched(*args: Any) -> tuple[Tensor, Tensor]:
        centre, gram = measure(*args)
        centres.append(weakref.ref(centre))
        return centre, gram

    def after(kernel: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def called(*args: Any, **kwargs: Any) -> Tensor:
            alive.extend(centre() is not None for centre in centres)
            return kernel(*args, **kwargs)

        return called

    monkeypatch.setattr(kernels, "centred_gram", watched)
    for name in ("combine", "mixed_order_mean"):
        monkeypatch.setattr(kernels, name, after(getattr(kernels, name)))
    rule(torch.randn(N, D, generator=torch.Generator().manual_seed(0)))
    assert len(centres) == 1
    assert alive == [False]
