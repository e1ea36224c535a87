"""Recorded functions: the same bits, from the operations alone; and what is never recorded."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable

import pytest
import torch
from host_samples import CLASSES, FEATURES, cnn, mlp, parameters
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.functional import cross_entropy

from robust_agg.seeding import generator
from workers import Gradients
from workers.recorded import MOST, Recorded

K, BATCH = 3, 5


class Counted:
    """A function that knows how often it was called."""

    def __init__(self, function: Callable[..., Tensor]) -> None:
        self.function, self.calls = function, 0

    def __call__(self, *tensors: Tensor) -> Tensor:
        self.calls += 1
        return self.function(*tensors)


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=generator(seed, "recorded"))


def calls(function: Callable[..., Tensor], times: int = 5) -> int:
    """How often the function itself is called in so many calls, whose results are checked."""
    counted = Counted(function)
    recorded = Recorded(counted)
    for seed in range(times):
        x, y = draw(K, BATCH, seed=seed), draw(K, BATCH, seed=seed + times)
        assert torch.equal(recorded(x.clone(), y.clone()), function(x, y))
    return counted.calls


@pytest.mark.parametrize("model", [mlp, cnn])
@pytest.mark.parametrize("shared", [True, False])
def test_gradients_are_the_same_to_the_last_bit(
    model: Callable[[], nn.Module], shared: bool
) -> None:
    module = model()
    shapes = {name: p.shape for name, p in module.named_parameters()}

    def loss(weights: Tensor, inputs: Tensor, targets: Tensor) -> Tensor:
        parts = weights.split([shape.numel() for shape in shapes.values()])
        named = {name: p.view(shapes[name]) for name, p in zip(shapes, parts, strict=True)}
        outputs: Tensor = functional_call(module, named, (inputs,))
        return cross_entropy(outputs, targets)

    plain = vmap(grad(loss), in_dims=(None if shared else 0, 0, 0))
    counted = Counted(cross_entropy)
    gradients = Gradients(model(), counted, vectorize=True, pure=True)
    base = parameters(model)
    for seed in range(5):
        weights = base + draw(len(base), seed=seed) / 10
        weights = weights if shared else weights + draw(K, len(base), seed=seed + 9) / 10
        inputs = draw(K, BATCH, FEATURES, seed=seed)
        targets = torch.randint(CLASSES, (K, BATCH), generator=generator(seed, "targets"))
        rows = gradients(weights, inputs, targets, range(K))
        assert torch.equal(rows, plain(weights, inputs, targets))
    assert counted.calls == 2


def test_operations_alone_are_repeated_after_two_calls() -> None:
    assert calls(lambda x, y: (x @ y.T).relu().sum(dim=0)) == 2
    assert calls(lambda x, y: torch.stack(x.unbind()[1:]).topk(2).values.mul_(y[:1, :1])) == 2


def test_each_form_has_a_recording_of_its_own() -> None:
    counted = Counted(lambda x: x.reshape(-1).exp())
    recorded = Recorded(counted)
    wide = draw(4, 6, seed=1)
    forms = [wide, wide.T, wide.double(), wide[:2]]
    for step in range(4):
        for x in forms:
            scaled = x * step
            assert scaled.stride() == x.stride()
            assert torch.equal(recorded(scaled), scaled.reshape(-1).exp())
    assert counted.calls == 2 * len(forms)
    for width in range(1, MOST + 1):
        for step in range(4):
            recorded(draw(width, seed=step))
    recorded_forms = MOST - len(forms)
    assert counted.calls == 2 * MOST + 4 * (MOST - recorded_forms)


def test_tensors_outside_are_read_anew() -> None:
    buffer = torch.zeros(BATCH)
    counted = Counted(lambda x: x + buffer)
    recorded = Recorded(counted)
    x = draw(K, BATCH, seed=0)
    for step in range(5):
        buffer.fill_(step)
        assert torch.equal(recorded(x), x + step)
    assert counted.calls == 2


def test_what_is_written_to_a_tensor_of_its_own_is_not_repeated() -> None:
    def sums(x: Tensor, y: Tensor) -> Tensor:
        total = torch.tensor(0.0)
        total.add_((x > 10).sum())
        return total + y

    assert calls(sums) == 5


def test_the_same_contents_twice_prove_nothing() -> None:
    recorded = Recorded(lambda x: x * float(x.numpy().max()))
    for scale in (1.0, 1.0, 1.0, 2.0, 3.0):
        x = torch.arange(3.0) * scale
        assert torch.equal(recorded(x), x * float(x.max()))


def random_rows(x: Tensor, y: Tensor) -> Tensor:
    return x + y * torch.rand(K, BATCH, generator=torch.Generator().manual_seed(3))


def branching(x: Tensor, y: Tensor) -> Tensor:
    return x + y if float(x.sum()) > 0 else x - y


def by_length(x: Tensor, y: Tensor) -> Tensor:
    return x * len(y[y > 0])


def by_list(x: Tensor, y: Tensor) -> Tensor:
    return x * max(map(max, y.tolist()))


@pytest.mark.parametrize("function", [random_rows, branching, by_length, by_list])
def test_what_operations_do_not_say_is_not_recorded(function: Callable[..., Tensor]) -> None:
    assert calls(function) == 5


def test_a_function_that_changes_is_found_out() -> None:
    steps = iter(range(1, 6))
    counted = Counted(lambda x: x * next(steps))
    recorded = Recorded(counted)
    assert [float(recorded(torch.ones(1))) for _ in range(5)] == [1, 2, 3, 4, 5]
    assert counted.calls == 5


def test_what_is_given_back_as_it_is() -> None:
    constant = torch.ones(K, BATCH)
    assert calls(lambda x, y: constant) == 5, "not computed, and not given"
    assert calls(lambda x, y: y) == 2


def test_one_tensor_given_twice_is_not_taken_for_two() -> None:
    counted = Counted(lambda x, y: x - 2 * y)
    recorded = Recorded(counted)
    for scale in range(1, 5):
        x, y = torch.full((3,), float(scale)), torch.zeros(3)
        assert torch.equal(recorded(x, x), -x)
        assert torch.equal(recorded(x, y), x)
    assert counted.calls == 4 + 2


def test_autocast_and_subclasses_call_the_function() -> None:
    counted = Counted(lambda x: x @ x)
    recorded = Recorded(counted)
    x = draw(4, 4, seed=0)
    for step in range(4):
        recorded(x * step)
    assert counted.calls == 2
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert recorded(x).dtype == torch.bfloat16
    assert torch.equal(recorded(nn.Parameter(x)), x @ x)
    assert counted.calls == 4


def test_an_error_stays_an_error() -> None:
    counted = Counted(lambda x, y: x.gather(0, y))
    recorded = Recorded(counted)
    for scale in range(1, 5):
        x = torch.arange(3.0) * scale
        assert torch.equal(recorded(x, torch.tensor([2, 0])), x[[2, 0]])
    assert counted.calls == 2
    with pytest.raises(RuntimeError, match="out of bounds"):
        recorded(x, torch.tensor([3, 0]))
    assert counted.calls == 2


def test_nothing_of_the_recorded_call_is_kept() -> None:
    made = []

    def function(x: Tensor) -> Tensor:
        between = x.exp()
        made.append(weakref.ref(between))
        return between.sum()

    recorded = Recorded(function)
    x = torch.ones(3)
    seen = weakref.ref(x)
    recorded(x)
    del x
    gc.collect()
    assert seen() is None
    assert made[0]() is None
