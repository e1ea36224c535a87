"""ByzFL's aggregators and pre-aggregators.

===============================  =================================================================
ByzFL                            here
===============================  =================================================================
Average()                        Mean()
Median()                         CoordinateWiseMedian()
TrMean(f)                        TrimmedMean(f)
Meamed(f)                        MeanAroundMedian(f)
GeometricMedian(nu, T)           SmoothedGeometricMedian(nu, iterations=T, start="zero")
Krum(f)                          Krum(f, neighbours="n-f-1")
MultiKrum(f)                     MultiKrum(f, neighbours="n-f-1"), of which m = n - f
CenteredClipping(L, tau)         VClip(tau, iterations=L), an estimator: it remembers its result
MDA(f)                           MinimumDiameterAveraging(f)
MoNNA(f, idx)                    MoNNA(f, reference=idx)
NNM(f)                           NearestNeighborMixing(f)
Bucketing(s)                     Bucketing(s)
Clipping(c)                      Clip(threshold=c)
ARC(f)                           AdaptiveClip(f)
===============================  =================================================================

Left out are ``CAF`` and ``SMEA``: ByzFL takes one power iteration from a random vector for an
eigenvector, so that its result is drawn; ``robust_agg.CAF`` and ``robust_agg.SMEA`` take the
eigenvector. ``CenteredClipping`` has no m, which ByzFL 0.0.11 refuses of any type. After mixings,
where a rule must stand, ``robust_agg.CenteredClipping(radius=tau, iterations=L, start="zero")`` is
its first call. The number that ``ARC`` clips is rounded in ByzFL: below n = 400 it is one less for
n = 242 and f = 33. L and T are at least 1, c and tau positive.

Verified in the tests against ByzFL 0.0.11 itself, defaults included, on arrays of float64, for it
makes float32 of tensors. Its draw of ``Bucketing`` is that of a generator with the seed of torch's
global one.
"""

from __future__ import annotations

import robust_agg as ra


def Average() -> ra.Mean:
    return ra.Mean()


def Median() -> ra.CoordinateWiseMedian:
    return ra.CoordinateWiseMedian()


def TrMean(f: int = 0) -> ra.TrimmedMean:
    return ra.TrimmedMean(f=f)


def Meamed(f: int = 0) -> ra.MeanAroundMedian:
    return ra.MeanAroundMedian(f=f)


def GeometricMedian(nu: float = 0.1, T: int = 3) -> ra.SmoothedGeometricMedian:
    return ra.SmoothedGeometricMedian(nu=nu, iterations=T, start="zero")


def Krum(f: int = 0) -> ra.Krum:
    return ra.Krum(f=f, neighbours="n-f-1")


def MultiKrum(f: int = 0) -> ra.MultiKrum:
    return ra.MultiKrum(f=f, neighbours="n-f-1")


def CenteredClipping(L: int = 1, tau: float = 100.0) -> ra.VClip:
    return ra.VClip(tau=tau, iterations=L)


def MDA(f: int = 0) -> ra.MinimumDiameterAveraging:
    return ra.MinimumDiameterAveraging(f=f)


def MoNNA(f: int = 0, idx: int = 0) -> ra.MoNNA:
    return ra.MoNNA(f=f, reference=idx)


def NNM(f: int = 0) -> ra.NearestNeighborMixing:
    return ra.NearestNeighborMixing(f=f)


def Bucketing(s: int = 1) -> ra.Bucketing:
    return ra.Bucketing(s=s)


def Clipping(c: float = 2.0) -> ra.Clip:
    return ra.Clip(threshold=c)


def ARC(f: int = 0) -> ra.AdaptiveClip:
    return ra.AdaptiveClip(f=f)
