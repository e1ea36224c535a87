"""The oracles of the attacks, by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray
from oracles import attacks, rules

Array = NDArray[np.float64]


def rows(*given: list[float]) -> Array:
    return np.array(given, dtype=float)


def near(found: object, expected: object) -> None:
    np.testing.assert_allclose(np.asarray(found), np.asarray(expected), rtol=0, atol=1e-12)


def test_perturbations() -> None:
    honest = rows([3.0, 8.0], [3.0, 0.0])
    near(attacks.perturbation(honest, "std"), [0.0, -4.0])
    near(attacks.perturbation(honest, "unit"), [-0.6, -0.8])
    near(attacks.perturbation(honest, "sign"), [-1.0, -1.0])


def test_min_max_and_min_sum_of_two_rows_on_a_line() -> None:
    """At the nearer of them: the other one is then as far as they are from each other."""
    honest = rows([0.0], [2.0])
    for kind in ("std", "unit", "sign"):
        near(attacks.min_max(honest, kind), [0.0])
        near(attacks.min_sum(honest, kind), [0.0])


def test_min_sum_is_the_stricter() -> None:
    """Of -1, 0, 1 with p = -1: |γ + 1| <= 2, but 3γ² + 2 <= 1 + 4."""
    honest = rows([-1.0], [0.0], [1.0])
    near(attacks.min_max(honest, "std"), [-1.0])
    near(attacks.min_sum(honest, "std"), [-1.0])
    honest = rows([-1.0], [0.0], [0.0], [1.0])
    near(attacks.min_max(honest, "std"), [-1.0])
    near(attacks.min_sum(honest, "std"), [-1.0])
    honest = rows([-2.0], [-1.0], [0.0], [1.0], [2.0])
    # The remotest has 1 + 4 + 9 + 16 = 30 = 5γ² + 10.
    near(attacks.min_max(honest, "std"), [-2.0])
    near(attacks.min_sum(honest, "std"), [-2.0])
    square = rows([1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0])
    # 2 + 2 + 4 = 4γ² + 4; and (γ cos 45° + 1)² + (γ sin 45°)² = 4.
    gamma = -math.sqrt(0.5) + math.sqrt(3.5)
    near(attacks.min_sum(square, "std"), [-math.sqrt(0.5)] * 2)
    near(attacks.min_max(square, "std"), [-gamma * math.sqrt(0.5)] * 2)


@pytest.mark.parametrize(
    ("values", "low", "high"),
    [
        ([1.0, 2.0, 3.0], 0.5, 1.0),
        ([-1.0, 3.0], -2.0, -1.0),
        ([-3.0, -2.0, -1.0], -1.0, -0.5),
        ([-3.0, 1.0], 1.0, 2.0),
    ],
)
def test_fang_bounds(values: list[float], low: float, high: float) -> None:
    found = attacks.fang_bounds(rows(*[[value] for value in values]), 2.0)
    near(found, [[low], [high]])


def test_fang_own_bounds() -> None:
    near(attacks.fang_own_bounds(rows([1.0], [3.0])), [[-2.0], [-1.0]])
    near(attacks.fang_own_bounds(rows([-1.0], [-3.0])), [[1.0], [2.0]])


def test_fang_against_krum_on_a_line() -> None:
    """Of 0, 2, 2, 2 and one attacker, who needs n - f - 2 = 2 neighbours.

    λ begins at √(0/(5-2-1)) + 2 = 2. The three twos have scores 0 + 0: no row that is not at 2 is
    chosen, so λ is halved until it is below the threshold.
    """
    honest = rows([0.0], [2.0], [2.0], [2.0])
    near(attacks.fang_krum(honest, 1, 0.3), [-0.25])


def test_damage() -> None:
    near(attacks.damage(rules.mean, rows([0.0], [2.0]), np.array([4.0]), 2), 1.5)


def test_mimicry_of_two_workers() -> None:
    """After one round the direction is the one in which they differ, from where it began."""
    mimic = attacks.Mimicry(1, np.array([1.0, 0.1]))
    honest = rows([1.0, 5.0], [3.0, 5.0])
    near(mimic.round(honest, [4, 9]), [3.0, 5.0])
    near(mimic.direction, [1.0, 0.0])
    assert mimic.target == 9
    near(mimic.round(rows([7.0, 0.0], [0.0, 0.0]), [4, 9]), [0.0, 0.0])
    near(mimic.round(rows([7.0, 0.0], [8.0, 0.0], [0.0, 9.0]), [1, 2, 3]), [8.0, 0.0])


def test_rop_in_the_plane() -> None:
    """To the reference (0, 2), the ones are orthogonal along the first axis."""
    honest = rows([0.0, 1.0], [0.0, 3.0])
    at = {"z": 3.0, "relocation": 1.0, "memory": 1.0}
    near(attacks.rop(honest, None, **at, angle=90.0), [3.0, 2.0])
    near(attacks.rop(honest, np.array([0.0, 5.0]), **at, angle=90.0), [3.0, 5.0])
    near(attacks.rop(honest, None, **at, angle=180.0), [0.0, -1.0])


def test_anti_clip_in_the_plane() -> None:
    honest, zero = rows([3.0, 4.0], [6.0, 8.0]), np.zeros(2)
    on = {"n": 4, "radius": None, "share": 1.0}
    near(attacks.anti_clip(honest, zero, **on, norm="l2"), [-6.0, -8.0])
    near(attacks.anti_clip(honest, zero, **on, norm="linf"), [-8.0, -8.0])
    on |= {"radius": 0.5}
    near(attacks.anti_clip(honest, np.array([1.0, 1.0]), **on, norm="l2"), [0.7, 0.6])


def test_drift() -> None:
    near(attacks.drift(rows([0.0, 0.0], [2.0, 0.0]), np.array([0.0, 1.0]), 0.5), [1.0, 0.5])


def test_marked() -> None:
    image = np.zeros((1, 2, 3))
    near(attacks.marked(image, 1, 5.0, "top right"), [[[0, 0, 5], [0, 0, 0]]])
    near(attacks.marked(image, 2, 5.0, "bottom left"), [[[5, 5, 0], [5, 5, 0]]])
    assert not image.any()
