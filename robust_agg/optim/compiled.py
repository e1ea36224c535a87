"""Passes over a large gradient and its estimate on the CPU, each compiled to read both once.

In torch's operators a difference has to be stored before it can be measured or clipped, and that
takes twice as long. Without llvmlite, for small tensors and in other layouts those do the work.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache

import torch
from torch import Tensor

from robust_agg.kernels import llvm, team, vectors
from robust_agg.kernels.llvm import Function
from robust_agg.kernels.threads import ranges
from robust_agg.kernels.vectors import Lanes
from robust_agg.optim.pieces import Part
from robust_agg.torch_compat import in_memory

SMALLEST = 1 << 16
"""Numbers from which on a pass is compiled."""

TASK_NUMBERS = 1 << 19
"""Numbers a thread takes at a time; fixed, so that sums do not depend on the number of threads."""

BLOCK = 2048
"""Numbers whose squares are summed in the precision of the estimate, and from there in float64."""

UNROLLED = 4
"""Vectors that are summed side by side, not to wait for each other."""

STORAGE = {torch.float64: "double", torch.float32: "float", torch.bfloat16: "bfloat"}


def takes(gradient: Tensor, estimate: Tensor) -> bool:
    """Whether the compiled passes take these two, whose strides are equal."""
    return (
        not torch.compiler.is_compiling()
        and in_memory(gradient)
        and gradient.is_cpu
        and gradient.dtype in STORAGE
        and gradient.numel() >= SMALLEST
        and estimate.is_contiguous()
        and llvm.available()
    )


def distances(parts: Sequence[Part]) -> Tensor:
    """``(parts,)`` float64: each ‖g - m‖₂, non-finite where a square is no number in m's dtype."""

    def rest(gradient: Tensor, estimate: Tensor) -> Tensor:
        return (gradient.to(estimate) - estimate).double().square()

    return _sums(parts, _distance, rest).sqrt()


def zeros_if_finite(parts: Sequence[Part]) -> Tensor:
    """``(parts,)`` float64: 0 where every number of g is finite, else NaN."""
    return _sums(parts, _finite, lambda gradient, _: (0 * gradient).double())


def move_clipped(parts: Sequence[Part], tau: float) -> None:
    """``m += clip_{τ,1}(g - m)``; g is finite."""
    _move(parts, tau, _clipped, lambda gap, bound: gap.clamp_(-bound, bound))


def move_by_sign(parts: Sequence[Part], tau: float) -> None:
    """``m += τ sign(g - m)``; g is finite."""
    _move(parts, tau, _signed, lambda gap, bound: gap.sign_().mul_(bound))


def _sums(
    parts: Sequence[Part],
    compiled: Callable[[Lanes], llvm.Kernel],
    plain: Callable[[Tensor, Tensor], Tensor],
) -> Tensor:
    """``(parts,)``: what a compiled function sums up of each, and a plain one of what it leaves."""
    most = max(-(-part.gradient.numel() // TASK_NUMBERS) for part in parts)
    sums = torch.zeros(len(parts), most, dtype=torch.float64, device="cpu")

    def sum_of(place: int, turn: int) -> int:
        return sums.data_ptr() + sums.element_size() * (place * most + turn)

    _run(parts, compiled, sum_of)
    found = sums.sum(dim=1)
    for place, part in enumerate(parts):
        if rest := _rest(part):
            found[place] += plain(*rest).sum()
    return found


def _move(
    parts: Sequence[Part],
    tau: float,
    compiled: Callable[[Lanes], llvm.Kernel],
    plain: Callable[[Tensor, float], Tensor],
) -> None:
    limits = [min(tau, torch.finfo(part.estimate.dtype).max) for part in parts]
    bounds = [
        torch.tensor(limit, dtype=part.estimate.dtype, device="cpu")
        for limit, part in zip(limits, parts, strict=True)
    ]
    _run(parts, compiled, lambda place, _: bounds[place].data_ptr())
    for limit, part in zip(limits, parts, strict=True):
        if rest := _rest(part):
            gradient, estimate = rest
            estimate.add_(plain(gradient.to(estimate) - estimate, limit))


def _run(
    parts: Sequence[Part],
    compiled: Callable[[Lanes], llvm.Kernel],
    cell: Callable[[int, int], int],
) -> None:
    """A kernel on the parts; `cell` gives its address by a part's place and turn."""
    tasks: dict[Lanes, dict[str, list[int]]] = {}
    for place, (gradient, estimate, _) in enumerate(parts):
        lanes = _lanes(gradient)
        own = tasks.setdefault(lanes, {name: [] for name in _GIVEN})
        g, m = gradient.data_ptr(), estimate.data_ptr()
        steps = gradient.element_size(), estimate.element_size()
        for turn, (lo, hi) in enumerate(ranges(_whole(gradient, lanes), TASK_NUMBERS)):
            given = (g + lo * steps[0], m + lo * steps[1], hi - lo, cell(place, turn))
            for name, value in zip(_GIVEN, given, strict=True):
                own[name].append(value)
    # All parts at once: threads that meet after each of them take half as long again.
    for lanes, own in tasks.items():
        team.run(compiled(lanes), len(own["width"]), own)


_GIVEN = ("gradient", "estimate", "width", "cell")


def _whole(gradient: Tensor, lanes: Lanes) -> int:
    """How many numbers the kernels work on; the rest is left for torch."""
    return gradient.numel() - gradient.numel() % (UNROLLED * lanes.width)


def _rest(part: Part) -> tuple[Tensor, Tensor] | None:
    whole = _whole(part.gradient, _lanes(part.gradient))
    if whole == part.gradient.numel():
        return None
    return part.gradient.view(-1)[whole:], part.estimate.view(-1)[whole:]


def _lanes(gradient: Tensor) -> Lanes:
    size = 8 if gradient.dtype == torch.float64 else 4
    return Lanes(storage=STORAGE[gradient.dtype], width=llvm.host().vector_bytes // size)


@cache
def _distance(lanes: Lanes) -> llvm.Kernel:
    parameters = {"gradient": "ptr", "estimate": "ptr", "width": "i64", "cell": "ptr"}

    def add_square(f: Function, index: str, total: str) -> str:
        gap, _ = _gap(f, lanes, index)
        return vectors.multiply_add(f, lanes, gap, gap, total)

    return _summing("distance", lanes, parameters, add_square)


@cache
def _finite(lanes: Lanes) -> llvm.Kernel:
    parameters = {"gradient": "ptr", "width": "i64", "cell": "ptr"}

    def add_nothing(f: Function, index: str, total: str) -> str:
        value = vectors.load(f, lanes, "%gradient", index)
        return vectors.multiply_add(f, lanes, value, lanes.splat("0.0"), total)

    return _summing("zeros_if_finite", lanes, parameters, add_nothing)


def _summing(
    name: str, lanes: Lanes, parameters: dict[str, str], add: Callable[[Function, str, str], str]
) -> llvm.Kernel:
    """Adds to ``cell`` what ``add`` sums up."""
    f = Function(name, parameters)
    zeros = [(lanes.vector, "zeroinitializer")] * UNROLLED
    with f.loop("0", "%width", BLOCK) as blocks:
        end = vectors.minimum(f, f.let(f"add i64 {blocks.index}, {BLOCK}"), "%width")
        with f.loop(blocks.index, end, UNROLLED * lanes.width, zeros) as c:
            for k, total in enumerate(c.carried):
                index = f.let(f"add i64 {c.index}, {k * lanes.width}")
                c.following.append(add(f, index, total))
        for total in c.carried:
            vectors.add_sum(f, lanes, total, "%cell", "0")
    return llvm.compile_function(f)


@cache
def _clipped(lanes: Lanes) -> llvm.Kernel:
    def clip(f: Function, gap: str, bound: str, least: str) -> str:
        return vectors.smaller(f, lanes, vectors.larger(f, lanes, gap, least), bound)

    return _moving("move_clipped", lanes, clip)


@cache
def _signed(lanes: Lanes) -> llvm.Kernel:
    zero = lanes.splat("0.0")

    def sign(f: Function, gap: str, bound: str, least: str) -> str:
        kind = lanes.vector
        below = f.let(f"fcmp olt {kind} {gap}, {zero}")
        above = f.let(f"fcmp ogt {kind} {gap}, {zero}")
        return vectors.select(f, lanes, above, bound, vectors.select(f, lanes, below, least, zero))

    return _moving("move_by_sign", lanes, sign)


def _moving(name: str, lanes: Lanes, step: Callable[[Function, str, str, str], str]) -> llvm.Kernel:
    f = Function(name, {"gradient": "ptr", "estimate": "ptr", "width": "i64", "cell": "ptr"})
    number = f.let(f"load {lanes.number}, ptr %cell")
    bound = vectors.broadcast(f, lanes, number)
    least = f.let(f"fneg {lanes.vector} {bound}")
    with f.loop("0", "%width", lanes.width) as columns:
        gap, estimate = _gap(f, lanes, columns.index)
        moved = f.let(f"fadd {lanes.vector} {estimate}, {step(f, gap, bound, least)}")
        vectors.store(f, lanes, "%estimate", columns.index, moved)
    return llvm.compile_function(f)


def _gap(f: Function, lanes: Lanes, index: str) -> tuple[str, str]:
    """g - m, and m."""
    gradient = vectors.load(f, lanes, "%gradient", index)
    plain = Lanes(storage=lanes.number, width=lanes.width)
    estimate = vectors.load(f, plain, "%estimate", index)
    return f.let(f"fsub {lanes.vector} {gradient}, {estimate}"), estimate
