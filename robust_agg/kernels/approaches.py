"""Steps of many points towards a row each, compiled for the CPU to read both once."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from itertools import pairwise

import torch
from torch import Tensor

from robust_agg.kernels import blocks, combination_programs, llvm, team, vectors
from robust_agg.kernels.vectors import Lanes
from robust_agg.torch_compat import in_memory

COMPILED = {torch.float32: torch.int32, torch.float64: torch.int64}
"""Rows and points that are compiled for, which are of one dtype; and integers of as many bits."""


def takes(rows: Tensor, points: Sequence[Tensor], out: Tensor) -> bool:
    """Whether `approach` takes these, and they are enough for it to pay."""
    d = rows.shape[1]
    return (
        rows.dtype in COMPILED
        and rows.numel() >= blocks.SMALLEST_COMPILED
        and d * rows.element_size() >= 64  # a vector's bytes, at most
        and out.shape == rows.shape
        and all(point.shape == (d,) for point in points)
        and all(
            in_memory(tensor)
            and tensor.is_cpu
            and tensor.dtype == rows.dtype
            and tensor.stride(-1) == 1
            for tensor in (rows, out, *points)
        )
        and llvm.available()
    )


def approach(
    rows: Tensor, points: Sequence[Tensor], share: float, out: Tensor
) -> tuple[list[Tensor], Tensor]:
    """``p_i + s (x_i - p_i)`` for k rows and a point for each, as far as `takes` is true.

    As ``torch.lerp`` forms it, and to the last bit where that multiplies and adds in one operation.

    Args:
        rows: ``(k, d)``; not changed.
        points: k of ``(d,)``; not changed.
        share: s in (0, 1].
        out: ``(k, d)``, apart from the rows, gets a copy of each result.

    Returns:
        The k results, each in memory of its own; and ``(k,)`` float64, what no ‖x_i - p_i‖₂ is
        beyond: √d times the sum of their largest magnitudes, NaN where a number is.
    """
    k, d = rows.shape
    lanes = vectors.host_lanes(rows.dtype)
    assert lanes is not None, "kernels can be compiled"
    moved = [torch.empty_like(point) for point in points]
    weight = torch.tensor(share, dtype=rows.dtype, device="cpu")
    near = bool(weight < 0.5)  # as it is rounded, which may be to 0.5
    if not near:
        weight -= 1
    # As many ranges as make the shortest one longer than a vector.
    count = max(1, d // blocks.TASK_NUMBERS)
    bounds = [d * part // count for part in range(count + 1)]
    largest = torch.empty(k * count, 2, dtype=torch.int64, device="cpu")
    size = rows.element_size()
    starts = {
        "row": [rows.data_ptr() + i * rows.stride(0) * size for i in range(k)],
        "point": [point.data_ptr() for point in points],
        "moved": [result.data_ptr() for result in moved],
        "out": [out.data_ptr() + i * out.stride(0) * size for i in range(k)],
    }
    given: dict[str, team.Argument] = {
        name: [start + lo * size for start in of_streams for lo in bounds[:-1]]
        for name, of_streams in starts.items()
    }
    given["width"] = [hi - lo for lo, hi in pairwise(bounds)] * k
    given["weight"] = weight.data_ptr()
    given["largest"] = blocks.own(largest)
    team.run(_approach(lanes, near), k * count, given)
    bits = largest.view(k, count, 2).amax(dim=1).to(COMPILED[rows.dtype])
    # In float64, where the sum of two numbers is one.
    return moved, bits.view(rows.dtype).double().sum(dim=1) * d**0.5


@cache
def _approach(lanes: Lanes, near: bool) -> llvm.Kernel:
    return llvm.compile_function(combination_programs.approach(lanes, near))
