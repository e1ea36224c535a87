"""Rows of gradients: vectorised, looped, and against a plain backward pass."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from host_samples import CLASSES, FEATURES, batch_norm, cnn, dropout, mlp, parameters
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.functional import dropout as drop
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from robust_agg.seeding import generator
from workers import Gradients

K, BATCH = 5, 7
Model = Callable[[], nn.Module]


class Tied(nn.Module):
    """One weight used twice, a scalar parameter, and a parameter that takes no part."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(FEATURES, FEATURES)
        self.second = nn.Linear(FEATURES, FEATURES)
        self.second.weight = self.first.weight
        self.scale = nn.Parameter(torch.tensor(2.0))
        self.idle = nn.Parameter(torch.zeros(3))

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.second(self.first(inputs).tanh())
        return self.scale * outputs[:, :CLASSES]


class Hidden(nn.Module):
    """Dropout that no layer shows."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(FEATURES, CLASSES)

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.layer(drop(inputs, 0.5))
        return outputs


class Stubborn(nn.Module):
    """A branch on data, which vmap cannot follow."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(FEATURES, CLASSES)

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.layer(inputs)
        return outputs if float(outputs.detach().sum()) > 0 else 2 * outputs


def data() -> tuple[Tensor, Tensor]:
    draw = generator(0, "data")
    inputs = torch.randn(K, BATCH, FEATURES, generator=draw)
    return inputs, torch.randint(CLASSES, (K, BATCH), generator=draw)


def compute(gradients: Gradients, weights: Tensor, seeds: range = range(K)) -> Tensor:
    inputs, targets = data()
    return gradients(weights, inputs, targets, seeds)


def backward(model: nn.Module, weights: Tensor) -> Tensor:
    """The rows by ``loss.backward()`` on a module of one's own."""
    rows = []
    for i, (inputs, targets) in enumerate(zip(*data(), strict=True)):
        fresh = copy.deepcopy(model).train()
        vector_to_parameters(weights if weights.dim() == 1 else weights[i], fresh.parameters())
        cross_entropy(fresh(inputs), targets).backward()
        for p in fresh.parameters():
            p.grad = torch.zeros_like(p) if p.grad is None else p.grad
        rows.append(parameters_to_vector(p.grad for p in fresh.parameters() if p.grad is not None))
    return torch.stack(rows)


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("vectorize", [True, False, None])
@pytest.mark.parametrize("model", [mlp, cnn, Tied])
def test_rows_are_those_of_a_backward_pass(
    model: Model, vectorize: bool | None, shared: bool
) -> None:
    module = model()
    weights = parameters(model)
    if not shared:
        weights = weights + torch.randn(K, len(weights), generator=generator(0, "weights")) / 10
    gradients = Gradients(copy.deepcopy(module), cross_entropy, vectorize=vectorize)
    torch.testing.assert_close(compute(gradients, weights), backward(module, weights))
    assert gradients.vectorize is (vectorize is not False)


@pytest.mark.parametrize("shared", [True, False])
def test_batch_norm_is_looped_and_its_statistics_stay(shared: bool) -> None:
    module = batch_norm()
    weights = parameters(batch_norm)
    weights = weights if shared else weights.repeat(K, 1)
    gradients = Gradients(copy.deepcopy(module), cross_entropy)
    assert gradients.vectorize is False
    buffers = {name: b.clone() for name, b in gradients._model.named_buffers()}
    torch.testing.assert_close(compute(gradients, weights), backward(module, weights))
    for name, buffer in gradients._model.named_buffers():
        assert torch.equal(buffer, buffers[name])


def test_batch_norm_without_running_statistics_is_vectorised() -> None:
    module = nn.Sequential(
        nn.BatchNorm1d(FEATURES, track_running_stats=False), nn.Linear(FEATURES, CLASSES)
    )
    weights = parameters(lambda: module)
    gradients = Gradients(copy.deepcopy(module), cross_entropy)
    torch.testing.assert_close(compute(gradients, weights), backward(module, weights))
    assert gradients.vectorize is True


@pytest.mark.parametrize("model", [dropout, Hidden])
def test_dropout_draws_from_the_workers_seed(model: Model) -> None:
    weights = parameters(model)
    gradients = Gradients(model(), cross_entropy)
    state = torch.get_rng_state()
    first = compute(gradients, weights)
    assert gradients.vectorize is False
    assert torch.equal(torch.get_rng_state(), state), "the caller's generator is left alone"
    torch.manual_seed(1)
    assert torch.equal(compute(gradients, weights), first)
    others = compute(gradients, weights, range(1, K + 1))
    assert not any(torch.equal(a, b) for a, b in zip(others, first, strict=True))

    inputs, targets = data()
    same = inputs[:1].expand(K, -1, -1), targets[:1].expand(K, -1)
    rows = gradients(weights, *same, [0, 0, 1, 2, 3])
    assert torch.equal(rows[0], rows[1])
    assert not torch.equal(rows[0], rows[2])


def test_what_vmap_cannot_do_is_looped() -> None:
    module = Stubborn()
    weights = parameters(Stubborn)
    gradients = Gradients(copy.deepcopy(module), cross_entropy)
    torch.testing.assert_close(compute(gradients, weights), backward(module, weights))
    assert gradients.vectorize is False
    with pytest.raises(RuntimeError, match="vmap"):
        compute(Gradients(Stubborn(), cross_entropy, vectorize=True), weights)


def test_an_error_of_the_data_decides_nothing() -> None:
    gradients = Gradients(mlp(), cross_entropy)
    inputs, targets = data()
    with pytest.raises(IndexError, match="out of bounds"):
        gradients(parameters(mlp), inputs, targets + CLASSES, range(K))
    assert gradients.vectorize is None
    compute(gradients, parameters(mlp))
    assert gradients.vectorize is True


def test_frozen_parameters_have_no_column() -> None:
    module = mlp()
    module[0].requires_grad_(False)  # type: ignore[index]  # a Sequential
    trained = [p for p in module.parameters() if p.requires_grad]
    weights = parameters_to_vector(trained).detach()
    for vectorize in (True, False):
        gradients = Gradients(copy.deepcopy(module), cross_entropy, vectorize=vectorize)
        assert gradients.dim == len(weights) == 5 * CLASSES + CLASSES
        out = compute(gradients, weights)
        full = parameters_to_vector(module.parameters()).detach()
        torch.testing.assert_close(out, backward(mlp(), full)[:, -gradients.dim :])


def test_errors() -> None:
    with pytest.raises(ValueError, match="must have trainable parameters, found none"):
        Gradients(nn.Flatten(), cross_entropy)
    with pytest.raises(ValueError, match=r"vectorize must not be True .* BatchNorm1d, found True"):
        Gradients(batch_norm(), cross_entropy, vectorize=True)
    with pytest.raises(ValueError, match=r"vectorize must not be True .* Dropout, found True"):
        Gradients(dropout(), cross_entropy, vectorize=True)


@pytest.mark.parametrize("seeds", [range(K - 1), range(K + 1)], ids=len)
def test_every_worker_that_is_looped_over_has_a_seed(seeds: range) -> None:
    gradients = Gradients(mlp(), cross_entropy, vectorize=False)
    with pytest.raises(ValueError, match="zip"):
        gradients(parameters(mlp), *data(), seeds)


def test_rows_that_are_equal_are_rows_of_their_own() -> None:
    model = nn.Linear(FEATURES, CLASSES)
    gradients = Gradients(
        model, lambda outputs, targets: 0 * outputs.detach().sum(), vectorize=True
    )
    rows = gradients(parameters(lambda: model), *data(), range(K))
    assert not rows.any()
    rows[0] = 1.0
    assert not rows[1:].any()
