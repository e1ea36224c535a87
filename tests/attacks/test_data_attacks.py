"""Attacks on the data: what becomes of a batch, and what a backdoor wants."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from attack_rounds import as_numpy, seeded
from hypothesis import given
from hypothesis import strategies as st
from oracles import attacks as oracle

from attacks import Backdoor, DataAttack, FeatureNoise, LabelFlip


def images(m: int, shape: tuple[int, ...] = (1, 6, 5)) -> torch.Tensor:
    return torch.rand(m, *shape, generator=seeded(1))


def labels(m: int, classes: int = 10) -> torch.Tensor:
    return torch.randint(classes, (m,), generator=seeded(2))


@pytest.mark.parametrize("corner", ["top left", "top right", "bottom left", "bottom right"])
@pytest.mark.parametrize(("shape", "size"), [((1, 6, 5), 2), ((3, 4, 4), 4), ((5, 7), 1)])
@pytest.mark.parametrize("share", [0.1, 0.5, 1.0])
def test_a_backdoor_marks_and_relabels_a_share(corner, shape, size: int, share: float) -> None:
    attack = Backdoor(num_classes=10, target=4, share=share, size=size, value=-2.0, corner=corner)
    inputs, targets = images(30, shape), labels(30)
    kept = inputs.clone(), targets.clone()
    marked, wanted = attack(inputs, targets, seeded(3))
    assert torch.equal(inputs, kept[0])
    assert torch.equal(targets, kept[1])
    assert (marked.dtype, wanted.dtype) == (inputs.dtype, targets.dtype)
    changed = [i for i in range(30) if not torch.equal(marked[i], inputs[i])]
    assert len(changed) == math.ceil(round(30 * share, 9))
    for i in range(30):
        if i in changed:
            expected = oracle.marked(as_numpy(inputs[i]), size, -2.0, corner)
            np.testing.assert_array_equal(as_numpy(marked[i]), expected)
            assert wanted[i] == 4
        else:
            assert wanted[i] == targets[i]
    again = attack(inputs, targets, seeded(3))
    assert torch.equal(marked, again[0])
    if share < 1:
        assert not torch.equal(marked, attack(inputs, targets, seeded(4))[0])


@given(st.integers(1, 40), st.floats(0.01, 1.0))
def test_at_least_one_image_is_marked(m: int, share: float) -> None:
    attack = Backdoor(num_classes=3, share=share, value=5.0)
    marked, _ = attack(images(m), labels(m, 3), seeded())
    count = int((marked == 5.0).flatten(1).any(dim=1).sum())
    assert 1 <= count <= m
    assert share * m - 1e-6 <= count < share * m + 1


def test_the_goal_is_the_target_for_all_other_classes() -> None:
    attack = Backdoor(num_classes=10, target=7, size=3, value=9.0)
    inputs, targets = images(50), labels(50)
    asked, wanted = attack.goal(inputs, targets)
    others = [i for i in range(50) if targets[i] != 7]
    assert len(asked) == len(wanted) == len(others) < 50
    assert set(wanted.tolist()) == {7}
    for place, i in enumerate(others):
        expected = oracle.marked(as_numpy(inputs[i]), 3, 9.0, "bottom right")
        np.testing.assert_array_equal(as_numpy(asked[place]), expected)
    nothing, _ = attack.goal(inputs[:2], torch.tensor([7, 7]))
    assert len(nothing) == 0


def test_other_attacks_have_no_goal() -> None:
    for attack in (LabelFlip(num_classes=3), FeatureNoise()):
        assert attack.goal(images(4), labels(4, 3)) is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_feature_noise(dtype: torch.dtype) -> None:
    inputs, targets = images(200, (3, 20)).to(dtype), labels(200)
    kept = inputs.clone()
    noisy, same = FeatureNoise(scale=0.25)(inputs, targets, seeded(5))
    assert torch.equal(inputs, kept)
    assert same is targets
    assert (noisy.shape, noisy.dtype) == (inputs.shape, dtype)
    off = as_numpy(noisy) - as_numpy(inputs)
    # Five standard errors of the mean and of the deviation of 12,000 draws.
    assert abs(off.mean()) < 5 * 0.25 / 12_000**0.5
    assert off.std() == pytest.approx(0.25, abs=5 * 0.25 / 24_000**0.5)
    assert torch.equal(noisy, FeatureNoise(scale=0.25)(inputs, targets, seeded(5))[0])
    assert not torch.equal(noisy, FeatureNoise(scale=0.25)(inputs, targets, seeded(6))[0])


@pytest.mark.parametrize("attack", [Backdoor(num_classes=10), FeatureNoise()], ids=repr)
def test_a_data_attack_draws_on_the_cpu_and_leaves_the_global_generator(
    attack: DataAttack,
) -> None:
    before = torch.get_rng_state()
    expected = attack(images(9), labels(9), seeded())
    assert torch.equal(torch.get_rng_state(), before)
    inputs, targets, draw = images(9), labels(9), seeded()
    with torch.device("meta"):
        found = attack(inputs, targets, draw)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"num_classes": 1}, "Backdoor: num_classes must be an integer >= 2, found 1"),
        ({"target": 10}, r"Backdoor: target must be a label in \[0, 10\), found 10"),
        ({"target": -1}, r"Backdoor: target must be a label in \[0, 10\), found -1"),
        ({"share": 0.0}, r"Backdoor: share must be in \(0, 1\], found 0.0"),
        ({"share": 1.1}, r"Backdoor: share must be in \(0, 1\], found 1.1"),
        ({"size": 0}, "Backdoor: size must be an integer >= 1, found 0"),
        ({"value": math.inf}, "Backdoor: value must be finite, found inf"),
        ({"corner": "middle"}, "Backdoor: corner must be 'top left', 'top right', 'bottom left' o"),
    ],
)
def test_bad_parameters_of_a_backdoor(parameters, message: str) -> None:
    with pytest.raises(ValueError, match=rf"^{message}"):
        Backdoor(**{"num_classes": 10, **parameters})


@pytest.mark.parametrize("scale", [0.0, -1.0, math.nan, math.inf])
def test_bad_parameters_of_feature_noise(scale: float) -> None:
    with pytest.raises(ValueError, match=r"^FeatureNoise: scale must be a positive finite number"):
        FeatureNoise(scale=scale)


def test_batches_that_cannot_be_attacked() -> None:
    attack = Backdoor(num_classes=10, size=3)
    with pytest.raises(ValueError, match=r"^Backdoor: inputs must be images .* 3, found \(4, 8\)$"):
        attack(torch.zeros(4, 8), labels(4), seeded())
    with pytest.raises(ValueError, match=r"^Backdoor: inputs must be images .*, found \(4, 8, 2\)"):
        attack.goal(torch.zeros(4, 8, 2), labels(4))
    with pytest.raises(ValueError, match=r"^Backdoor: targets must be \(4,\), found \(4, 2\)$"):
        attack(images(4), torch.zeros(4, 2, dtype=torch.int64), seeded())
    with pytest.raises(
        ValueError, match=r"^FeatureNoise: inputs must be floating, found torch.int"
    ):
        FeatureNoise()(labels(4), labels(4), seeded())
