"""Loss and gradient of a language model on one batch, in bounded memory.

Logits are the largest tensor by far: 1.4 GB for 35·1024 words and a vocabulary of 10,000, and
twice that with their softmax. So the batch is gone through in groups of columns, and the decoder,
whose gradient has a closed form, in groups of words whose logits stay in the cache.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from experiments.language import dropout
from experiments.language.dropout import Masks
from experiments.language.model import LanguageModel
from robust_agg.errors import check_count

# The memory for activations (0.1 MB a word in the exact encoder, 0.5 in Transformer-XL) and for
# logits. On a CPU larger groups are no faster, and logits are best kept in its cache.
_WORDS = {"cpu": 1 << 12}
_WORDS_ELSEWHERE = 1 << 14
_LOGITS = {"cpu": 1 << 21}
_LOGITS_ELSEWHERE = 1 << 27


def gradient(
    model: LanguageModel,
    inputs: Tensor,
    targets: Tensor,
    *,
    seed: int | None,
    microbatch: int | None = None,
) -> Tensor:
    """The gradient ``(d,)`` of the mean cross-entropy per word; see :func:`loss_and_gradient`."""
    return loss_and_gradient(model, inputs, targets, seed=seed, microbatch=microbatch)[1]


def loss_and_gradient(
    model: LanguageModel,
    inputs: Tensor,
    targets: Tensor,
    *,
    seed: int | None,
    microbatch: int | None = None,
) -> tuple[float, Tensor]:
    """The mean cross-entropy per word, in nats, and its gradient ``(d,)``.

    ``(1/(T·B)) Σ_{t,b} -log softmax(model(inputs)_{t,b})[targets_{t,b}]``. The gradient has the
    parameters' dtype and device and the order of ``model.parameters()``, each flattened. It is a
    function of the parameters, the batch and ``seed``: no other random state is read or changed,
    and the parameters and their ``grad`` stay as they are. ``microbatch`` changes it by rounding
    only.

    Args:
        model: the model; all its parameters require gradients.
        inputs: int64 ``(T, B)``.
        targets: int64 ``(T, B)``.
        seed: of the dropout masks, which no two batches should share; None switches dropout off.
        microbatch: columns gone through at a time; None for about equal groups of at most 4,096
            words on a CPU, 16,384 elsewhere, or single columns where those are longer.

    Raises:
        ValueError: the shapes differ or are no ``(T, B)``, or ``microbatch`` is below 1.
    """
    parameters = list(model.parameters())
    row = torch.zeros(
        sum(parameter.numel() for parameter in parameters),
        dtype=model.decoder.weight.dtype,
        device=model.decoder.weight.device,
    )
    parts = torch.split(row, [parameter.numel() for parameter in parameters])
    views: dict[Tensor, Tensor] = {
        parameter: part.view_as(parameter)
        for parameter, part in zip(parameters, parts, strict=True)
    }
    head = (model.decoder.weight, model.decoder.bias)
    body = [p for p in parameters if all(p is not own for own in head)]
    total = torch.zeros((), dtype=torch.float64, device=row.device)
    for some_inputs, some_targets, masks in _groups(model, inputs, targets, seed, microbatch):
        with torch.enable_grad():
            hidden = model.hidden(some_inputs, masks)
        by_hidden = _decoder_gradient(
            model.decoder,
            hidden.detach(),
            some_targets,
            1 / targets.numel(),
            total,
            *(views[parameter] for parameter in head),
        )
        for p, part in zip(body, torch.autograd.grad(hidden, body, by_hidden), strict=True):
            views[p].add_(part)
    return total.item() / targets.numel(), row


@torch.no_grad()
def loss(
    model: LanguageModel,
    inputs: Tensor,
    targets: Tensor,
    *,
    seed: int | None = None,
    microbatch: int | None = None,
) -> float:
    """The mean cross-entropy per word, in nats; arguments as :func:`loss_and_gradient` has them."""
    total = torch.zeros((), dtype=torch.float64, device=model.decoder.weight.device)
    for some_inputs, some_targets, masks in _groups(model, inputs, targets, seed, microbatch):
        states = model.hidden(some_inputs, masks).flatten(0, 1)
        wanted = some_targets.t().reshape(-1, 1)
        for words, log_probabilities in _tiles(model.decoder, states):
            total -= log_probabilities.gather(1, wanted[words]).double().sum()
    return total.item() / targets.numel()


def _groups(
    model: LanguageModel,
    inputs: Tensor,
    targets: Tensor,
    seed: int | None,
    microbatch: int | None,
) -> Iterator[tuple[Tensor, Tensor, Masks]]:
    """Groups of columns of the batch, with the dropout masks of their columns."""
    if inputs.dim() != 2 or inputs.shape != targets.shape or not inputs.numel():
        raise ValueError(
            "gradient: inputs and targets must both have one shape (T, B) with T, B >= 1, found "
            f"{tuple(inputs.shape)} and {tuple(targets.shape)}"
        )
    length, width = inputs.shape
    if microbatch is None:
        most = max(1, _WORDS.get(inputs.device.type, _WORDS_ELSEWHERE) // length)
        microbatch = math.ceil(width / math.ceil(width / most))
    check_count("gradient", "microbatch", microbatch, minimum=1)
    sites = model.sites(length)
    for start in range(0, width, microbatch):
        columns = range(start, min(start + microbatch, width))
        masks: Masks = {}
        if seed is not None:
            masks = dropout.draw(sites, columns, seed, device=inputs.device)
        group = slice(columns.start, columns.stop)
        yield inputs[:, group], targets[:, group], masks


@torch.no_grad()
def _decoder_gradient(
    decoder: nn.Linear,
    hidden: Tensor,
    targets: Tensor,
    scale: float,
    total: Tensor,
    by_weight: Tensor,
    by_bias: Tensor,
) -> Tensor:
    """The gradient ``(B, T, d)`` of ``scale`` times the summed cross-entropy by ``hidden``.

    Adds that by the decoder's weight and bias to ``by_weight`` and ``by_bias``, and the sum itself,
    not scaled, to ``total``. With probabilities p and the targets' one-hot rows y, the gradient by
    the logits is p - y.
    """
    states, wanted = hidden.flatten(0, 1), targets.t().reshape(-1, 1)
    by_states = torch.empty_like(states)
    ones = torch.ones(len(states), dtype=states.dtype, device=states.device)
    for words, log_probabilities in _tiles(decoder, states):
        total -= log_probabilities.gather(1, wanted[words]).double().sum()
        by_logits = log_probabilities.exp_()
        by_logits.scatter_add_(1, wanted[words], -ones[words, None])
        torch.mm(by_logits, decoder.weight, out=by_states[words])
        by_weight.addmm_(by_logits.t(), states[words], alpha=scale)
        by_bias.addmv_(by_logits.t(), ones[words], alpha=scale)
    return by_states.mul_(scale).view_as(hidden)


def _tiles(decoder: nn.Linear, states: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Log-probabilities ``(some, V)`` of ``states`` ``(words, d)``, in a buffer that is reused."""
    vocabulary = decoder.out_features
    budget = _LOGITS.get(states.device.type, _LOGITS_ELSEWHERE)
    size = min(max(1, budget // vocabulary), len(states))
    logits, result = (states.new_empty(size, vocabulary) for _ in range(2))
    for start in range(0, len(states), size):
        words = slice(start, min(start + size, len(states)))
        count = words.stop - words.start
        torch.addmm(decoder.bias, states[words], decoder.weight.t(), out=logits[:count])
        yield words, torch.log_softmax(logits[:count], 1, out=result[:count])
