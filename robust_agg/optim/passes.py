"""The passes over memory: lengths, distances, and steps that a flag on the device calls off.

Nothing here waits for the device.

How often the numbers are read (r) and written (w), where torch's ``SGD(momentum=β)`` does
``m *= β; m += g; w -= η m``: 5 r, 3 w. Every line ends in torch's ``w -= η m``: 2 r, 1 w.

==========================  =====================  =============================  ==============
estimator                   to measure             to move                        with the step
==========================  =====================  =============================  ==============
Momentum                    ``‖g‖``: 1 r           ``m += s(g - m)``: 2 r, 1 w    5 r, 2 w
VClip and others of ‖g-m‖   ``‖g - m‖``: 2 r       ``m += s(g - m)``: 2 r, 1 w    6 r, 2 w
CClip, signed increment     ``max |g|``: 1 r       ``m += clip(g-m)``: 2 r, 1 w   5 r, 2 w
==========================  =====================  =============================  ==============

That is so on the CPU, where differences pass through a buffer in the cache or, if compiled, through
registers. On other devices a difference is written and read again: 1 r, 1 w more to measure it,
and to clip it 3 r, 3 w (signs 2 r, 2 w). Where m is handed out as a copy, another 1 r, 1 w.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import groupby
from math import inf

import torch
from torch import Tensor

from robust_agg import torch_compat
from robust_agg.optim import compiled, pieces
from robust_agg.optim.pieces import Part

FUSED = {
    "cpu": (torch.float32, torch.float64),
    "cuda": (torch.float32,),  # its factor is a float32
}
"""Where torch's fused SGD takes a step that is called off by a number on the device."""


def lengths(parts: Sequence[Part]) -> Tensor:
    """``(1,)`` float64: ‖g‖₂ of all parts together; non-finite where it cannot be measured."""
    norms: list[Tensor] = []
    for group in pieces.alike(parts):
        gradients = [part.gradient for part in group]
        # The norm of half precision would be one, and infinite from 65504.
        half = gradients[0].dtype.itemsize < 4
        norms += torch_compat.foreach_norm(gradients, 2, dtype=torch.float32 if half else None)
    return _together(parts, norms).square().sum().sqrt()[None]


def distances(parts: Sequence[Part]) -> Tensor:
    """``(b,)`` float64: ‖g - m‖₂ of each of the b blocks that have parts, in their order.

    Non-finite where it cannot be measured. In float32 what is shorter than 1e-19 may count as 0.
    """
    large, rest = _divided(parts)
    found = list(
        zip((part.block for part in large), _unbound(compiled.distances, large), strict=True)
    )
    for batch in pieces.batches(rest):
        found += zip(batch.blocks, torch_compat.foreach_norm(batch.differences(), 2), strict=True)
    found.sort(key=lambda pair: pair[0])
    counts = [len(list(same)) for _, same in groupby(found, key=lambda pair: pair[0])]
    squares = _together(parts, [norm for _, norm in found]).square()
    if len(counts) == 1:
        return squares.sum().sqrt()[None]
    if len(counts) < len(found):
        squares = torch.stack([same.sum() for same in torch.split(squares, counts)])
    return squares.sqrt()


def all_finite(parts: Sequence[Part]) -> Tensor:
    """``()`` bool: whether every coordinate of g is finite, however large."""
    large, rest = _divided(parts)
    extremes = _unbound(compiled.zeros_if_finite, large)
    for group in pieces.alike(rest):
        gradients = [part.gradient for part in group]
        if pieces.on_cpu(gradients[0]):
            # The maximum norm takes six times as long there.
            for gradient in gradients:
                extremes += torch.aminmax(gradient)
        else:
            extremes += torch_compat.foreach_norm(gradients, inf)
    return (_together(parts, extremes).abs() < inf).all()


def move_towards(parts: Sequence[Part], factors: Tensor, accepted: Tensor) -> None:
    """``m += s_b (g - m)`` with a factor for each block that has parts, where ``accepted``."""
    blocks: dict[int, list[Part]] = {}
    for part in parts:
        blocks.setdefault(part.block, []).append(part)
    for block, factor in zip(sorted(blocks), factors.unbind(), strict=True):
        for group in pieces.alike(blocks[block]):
            gradients = [part.gradient for part in group]
            estimates = [part.estimate for part in group]
            if gradients[0].dtype == estimates[0].dtype:
                _add(estimates, gradients, factor, accepted, towards=True)
                continue
            for batch in pieces.batches(group):
                _add(batch.estimates, batch.widened(), factor, accepted, towards=True)


def move_clipped(parts: Sequence[Part], tau: float | Tensor, accepted: Tensor) -> None:
    """``m += clip_{τ,1}(g - m)``, each coordinate clipped to [-τ, τ], where ``accepted``."""
    one = torch.ones((), dtype=torch.float64, device=accepted.device)
    large, rest = _divided(parts)
    if large and bool(accepted):  # on the CPU there is nothing to wait for
        compiled.move_clipped(large, float(tau))
    for batch in pieces.batches(rest):
        gaps = batch.differences()
        _clip(gaps, tau)
        _add(batch.estimates, gaps, one, accepted)


def _clip(gaps: list[Tensor], tau: float | Tensor) -> None:
    if isinstance(tau, Tensor):
        bound = tau.to(gaps[0])
        for gap in gaps:
            gap.clamp_(-bound, bound)
        return
    limit = _bound(tau, gaps[0])
    if pieces.on_cpu(gaps[0]):
        for gap in gaps:
            gap.clamp_(-limit, limit)
    else:
        torch_compat.foreach_clamp_min_(gaps, -limit)
        torch_compat.foreach_clamp_max_(gaps, limit)


def _bound(tau: float | Tensor, like: Tensor) -> float:
    return min(float(tau), torch.finfo(like.dtype).max)


def move_by_sign(parts: Sequence[Part], tau: float | Tensor, accepted: Tensor) -> None:
    """``m += τ sign(g - m)`` where ``accepted``."""
    step = torch.ones((), dtype=torch.float64, device=accepted.device) * tau
    step = step.clamp(max=torch.finfo(parts[0].estimate.dtype).max)
    large, rest = _divided(parts)
    if large and bool(accepted):
        compiled.move_by_sign(large, float(tau))
    for batch in pieces.batches(rest):
        gaps = batch.differences()
        torch_compat.foreach_sign_(gaps)
        _add(batch.estimates, gaps, step, accepted)


def laid_out_as(estimate: Tensor, gradient: Tensor) -> Tensor:
    """The gradient with the strides of m, as operators on lists need it."""
    if gradient.stride() == estimate.stride():
        return gradient
    return torch.empty_like(estimate, dtype=gradient.dtype).copy_(gradient)


def copy(estimates: list[Tensor], out: list[Tensor]) -> None:
    """m in the dtypes of ``out``, clamped to what 16 bits hold."""
    for place, (m, copied) in enumerate(zip(estimates, out, strict=True)):
        if copied.dtype.itemsize < m.dtype.itemsize:
            limit = torch.finfo(copied.dtype).max
            estimates[place] = m.clamp(-limit, limit)
    torch_compat.foreach_copy_(out, estimates)


def divide(gradients: list[Tensor], scale: Tensor) -> None:
    """``g /= scale`` in place, as a fused optimizer does itself."""
    for gradient in gradients:
        gradient.div_(scale.to(gradient.device))


def _add(
    estimates: list[Tensor],
    steps: list[Tensor],
    factor: Tensor,
    accepted: Tensor,
    *,
    towards: bool = False,
) -> None:
    """``m += s·d`` where ``accepted``, else nothing, also for d not finite; d is g - m if towards.

    0 times NaN is NaN: a factor of 0 would not do.
    """
    m = estimates[0]
    factor, accepted = factor.to(m.device, m.dtype), accepted.to(m.device)
    plain = torch.compiler.is_compiling() or m.dtype not in FUSED.get(m.device.type, ())
    if plain:
        for m, d in zip(estimates, steps, strict=True):
            m.add_(torch.where(accepted, d - m if towards else d, 0.0) * factor)
        return
    called_off = accepted.logical_not().float()
    torch_compat.fused_step_(estimates, steps, factor, called_off, towards=towards)


def _together(parts: Sequence[Part], numbers: list[Tensor]) -> Tensor:
    home = parts[0].estimate.device
    return torch.stack([number.to(home) for number in numbers]).double()


def _unbound(measure: Callable[[Sequence[Part]], Tensor], parts: Sequence[Part]) -> list[Tensor]:
    return list(measure(parts).unbind()) if parts else []


def _divided(parts: Iterable[Part]) -> tuple[list[Part], list[Part]]:
    """Those for the compiled passes, and the rest."""
    large: list[Part] = []
    rest: list[Part] = []
    for part in parts:
        (large if compiled.takes(part.gradient, part.estimate) else rest).append(part)
    return large, rest
