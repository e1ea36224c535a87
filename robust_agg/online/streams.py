"""Estimates of their own for many senders, side by side: one message to each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from itertools import pairwise
from typing import Protocol, TypeAlias

import torch
from torch import Tensor

from robust_agg.kernels import blocks, llvm, team, vectors
from robust_agg.kernels.llvm import Function
from robust_agg.kernels.vectors import Lanes
from robust_agg.span import too_far
from robust_agg.torch_compat import in_memory
from robust_agg.types import State

Generators: TypeAlias = Callable[[int], torch.Generator]
"""Makes the generator of a stream by its place; asked only where the stream draws."""

COMPILED = (torch.float32, torch.float64)
"""What :func:`approach` takes: other rows differ from their estimates in dtype."""


class Steps(Protocol):
    """Of an estimator all that streams need."""

    def step(
        self,
        rows: Tensor,
        state: State,
        *,
        senders: Sequence[int] | None = None,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, State]: ...


def step_alone(
    estimator: Steps,
    row: Tensor,
    state: State,
    *,
    sender: int,
    generator: torch.Generator,
    out: Tensor,
) -> State:
    """Write the estimate after one row ``(d,)`` to ``out`` ``(d,)``; the new state."""
    estimate, new = estimator.step(row[None], state, senders=(sender,), generator=generator)
    out.copy_(estimate)
    return new


def step_in_turn(
    estimator: Steps,
    rows: Tensor,
    states: Sequence[State],
    *,
    senders: Sequence[int],
    generators: Generators,
    out: Tensor,
) -> list[State]:
    """As :meth:`~robust_agg.online.estimator.Estimator.step_streams`, for what can only step."""
    return [
        step_alone(
            estimator, row, state, sender=sender, generator=generators(place), out=out[place]
        )
        for place, (row, state, sender) in enumerate(zip(rows, states, senders, strict=True))
    ]


def approach(
    rows: Tensor, points: Sequence[Tensor], share: float, out: Tensor
) -> list[Tensor | None]:
    """``p_i + s (x_i - p_i)`` for k rows and a point for each, reading both once.

    As ``torch.lerp`` forms it, and to the last bit where that multiplies and adds in one operation.
    None for a row or a point whose largest entries do not show that
    their distance can be measured, and for all where the rows are few, or not such as are compiled:
    those have to be worked through one by one.

    Args:
        rows: ``(k, d)``; not changed.
        points: k of ``(d,)``; not changed.
        share: s in (0, 1].
        out: ``(k, d)``, apart from the rows, gets a copy of each result; what it holds where there
            is none has no meaning.
    """
    k, d = rows.shape
    if not _takes(rows, points, out):
        return [None] * k
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
    reach = rows.new_empty(k, count, 2)
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
    given["reach"] = [reach.data_ptr() + 2 * task * size for task in range(k * count)]
    team.run(_approach(lanes, near), k * count, given)
    # The largest entries of row and point, NaN where one is. Float64: as a sum of numbers is.
    ends = reach.amax(dim=1).double().sum(dim=1) * d**0.5
    measured = (ends <= too_far(rows.dtype)).tolist()
    return [point if fine else None for point, fine in zip(moved, measured, strict=True)]


def _takes(rows: Tensor, points: Sequence[Tensor], out: Tensor) -> bool:
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


@cache
def _approach(lanes: Lanes, near: bool) -> llvm.Kernel:
    """``moved = out = base + weight (row - point)``, the base being the point, or else the row.

    ``reach`` gets the largest magnitude in the row and in the point: of the numbers' bits without
    the sign, which are ordered as they are, NaN beyond all.
    """
    names = ("row", "point", "moved", "out", "weight", "reach")
    f = Function("approach", {**dict.fromkeys(names, "ptr"), "width": "i64"})
    bits = "i64" if lanes.number == "double" else "i32"
    kind = f"<{lanes.width} x {bits}>"
    unsigned = str(2 ** (int(bits[1:]) - 1) - 1)
    mask = "<" + ", ".join([f"{bits} {unsigned}"] * lanes.width) + ">"
    weight = vectors.broadcast(f, lanes, f.let(f"load {lanes.number}, ptr %weight"))
    last = f.let(f"sub i64 %width, {lanes.width}")
    with f.loop("0", "%width", lanes.width, [(kind, "zeroinitializer")] * 2) as columns:
        # The last vector may overlap the one before: what it writes there is the same.
        index = vectors.minimum(f, columns.index, last)
        row, point = (vectors.load(f, lanes, name, index) for name in ("%row", "%point"))
        gap = f.let(f"fsub {lanes.vector} {row}, {point}")
        moved = vectors.multiply_add(f, lanes, gap, weight, point if near else row)
        for name in ("%moved", "%out"):
            vectors.store(f, lanes, name, index, moved)
        for value, most in zip((row, point), columns.carried, strict=True):
            magnitude = f.let(
                f"and {kind} {f.let(f'bitcast {lanes.vector} {value} to {kind}')}, {mask}"
            )
            name = f"llvm.umax.v{lanes.width}{bits}"
            columns.following.append(f.call(kind, name, (kind, magnitude), (kind, most)))
    for place, most in enumerate(columns.carried):
        name = f"llvm.vector.reduce.umax.v{lanes.width}{bits}"
        address = vectors.element(f, lanes.number, "%reach", str(place))
        f.do(f"store {bits} {f.call(bits, name, (kind, most))}, ptr {address}")
    return llvm.compile_function(f)
