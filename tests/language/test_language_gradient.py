"""Gradients of the language models: exact, whatever the grouping, and a function of their seed."""

from __future__ import annotations

import math
import os

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from language_samples import (
    ENCODER,
    RELATIVE,
    VOCABULARY,
    Specification,
    batch,
    generator,
    masks_of,
    shaken,
)
from torch import Tensor
from torch.func import functional_call, grad, vmap
from torch.nn.functional import cross_entropy

from experiments.data import DATA_VARIABLE
from experiments.language import corpus
from experiments.language import gradient as language_gradient
from experiments.language.encoder import SMALL, EncoderLM
from experiments.language.gradient import gradient, loss, loss_and_gradient
from experiments.language.model import LanguageModel

every_model = pytest.mark.parametrize("specification", [ENCODER, RELATIVE], ids=["encoder", "xl"])


def by_autograd(
    model: LanguageModel, inputs: Tensor, targets: Tensor, seed: int | None
) -> tuple[float, Tensor]:
    masks = {} if seed is None else masks_of(model, inputs, seed)
    value = cross_entropy(model(inputs, masks).flatten(0, 1), targets.flatten())
    parts = torch.autograd.grad(value, list(model.parameters()))
    return value.item(), torch.cat([part.flatten() for part in parts])


# --- the models: what a word sees -----------------------------------------------------------------


@settings(deadline=None, max_examples=20)
@given(st.sampled_from([ENCODER, RELATIVE]), st.integers(0, 7), st.booleans())
def test_no_word_sees_a_later_one_or_another_column(
    specification: Specification, position: int, dropout: bool
) -> None:
    model = shaken(specification)
    inputs, _ = batch(8, 3)
    masks = masks_of(model, inputs) if dropout else {}
    changed = inputs.clone()
    changed[position, 1] = (changed[position, 1] + 1) % VOCABULARY
    before, after = model(inputs, masks), model(changed, masks)
    assert torch.equal(before[:position], after[:position])
    assert torch.equal(before[:, ::2], after[:, ::2])
    differences = (before - after)[position:, 1].abs().amax(1)
    assert differences.min() > 1e-9, "every later word of the column sees it"


# --- the gradient ---------------------------------------------------------------------------------


@every_model
@pytest.mark.parametrize("seed", [None, 7])
@pytest.mark.parametrize(("length", "width"), [(1, 1), (6, 5)])
def test_equals_autograd(
    specification: Specification, seed: int | None, length: int, width: int
) -> None:
    model = shaken(specification)
    inputs, targets = batch(length, width)
    value, row = loss_and_gradient(model, inputs, targets, seed=seed)
    expected_value, expected = by_autograd(model, inputs, targets, seed)
    assert value == pytest.approx(expected_value, rel=1e-12)
    torch.testing.assert_close(row, expected, rtol=1e-9, atol=1e-12)
    assert loss(model, inputs, targets, seed=seed) == pytest.approx(expected_value, rel=1e-12)


@every_model
def test_initial_models_in_float32(specification: Specification) -> None:
    model = specification.build(VOCABULARY, generator())
    inputs, targets = batch(6, 5)
    row = gradient(model, inputs, targets, seed=1)
    assert row.dtype == torch.float32
    assert row.shape == (sum(parameter.numel() for parameter in model.parameters()),)
    assert not row.requires_grad
    _, expected = by_autograd(model, inputs, targets, 1)
    torch.testing.assert_close(row, expected, rtol=1e-4, atol=1e-6)


@every_model
@pytest.mark.parametrize("seed", [None, 3])
@pytest.mark.parametrize("logits", [1, 4 * VOCABULARY, 1 << 21])
def test_grouping_changes_nothing(
    specification: Specification,
    seed: int | None,
    logits: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Groups of columns, and within them of words for the decoder, equal or with a remainder."""
    model = shaken(specification)
    inputs, targets = batch(6, 7)
    value, row = loss_and_gradient(model, inputs, targets, seed=seed)
    monkeypatch.setitem(language_gradient._LOGITS, "cpu", logits)
    for microbatch in (1, 3, 99):
        again, other = loss_and_gradient(model, inputs, targets, seed=seed, microbatch=microbatch)
        assert again == pytest.approx(value, rel=1e-12)
        torch.testing.assert_close(other, row, rtol=1e-9, atol=1e-12)
        assert loss(model, inputs, targets, seed=seed, microbatch=microbatch) == pytest.approx(
            value, rel=1e-12
        )


@pytest.mark.parametrize(
    ("limit", "expected"), [(48, [8]), (47, [4, 4]), (20, [3, 3, 2]), (5, [1] * 8)]
)
def test_groups_are_as_few_as_allowed_and_about_equal(
    limit: int, expected: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Eight columns of six words; where seven fit, two groups of four rather than seven and one."""
    model = shaken(ENCODER)
    inputs, targets = batch(6, 8)
    monkeypatch.setitem(language_gradient._WORDS, "cpu", limit)
    groups = list(language_gradient._groups(model, inputs, targets, None, None))
    assert [part.shape[1] for part, _, _ in groups] == expected
    assert torch.equal(torch.cat([part for part, _, _ in groups], dim=1), inputs)
    assert torch.equal(torch.cat([part for _, part, _ in groups], dim=1), targets)


@every_model
def test_the_seed_decides(specification: Specification) -> None:
    model = specification.build(VOCABULARY, generator())
    inputs, targets = batch(6, 4)
    first = gradient(model, inputs, targets, seed=11)
    assert torch.equal(first, gradient(model, inputs, targets, seed=11))
    for other in (12, None):
        difference = first - gradient(model, inputs, targets, seed=other)
        assert difference.norm() > 0.05 * first.norm()


@every_model
def test_leaves_everything_as_it_was(specification: Specification) -> None:
    """The global random state, the parameters, their gradients, the batch; and grad mode is its."""
    model = specification.build(VOCABULARY, generator())
    inputs, targets = batch(6, 4)
    copies = [tensor.detach().clone() for tensor in (inputs, targets, *model.parameters())]
    torch.manual_seed(5)
    state = torch.random.get_rng_state()
    with torch.no_grad():
        row = gradient(model, inputs, targets, seed=2)
    loss(model, inputs, targets, seed=2)
    assert row.any()
    assert torch.equal(state, torch.random.get_rng_state())
    assert all(parameter.grad is None for parameter in model.parameters())
    for tensor, copy in zip((inputs, targets, *model.parameters()), copies, strict=True):
        assert torch.equal(tensor, copy)


def test_extreme_logits() -> None:
    """Probabilities that round to 0 and 1: a loss of thousands, a finite gradient."""
    model = shaken(ENCODER)
    with torch.no_grad():
        model.decoder.bias[3] += 5000
    model.float()
    inputs, targets = batch(6, 4)
    targets = targets.clamp(min=4)
    value, row = loss_and_gradient(model, inputs, targets, seed=None)
    expected_value, expected = by_autograd(model, inputs, targets, None)
    assert value > 4000
    assert value == pytest.approx(expected_value, rel=1e-6)
    torch.testing.assert_close(row, expected, rtol=1e-4, atol=1e-6)


@every_model
def test_gradients_of_many_workers_vectorise(specification: Specification) -> None:
    """Masks are arguments, so that vmap takes a batch and masks a worker."""
    model = shaken(specification)
    batches = [batch(5, 2, seed) for seed in range(3)]
    masks = [masks_of(model, inputs, seed) for seed, (inputs, _) in enumerate(batches)]

    def of(
        parameters: dict[str, Tensor], inputs: Tensor, targets: Tensor, masks: dict[str, Tensor]
    ) -> Tensor:
        logits = functional_call(model, parameters, (inputs, masks))
        return cross_entropy(logits.flatten(0, 1), targets.flatten())

    parameters = {name: value.detach() for name, value in model.named_parameters()}
    together = vmap(grad(of), in_dims=(None, 0, 0, 0))(
        parameters,
        torch.stack([inputs for inputs, _ in batches]),
        torch.stack([targets for _, targets in batches]),
        {name: torch.stack([each[name] for each in masks]) for name in masks[0]},
    )
    rows = torch.cat([part.flatten(1) for part in together.values()], dim=1)
    for seed, (inputs, targets) in enumerate(batches):
        row = gradient(model, inputs, targets, seed=seed)
        torch.testing.assert_close(rows[seed], row, rtol=1e-9, atol=1e-12)


@every_model
def test_models_learn(specification: Specification) -> None:
    """A text that repeats ten words is predicted but for the masks' noise."""
    model = specification.build(VOCABULARY, generator())
    text = torch.arange(10).repeat(120)
    pairs = corpus.batches(text, 4, 12)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    start = loss(model, *pairs[0])
    assert start == pytest.approx(math.log(VOCABULARY), abs=0.2)
    for step, (inputs, targets) in enumerate(4 * pairs):
        row = gradient(model, inputs, targets, seed=step)
        parts = row.split([parameter.numel() for parameter in model.parameters()])
        for parameter, part in zip(model.parameters(), parts, strict=True):
            parameter.grad = part.view_as(parameter)
        optimizer.step()
    assert loss(model, *pairs[0]) < 0.2


@pytest.mark.parametrize(
    ("specification", "words"), [(EncoderLM(), None), (SMALL, 2000)], ids=["exact", "small"]
)
def test_ptb_starts_at_a_uniform_guess(specification: EncoderLM, words: int | None) -> None:
    root = os.environ.get(DATA_VARIABLE)
    if not root or not os.path.isdir(os.path.join(root, "ptb")):
        pytest.skip(f"the files of ptb are needed: {DATA_VARIABLE} is {root or 'not set'}")
    text = corpus.load("ptb", words=words)
    model = specification.build(len(text.vocabulary), generator())
    inputs, targets = corpus.batches(text.train, 8, 35)[0]
    value, row = loss_and_gradient(model, inputs, targets, seed=0)
    assert value == pytest.approx(math.log(len(text.vocabulary)), abs=0.2)
    assert row.isfinite().all()


@pytest.mark.parametrize(
    ("inputs", "targets", "microbatch", "message"),
    [
        ((3, 2), (2, 3), None, r"found \(3, 2\) and \(2, 3\)"),
        ((3,), (3,), None, r"one shape \(T, B\) with T, B >= 1, found \(3,\) and \(3,\)"),
        ((3, 0), (3, 0), None, r"found \(3, 0\) and \(3, 0\)"),
        ((3, 2), (3, 2), 0, "microbatch must be an integer >= 1, found 0"),
    ],
)
def test_arguments_are_checked(
    inputs: tuple[int, ...], targets: tuple[int, ...], microbatch: int | None, message: str
) -> None:
    model = ENCODER.build(VOCABULARY, generator())
    words = [torch.zeros(shape, dtype=torch.int64) for shape in (inputs, targets)]
    for function in (gradient, loss):
        with pytest.raises(ValueError, match=f"^gradient: .*{message}"):
            function(model, *words, seed=0, microbatch=microbatch)
