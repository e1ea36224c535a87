"""The kernels on each of their paths, and an independent oracle of them in float64 numpy."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from math import fsum
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from robust_agg import kernels
from robust_agg.kernels import (
    approaches,
    blocks,
    combinations,
    cpu,
    cuda,
    llvm,
    reference,
    selection,
    vectors,
)

PATHS = ("reference", "numpy", "compiled", "table", "baseline", "triton")
"""Plain torch; the CPU without compilation; compiled for this machine, with few rows treated as few
and as many, and for its oldest kin; the programs for a CUDA device, on one or interpreted."""

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
    approaches._approach,
)


class OnDevice:
    """`cuda` for tensors on the CPU: moved to a device and back, or in Triton's interpreter."""

    device = "cuda" if torch.cuda.is_available() else "cpu"
    _one_at_a_time = threading.Lock()  # the interpreter keeps its state in a module

    @classmethod
    def _run(cls, function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        def there(value: Any) -> Any:
            if not isinstance(value, Tensor):
                return value
            # The interpreter rounds to bfloat16 by cutting off. Widening changes no number.
            wide = value.dtype == torch.bfloat16 and cls.device == "cpu"
            return value.to(cls.device, torch.float32 if wide else value.dtype)

        with cls._one_at_a_time, np.errstate(all="ignore"):
            gc.disable()  # the interpreter makes so many objects that most time goes there
            try:
                found = function(*map(there, arguments), **options)
            finally:
                gc.enable()
        return tuple(map(_here, found)) if isinstance(found, tuple) else _here(found)

    @classmethod
    def order_mean(cls, rows: Tensor, wanted: reference.OrderMean) -> Tensor:
        return cls._run(cuda.order_mean, rows, wanted).to(rows.dtype)

    @classmethod
    def pulled_median(cls, rows: Tensor, point: Tensor, tau: float) -> Tensor:
        return cls._run(cuda.pulled_median, rows, point, tau).to(point.dtype)

    @classmethod
    def centred_gram(cls, rows: Tensor, extra: Tensor | None = None) -> tuple[Tensor, Tensor]:
        centre, gram = cls._run(cuda.centred_gram, rows, extra)
        return centre, gram

    @classmethod
    def row_distances(cls, rows: Tensor, point: Tensor) -> Tensor:
        return cls._run(cuda.row_distances, rows, point)

    @classmethod
    def combine(
        cls,
        rows: Tensor,
        weights: Tensor,
        base: Tensor | None = None,
        *,
        dtype: torch.dtype | None = None,
    ) -> Tensor:
        out = rows.dtype if dtype is None else dtype
        return cls._run(cuda.combine, rows, weights, base, dtype=dtype).to(out)

    @classmethod
    def mean(cls, rows: Tensor) -> tuple[Tensor, float]:
        found, largest = cls._run(cuda.mean, rows)
        return found.to(rows.dtype), largest

    @classmethod
    def mixed_order_mean(
        cls, rows: Tensor, coefficients: Tensor, wanted: reference.OrderMean
    ) -> Tensor:
        return cls._run(cuda.mixed_order_mean, rows, coefficients, wanted)

    @classmethod
    def mix(cls, rows: Tensor, coefficients: Tensor) -> Tensor:
        return cls._run(cuda.mix, rows, coefficients)


def _here(value: Any) -> Any:
    return value.cpu() if isinstance(value, Tensor) else value


@contextmanager
def on_path(path: str) -> Iterator[None]:
    """`robust_agg.kernels` takes `path` whatever the shapes are."""
    if path in {"compiled", "table", "baseline"} and not llvm.available():
        pytest.skip("llvmlite is not installed: there are no compiled kernels")
    if path == "triton":
        pytest.importorskip("triton")
    with pytest.MonkeyPatch.context() as patch:
        if path == "reference":
            patch.setattr(kernels, "_path", lambda *tensors: reference)
        elif path == "numpy":
            patch.setenv("ROBUST_AGG_JIT", "0")
        elif path == "triton":
            patch.setattr(cuda, "SMALLEST_COMPILED", 0)
            patch.setattr(kernels, "_path", lambda *tensors: OnDevice)
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


def paths_and(counts: Iterable[int]) -> list[tuple[str, int]]:
    """Every path with every count, but for the interpreter, which is slow, few above 12."""
    return [
        (path, n)
        for path in PATHS
        for n in counts
        if path != "triton" or n <= 12 or n % 16 in {0, 1, 15}
    ]


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
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=wide).to(dtype)


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
        "at an odd address": lambda rows: torch.cat([rows.new_zeros(1), rows.flatten()])[1:].view(
            rows.shape
        ),
        "negated on reading": lambda rows: torch.complex(rows, -rows).conj().imag,
    }


def same(left: Tensor, right: Tensor) -> bool:
    """Bit for bit, but for the bits of a NaN."""
    return torch.equal(left.isnan(), right.isnan()) and torch.equal(
        torch.where(left.isnan(), 0.0, left), torch.where(right.isnan(), 0.0, right)
    )
