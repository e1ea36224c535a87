"""The aggregators of Karimireddy, He & Jaggi's experiments (byzantine-robust-optimizer of epfml).

"Learning from History for Byzantine Robust Optimization", ICML 2021, and "Byzantine-Robust Learning
on Heterogeneous Datasets via Bucketing", ICLR 2022 (byzantine-robust-noniid-optimizer).

===============================  =================================================================
their code                       here
===============================  =================================================================
Mean()                           Mean()
CM()                             CoordinateWiseMedian()
TM(b)                            TrimmedMean(f=b)
RFA(T, nu)                       SmoothedGeometricMedian(nu, iterations=T, start="zero")
Clipping(tau, n_iter)            VClip(tau, iterations=n_iter), an estimator: it remembers v
bucketing_wrapper(…, s)          Bucketing(s=s)
===============================  =================================================================

Their experiments have T = 3, tau = 100 and n_iter = 1 in 2021, T = 8 and n_iter = 3 in 2022, where
``Bucketing`` is ``--bucketing s``, 0 for none. ``TM`` lowers b where n <= 2b; this raises.

Left out is ``Krum``: its scores square distances that are squared already, and so add up
‖x_i - x_j‖⁴; and it returns the sum of its m rows, one in their experiments. ``robust_agg.Krum`` is
the paper's, of as many neighbours, n - f - 2.

The repositories are no packages. ``RFA``, ``Krum`` and the wrapper were read there, the others in
copies of them; the tests hold each name to a naive form of what was read.
"""

from __future__ import annotations

import robust_agg as ra


def Mean() -> ra.Mean:
    return ra.Mean()


def CM() -> ra.CoordinateWiseMedian:
    return ra.CoordinateWiseMedian()


def TM(b: int) -> ra.TrimmedMean:
    return ra.TrimmedMean(f=b)


def RFA(T: int, nu: float = 0.1) -> ra.SmoothedGeometricMedian:
    return ra.SmoothedGeometricMedian(nu=nu, iterations=T, start="zero")


def Clipping(tau: float, n_iter: int = 1) -> ra.VClip:
    return ra.VClip(tau=tau, iterations=n_iter)


def Bucketing(s: int) -> ra.Bucketing:
    return ra.Bucketing(s=s)
