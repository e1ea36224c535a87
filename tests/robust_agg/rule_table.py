"""The table of rules and estimators that every shared property is tested over."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import sqrt
from typing import TypeAlias

import torch
from torch import Tensor

import robust_agg as ra

F = 2
D = 6
"""The width of rows that are drawn, for bounds in which it counts."""

Reach: TypeAlias = Callable[[Tensor], tuple[Tensor, float]]
"""Of the honest rows, a point and how far from it the result is at most, whatever F others are."""


def box(factor: float, more: float = 0.0) -> Reach:
    """About the honest mean, so many diagonals of the smallest box around the honest rows.

    The diagonal is no less than their diameter, and no more than √d diameters.
    """

    def reach(honest: Tensor) -> tuple[Tensor, float]:
        diagonal = float((honest.amax(dim=0) - honest.amin(dim=0)).norm())
        return honest.mean(dim=0), factor * diagonal + more

    return reach


def ball(factor: float) -> Reach:
    """About the origin, so many lengths of the longest honest row."""

    def reach(honest: Tensor) -> tuple[Tensor, float]:
        return torch.zeros_like(honest[0]), factor * float(honest.norm(dim=1).max())

    return reach


def signs(diameters: float) -> Reach:
    """A sign a coordinate: the honest rows' where all are so many diameters from 0, on one side."""

    def reach(honest: Tensor) -> tuple[Tensor, float]:
        far = diameters * float(torch.cdist(honest, honest).max())
        sure = (honest.amin(dim=0) > far) | (honest.amax(dim=0) < -far)
        return torch.where(sure, honest[0].sign(), 0.0), sqrt(int((~sure).sum()))

    return reach


@dataclass(frozen=True)
class Row:
    """A rule for F Byzantine rows, the smallest n it accepts, and from which n it bears F.

    Whether it is robust, and whether its result is near the rows: of the same row n times that row.
    A robust rule has a κ, from ``known`` rows on, or a ``reach``, or else is ``dragged``: its
    result is finite, and as far away as bad rows like.
    """

    make: Callable[[], ra.Aggregator]
    smallest: int = 1
    bears: int = 2 * F + 1
    robust: bool = True
    estimates: bool = True
    known: int = 1
    reach: Reach | None = None
    dragged: bool = False

    def __str__(self) -> str:
        return self.make().name


RULES = [
    Row(ra.Mean, robust=False),
    Row(ra.GeometricMedian),
    Row(lambda: ra.Krum(f=F), smallest=2 * F + 3),
    Row(lambda: ra.MultiKrum(f=F), smallest=2 * F + 3),
    Row(lambda: ra.MultiKrum(f=F, m=2), smallest=2 * F + 3),
    Row(lambda: ra.MultiKrum(f=F, neighbours="n-f-1"), smallest=2 * F + 1),
    Row(lambda: ra.Krum(f=F, neighbours="n-f-1", distances="plain"), smallest=2 * F + 1),
    Row(ra.MedoidMedian),
    Row(lambda: ra.MinimumDiameterAveraging(f=F), smallest=2 * F + 1),
    Row(lambda: ra.SMEA(f=F), smallest=2 * F + 1),
    Row(lambda: ra.CAF(f=F), smallest=2 * F + 1, known=3 * F + 1),
    Row(lambda: ra.MoNNA(f=F), smallest=2 * F + 1, robust=False),
    # Those it keeps are no longer than the longest honest row.
    Row(lambda: ra.CGE(f=F), smallest=2 * F + 1, reach=ball(1)),
    # From the mean, which far rows drag, a step leaves a part of the way.
    Row(lambda: ra.SmoothedGeometricMedian(nu=0.1), dragged=True),
    # A step is n/(n-f) times the way from there to the farthest honest row, at most.
    Row(lambda: ra.SmoothedGeometricMedian(nu=0.1, start="zero"), reach=ball(18)),
    Row(lambda: ra.Bulyan(f=F), smallest=4 * F + 3),
    Row(ra.CenteredClipping),
    Row(lambda: ra.CenteredClipping(start="mean"), dragged=True),
    # A step is as long as the way to the farthest honest row, at most.
    Row(lambda: ra.CenteredClipping(start="zero"), reach=ball(7)),
    Row(lambda: ra.CenteredClipping(start=0), robust=False),
    Row(lambda: ra.CenteredClipping(radius=0.5, iterations=2), reach=box(1, more=2 * 0.5)),
    Row(ra.CoordinateWiseMedian),
    Row(lambda: ra.TrimmedMean(f=F), smallest=2 * F + 1),
    # The median, or the trimmed mean, is among the honest values; so no value nearer to it than the
    # farthest honest one is farther away than these are from each other.
    Row(lambda: ra.MeanAroundMedian(f=F), smallest=2 * F + 1, reach=box(2)),
    Row(lambda: ra.Phocas(f=F), smallest=2 * F + 1, reach=box(2)),
    Row(lambda: ra.CoordinateWiseMedian(even="lower")),
    Row(lambda: ra.BetaTrimmedMean(beta=0.4)),
    Row(ra.SignMajority, estimates=False, reach=signs(0)),
    # It does not see what is far in coordinates that it has not drawn.
    Row(lambda: ra.DivideAndConquer(f=F, coordinates=4), smallest=2 * F + 1, dragged=True),
    Row(
        lambda: ra.DivideAndConquer(f=F, iterations=3, coordinates=3, filtering=0.5),
        smallest=2 * F + 1,
        dragged=True,
    ),
    # Clipped to a median length.
    Row(ra.SignGuard, reach=ball(1)),
    Row(lambda: ra.SignGuard(share=0.7, bandwidth=0.2), reach=ball(1)),
    Row(lambda: ra.FLAME(noise=0.0), reach=ball(1)),
    # The nearest to an honest row are no farther from it than honest ones.
    Row(
        lambda: ra.chain(ra.NearestNeighborMixing(f=F), ra.SignMajority()),
        smallest=2 * F + 1,
        estimates=False,
        reach=signs(1),
    ),
    Row(
        lambda: ra.chain(ra.NearestNeighborMixing(f=F), ra.DivideAndConquer(f=F, coordinates=4)),
        smallest=2 * F + 1,
        dragged=True,
    ),
    Row(lambda: ra.chain(ra.Clip(threshold=1.0), ra.SignGuard()), reach=ball(1)),
    Row(lambda: ra.chain(ra.NearestNeighborMixing(f=F), ra.TrimmedMean(f=F)), smallest=2 * F + 1),
    Row(lambda: ra.chain(ra.NearestNeighborMixing(f=F), ra.GeometricMedian()), smallest=2 * F + 1),
    Row(lambda: ra.chain(ra.NearestNeighborMixing(f=F), ra.Krum(f=F)), smallest=2 * F + 3),
    Row(lambda: ra.chain(ra.NearestNeighborMixing(f=F), ra.CenteredClipping()), smallest=2 * F + 1),
    Row(
        lambda: ra.chain(ra.NearestNeighborMixing(f=F), ra.MinimumDiameterAveraging(f=F)),
        smallest=2 * F + 1,
    ),
    Row(
        lambda: ra.chain(ra.NearestNeighborMixing(f=F), ra.CGE(f=F)),
        smallest=2 * F + 1,
        reach=ball(3),
    ),
    Row(
        lambda: ra.chain(ra.KrumSelection(f=F), ra.TrimmedMean(f=F)),
        smallest=4 * F + 1,
        reach=box(1),
    ),
    Row(lambda: ra.chain(ra.Clip(threshold=1.0), ra.CoordinateWiseMedian()), reach=ball(sqrt(D))),
    # A median of m points, b of them bad, is as far from anywhere as 2(m-b)/(m-2b) times the
    # farthest honest one.
    Row(lambda: ra.chain(ra.Clip(threshold=1.0), ra.GeometricMedian()), reach=ball(6)),
    Row(
        lambda: ra.chain(ra.AdaptiveClip(f=F), ra.GeometricMedian()),
        smallest=2 * F + 1,
        reach=ball(6),
    ),
    Row(
        lambda: ra.chain(ra.AdaptiveClip(f=F), ra.TrimmedMean(f=F)),
        smallest=2 * F + 1,
        reach=ball(sqrt(D)),
    ),
    Row(lambda: ra.chain(ra.Bucketing(s=2), ra.GeometricMedian()), bears=4 * F + 1, reach=box(6)),
    Row(lambda: ra.chain(ra.Bucketing(s=2), ra.TrimmedMean(f=F)), smallest=4 * F + 1, reach=box(1)),
    # Of κ = 8, and no variance is more than a quarter of the squared diagonal.
    Row(
        lambda: ra.chain(ra.Bucketing(s=2), ra.SMEA(f=F)),
        smallest=4 * F + 1,
        reach=box(1 + sqrt(8) / 2),
    ),
    Row(lambda: ra.chain(ra.Resample(s=2), ra.GeometricMedian()), bears=4 * F + 1, reach=box(10)),
    Row(
        lambda: ra.chain(
            ra.Clip(threshold=1.0), ra.NearestNeighborMixing(f=F), ra.TrimmedMean(f=F)
        ),
        smallest=2 * F + 1,
        reach=ball(3 * sqrt(D)),
    ),
]


ESTIMATORS: list[Callable[[], ra.OnlineMedian]] = [
    lambda: ra.Momentum(tau=0.3),
    lambda: ra.Momentum(beta=0.9, method="prox"),
    lambda: ra.Momentum(tau=0.5, method="prox", fusion="batch"),
    lambda: ra.VClip(tau=0.5),
    lambda: ra.VClip(),
    lambda: ra.VClip(iterations=3),
    lambda: ra.VClip(fusion="sequential"),
    lambda: ra.VClip(tau=0.5, fusion="sequential"),
    lambda: ra.VClip(fusion="batch"),
    lambda: ra.CClip(tau=0.5),
    lambda: ra.CClip(),
    lambda: ra.CClip(tau=0.5, fusion="sequential"),
    lambda: ra.CClip(fusion="batch"),
    lambda: ra.SignedIncrement(tau=0.1),
    lambda: ra.SignedIncrement(),
    lambda: ra.AdaptiveMomentum(tau=0.1),
    lambda: ra.AdaptiveMomentum(fusion="sequential"),
    lambda: ra.OnlineMedian(divergence=ra.Huber(0.7), tau=1.5),
    lambda: ra.OnlineMedian(divergence=ra.Huber(0.7), fusion="batch"),
    lambda: ra.OnlineMedian(divergence=ra.BlockL2((1, 3, 2)), tau=0.5),
    lambda: ra.OnlineMedian(divergence=ra.BlockL2((1, 3, 2))),
    lambda: ra.OnlineMedian(divergence=ra.BlockL2((1, 3, 2)), fusion="batch"),
]


def describe(make: Callable[[], ra.OnlineMedian]) -> str:
    estimator = make()
    return f"{estimator.name}-{estimator.method}-{estimator.fusion}-{estimator.tau}"
