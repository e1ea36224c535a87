"""What may happen to a minibatch gradient on its way to the optimizer."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from experiments.stable import symmetric_stable

Corruption = Callable[[Tensor, torch.Generator], Tensor]
"""A gradient ``(d,)`` and a generator to a gradient."""


def none(gradient: Tensor, generator: torch.Generator) -> Tensor:
    """The gradient as it is."""
    return gradient


def stable_noise(gradient: Tensor, generator: torch.Generator) -> Tensor:
    """Adds α-stable noise, α = 1.2, to each coordinate, of scale ‖g‖/√d."""
    d = gradient.numel()
    noise = symmetric_stable(1.2, d, generator=generator).to(gradient)
    scale: Tensor = gradient.norm() / d**0.5
    return gradient + noise * scale


def garbage(gradient: Tensor, generator: torch.Generator) -> Tensor:
    """One gradient in a hundred is Gaussian noise of a hundred times its norm."""
    if float(torch.rand((), generator=generator)) >= 0.01:
        return gradient
    noise = torch.randn(gradient.shape, generator=generator).to(gradient)
    scale: Tensor = 100 * gradient.norm() / gradient.numel() ** 0.5
    return noise * scale


def bit_flips(gradient: Tensor, generator: torch.Generator) -> Tensor:
    """One bit, any, of one coordinate in a million, and of one at least, is flipped."""
    d = gradient.numel()
    places = torch.randint(d, (max(1, d // 10**6),), generator=generator)
    bits = torch.randint(32, places.shape, generator=generator)
    flipped = gradient.float().clone()
    words = flipped.view(torch.int32)
    words[places] ^= (1 << bits).to(torch.int32).to(words.device)
    return flipped.to(gradient.dtype)


CORRUPTIONS: dict[str, Corruption] = {
    "none": none,
    "stable noise": stable_noise,
    "1 % garbage": garbage,
    "bit flips": bit_flips,
}
"""By name."""
