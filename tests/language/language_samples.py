"""What the tests of the language models share: models small enough for loops, and batches."""

from __future__ import annotations

import torch
from torch import Tensor

from experiments.language import dropout
from experiments.language.encoder import EncoderLM
from experiments.language.model import LanguageModel
from experiments.language.transformer_xl import TransformerXL

VOCABULARY = 23
ENCODER = EncoderLM(d_model=12, heads=3, feed_forward=10, layers=2, dropout=0.2)
RELATIVE = TransformerXL(
    layers=2,
    d_model=12,
    heads=3,
    d_head=5,
    feed_forward=16,
    dropout=0.3,
    attention_dropout=0.25,
)
Specification = EncoderLM | TransformerXL


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def shaken(specification: Specification, seed: int = 0) -> LanguageModel:
    """A float64 model all of whose parameters matter: initial ones are too small, biases zero."""
    model = specification.build(VOCABULARY, generator(seed)).double()
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.empty_like(parameter).normal_(generator=generator(seed + 1))
            parameter.add_(noise, alpha=0.3)
    return model


def batch(length: int, width: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    words = torch.randint(VOCABULARY, (length + 1, width), generator=generator(seed))
    return words[:-1], words[1:]


def masks_of(model: LanguageModel, inputs: Tensor, seed: int = 0) -> dict[str, Tensor]:
    return dropout.draw(model.sites(len(inputs)), range(inputs.shape[1]), seed)
