"""Recipes and corruptions: what they say they do, each with the same budget."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from experiments.paper.corruption import CORRUPTIONS
from experiments.paper.recipes import RECIPES
from robust_agg.seeding import generator

D = 5000


def test_all_recipes_have_the_same_number_of_trials() -> None:
    assert {len(recipe.trials) for recipe in RECIPES.values()} == {8}


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_minimises_a_quadratic(name: str) -> None:
    parameter = nn.Parameter(torch.linspace(-1, 1, 40))
    recipe = RECIPES[name]
    lr, tau = recipe.trials[-1]
    # The largest of the grid is for language models; a quadratic of curvature 1 needs less.
    step = recipe.attach([parameter], min(lr, 0.05), tau)
    before = float(parameter.detach().square().sum())
    for _ in range(30):
        parameter.grad = parameter.detach().clone()
        step()
    assert float(parameter.detach().square().sum()) < before


def test_steps_are_what_the_names_say() -> None:
    def step(name: str, gradient: list[float], lr: float, tau: float | None) -> list[float]:
        parameter = nn.Parameter(torch.zeros(2))
        take = RECIPES[name].attach([parameter], lr, tau)
        parameter.grad = torch.tensor(gradient)
        take()
        return [round(value, 4) for value in parameter.tolist()]

    assert step("Signum", [3.0, -4.0], 0.1, 0.5) == [-0.1, 0.1]
    assert step("normalised momentum", [3.0, -4.0], 0.1, 0.5) == [-0.06, 0.08]
    # Clipped to 1/4, then times τ.
    assert step("clip, then momentum", [3.0, -4.0], 1.0, 0.5) == [-0.075, 0.1]
    assert step("bias-corrected momentum", [3.0, -4.0], 1.0, 0.5) == [-3.0, 4.0]
    assert step("VClip", [3.0, -4.0], 1.0, 0.5) == [-0.3, 0.4]
    assert step("CClip", [3.0, -4.0], 1.0, 0.5) == [-0.5, 0.5]


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_a_corruption_is_a_function_of_gradient_and_generator(name: str) -> None:
    gradient = torch.randn(D, generator=generator(0, "gradient"))
    before = gradient.clone()
    a, b = (CORRUPTIONS[name](gradient, generator(3, "corruption")) for _ in range(2))
    assert torch.equal(a, b) or bool(a.isnan().any())
    assert torch.equal(gradient, before)
    assert a.shape == gradient.shape
    assert a.dtype == gradient.dtype


def test_corruptions_are_as_frequent_and_as_large_as_they_say() -> None:
    gradient = torch.randn(D, generator=generator(0, "gradient"))
    draws = [generator(seed, "corruption") for seed in range(2000)]
    changed = [not torch.equal(CORRUPTIONS["1 % garbage"](gradient, d), gradient) for d in draws]
    assert 5 <= sum(changed) <= 40
    for seed in range(50):
        flipped = CORRUPTIONS["bit flips"](gradient, generator(seed, "corruption"))
        words = flipped.view(torch.int32) ^ gradient.view(torch.int32)
        (place,) = words.nonzero().flatten().tolist()
        assert bin(int(words[place]) & 0xFFFFFFFF).count("1") == 1
    noisy = CORRUPTIONS["stable noise"](gradient, generator(0, "corruption")) - gradient
    scale = float(gradient.norm()) / D**0.5
    # The quartiles of a symmetric stable law of scale 1 lie near ±1 for any α.
    assert 0.8 < float(noisy.abs().median()) / scale < 1.2
