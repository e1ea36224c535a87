"""Transformer-XL without its memory, the language model of Kunstner et al. 2023 on WikiText-2."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
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
class TransformerXL:
    """The model of Dai et al. 2019, section 3.3, as Kunstner et al. 2023 use it on WikiText-2.

    ``h = dropout(√d_model · embedding)``, then ``layers`` times

        ``h = norm(h + dropout(W_o attention(h)))``
        ``h = norm(h + dropout(W₂ dropout(relu(W₁ h + b₁)) + b₂))``

    and dropout once more before a decoder that shares nothing with the embedding. Attention knows
    distances, not positions: the score of word j for word i ≥ j is

        ``((q_i + u)·k_j + (q_i + v)·W_r dropout(r_{i-j})) / √d_head``

    where ``r`` are sinusoids (all sines, then all cosines), ``W_r`` is the layer's own, and u and v
    are shared by all layers. Projections have no bias. With the defaults and 33,278 words it has
    54,585,854 parameters.

    The defaults are Kunstner's for WikiText-2, with the dropout rates of Dai's base model for
    WikiText-103: 0.1, and 0 on attention weights. Both name a memory as long as the segment, 128
    words, but Kunstner's code starts every segment from an empty one and throws away what it would
    hand on; so a word sees those before it in its own segment and no others, gradients of segments
    are independent, and there is no memory here.

    Args:
        layers: how many.
        d_model: width of the states.
        heads: attention heads.
        d_head: their width.
        feed_forward: inner width of the feed-forward layers.
        dropout: the rate at all sites but the attention weights.
        attention_dropout: the rate on attention weights.

    Raises:
        ValueError: a size is below 1, ``d_model`` is odd, or a rate is not in [0, 1).
    """

    layers: int = 6
    d_model: int = 512
    heads: int = 8
    d_head: int = 64
    feed_forward: int = 2048
    dropout: float = 0.1
    attention_dropout: float = 0.0

    def __post_init__(self) -> None:
        check_sizes(
            "TransformerXL",
            layers=self.layers,
            d_model=self.d_model,
            heads=self.heads,
            d_head=self.d_head,
            feed_forward=self.feed_forward,
        )
        check_share("TransformerXL", "dropout", self.dropout, zero=True)
        check_share("TransformerXL", "attention_dropout", self.attention_dropout, zero=True)
        if self.d_model % 2:
            raise ValueError(f"TransformerXL: d_model must be even, found {self.d_model}")

    def build(self, vocabulary: int, generator: torch.Generator) -> RelativeTransformer:
        """The model on the CPU, for this number of words.

        Initialised as by :func:`experiments.language.model.build`, u and v being ``N(0, 0.02²)``.

        Raises:
            ValueError: ``vocabulary`` is below 1.
        """
        check_sizes("TransformerXL", vocabulary=vocabulary)
        return build(RelativeTransformer(self, vocabulary), generator)


class RelativeTransformer(LanguageModel):
    """The model of a :class:`TransformerXL`, on the meta device; see there."""

    def __init__(self, specification: TransformerXL, vocabulary: int) -> None:
        super().__init__()
        self.specification = specification
        own = specification
        self.embedding = embedding(vocabulary, own.d_model)
        # u and v of Dai et al., eq. (d) and (b): the query's bias towards content and distance.
        biases = torch.empty(2, own.heads, own.d_head, device="meta", dtype=torch.float32)
        self.query_biases = nn.Parameter(biases)
        self.layers = nn.ModuleList(RelativeLayer(own, f"layer {i}") for i in range(own.layers))
        self.decoder = linear(own.d_model, vocabulary)

    @property
    def stack(self) -> list[RelativeLayer]:
        """The layers by their type."""
        return cast(list[RelativeLayer], list(self.layers))

    def sites(self, length: int) -> dict[str, Site]:
        own = self.specification
        shape = (length, own.d_model)
        sites = {
            "input": Site(shape=shape, rate=own.dropout),
            "distances": Site(shape=shape, rate=own.dropout, shared=True),
        }
        for layer in self.stack:
            sites |= layer.sites(length)
        return sites | {"output": Site(shape=shape, rate=own.dropout)}

    def hidden(self, inputs: Tensor, masks: Masks) -> Tensor:
        width = self.specification.d_model
        words = self.embedding(inputs.t()) * math.sqrt(width)
        states = drop(words, masks, "input")
        turns = angles(torch.arange(len(inputs) - 1, -1, -1, device=inputs.device), width)
        distances = torch.cat([turns.sin(), turns.cos()], dim=-1).to(words.dtype)
        # The shared mask comes as (1, T, d).
        distances = drop(distances[None], masks, "distances")[0]
        hidden_from = later(len(inputs), inputs.device)
        for layer in self.stack:
            states = layer(states, distances, self.query_biases, masks, hidden_from)
        return drop(states, masks, "output")


class RelativeLayer(nn.Module):
    """Relative attention and feed-forward layer, each with dropout, residual and layer norm.

    The sites of dropout are called ``"<name> attention"`` and so on.
    """

    def __init__(self, specification: TransformerXL, name: str) -> None:
        super().__init__()
        self.specification = own = specification
        self.name = name
        joined = own.heads * own.d_head
        self.in_projection = linear(own.d_model, 3 * joined, bias=False)
        self.distance_projection = linear(own.d_model, joined, bias=False)
        self.out_projection = linear(joined, own.d_model, bias=False)
        self.attention_norm = layer_norm(own.d_model)
        self.inner = linear(own.d_model, own.feed_forward)
        self.outer = linear(own.feed_forward, own.d_model)
        self.outer_norm = layer_norm(own.d_model)

    def sites(self, length: int) -> dict[str, Site]:
        """Where dropout acts, in the order of the computation."""
        own, name = self.specification, self.name
        weights = Site(shape=(own.heads, length, length), rate=own.attention_dropout)
        state = Site(shape=(length, own.d_model), rate=own.dropout)
        return {
            f"{name} attention": weights,
            f"{name} attended": state,
            f"{name} inner": Site(shape=(length, own.feed_forward), rate=own.dropout),
            f"{name} outer": state,
        }

    def forward(
        self,
        states: Tensor,
        distances: Tensor,
        query_biases: Tensor,
        masks: Masks,
        hidden_from: Tensor,
    ) -> Tensor:
        """States ``(B, T, d)`` to states.

        ``distances`` are the sinusoids ``(T, d)`` of T-1, …, 0, ``query_biases`` are u and v
        ``(2, heads, d_head)``, ``hidden_from`` is True where i must not see j.
        """
        attended = self._attend(states, distances, query_biases, masks, hidden_from)
        attended = drop(self.out_projection(attended), masks, f"{self.name} attended")
        states = self.attention_norm(states + attended)
        inner = drop(self.inner(states).relu(), masks, f"{self.name} inner")
        outer = drop(self.outer(inner), masks, f"{self.name} outer")
        normed: Tensor = self.outer_norm(states + outer)
        return normed

    def _attend(
        self,
        states: Tensor,
        distances: Tensor,
        query_biases: Tensor,
        masks: Masks,
        hidden_from: Tensor,
    ) -> Tensor:
        heads, d_head = self.specification.heads, self.specification.d_head
        # (B, T, 3·joined) -> three of (B, heads, T, d_head)
        projected = self.in_projection(states).unflatten(-1, (3, heads, d_head))
        queries, keys, values = projected.permute(2, 0, 3, 1, 4)
        far = self.distance_projection(distances).unflatten(-1, (heads, d_head))
        towards_content, towards_distance = (queries + bias[:, None] for bias in query_biases)
        by_content = towards_content @ keys.transpose(-2, -1)
        by_distance = torch.einsum("bhid,mhd->bhim", towards_distance, far)
        scores = (by_content + align(by_distance)) / math.sqrt(d_head)
        weights = scores.masked_fill(hidden_from, -math.inf).softmax(-1)
        weights = drop(weights, masks, f"{self.name} attention")
        attended: Tensor = (weights @ values).transpose(1, 2).flatten(2)
        return attended


def align(by_distance: Tensor) -> Tensor:
    """From scores ``(…, i, m)`` for distance T-1-m to scores ``(…, i, j)`` for j ≤ i; T rows each.

    Distance i-j is column ``m = T-1-i+j``: row i moves T-1-i places to the left. With one column
    put before each row, that is the same numbers read in rows of T, from the T-th on (Dai et al.
    2019, appendix B). Entries with j > i are of no meaning.
    """
    length = by_distance.shape[-1]
    flat = F.pad(by_distance, (1, 0)).flatten(-2)
    return flat[..., length:].reshape(by_distance.shape)
