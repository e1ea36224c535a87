"""What the language models share: their interface, their initialisation, their positions."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import TypeVar

import torch
from torch import Tensor, nn

from experiments.language.dropout import Masks, Site
from robust_agg.errors import check_count

INITIAL_STD = 0.02
"""Standard deviation of initial weights (Dai et al. 2019; Kunstner et al. 2023)."""

Model = TypeVar("Model", bound="LanguageModel")


class LanguageModel(nn.Module, ABC):
    """Numbers of words ``(T, B)`` to logits ``(T, B, V)`` of the word that follows each.

    No word sees a later one, no column another. There are no buffers and no modes: dropout acts
    exactly where masks are given (:mod:`experiments.language.dropout`).
    """

    embedding: nn.Embedding
    decoder: nn.Linear

    @abstractmethod
    def sites(self, length: int) -> dict[str, Site]:
        """Where dropout acts on T = ``length`` rows."""

    @abstractmethod
    def hidden(self, inputs: Tensor, masks: Masks) -> Tensor:
        """The last layer's states ``(B, T, d)`` for inputs ``(T, B)``: what ``decoder`` reads."""

    def forward(self, inputs: Tensor, masks: Masks | None = None) -> Tensor:
        """Logits ``(T, B, V)`` for inputs ``(T, B)``; without masks, dropout is off."""
        logits: Tensor = self.decoder(self.hidden(inputs, masks or {}).transpose(0, 1))
        return logits


def build(module: Model, generator: torch.Generator) -> Model:
    """``module``, built on the meta device, on the CPU and with its parameters drawn.

    Weights of linear layers and embeddings, and parameters of no layer, are ``N(0, 0.02²)``,
    weights of layer norms ``N(1, 0.02²)``, biases 0.
    """
    module.to_empty(device="cpu")
    with torch.no_grad():
        for part in module.modules():
            norm = isinstance(part, nn.LayerNorm)
            for name, parameter in part.named_parameters(recurse=False):
                if name == "bias":
                    parameter.zero_()
                else:
                    parameter.normal_(float(norm), INITIAL_STD, generator=generator)
    return module


def linear(inputs: int, outputs: int, *, bias: bool = True) -> nn.Linear:
    """A linear layer on the meta device: nothing is drawn from the global random state."""
    return nn.Linear(inputs, outputs, bias=bias, device="meta", dtype=torch.float32)


def embedding(vocabulary: int, width: int) -> nn.Embedding:
    """An embedding on the meta device."""
    return nn.Embedding(vocabulary, width, device="meta", dtype=torch.float32)


def layer_norm(width: int) -> nn.LayerNorm:
    """A layer norm on the meta device."""
    return nn.LayerNorm(width, device="meta", dtype=torch.float32)


def angles(positions: Tensor, width: int) -> Tensor:
    """``positions · 10000^(-2k/width)``, k < width/2, float64 ``(T, width/2)`` (Vaswani 2017)."""
    exponents = torch.arange(0, width, 2, device=positions.device, dtype=torch.float64) / width
    return positions.double()[:, None] * torch.exp(-math.log(10_000) * exponents)


def later(length: int, device: torch.device) -> Tensor:
    """bool ``(T, T)``: whether position j comes after position i."""
    return torch.ones(length, length, dtype=torch.bool, device=device).triu(1)


def check_sizes(who: str, **sizes: int) -> None:
    """Raise ``ValueError`` unless all sizes are integers of at least 1."""
    for name, size in sizes.items():
        check_count(who, name, size, minimum=1)
