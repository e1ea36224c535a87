"""A small transformer language model, as torch's own layers make it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn


class TransformerLM(nn.Module):
    """Numbers of words ``(T, B)`` to logits ``(T·B, V)`` of the word that follows each.

    Args:
        words: V, the size of the vocabulary.
        length: the largest T.
        width: of the states.
        heads: of the attention.
        layers: how many.
    """

    def __init__(
        self, words: int, length: int, *, width: int = 64, heads: int = 2, layers: int = 2
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(words, width)
        self.position = nn.Embedding(length, width)
        # No dropout: the trainings read nothing twice.
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(width, heads, 2 * width, dropout=0.0, norm_first=True)
            for _ in range(layers)
        )
        self.norm = nn.LayerNorm(width)
        self.decoder = nn.Linear(width, words)

    def forward(self, words: Tensor) -> Tensor:
        """The logits; no word sees a later one."""
        places = torch.arange(len(words), device=words.device)
        states = self.embedding(words) + self.position(places)[:, None]
        mask = nn.Transformer.generate_square_subsequent_mask(len(words), device=words.device)
        for layer in self.layers:
            states = layer(states, src_mask=mask, is_causal=True)
        logits: Tensor = self.decoder(self.norm(states).flatten(0, 1))
        return logits


def cross_entropy(model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
    """The mean loss per word, in nats."""
    return F.cross_entropy(model(inputs), targets.flatten())


@torch.no_grad()
def mean_loss(model: nn.Module, batches: Sequence[tuple[Tensor, Tensor]]) -> float:
    """The mean loss per word over the batches of all ranks; all of them call it together.

    What a bad rank says of its part is believed: training does not depend on it.
    """
    model.eval()
    total = torch.zeros(2, dtype=torch.float64, device=batches[0][1].device)
    for x, y in batches:
        total += total.new_tensor([float(cross_entropy(model, x, y)) * y.numel(), y.numel()])
    model.train()
    dist.all_reduce(total)
    return float(total[0] / total[1])
