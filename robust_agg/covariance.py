"""Where points spread the most, from their Gram matrix."""

from __future__ import annotations

import numpy as np

from robust_agg.solvers import Matrix, Vector


def main_spread(gram: Matrix, shares: Vector) -> tuple[float, Vector]:
    """The largest eigenvalue of ``Σ_i p_i (x_i - μ)(x_i - μ)ᵀ``, and whose it is.

    Args:
        gram: ``(k, k)``, <x_i - o, x_j - o> for any point o.
        shares: ``(k,)``, the p_i > 0, which sum to 1; ``μ = Σ_i p_i x_i``.

    Returns:
        The eigenvalue, and of each point ``|<x_i - μ, v>|`` along its eigenvector v, ``(k,)``, all
        times one number.
    """
    towards = gram @ shares
    inner = gram - towards - towards[:, None] + shares @ towards
    roots = np.sqrt(shares)
    values, vectors = np.linalg.eigh(roots[:, None] * inner * roots)
    return float(values[-1]), np.abs(inner @ (roots * vectors[:, -1]))
