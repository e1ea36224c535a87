"""What happens with a probability."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def happens(probability: float, shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """Booleans of a shape, each True with a probability, independently of all others.

    Drawn on the CPU, where the generator is, so that every device draws the same; and in float64,
    for torch's uniform numbers of float32 are 0 once in 2²⁴: nothing would be rarer than that.
    """
    drawn = torch.rand(tuple(shape), dtype=torch.float64, generator=generator, device="cpu")
    return drawn < probability
