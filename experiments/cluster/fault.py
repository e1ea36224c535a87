"""A rank whose hardware is bad: bits of its gradients flip."""

from __future__ import annotations

from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from attacks.bit_flip import flipped
from robust_agg.errors import check_share
from robust_agg.seeding import generator


class BitFlips:
    """Flips bits of the gradients that this process computes, before they meet those of others.

    In every backward pass each number of the gradient is hit with a small probability, independent
    of all others; of a number that is hit one of the 32 bits of its float32 representation flips,
    each with the same probability. The top bit of the exponent makes about 10³⁴ of 10⁻⁴, and 2 of a
    zero.

    Args:
        model: as it is trained, within DDP or after ``fully_shard``; its gradients are float32.
        probability: that a number is hit.
        seed: of all draws, with the number of the step.
        stream: which of the bad ranks this is, from 0: they flip different bits.

    Raises:
        ValueError: the probability is not in [0, 1).
    """

    def __init__(self, model: nn.Module, *, probability: float, seed: int, stream: int = 0) -> None:
        check_share("BitFlips", "probability", probability, zero=True)
        self._probability, self._seed = probability, seed
        # That of the first is none: results that are kept were drawn so.
        self._stream = [stream] if stream else []
        self._seen: set[int] = set()
        self.at(0)
        # In front of a module's forward pass its parameters are whole, with FSDP too.
        for module in model.modules():
            module.register_forward_pre_hook(self._attach)

    def at(self, step: int) -> None:
        """The flips that follow are those of a step."""
        self._generator = generator(self._seed, "bit flips", step, *self._stream)

    def _attach(self, module: nn.Module, _: object) -> None:
        for parameter in module.parameters():
            if not isinstance(parameter, DTensor) and id(parameter) not in self._seen:
                self._seen.add(id(parameter))
                parameter.register_hook(self._flipped)

    def _flipped(self, gradient: Tensor) -> Tensor:
        return flipped(gradient, self._probability, self._generator)
