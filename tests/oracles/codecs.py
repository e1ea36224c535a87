"""Compressors and codecs, coordinate by coordinate in float64.

x, v, e and rows are (d,) lists or arrays of finite numbers. Only what the server
reads is modelled here, not what a codec sends.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Map = Callable[[Array], Array]


def clip(x: Array, tau: float) -> Array:
    """x · min(1, τ/‖x‖₂) (Khirirat et al., 2023)."""
    norm = math.sqrt(sum(float(each) ** 2 for each in x))
    return x.copy() if norm <= tau else x * (tau / norm)


def top_k(x: Array, k: int) -> Array:
    """The k coordinates of largest magnitude, of equal ones those of lowest index; 0 elsewhere."""
    order = sorted(range(len(x)), key=lambda i: (-abs(float(x[i])), i))
    kept = np.zeros_like(x)
    for i in order[:k]:
        kept[i] = x[i]
    return kept


def scaled_sign(x: Array) -> Array:
    """(‖x‖₁/d) sign(x), with sign(0) = +1 (Karimireddy et al., 2019, Algorithm 1)."""
    scale = sum(abs(float(each)) for each in x) / len(x)
    return np.array([scale if each >= 0 else -scale for each in x])


def shifted(rows: Sequence[Array], compress: Map) -> list[Array]:
    """v₀ = 0, v ← v + C(g - v): the rows of EF21 (Richtárik et al., 2021, Algorithm 2)."""
    v = np.zeros_like(rows[0])
    read = []
    for g in rows:
        v = v + compress(g - v)
        read.append(v)
    return read


def error_feedback(rows: Sequence[Array], compress: Map) -> list[Array]:
    """e₀ = 0, Δ = C(g + e), e ← g + e - Δ: the Δ of Karimireddy et al., 2019, with γ = 1."""
    e = np.zeros_like(rows[0])
    read = []
    for g in rows:
        delta = compress(g + e)
        e = g + e - delta
        read.append(delta)
    return read


def gaussian_delta(epsilon: float, mu: float) -> float:
    """δ at ε of a Gaussian mechanism of sensitivity μσ (Balle and Wang, 2018, Theorem 8)."""

    def phi(t: float) -> float:
        return math.erfc(-t / math.sqrt(2)) / 2

    return phi(mu / 2 - epsilon / mu) - math.exp(epsilon) * phi(-mu / 2 - epsilon / mu)


def divergence(epsilon: float, noise: float, messages: int) -> float:
    """max over sets S of P(S) - e^ε Q(S), integrated; noise is σ/τ and τ = 1.

    P and Q are of the sum of the messages, on which the likelihood ratio depends alone: normal with
    means ±messages and variance messages · noise².
    """
    scale = noise * math.sqrt(messages)
    t = np.linspace(-messages - 12 * scale, messages + 12 * scale, 2_000_001)

    def density(mean: float) -> Array:
        return np.exp(-(((t - mean) / scale) ** 2) / 2) / (scale * math.sqrt(2 * math.pi))

    excess = density(messages) - math.exp(epsilon) * density(-messages)
    return float(np.trapezoid(np.maximum(excess, 0.0), t))
