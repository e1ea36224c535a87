"""The oracles of votes, signs, directions and outlier scores, by hand."""

from __future__ import annotations

import inspect
import math

import numpy as np
import pytest
from numpy.typing import NDArray
from oracles import filters

Array = NDArray[np.float64]


def near(actual: object, expected: object) -> None:
    np.testing.assert_allclose(np.asarray(actual), np.asarray(expected), rtol=0, atol=1e-12)


def test_every_function_is_documented() -> None:
    functions = [
        value
        for name, value in vars(filters).items()
        if inspect.isfunction(value) and name[0] != "_"
    ]
    assert len(functions) > 10
    assert all(function.__doc__ for function in functions)


def test_votes_and_medians() -> None:
    rows = np.array([[1.0, -2.0, 0.0], [3.0, math.nan, -1.0], [-9.0, -1.0, 1.0], [2.0, 5.0, 0.0]])
    near(filters.sign_majority(rows), [1, -1, 0])
    near(filters.lower_median(rows[:, [0, 2]]), [1.0, 0.0])


def test_a_trimmed_share() -> None:
    rows = np.array([[1.0], [2.0], [30.0], [4.0], [7.0]])
    near(filters.beta_trimmed_mean(rows, 1, 5), [13 / 3])
    near(filters.beta_trimmed_mean(rows, 19, 100), [44 / 5])
    near(filters.beta_trimmed_mean(rows, 2, 5), [4.0])


def test_scores_are_squares_along_the_main_direction() -> None:
    rows = np.array([[3.0, 0.1, 9.0], [-3.0, 0.1, 0.0], [0.0, -0.1, 0.0], [0.0, -0.1, 0.0]])
    near(filters.singular_scores(rows, [0, 1]), [9, 9, 0, 0])
    near(filters.divide_and_conquer(rows, 1, 1.0, [[0, 1]]), rows[[0, 2, 3]].mean(axis=0))
    near(filters.divide_and_conquer(rows, 1, 2.0, [[0, 1]]), rows[2])
    # One draw leaves out row 1 (of two as far the later), the other row 0.
    near(filters.divide_and_conquer(rows, 1, 1.0, [[0, 1], [2]]), rows[2])
    with pytest.raises(ValueError, match="no row is kept"):
        filters.divide_and_conquer(rows, 1, 3.0, [[0, 1], [2]])


def test_mean_shift_by_hand() -> None:
    points = np.array([[0.0], [0.4], [5.0], [0.8], [5.5], [9.0]])
    assert filters.mean_shift(points, 1.0) == [0, 0, 1, 0, 1, 2]
    assert filters.mean_shift(points, 100.0) == [0] * 6
    assert filters.mean_shift(points, 0.0) == [0, 1, 3, 2, 4, 5]
    near(filters.half_neighbour_bandwidth(points), (0.8 + 0.4 + 4.0 + 0.8 + 3.5 + 4.0) / 6)


def test_sign_guard_by_hand() -> None:
    rows = np.array([[2.0, 2.0], [3.0, 4.0], [-2.0, -2.0], [60.0, 80.0], [1.5, 2.0]])
    near(
        filters.sign_features(rows[:3] - [[2.0, 0.0]], [0, 1]),
        [[1, 1, 0], [2, 0, 0], [0, 0, 2]],
    )
    # Norms 2.83, 5, 2.83, 100, 2.5: the median is 2.83, 100 is too long, one is negative.
    middle = 8**0.5
    expected = (rows[0] + rows[1] * middle / 5 + rows[4]) / 3
    near(filters.sign_guard(rows, [0, 1]), expected)


def test_trust_by_hand() -> None:
    rows = np.array([[6.0, 8.0], [-1.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
    reference = np.array([3.0, 4.0])
    near(filters.fl_trust(rows, reference), [3 / 1.8, (4 + 0.8 * 5) / 1.8])
    near(filters.fl_trust(-rows[:1], reference), reference)


def test_average_linkage_by_hand() -> None:
    points = np.array([0.0, 10.0, 1.0, 11.0, 3.0])
    distances = np.abs(points[:, None] - points)
    assert filters.larger_of_two(distances) == [0, 2, 4]
    assert filters.larger_of_two(distances[:4, :4]) == [0, 2]
    assert filters.larger_of_two(np.zeros((1, 1))) == [0]
    # All as far: 0 and 1 first, then 2 to them.
    assert filters.larger_of_two(np.ones((4, 4)) - np.eye(4)) == [0, 1, 2]


def test_a_majority_by_hand() -> None:
    points = np.array([0.0, 10.0, 1.0, 11.0, 3.0])
    distances = np.abs(points[:, None] - points)
    assert filters.first_majority(distances) == [0, 2, 4]
    assert filters.first_majority(distances[:4, :4]) == [0, 1, 2, 3]
    assert filters.first_majority(np.zeros((1, 1))) == [0]
    rows = np.array([[3.0, 0.0], [0.0, 9.0], [8.0, 0.0], [5.0, 0.0], [0.0, 0.0]])
    # Of norms 3, 9, 8, 5, 0 the median is 5.
    near(filters.flame(rows), [(3 + 5 + 5) / 3, 0])


def test_clipped_clustering_by_hand() -> None:
    rows = np.array([[4.0, 0.0], [2.0, 0.0], [0.0, -9.0], [6.0, 0.0], [0.0, 0.0]])
    near(filters.cosine_distances(rows)[0], [0, 0, 1, 0, 1])
    found, norms = filters.clipped_clustering(rows, [])
    # Three of one direction; of the others, as far from all, the first joins them.
    near(found, [(4 + 2 + 4) / 4, -4 / 4])
    assert norms == [4, 2, 9, 6, 0]
    found, _ = filters.clipped_clustering(rows[:1], norms)
    near(found, [4.0, 0.0])
