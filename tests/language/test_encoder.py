"""The causal encoder: against torch's own layers, its initialisation and its sizes."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from language_samples import ENCODER, VOCABULARY, batch, generator, masks_of, shaken
from torch import Tensor, nn

from experiments.language.encoder import SMALL, Encoder, EncoderLM


def built(seed: int = 0) -> Encoder:
    return ENCODER.build(VOCABULARY, generator(seed))


class Times(nn.Module):
    """In place of torch's dropout: the product with a given mask, for batches in second place."""

    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        self.mask = mask.transpose(0, 1)

    def forward(self, values: Tensor) -> Tensor:
        return values * self.mask


def torch_layers(model: Encoder) -> nn.TransformerEncoder:
    """torch's encoder with the model's weights, float64, in training mode but without dropout."""
    own = model.specification
    layer = nn.TransformerEncoderLayer(own.d_model, own.heads, own.feed_forward, dropout=0.0)
    theirs = nn.TransformerEncoder(layer, own.layers, enable_nested_tensor=False).double()
    for ours, other in zip(model.stack, theirs.layers, strict=True):
        pairs = {
            "self_attn.in_proj_": ours.in_projection,
            "self_attn.out_proj.": ours.out_projection,
            "norm1.": ours.attention_norm,
            "linear1.": ours.inner,
            "linear2.": ours.outer,
            "norm2.": ours.outer_norm,
        }
        other.load_state_dict(
            {
                name + kind: getattr(part, kind)
                for name, part in pairs.items()
                for kind in ("weight", "bias")
            }
        )
    return theirs


def expected(
    model: Encoder, layers: nn.Module, inputs: Tensor, drop: Callable[..., Tensor]
) -> Tensor:
    """Kunstner et al.'s model: embedding, positions and decoder by hand, around torch's layers."""
    width, length = model.specification.d_model, len(inputs)
    positions = torch.zeros(length, 1, width, dtype=torch.float64)
    for t in range(length):
        for k in range(0, width, 2):
            angle = t / 10_000 ** (k / width)
            positions[t, 0, k], positions[t, 0, k + 1] = math.sin(angle), math.cos(angle)
    words = nn.functional.embedding(inputs, model.embedding.weight) * math.sqrt(width)
    mask = nn.Transformer.generate_square_subsequent_mask(length, dtype=torch.float64)
    return model.decoder(layers(drop(words + positions), mask=mask))


@pytest.mark.parametrize(("length", "width"), [(1, 1), (1, 4), (9, 1), (9, 4)])
def test_equals_torch_s_encoder(length: int, width: int) -> None:
    model = shaken(ENCODER)
    assert isinstance(model, Encoder)
    theirs = torch_layers(model)
    inputs, targets = batch(length, width)
    logits = expected(model, theirs, inputs, lambda x: x)
    assert logits.std() > 0.5, "the model does something"
    torch.testing.assert_close(model(inputs), logits, rtol=1e-10, atol=1e-10)

    nn.functional.cross_entropy(model(inputs).flatten(0, 1), targets.flatten()).backward()
    ours = [layer.in_projection.weight.grad for layer in model.stack]
    nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten()).backward()
    for mine, layer in zip(ours, theirs.layers, strict=True):
        torch.testing.assert_close(mine, layer.self_attn.in_proj_weight.grad)


def test_dropout_acts_where_torch_s_does() -> None:
    """torch's own dropout modules, replaced by our masks; that on attention weights is no module
    there and left out here."""
    model = shaken(ENCODER)
    assert isinstance(model, Encoder)
    inputs, _ = batch(9, 4)
    masks = {n: m for n, m in masks_of(model, inputs).items() if not n.endswith("attention")}
    theirs = torch_layers(model)
    for i, layer in enumerate(theirs.layers):
        layer.dropout1 = Times(masks[f"layer {i} attended"])
        layer.dropout = Times(masks[f"layer {i} inner"])
        layer.dropout2 = Times(masks[f"layer {i} outer"])
    logits = expected(model, theirs, inputs, Times(masks["input"]))
    torch.testing.assert_close(model(inputs, masks), logits, rtol=1e-10, atol=1e-10)
    assert (model(inputs) - logits).abs().max() > 0.1


def test_attention_with_dropout_on_its_weights() -> None:
    """One layer against loops over heads, words and the words before them."""
    model = shaken(ENCODER)
    assert isinstance(model, Encoder)
    layer, own = model.stack[0], ENCODER
    length, columns, width = 6, 2, own.d_model // own.heads
    states = torch.randn(columns, length, own.d_model, dtype=torch.float64, generator=generator(3))
    sites = layer.sites(length)
    mask = masks_of(model, torch.zeros(length, columns))["layer 0 attention"].double()
    assert mask.shape[1:] == sites["layer 0 attention"].shape
    queries, keys, values = layer.in_projection(states).detach().chunk(3, dim=-1)
    attended = torch.zeros_like(states)
    for b in range(columns):
        for h in range(own.heads):
            part = slice(h * width, (h + 1) * width)
            for i in range(length):
                scores = [float(queries[b, i, part] @ keys[b, j, part]) for j in range(i + 1)]
                powers = [math.exp(score / math.sqrt(width)) for score in scores]
                for j, power in enumerate(powers):
                    weight = power / sum(powers) * mask[b, h, i, j]
                    attended[b, i, part] += weight * values[b, j, part]
    first = layer.attention_norm(states + layer.out_projection(attended))
    second = layer.outer_norm(first + layer.outer(layer.inner(first).relu()))
    hidden_from = torch.ones(length, length, dtype=torch.bool).triu(1)
    found = layer(states, {"layer 0 attention": mask}, hidden_from)
    torch.testing.assert_close(found, second, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("specification", "vocabulary", "count"),
    [(EncoderLM(), 10_000, 4_494_000), (SMALL, 2_000, 308_432)],
    ids=["exact", "small"],
)
def test_number_of_parameters(specification: EncoderLM, vocabulary: int, count: int) -> None:
    model = Encoder(specification, vocabulary)
    assert sum(parameter.numel() for parameter in model.parameters()) == count


def test_defaults_are_the_paper_s() -> None:
    own = EncoderLM()
    sizes = (own.d_model, own.heads, own.feed_forward, own.layers, own.dropout)
    assert sizes == (200, 2, 200, 2, 0.2)
    rates = {site.rate for site in Encoder(own, 10).sites(35).values()}
    assert rates == {0.2}
    assert len(Encoder(own, 10).sites(35)) == 1 + 4 * own.layers


def test_initial_values() -> None:
    """Deviations within five standard errors, and the uniform matrices fill their interval."""
    model = EncoderLM(layers=3).build(3000, generator())
    bound = math.sqrt(6 / (4 * 200))
    for name, values in model.named_parameters():
        values = values.detach()
        if name.endswith("bias"):
            assert not values.any(), name
        elif name.endswith("in_projection.weight"):
            assert values.abs().max() <= bound
            assert values.abs().max() > 0.999 * bound
            assert values.square().mean().item() == pytest.approx(bound**2 / 3, rel=0.02)
            assert torch.equal(values, model.stack[0].in_projection.weight)
        else:
            centre, errors = float("norm" in name), 5 * 0.02 / math.sqrt(values.numel())
            assert abs(values.mean().item() - centre) < errors, name
            assert abs(values.std().item() - 0.02) < errors, name


def test_the_generator_decides_alone() -> None:
    torch.manual_seed(5)
    state = torch.random.get_rng_state()
    first = built(3)
    assert torch.equal(state, torch.random.get_rng_state())
    torch.manual_seed(6)
    second, other = built(3), built(4)
    for name, parameter in first.named_parameters():
        assert torch.equal(parameter, second.get_parameter(name))
        if not name.endswith("bias"):
            assert not torch.equal(parameter, other.get_parameter(name))


def test_parameters_are_plain_float32_and_the_only_state() -> None:
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        model = built()
        logits = model(batch(4, 2)[0])
    finally:
        torch.set_default_dtype(default)
    assert logits.dtype == torch.float32
    assert {(p.dtype, p.device.type, p.requires_grad) for p in model.parameters()} == {
        (torch.float32, "cpu", True)
    }
    assert not list(model.buffers())


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: EncoderLM(d_model=9, heads=3), "d_model must be even .* d_model=9, heads=3"),
        (lambda: EncoderLM(heads=3), "a multiple of heads, found d_model=200, heads=3"),
        (lambda: EncoderLM(layers=0), "layers must be an integer >= 1, found 0"),
        (lambda: EncoderLM(dropout=1.0), r"dropout must be in \[0, 1\), found 1.0"),
        (lambda: EncoderLM().build(0, generator()), "vocabulary must be an integer >= 1"),
    ],
)
def test_parameters_are_checked(build: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=f"^EncoderLM: .*{message}"):
        build()
