"""ByzPy's aggregators and pre-aggregators.

===============================  =================================================================
ByzPy                            here
===============================  =================================================================
CoordinateWiseMedian()           CoordinateWiseMedian(even="lower")
CoordinateWiseTrimmedMean(f)     TrimmedMean(f)
Krum(f)                          Krum(f, neighbours="n-f-1")
MultiKrum(f, q)                  MultiKrum(f, m=q, neighbours="n-f-1")
MinimumDiameterAveraging(f)      MinimumDiameterAveraging(f)
MoNNA(f, reference_index)        MoNNA(f, reference=reference_index)
SMEA(f)                          SMEA(f)
CenteredClipping(c_tau, M, init) CenteredClipping(radius=c_tau, iterations=M, start=init)
ComparativeGradientElimination   CGE(f)
NearestNeighborMixing(f)         NearestNeighborMixing(f)
Bucketing(bucket_size)           Bucketing(s=bucket_size)
Clipping(threshold)              Clip(threshold)
ARC(f)                           AdaptiveClip(f)
===============================  =================================================================

Left out are ``CAF``, with three power iterations for an eigenvector; ``GeometricMedian``, which
ends where a step is shorter than 1e-6, at a point that depends on its start
(``robust_agg.GeometricMedian`` is the limit); and ``MeanOfMedians``, the mean around the lower
middle value of an even n, where ``robust_agg.MeanAroundMedian`` has the midpoint. The init of
``CenteredClipping`` is no "median": that is the lower middle value, but in a pool of workers the
midpoint. The number that ``ARC`` clips is rounded as in ByzFL. Sizes of chunks are not here: they
say how ByzPy computes, not what. c_tau and threshold are positive.

Verified in the tests against ByzPy 0.1.4 itself, defaults included; ``Bucketing`` by giving ByzPy
the permutation, which it draws otherwise.
"""

from __future__ import annotations

from typing import Literal

import robust_agg as ra
from robust_agg.errors import check_choice


def CoordinateWiseMedian() -> ra.CoordinateWiseMedian:
    return ra.CoordinateWiseMedian(even="lower")


def CoordinateWiseTrimmedMean(f: int) -> ra.TrimmedMean:
    return ra.TrimmedMean(f=f)


def Krum(f: int) -> ra.Krum:
    return ra.Krum(f=f, neighbours="n-f-1")


def MultiKrum(f: int, q: int) -> ra.MultiKrum:
    return ra.MultiKrum(f=f, m=q, neighbours="n-f-1")


def MinimumDiameterAveraging(f: int) -> ra.MinimumDiameterAveraging:
    return ra.MinimumDiameterAveraging(f=f)


def MoNNA(f: int, *, reference_index: int = 0) -> ra.MoNNA:
    return ra.MoNNA(f=f, reference=reference_index)


def SMEA(f: int) -> ra.SMEA:
    return ra.SMEA(f=f)


def CenteredClipping(
    *, c_tau: float, M: int = 10, init: Literal["mean", "zero"] = "mean"
) -> ra.CenteredClipping:
    check_choice("CenteredClipping", "init", init, ("mean", "zero"))
    return ra.CenteredClipping(radius=c_tau, iterations=M, start=init)


def ComparativeGradientElimination(f: int) -> ra.CGE:
    return ra.CGE(f=f)


def NearestNeighborMixing(f: int) -> ra.NearestNeighborMixing:
    return ra.NearestNeighborMixing(f=f)


def Bucketing(bucket_size: int) -> ra.Bucketing:
    return ra.Bucketing(s=bucket_size)


def Clipping(threshold: float = 2.0) -> ra.Clip:
    return ra.Clip(threshold=threshold)


def ARC(f: int = 0) -> ra.AdaptiveClip:
    return ra.AdaptiveClip(f=f)
