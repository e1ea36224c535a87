"""The kernels on each of their paths, and an independent oracle of them in float64 numpy."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import fsum

import numpy as np
import pytest
import torch
from torch import Tensor

from robust_agg import kernels
from robust_agg.kernels import blocks, combinations, cpu, llvm, selection, vectors

PATHS = ("reference", "numpy", "compiled", "table", "baseline")
"""Plain torch; the CPU without compilation; compiled for this machine, with few rows treated as few
and as many, and for its oldest kin."""

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)

KERNEL_CACHES = (
    vectors._host_lanes,
    cpu._compiled,
    cpu._centred_gram,
    cpu._gram,
    cpu._row_distances,
    cpu._mixed,
    combinations._combine,
    combinations._mean,
)


@contextmanager
def on_path(path: str) -> Iterator[None]:
    """`robust_agg.kernels` takes `path` whatever the shapes are."""
    if path in {"compiled", "table", "baseline"} and not llvm.available():
        pytest.skip("llvmlite is not installed: there are no compiled kernels")
    with pytest.MonkeyPatch.context() as patch:
        if path == "reference":
            patch.setattr(kernels, "_is_plain", lambda *tensors: False)
        elif path == "numpy":
            patch.setenv("ROBUST_AGG_JIT", "0")
        else:
            patch.setattr(selection, "COMPILE_AFTER", 0)
            patch.setattr(blocks, "SMALLEST_COMPILED", 0)
        if path == "table":
            patch.setattr(selection, "LARGEST_NETWORK", 0)
        if path == "baseline":
            oldest = llvm.Host(
                processor="generic", features="", vector_bytes=16, converts_half=False
            )
            patch.setattr(llvm, "host", lambda: oldest)
            clear_kernels()
        yield
    if path == "baseline":
        clear_kernels()


def clear_kernels() -> None:
    for cache in KERNEL_CACHES:
        cache.cache_clear()


def sorted_mean_oracle(rows: Tensor, start: int, stop: int) -> np.ndarray:
    values = rows.double().numpy()
    kept = np.sort(np.where(np.isnan(values), np.inf, values), axis=0)[start:stop]
    with np.errstate(invalid="ignore"):
        return (kept / (stop - start)).sum(axis=0)


def mean_around_oracle(rows: Tensor, start: int, stop: int, far: int) -> np.ndarray:
    values = rows.double().numpy()
    values = np.where(np.isnan(values), np.inf, values)
    centre = sorted_mean_oracle(rows, start, stop)
    out = np.empty(rows.shape[1])
    for j, column in enumerate(values.T):
        nearest = sorted((abs(x - centre[j]), x) for x in column)[: len(column) - far]
        out[j] = fsum(x for _, x in nearest) / len(nearest)
    return out


def centred_gram_oracle(rows: Tensor, extra: Tensor | None) -> tuple[np.ndarray, np.ndarray]:
    """In float64 from the median as it is rounded to the precision the kernel returns."""
    n = rows.shape[0]
    centre = sorted_mean_oracle(rows, (n - 1) // 2, n // 2 + 1)
    centre = np.where(np.isfinite(centre), centre, 0.0)
    if rows.dtype != torch.float64:
        centre = centre.astype(np.float32).astype(np.float64)
    others = rows.double().numpy()
    if extra is not None:
        others = np.concatenate([others, extra.double().numpy()])
    vectors = np.concatenate([centre[None], others - centre])
    with np.errstate(invalid="ignore", over="ignore"):
        if rows.dtype != torch.float64:
            return centre, vectors @ vectors.T
        # Products in float64 would be as far from the truth as the kernel's.
        wide = vectors.astype(np.longdouble)
        products: np.ndarray = np.einsum("ij,kj->ik", wide, wide).astype(np.float64)
        return centre, products


def combine_oracle(rows: Tensor, weights: Tensor, base: Tensor | None) -> np.ndarray:
    used = weights.numpy() != 0
    out = (weights.numpy()[used, None] * rows.double().numpy()[used]).sum(axis=0)
    if base is not None:
        out = out + (1.0 - weights.sum().item()) * base.double().numpy()
    return np.asarray(out)


def draw(n: int, d: int, dtype: torch.dtype, *, seed: int = 0) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed)).to(dtype)


def layouts() -> dict[str, Callable[[Tensor], Tensor]]:
    """Ways to hold the same rows in memory."""
    return {
        "contiguous": lambda rows: rows,
        "columns of a wider matrix": lambda rows: torch.cat([rows, rows, rows], dim=1)[
            :, rows.shape[1] : 2 * rows.shape[1]
        ],
        "every other row": lambda rows: rows.repeat_interleave(2, dim=0)[::2],
        "every third column": lambda rows: rows.repeat_interleave(3, dim=1)[:, ::3],
        "transposed": lambda rows: rows.T.contiguous().T,
        "negated on reading": lambda rows: torch.complex(rows, -rows).conj().imag,
    }


def same(left: Tensor, right: Tensor) -> bool:
    """Bit for bit, but for the bits of a NaN."""
    return torch.equal(left.isnan(), right.isnan()) and torch.equal(
        torch.where(left.isnan(), 0.0, left), torch.where(right.isnan(), 0.0, right)
    )
