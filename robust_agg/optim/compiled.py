"""Passes over a large gradient and its estimate on the CPU, each compiled to read both once.

In torch's operators a difference has to be stored before it can be measured or clipped, and that
takes twice as long. Without llvmlite, for small tensors and in other layouts those do the work.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from robust_agg.kernels import llvm, vectors
from robust_agg.kernels.llvm import Function
from robust_agg.kernels.threads import map_ranges, ranges
from robust_agg.kernels.vectors import Lanes

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
        # A subclass (FakeTensor) need not have its numbers in memory at its address.
        type(gradient) is Tensor
        and gradient.is_cpu
        and gradient.dtype in STORAGE
        and gradient.numel() >= SMALLEST
        and estimate.is_contiguous()
        and not gradient.is_neg()
        and not torch.compiler.is_compiling()
        and llvm.available()
    )


def distance(gradient: Tensor, estimate: Tensor) -> Tensor:
    """``()`` float64: ‖g - m‖₂, non-finite where a square is no number in the dtype of m."""
    lanes = _lanes(gradient)
    kernel = _distance(lanes)
    whole, (g, m) = _halves(gradient, estimate, lanes)
    sums = torch.zeros(len(whole), dtype=torch.float64, device="cpu")

    def task(lo: int, hi: int) -> None:
        total = _at(sums, lo // TASK_NUMBERS)
        kernel(_at(gradient, lo), _at(estimate, lo), hi - lo, total)

    _run(task, whole)
    return (sums.sum() + (g.to(m) - m).double().square().sum()).sqrt()


def zero_if_finite(gradient: Tensor) -> Tensor:
    """``()`` float64: 0 if every number is finite, else NaN."""
    lanes = _lanes(gradient)
    kernel = _finite(lanes)
    whole, (g, _) = _halves(gradient, gradient, lanes)
    sums = torch.zeros(len(whole), dtype=torch.float64, device="cpu")

    def task(lo: int, hi: int) -> None:
        kernel(_at(gradient, lo), hi - lo, _at(sums, lo // TASK_NUMBERS))

    _run(task, whole)
    return sums.sum() + (0 * g).double().sum()


def move_clipped(gradient: Tensor, estimate: Tensor, tau: float) -> None:
    """``m += clip_{τ,1}(g - m)``; g is finite."""
    _move(gradient, estimate, tau, _clipped, lambda gap: gap.clamp_(-tau, tau))


def move_by_sign(gradient: Tensor, estimate: Tensor, tau: float) -> None:
    """``m += τ sign(g - m)``; g is finite."""
    _move(gradient, estimate, tau, _signed, lambda gap: gap.sign_().mul_(tau))


def _move(
    gradient: Tensor,
    estimate: Tensor,
    tau: float,
    compiled: Callable[[Lanes], llvm.Kernel],
    plain: Callable[[Tensor], Tensor],
) -> None:
    lanes = _lanes(gradient)
    kernel = compiled(lanes)
    bound = torch.tensor(tau, dtype=estimate.dtype, device="cpu")

    def task(lo: int, hi: int) -> None:
        kernel(_at(gradient, lo), _at(estimate, lo), hi - lo, bound.data_ptr())

    whole, (g, m) = _halves(gradient, estimate, lanes)
    _run(task, whole)
    m.add_(plain(g.to(m) - m))


def _run(task: Callable[[int, int], None], whole: list[tuple[int, int]]) -> None:
    for _ in map_ranges(task, whole):
        pass


def _halves(
    gradient: Tensor, estimate: Tensor, lanes: Lanes
) -> tuple[list[tuple[int, int]], tuple[Tensor, Tensor]]:
    """The ranges that kernels work on, and what is left for torch."""
    unit = UNROLLED * lanes.width
    whole = gradient.numel() - gradient.numel() % unit
    return ranges(whole, TASK_NUMBERS), (gradient.view(-1)[whole:], estimate.view(-1)[whole:])


def _at(tensor: Tensor, place: int) -> int:
    return tensor.data_ptr() + place * tensor.element_size()


def _lanes(gradient: Tensor) -> Lanes:
    size = 8 if gradient.dtype == torch.float64 else 4
    return Lanes(storage=STORAGE[gradient.dtype], width=llvm.host().vector_bytes // size)


@cache
def _distance(lanes: Lanes) -> llvm.Kernel:
    parameters = {"gradient": "ptr", "estimate": "ptr", "width": "i64", "sum": "ptr"}

    def add_square(f: Function, index: str, total: str) -> str:
        gap, _ = _gap(f, lanes, index)
        return vectors.multiply_add(f, lanes, gap, gap, total)

    return _summing("distance", lanes, parameters, add_square)


@cache
def _finite(lanes: Lanes) -> llvm.Kernel:
    parameters = {"gradient": "ptr", "width": "i64", "sum": "ptr"}

    def add_nothing(f: Function, index: str, total: str) -> str:
        value = vectors.load(f, lanes, "%gradient", index)
        return vectors.multiply_add(f, lanes, value, lanes.splat("0.0"), total)

    return _summing("zero_if_finite", lanes, parameters, add_nothing)


def _summing(
    name: str, lanes: Lanes, parameters: dict[str, str], add: Callable[[Function, str, str], str]
) -> llvm.Kernel:
    """Adds to ``sum`` what ``add`` sums up."""
    f = Function(name, parameters)
    zeros = [(lanes.vector, "zeroinitializer")] * UNROLLED
    with f.loop("0", "%width", BLOCK) as blocks:
        end = vectors.minimum(f, f.let(f"add i64 {blocks.index}, {BLOCK}"), "%width")
        with f.loop(blocks.index, end, UNROLLED * lanes.width, zeros) as c:
            for k, total in enumerate(c.carried):
                index = f.let(f"add i64 {c.index}, {k * lanes.width}")
                c.following.append(add(f, index, total))
        for total in c.carried:
            vectors.add_sum(f, lanes, total, "%sum", "0")
    return llvm.compile_function(f)


@cache
def _clipped(lanes: Lanes) -> llvm.Kernel:
    def clip(f: Function, gap: str, bound: str, least: str) -> str:
        return _least(f, lanes, _most(f, lanes, gap, least), bound)

    return _moving("move_clipped", lanes, clip)


@cache
def _signed(lanes: Lanes) -> llvm.Kernel:
    zero = lanes.splat("0.0")

    def sign(f: Function, gap: str, bound: str, least: str) -> str:
        below = _select(f, lanes, "olt", gap, zero, least, zero)
        return _select(f, lanes, "ogt", gap, zero, bound, below)

    return _moving("move_by_sign", lanes, sign)


def _moving(name: str, lanes: Lanes, step: Callable[[Function, str, str, str], str]) -> llvm.Kernel:
    f = Function(name, {"gradient": "ptr", "estimate": "ptr", "width": "i64", "bound": "ptr"})
    number = f.let(f"load {lanes.number}, ptr %bound")
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


def _least(f: Function, lanes: Lanes, left: str, right: str) -> str:
    return _select(f, lanes, "olt", left, right, left, right)


def _most(f: Function, lanes: Lanes, left: str, right: str) -> str:
    return _select(f, lanes, "ogt", left, right, left, right)


def _select(
    f: Function, lanes: Lanes, order: str, left: str, right: str, then: str, otherwise: str
) -> str:
    kind = lanes.vector
    holds = f.let(f"fcmp {order} {kind} {left}, {right}")
    return f.let(f"select <{lanes.width} x i1> {holds}, {kind} {then}, {kind} {otherwise}")
