"""Gradients at fixed weights, taken once and kept: everything else is arithmetic on them.

A bank holds K microgradients as rows of d numbers in a file. Estimates that move straight towards
gradients stay in the rows' span, where K coordinates stand for d; an estimate that clips each
coordinate does not, but treats the coordinates independently.
"""

from __future__ import annotations

import os
import sys
import zlib
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from experiments.config import ConfigError
from robust_agg import kernels

_COLUMNS = 1 << 17
# Worked through at a time: a few vectors of so many floats stay in the cache.
_ROUNDS = 32
# Minibatch gradients formed at a time.


@dataclass(frozen=True, eq=False)
class Bank:
    """K rows of d float32 numbers in ``folder``, filled one after another."""

    folder: Path
    count: int
    d: int

    def fill(self, gradient: Callable[[int], Tensor], tick: Callable[[float], None]) -> None:
        """Take the gradients that are not there yet; an interruption costs at most one.

        Raises:
            ConfigError: there is no room for the file.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        if not self._file.exists() or self._file.stat().st_size != self.bytes:
            for marker in self.folder.glob("*.done"):  # of rows that are gone
                marker.unlink()
        try:
            with self._file.open("ab") as file:
                file.truncate(self.bytes)
                # Reserved, or a full disk would show as a crash at some later write.
                if sys.platform == "linux":
                    os.posix_fallocate(file.fileno(), 0, self.bytes)
        except OSError as error:
            raise ConfigError(
                f"out: {1e-9 * self.bytes:.1f} GB for gradients are required, found {error}"
            ) from None
        rows = self._map(shared=True)
        for k in range(self.count):
            done = self.folder / f"{k}.done"
            if k not in self._whole and not (done.exists() and done.read_text() == _sum(rows[k])):
                rows[k] = gradient(k)
                done.write_text(_sum(rows[k]))
            self._whole.add(k)
            tick((k + 1) / self.count)

    @cached_property
    def _whole(self) -> set[int]:
        """The rows that are known to be as they were written."""
        return set()

    @property
    def bytes(self) -> int:
        """The size of the file."""
        return 4 * self.count * self.d

    @property
    def _file(self) -> Path:
        return self.folder / "rows.f32"

    def _map(self, *, shared: bool) -> Tensor:
        flat = torch.from_file(str(self._file), shared=shared, size=self.count * self.d)
        return flat.view(self.count, self.d)

    @cached_property
    def rows(self) -> Tensor:
        """``(K, d)``, read from the file as needed; what is written to it stays in memory."""
        return self._map(shared=False)

    @cached_property
    def coordinates(self) -> Tensor:
        """``(K, K)`` float64: the rows in an orthonormal basis of their span.

        ``V Λ^{1/2}`` of the Gram matrix ``V Λ Vᵀ``: all sums, distances and norms of the rows are
        those of these.
        """
        values, vectors = torch.linalg.eigh(kernels.gram(self.rows))
        scaled: Tensor = vectors * values.clamp(min=0).sqrt()
        return scaled


def _sum(row: Tensor) -> str:
    return f"{zlib.crc32(row.numpy().data):08x}"


def draw(count: int, size: int, iterations: int, generator: torch.Generator) -> Tensor:
    """``(iterations, count)`` float32 weights of minibatches of ``size`` rows, with replacement."""
    chosen = torch.randint(count, (iterations, size), generator=generator)
    weights = torch.zeros(iterations, count)
    return weights.scatter_add_(1, chosen, torch.full(chosen.shape, 1 / size))


def clip_path(
    rows: Tensor,
    weights: Tensor,
    taus: Sequence[float],
    *,
    at: Collection[int],
    tick: Callable[[float], None],
    device: str = "cpu",
) -> Tensor:
    """Errors ``‖m_t - ḡ‖₂`` of CClip from m₀ = 0, ``(len(taus), len(at))``.

    ``m_{t+1} = m_t + clip(g_t - m_t, ±τ)`` (eq. 15) with ``g_t = weights[t] @ rows`` and ḡ the
    rows' mean: :class:`~robust_agg.CClip`, a few columns at a time through all iterations, so that
    what a step reads and writes stays in the cache.

    Args:
        rows: ``(K, d)`` float32.
        weights: ``(T, K)`` float32.
        taus: the radii.
        at: iterations, 0 for m₀.
        tick: told the share that is done.
        device: where to compute.
    """
    places = {t: place for place, t in enumerate(sorted(at))}
    weights = weights.to(device)
    squares = torch.zeros(len(taus), len(places), dtype=torch.float64)
    for start in range(0, rows.shape[1], _COLUMNS):
        block = rows[:, start : start + _COLUMNS].to(device).contiguous()
        squares += _clip_block(block, weights, taus, places)
        tick(min(1.0, (start + _COLUMNS) / rows.shape[1]))
    return squares.sqrt()


def _clip_block(
    block: Tensor, weights: Tensor, taus: Sequence[float], places: dict[int, int]
) -> Tensor:
    mean = block.mean(dim=0)
    estimates = [torch.zeros_like(mean) for _ in taus]
    gap = torch.empty_like(mean)
    squares = torch.zeros(len(taus), len(places), dtype=torch.float64)

    def note(t: int) -> None:
        if t in places:
            for which, m in enumerate(estimates):
                squares[which, places[t]] = torch.sub(m, mean, out=gap).double().square_().sum()

    note(0)
    for begin in range(0, len(weights), _ROUNDS):
        for t, g in enumerate(weights[begin : begin + _ROUNDS] @ block, start=begin):
            for m, tau in zip(estimates, taus, strict=True):
                m.add_(torch.sub(g, m, out=gap).clamp_(-tau, tau))
            note(t + 1)
    return squares
