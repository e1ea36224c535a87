"""The table of rules and estimators that every shared property is tested over."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import robust_agg as ra

F = 2


@dataclass(frozen=True)
class Row:
    """A rule for F Byzantine rows, the smallest n it accepts, and from which n it bears F.

    Whether it is robust, and whether its result is near the rows: of the same row n times that row.
    Below ``distinct`` rows, all have ties that only their order breaks.
    """

    make: Callable[[], ra.Aggregator]
    smallest: int = 1
    bears: int = 2 * F + 1
    distinct: int = 1
    robust: bool = True
    estimates: bool = True

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
    Row(ra.MedoidMedian, distinct=3),
    Row(lambda: ra.MinimumDiameterAveraging(f=F), smallest=2 * F + 1),
    Row(lambda: ra.SMEA(f=F), smallest=2 * F + 1),
    Row(lambda: ra.CAF(f=F), smallest=2 * F + 1),
    Row(lambda: ra.MoNNA(f=F), smallest=2 * F + 1, robust=False),
    Row(lambda: ra.CGE(f=F), smallest=2 * F + 1),
    Row(lambda: ra.SmoothedGeometricMedian(nu=0.1)),
    Row(lambda: ra.SmoothedGeometricMedian(nu=0.1, start="zero")),
    Row(lambda: ra.Bulyan(f=F), smallest=4 * F + 3),
    Row(ra.CenteredClipping),
    Row(lambda: ra.CenteredClipping(start="mean")),
    Row(lambda: ra.CenteredClipping(start="zero")),
    Row(lambda: ra.CenteredClipping(start=0), robust=False),
    Row(lambda: ra.CenteredClipping(radius=0.5, iterations=2)),
    Row(ra.CoordinateWiseMedian),
    Row(lambda: ra.TrimmedMean(f=F), smallest=2 * F + 1),
    Row(lambda: ra.MeanAroundMedian(f=F), smallest=2 * F + 1),
    Row(lambda: ra.Phocas(f=F), smallest=2 * F + 1),
    Row(lambda: ra.CoordinateWiseMedian(even="lower")),
    Row(lambda: ra.BetaTrimmedMean(beta=0.4)),
    Row(ra.SignMajority, estimates=False),
    Row(lambda: ra.DivideAndConquer(f=F, coordinates=4), smallest=2 * F + 1),
    Row(
        lambda: ra.DivideAndConquer(f=F, iterations=3, coordinates=3, filtering=0.5),
        smallest=2 * F + 1,
    ),
    Row(ra.SignGuard),
    Row(lambda: ra.SignGuard(share=0.7, bandwidth=0.2)),
    Row(lambda: ra.FLAME(noise=0.0)),
    Row(
        lambda: ra.chain(ra.NearestNeighborMixing(f=F), ra.SignMajority()),
        smallest=2 * F + 1,
        estimates=False,
    ),
    Row(
        lambda: ra.chain(ra.NearestNeighborMixing(f=F), ra.DivideAndConquer(f=F, coordinates=4)),
        smallest=2 * F + 1,
    ),
    Row(lambda: ra.chain(ra.Clip(threshold=1.0), ra.SignGuard())),
    Row(lambda: ra.chain(ra.NearestNeighborMixing(f=F), ra.TrimmedMean(f=F)), smallest=2 * F + 1),
    Row(lambda: ra.chain(ra.NearestNeighborMixing(f=F), ra.GeometricMedian()), smallest=2 * F + 1),
    Row(lambda: ra.chain(ra.NearestNeighborMixing(f=F), ra.Krum(f=F)), smallest=2 * F + 3),
    Row(lambda: ra.chain(ra.NearestNeighborMixing(f=F), ra.CenteredClipping()), smallest=2 * F + 1),
    Row(
        lambda: ra.chain(ra.NearestNeighborMixing(f=F), ra.MinimumDiameterAveraging(f=F)),
        smallest=2 * F + 1,
    ),
    Row(lambda: ra.chain(ra.NearestNeighborMixing(f=F), ra.CGE(f=F)), smallest=2 * F + 1),
    Row(lambda: ra.chain(ra.KrumSelection(f=F), ra.TrimmedMean(f=F)), smallest=4 * F + 1),
    Row(lambda: ra.chain(ra.Clip(threshold=1.0), ra.CoordinateWiseMedian())),
    Row(lambda: ra.chain(ra.Clip(threshold=1.0), ra.GeometricMedian())),
    Row(lambda: ra.chain(ra.AdaptiveClip(f=F), ra.GeometricMedian()), smallest=2 * F + 1),
    Row(lambda: ra.chain(ra.AdaptiveClip(f=F), ra.TrimmedMean(f=F)), smallest=2 * F + 1),
    Row(lambda: ra.chain(ra.Bucketing(s=2), ra.GeometricMedian()), bears=4 * F + 1),
    Row(lambda: ra.chain(ra.Bucketing(s=2), ra.TrimmedMean(f=F)), smallest=4 * F + 1),
    Row(lambda: ra.chain(ra.Bucketing(s=2), ra.SMEA(f=F)), smallest=4 * F + 1),
    Row(lambda: ra.chain(ra.Resample(s=2), ra.GeometricMedian()), bears=4 * F + 1),
    Row(
        lambda: ra.chain(
            ra.Clip(threshold=1.0), ra.NearestNeighborMixing(f=F), ra.TrimmedMean(f=F)
        ),
        smallest=2 * F + 1,
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
