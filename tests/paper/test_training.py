"""Recipes and corruptions: what they say they do, each with the same budget."""

from __future__ import annotations

from math import log

import pytest
import torch
from torch import nn

from experiments.paper.corruption import CORRUPTIONS
from experiments.paper.recipes import RECIPES
from experiments.paper.search import Trial, search
from experiments.paper.training_report import claims
from robust_agg.seeding import generator

D = 5000


@pytest.mark.parametrize("tau", [None, 0.1])
@pytest.mark.parametrize("budget", [1, 3, 8, 40])
def test_a_search_makes_as_many_trials_as_it_may(tau: float | None, budget: int) -> None:
    trials = search(lambda lr, tau: lr * (tau or 1.0), 1.0, tau, budget=budget)
    assert len(trials) == budget
    assert trials[0] == Trial(pytest.approx(1.0), tau and pytest.approx(tau), trials[0].cost)
    assert trials[-1].cost <= trials[0].cost


def test_a_search_finds_the_least_and_leaves_where_nothing_converges() -> None:
    trials = search(
        lambda lr, tau: abs(log(lr / 20)) + abs(log((tau or 0) / 0.02)), 1.0, 0.1, budget=80
    )
    best = min(trials, key=lambda trial: trial.cost)
    assert (best.lr, best.tau) == (pytest.approx(20, rel=0.1), pytest.approx(0.02, rel=0.1))
    # Above 0.03 everything diverges, the larger the sooner.
    trials = search(lambda lr, tau: lr if lr < 0.03 else 1e9 * (1 + lr), 3.0, 0.1, budget=8)
    assert min(trial.cost for trial in trials) < 0.03


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_minimises_a_quadratic(name: str) -> None:
    parameter = nn.Parameter(torch.linspace(-1, 1, 40))
    recipe = RECIPES[name]
    # Those of the recipe are for language models; a quadratic of curvature 1 needs less.
    step = recipe.attach([parameter], min(recipe.lr, 0.05), recipe.tau and max(recipe.tau, 1e-3))
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


def test_a_guard_keeps_what_is_not_finite_from_all() -> None:
    for each in RECIPES.values():
        parameter = nn.Parameter(torch.ones(3))
        step = each.attach([parameter], each.lr, each.tau)
        parameter.grad = torch.tensor([1.0, torch.nan, 1.0])
        step()
        assert bool(parameter.isfinite().all())


def test_verdicts_need_differences_that_seeds_agree_on() -> None:
    def verdict(ours: list[float], theirs: list[float]) -> bool | None:
        final = {"VClip": ours, "momentum": theirs}
        others = ("CClip", "adaptive momentum", "signed increment", "Adam")
        rows = [
            {"corruption": "none", "method": method, "seed": seed, "step": 1, "loss": loss}
            for method in (*final, *others)
            for seed, loss in enumerate(final.get(method, theirs))
        ]
        found = claims(rows, ["none"], [*final, *others], guess=7.0)
        return next(claim.holds for claim in found if "VClip trains as well" in claim.statement)

    assert verdict([5.0, 5.1, 5.2], [5.01, 5.11, 5.21]) is True
    assert verdict([5.0, 5.1, 5.2], [4.8, 4.91, 4.99]) is False
    # Noise is no evidence.
    assert verdict([5.0, 5.0, 9.0], [4.0, 4.0, 4.0]) is None
