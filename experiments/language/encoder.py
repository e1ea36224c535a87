"""A transformer encoder with a causal mask, the language model of Kunstner et al. 2023 on PTB."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from experiments.language.dropout import Masks, Site, drop
from experiments.language.model import (
    LanguageModel,
    angles,
    build,
    check_sizes,
    embedding,
    later,
    layer_norm,
    linear,
)
from robust_agg.errors import check_share


@dataclass(frozen=True, kw_only=True)
class EncoderLM:
    """The encoder of torch's word-language-model tutorial, as Kunstner et al. 2023 use it on PTB.

    ``h = dropout(√d_model · embedding + position)``, then ``layers`` times

        ``h = norm(h + dropout(attention(h)))``
        ``h = norm(h + dropout(W₂ dropout(relu(W₁ h + b₁)) + b₂))``

    with scaled dot-product attention in ``heads`` heads over no later word, dropout on its weights
    too, and a decoder that shares nothing with the embedding. Positions are sinusoids, sine and
    cosine in turn (Vaswani et al. 2017). With the defaults and 10,000 words it has 4,494,000
    parameters.

    Args:
        d_model: width of the states.
        heads: attention heads of width d_model/heads.
        feed_forward: inner width of the feed-forward layers.
        layers: how many.
        dropout: the rate at all sites.

    Raises:
        ValueError: a size is below 1, ``d_model`` is odd or no multiple of ``heads``, or
            ``dropout`` is not in [0, 1).
    """

    d_model: int = 200
    heads: int = 2
    feed_forward: int = 200
    layers: int = 2
    dropout: float = 0.2

    def __post_init__(self) -> None:
        check_sizes(
            "EncoderLM",
            d_model=self.d_model,
            heads=self.heads,
            feed_forward=self.feed_forward,
            layers=self.layers,
        )
        check_share("EncoderLM", "dropout", self.dropout, zero=True)
        if self.d_model % 2 or self.d_model % self.heads:
            raise ValueError(
                "EncoderLM: d_model must be even and a multiple of heads, "
                f"found d_model={self.d_model}, heads={self.heads}"
            )

    def build(self, vocabulary: int, generator: torch.Generator) -> Encoder:
        """The model on the CPU, for this number of words.

        Initialised as by :func:`experiments.language.model.build`, but the attention's input
        weights, which Kunstner et al. leave as torch makes them: uniform in ±√(6/(4·d_model))
        (Glorot and Bengio 2010, the three matrices as one), and equal in all layers, for
        ``nn.TransformerEncoder`` copies its first.

        Raises:
            ValueError: ``vocabulary`` is below 1.
        """
        check_sizes("EncoderLM", vocabulary=vocabulary)
        model = build(Encoder(self, vocabulary), generator)
        bound = math.sqrt(6 / (4 * self.d_model))
        first = torch.empty(3 * self.d_model, self.d_model, dtype=torch.float32)
        first.uniform_(-bound, bound, generator=generator)
        with torch.no_grad():
            for layer in model.stack:
                layer.in_projection.weight.copy_(first)
        return model


SMALL = EncoderLM(d_model=64, feed_forward=64)
"""The same model in a size for quick runs; with 2,000 words it has 308,432 parameters."""


class Encoder(LanguageModel):
    """The model of an :class:`EncoderLM`, on the meta device; see there."""

    def __init__(self, specification: EncoderLM, vocabulary: int) -> None:
        super().__init__()
        self.specification = specification
        width = specification.d_model
        self.embedding = embedding(vocabulary, width)
        self.layers = nn.ModuleList(
            EncoderLayer(specification, f"layer {i}") for i in range(specification.layers)
        )
        self.decoder = linear(width, vocabulary)

    @property
    def stack(self) -> list[EncoderLayer]:
        """The layers by their type."""
        return cast(list[EncoderLayer], list(self.layers))

    def sites(self, length: int) -> dict[str, Site]:
        own = self.specification
        sites = {"input": Site(shape=(length, own.d_model), rate=own.dropout)}
        for layer in self.stack:
            sites |= layer.sites(length)
        return sites

    def hidden(self, inputs: Tensor, masks: Masks) -> Tensor:
        width = self.specification.d_model
        words = self.embedding(inputs.t()) * math.sqrt(width)
        turns = angles(torch.arange(len(inputs), device=inputs.device), width)
        positions = torch.stack([turns.sin(), turns.cos()], dim=-1).flatten(1)
        states = drop(words + positions.to(words.dtype), masks, "input")
        hidden_from = later(len(inputs), inputs.device)
        for layer in self.stack:
            states = layer(states, masks, hidden_from)
        return states


class EncoderLayer(nn.Module):
    """Attention and feed-forward layer, each with dropout, residual connection and layer norm.

    The sites of dropout are called ``"<name> attention"`` and so on.
    """

    def __init__(self, specification: EncoderLM, name: str) -> None:
        super().__init__()
        self.specification = specification
        self.name = name
        width, inner = specification.d_model, specification.feed_forward
        self.in_projection = linear(width, 3 * width)
        self.out_projection = linear(width, width)
        self.attention_norm = layer_norm(width)
        self.inner = linear(width, inner)
        self.outer = linear(inner, width)
        self.outer_norm = layer_norm(width)

    def sites(self, length: int) -> dict[str, Site]:
        """Where dropout acts, in the order of the computation."""
        own = self.specification
        shapes = {
            "attention": (own.heads, length, length),
            "attended": (length, own.d_model),
            "inner": (length, own.feed_forward),
            "outer": (length, own.d_model),
        }
        return {
            f"{self.name} {site}": Site(shape=shape, rate=own.dropout)
            for site, shape in shapes.items()
        }

    def forward(self, states: Tensor, masks: Masks, hidden_from: Tensor) -> Tensor:
        """States ``(B, T, d)`` to states; ``hidden_from`` is True where i must not see j."""
        attended = self.out_projection(self._attend(states, masks, hidden_from))
        attended = drop(attended, masks, f"{self.name} attended")
        states = self.attention_norm(states + attended)
        inner = drop(self.inner(states).relu(), masks, f"{self.name} inner")
        outer = drop(self.outer(inner), masks, f"{self.name} outer")
        normed: Tensor = self.outer_norm(states + outer)
        return normed

    def _attend(self, states: Tensor, masks: Masks, hidden_from: Tensor) -> Tensor:
        # (B, T, 3d) -> three of (B, heads, T, d/heads)
        projected = self.in_projection(states).unflatten(-1, (3, self.specification.heads, -1))
        queries, keys, values = projected.permute(2, 0, 3, 1, 4)
        scores = queries @ keys.transpose(-2, -1) / math.sqrt(queries.shape[-1])
        weights = scores.masked_fill(hidden_from, -math.inf).softmax(-1)
        weights = drop(weights, masks, f"{self.name} attention")
        attended: Tensor = (weights @ values).transpose(1, 2).flatten(2)
        return attended
