"""Transformer-XL against loops that follow the paper's formulas, its sizes and initial values."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import pytest
import torch
from language_samples import RELATIVE, VOCABULARY, batch, generator, masks_of, shaken
from torch import Tensor, nn

from experiments.language.transformer_xl import (
    RelativeLayer,
    RelativeTransformer,
    TransformerXL,
    align,
)


def sinusoid(distance: int, width: int) -> Tensor:
    angles = [distance / 10_000 ** (k / width) for k in range(0, width, 2)]
    return torch.tensor([*map(math.sin, angles), *map(math.cos, angles)], dtype=torch.float64)


def masked(values: Tensor, mask: Tensor | None) -> Tensor:
    return values if mask is None else values * mask.double()


def naive_attention(
    layer: RelativeLayer, model: RelativeTransformer, states: Tensor, masks: Mapping[str, Tensor]
) -> Tensor:
    """Dai et al. 2019, section 3.3: the four terms (a) to (d), one score at a time."""
    own, length = model.specification, states.shape[1]
    u, v = model.query_biases
    joined = own.heads * own.d_head
    w_q, w_k, w_v = layer.in_projection.weight.split(joined)
    on_distances, on_weights = masks.get("distances"), masks.get(f"{layer.name} attention")
    result = torch.zeros(*states.shape[:2], joined, dtype=torch.float64)
    for b in range(len(states)):
        for h in range(own.heads):
            part = slice(h * own.d_head, (h + 1) * own.d_head)
            for i in range(length):
                query = w_q[part] @ states[b, i]
                powers = []
                for j in range(i + 1):
                    key = w_k[part] @ states[b, j]
                    far = sinusoid(i - j, own.d_model)
                    if on_distances is not None:
                        far = far * on_distances[0, length - 1 - (i - j)]
                    far = layer.distance_projection.weight[part] @ far
                    score = query @ key + query @ far + u[h] @ key + v[h] @ far
                    powers.append(torch.exp(score / math.sqrt(own.d_head)))
                total = torch.stack(powers).sum()
                for j, power in enumerate(powers):
                    weight = power / total
                    if on_weights is not None:
                        weight = weight * on_weights[b, h, i, j]
                    result[b, i, part] += weight * (w_v[part] @ states[b, j])
    return result


def naive(model: RelativeTransformer, inputs: Tensor, masks: Mapping[str, Tensor]) -> Tensor:
    width = model.specification.d_model
    states = model.embedding.weight[inputs.t()] * math.sqrt(width)
    states = masked(states, masks.get("input"))
    for layer in model.stack:
        name = layer.name
        attended = naive_attention(layer, model, states, masks) @ layer.out_projection.weight.t()
        states = layer.attention_norm(states + masked(attended, masks.get(f"{name} attended")))
        inner = masked(layer.inner(states).clamp(min=0), masks.get(f"{name} inner"))
        outer = masked(layer.outer(inner), masks.get(f"{name} outer"))
        states = layer.outer_norm(states + outer)
    logits: Tensor = model.decoder(masked(states, masks.get("output"))).transpose(0, 1)
    return logits


@pytest.mark.parametrize(("length", "width"), [(1, 1), (1, 3), (6, 1), (5, 2)])
@pytest.mark.parametrize("dropout", [False, True])
def test_equals_the_formulas(length: int, width: int, dropout: bool) -> None:
    model = shaken(RELATIVE)
    assert isinstance(model, RelativeTransformer)
    inputs, _ = batch(length, width)
    masks = masks_of(model, inputs) if dropout else {}
    expected = naive(model, inputs, masks)
    assert expected.std() > 0.5, "the model does something"
    torch.testing.assert_close(model(inputs, masks), expected, rtol=1e-10, atol=1e-10)


def test_gradients_equal_those_of_the_formulas() -> None:
    model = shaken(RELATIVE)
    assert isinstance(model, RelativeTransformer)
    inputs, targets = batch(5, 2)
    masks = masks_of(model, inputs)
    parameters = list(model.parameters())
    ours, theirs = (
        torch.autograd.grad(
            nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten()), parameters
        )
        for logits in (model(inputs, masks), naive(model, inputs, masks))
    )
    for mine, other in zip(ours, theirs, strict=True):
        assert other.any()
        torch.testing.assert_close(mine, other)


@pytest.mark.parametrize("length", [1, 2, 3, 8])
def test_align_turns_distances_into_pairs(length: int) -> None:
    """With score 100·i + distance, pair (i, j) must find 100·i + (i - j)."""
    rows = torch.arange(length)
    by_distance = 100.0 * rows[:, None] + (length - 1 - rows)
    aligned = align(by_distance.expand(2, 3, length, length))
    assert aligned.shape == (2, 3, length, length)
    for i in range(length):
        for j in range(i + 1):
            assert (aligned[:, :, i, j] == 100 * i + i - j).all()


def test_number_of_parameters() -> None:
    model = RelativeTransformer(TransformerXL(), 33_278)
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
    assert sum(parameter.numel() for parameter in model.parameters()) == 54_585_854


def test_defaults_are_the_paper_s() -> None:
    own = TransformerXL()
    sizes = (own.layers, own.d_model, own.heads, own.d_head, own.feed_forward)
    assert sizes == (6, 512, 8, 64, 2048)
    sites = RelativeTransformer(own, 10).sites(128)
    assert {name for name, site in sites.items() if site.rate != 0.1} == {
        f"layer {i} attention" for i in range(6)
    }
    assert {site.rate for name, site in sites.items() if name.endswith("attention")} == {0.0}


def test_initial_values() -> None:
    """Deviations within five standard errors."""
    own = TransformerXL(layers=2, d_model=128, heads=4, d_head=32, feed_forward=100)
    model = own.build(3000, generator())
    for name, values in model.named_parameters():
        values = values.detach()
        if name.endswith(".bias"):
            assert not values.any(), name
        else:
            centre, errors = float("norm" in name), 5 * 0.02 / math.sqrt(values.numel())
            assert abs(values.mean().item() - centre) < errors, name
            assert abs(values.std().item() - 0.02) < errors, name
    assert not any(layer.in_projection.bias is not None for layer in model.stack)


def test_the_generator_decides_alone() -> None:
    torch.manual_seed(5)
    state = torch.random.get_rng_state()
    first = RELATIVE.build(VOCABULARY, generator(3))
    assert torch.equal(state, torch.random.get_rng_state())
    torch.manual_seed(6)
    second = RELATIVE.build(VOCABULARY, generator(3))
    other = RELATIVE.build(VOCABULARY, generator(4))
    for name, parameter in first.named_parameters():
        assert torch.equal(parameter, second.get_parameter(name))
        if not name.endswith(".bias"):
            assert not torch.equal(parameter, other.get_parameter(name))
        assert (parameter.dtype, parameter.device.type) == (torch.float32, "cpu")
    assert not list(first.buffers())


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: TransformerXL(d_model=9), "d_model must be even, found 9"),
        (lambda: TransformerXL(d_head=0), "d_head must be an integer >= 1, found 0"),
        (lambda: TransformerXL(dropout=-0.1), r"dropout must be in \[0, 1\), found -0.1"),
        (lambda: TransformerXL(attention_dropout=1), r"attention_dropout must be in \[0, 1\)"),
        (lambda: TransformerXL().build(0, generator()), "vocabulary must be an integer >= 1"),
    ],
)
def test_parameters_are_checked(build: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=f"^TransformerXL: {message}"):
        build()
