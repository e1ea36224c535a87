"""The oracles of the rules by hand, and that all oracles stand on their own."""

from __future__ import annotations

import ast
import inspect
import warnings
from pathlib import Path

import numpy as np
import oracles
import pytest
from numpy.typing import NDArray
from oracles import attacks, online, rules, solvers

Array = NDArray[np.float64]

DIVERGENCES: tuple[online.Divergence, ...] = ("squared", "l2", "l1")
METHODS: tuple[online.Method, ...] = ("proximal", "subgradient")
FORBIDDEN = {"robust_agg", "attacks", "workers", "experiments", "torch"}
ORACLE_FILES = sorted(Path(inspect.getfile(oracles)).parent.rglob("*.py"))


def near(actual: Array | float, expected: object, tol: float = 1e-12) -> None:
    np.testing.assert_allclose(actual, np.asarray(expected, dtype=float), rtol=0, atol=tol)


def regular_polygon(corners: int) -> Array:
    angles = 2 * np.pi * np.arange(corners) / corners
    return np.stack([np.cos(angles), np.sin(angles)], axis=1)


# ---------------------------------------------------------------- independence


def imported_modules(source: str) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names.add(node.module.partition(".")[0])
    return names


@pytest.mark.parametrize("path", ORACLE_FILES, ids=lambda path: path.name)
def test_oracles_import_nothing_of_the_library(path: Path) -> None:
    assert not imported_modules(path.read_text(encoding="utf-8")) & FORBIDDEN


def test_the_import_check_sees_every_form_and_every_file() -> None:
    source = "import torch.nn as n\ndef f():\n    from robust_agg.span import Span\n"
    assert imported_modules(source) == {"torch", "robust_agg"}
    assert {"rules.py", "online.py", "solvers.py"} <= {path.name for path in ORACLE_FILES}


@pytest.mark.parametrize("module", [attacks, rules, online, solvers])
def test_every_public_function_is_documented(module: object) -> None:
    functions = {
        name: value
        for name, value in vars(module).items()
        if inspect.isfunction(value) and not name.startswith("_")
    }
    assert functions
    assert all(function.__doc__ for function in functions.values())


def test_oracles_leave_their_input_unchanged() -> None:
    generator = np.random.default_rng(9)
    rows, m = generator.standard_normal((7, 3)), generator.standard_normal(3)
    before_rows, before_m = rows.copy(), m.copy()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rules.geometric_median(rows)
        rules.multi_krum(rows, 1, 3)
        rules.trimmed_mean(rows, 1)
        rules.centered_clipping(rows, iterations=2, start=m)
        rules.nearest_neighbor_mixing(rows, 2)
        rules.clip(rows, 0.5)
        rules.bulyan(rows, 1)
        rules.medoid(rows)
        rules.smea(rows, 2)
        rules.minimum_diameter_averaging(rows, 2)
        rules.caf(rows, 2)
        rules.smoothed_weiszfeld(rows, 0.1, 2, m)
        rules.resample(rows, 2, range(14))
        for divergence in DIVERGENCES:
            online.prox_argmin(rows, m, 0.5, divergence)
            for method in METHODS:
                online.averaged(rows, m, 0.5, divergence, method, iterations=2)
                online.sequential(rows, m, 0.5, divergence, method)
    assert np.array_equal(rows, before_rows)
    assert np.array_equal(m, before_m)


# ---------------------------------------------------------------- coordinate-wise rules


def test_mean_median_and_trimmed_mean_by_hand() -> None:
    rows = np.array([[1.0, -7.0], [2.0, 0.0], [30.0, 5.0], [4.0, 6.0]])
    near(rules.mean(rows), [9.25, 1.0])
    near(rules.coordinate_median(rows), [3.0, 2.5])
    near(rules.coordinate_median(rows[:3]), [2.0, 0.0])
    near(rules.trimmed_mean(rows, 1), [3.0, 2.5])
    near(rules.trimmed_mean(rows, 0), [9.25, 1.0])


def test_trimmed_mean_checks_f() -> None:
    with pytest.raises(ValueError, match="2f < n is required, found n=4, f=2"):
        rules.trimmed_mean(np.zeros((4, 1)), 2)


# ---------------------------------------------------------------- krum


def test_krum_scores_by_hand() -> None:
    rows = np.array([[0.0], [1.0], [3.0], [7.0], [100.0]])
    # n - f - 2 = 2 neighbours: squared distances to the two nearest others.
    near(rules.krum_scores(rows, 1), [1 + 9, 1 + 4, 4 + 9, 16 + 36, 93**2 + 97**2])
    near(rules.krum(rows, 1), [1.0])
    near(rules.multi_krum(rows, 1, 2), [0.5])
    near(rules.multi_krum(rows, 1, 5), rules.mean(rows))


def test_krum_counts_a_duplicate_as_another_row() -> None:
    rows = np.array([[0.0], [0.0], [5.0], [6.0], [9.0]])
    # Excluding "self" by position in the sorted distances would give the same 0 here, but
    # excluding every distance 0 would give 25 and 36 for rows 0 and 1.
    near(rules.krum_scores(rows, 1), [25, 25, 1 + 16, 1 + 9, 9 + 16])


def test_krum_ties_go_to_the_lowest_index() -> None:
    square = np.array([[1.0, 1.0], [-1.0, 1.0], [-1.0, -1.0], [1.0, -1.0], [50.0, 0.0]])
    near(rules.krum(square, 1), [1.0, 1.0])
    near(rules.krum(square[::-1].copy(), 1), [1.0, -1.0])
    near(rules.multi_krum(square, 1, 2), [0.0, 1.0])


def test_krum_checks_its_numbers() -> None:
    with pytest.raises(ValueError, match="found n=3, f=1"):
        rules.krum(np.zeros((3, 1)), 1)
    with pytest.raises(ValueError, match="found m=6, n=5"):
        rules.multi_krum(np.zeros((5, 1)), 1, 6)


def test_krum_of_other_neighbours_and_distances_by_hand() -> None:
    rows = np.array([[0.0], [1.0], [3.0], [7.0], [100.0]])
    near(rules.krum_scores(rows, 1, neighbours=1), [1, 1, 4, 16, 93**2])
    near(rules.krum_scores(rows, 1, squared=False), [1 + 3, 1 + 2, 2 + 3, 4 + 6, 93 + 97])
    assert rules.krum_order(rows, 1, neighbours=1) == [0, 1, 2, 3, 4]


def test_krum_selection_and_bulyan_by_hand() -> None:
    rows = np.array([[0.0], [1.0], [3.0], [7.0], [12.0], [100.0], [5.0]])
    # 3, of 4 neighbours: 4+4+9+16. Of the rest 5, of 3: 4+16+25. Then 1, of 2: 1+36. Of 0, 7, 12
    # and 100 both 7 and 12 are as near to one; and then 0 and 12, where no neighbour is left.
    assert rules.krum_selection(rows, 1) == [2, 6, 1, 3, 0]
    # Of 0 1 3 5 7 the three nearest to 3.
    near(rules.bulyan(rows, 1), [3.0])
    with pytest.raises(ValueError, match="found n=6, f=1"):
        rules.bulyan(rows[:6], 1)
    near(rules.near_median(np.array([[0.0], [1.0], [2.0], [9.0]]), 1), [1.0])
    near(rules.near_median(np.array([[-1.0], [-1.0], [1.0], [1.0]]), 1), [-1 / 3])


# ---------------------------------------------------------------- sets of rows


def test_the_medoid_and_the_nearest_by_hand() -> None:
    rows = np.array([[0.0, 0.0], [3.0, 4.0], [3.0, 0.0], [30.0, 0.0]])
    # Sums of distances: 5+3+30, 5+4+…, 3+4+27, …
    assert rules.medoid(rows) == 2
    assert rules.medoid(np.array([[1.0], [0.0], [1.0], [0.0]])) == 0
    near(rules.nearest_to_reference(rows, 2, 0), [1.5, 0.0])
    near(rules.comparative_gradient_elimination(rows, 1), [2.0, 4 / 3])
    tied = np.array([[0.0, 5.0], [3.0, 4.0], [1.0, 0.0], [-5.0, 0.0]])
    near(rules.comparative_gradient_elimination(tied, 2), [0.5, 2.5])


def test_sets_of_least_diameter_and_eigenvalue_by_hand() -> None:
    rows = np.array([[0.0], [10.0], [11.0], [13.0], [2.0]])
    assert rules.diameter(rows) == 169
    assert rules.minimum_diameter_set(rows, 2) == (1, 2, 3)
    near(rules.minimum_diameter_averaging(rows, 2), [34 / 3])
    assert rules.minimum_diameter_set(np.eye(5), 2) == (0, 1, 2)
    assert rules.top_eigenvalue(np.array([[1.0, 0], [-1, 0], [0, 2], [0, -2]])) == pytest.approx(2)
    # A line of length 2 and one that is three times as wide, but has the larger diameter.
    plane = np.array([[0.0, 0], [2, 0], [1, 0], [1, 9]])
    assert rules.smallest_eigenvalue_set(plane, 1) == (0, 1, 2)
    near(rules.smea(plane, 1), [1.0, 0.0])
    assert rules.smallest_eigenvalue_set(np.eye(5), 2) == (0, 1, 2)


def test_the_filter_by_hand() -> None:
    # About the mean 2 all τ are 1, 1, 1, 9, 0: eigenvalue 12/5. Then c = 8/9, 8/9, 8/9, 0, 1 with
    # the mean 10/11 of 1, 1, 1, 2 so weighted, in all 11/3 > 3 and the smaller eigenvalue.
    rows = np.array([[1.0], [1.0], [1.0], [5.0], [2.0]])
    weights = np.array([8 / 9, 8 / 9, 8 / 9, 0, 1])
    near(rules.caf(rows, 1), weights @ rows / weights.sum())
    near(rules.caf(rows, 0), [2.0])


def test_smoothed_weiszfeld_by_hand() -> None:
    rows = np.array([[0.0], [1.0], [4.0]])
    near(rules.smoothed_weiszfeld(rows, 0.5, 1, np.array([0.0])), [(0 + 1 + 1) / (2 + 1 + 0.25)])
    near(rules.smoothed_weiszfeld(rows, 10.0, 1, np.array([0.0])), rules.mean(rows))
    near(rules.smoothed_weiszfeld(rows, 1.0, 0, np.array([7.0])), [7.0])


# ---------------------------------------------------------------- centered clipping


def test_centered_clipping_by_hand() -> None:
    rows = np.array([[0.0], [1.0], [2.0], [100.0], [3.0]])
    near(rules.centered_clipping(rows, 1.0, iterations=0), [2.0])
    near(rules.centered_clipping(rows, 1.0, iterations=1), [2.0 + (-1 - 1 + 0 + 1 + 1) / 5])
    near(rules.centered_clipping(rows, 1e9, iterations=1), rules.mean(rows))
    near(rules.centered_clipping(rows, 0.0, iterations=3), [2.0])
    start = np.array([10.0])
    near(rules.centered_clipping(rows, 2.0, iterations=1, start=start), [10 - 8 / 5 + 2 / 5])
    assert start[0] == 10.0


def test_centered_clipping_adapts_its_radius_to_the_middle_distance() -> None:
    # n = 5: the third smallest distance from the median 2 is 1.
    rows = np.array([[0.0], [1.0], [2.0], [100.0], [3.0]])
    near(
        rules.centered_clipping(rows, iterations=1), rules.centered_clipping(rows, 1, iterations=1)
    )
    # n = 4: the second smallest distance from 1 is 1, and then from 1.25 it is 1.25.
    four, start = np.array([[0.0], [1.0], [3.0], [100.0]]), np.array([1.0])
    near(rules.centered_clipping(four, iterations=1, start=start), [1 + (-1 + 0 + 1 + 1) / 4])
    second = 1.25 + (-1.25 - 0.25 + 1.25 + 1.25) / 4
    near(rules.centered_clipping(four, iterations=2, start=start), [second])


def test_centered_clipping_stays_at_the_centre_of_symmetry() -> None:
    rows = np.vstack([regular_polygon(3), -2 * regular_polygon(3)])
    near(rules.centered_clipping(rows, 0.3, iterations=5, start=np.zeros(2)), [0.0, 0.0])


# ---------------------------------------------------------------- pre-aggregators


def test_clip_by_hand() -> None:
    rows = np.array([[3.0, 4.0], [0.3, 0.4], [0.0, 0.0], [0.0, -2.0], [-2.5, 0.0]])
    near(rules.clip(rows, 2.0), [[1.2, 1.6], [0.3, 0.4], [0.0, 0.0], [0.0, -2.0], [-2.0, 0.0]])
    near(rules.clip(rows, 0.0), np.zeros((5, 2)))
    assert rows[0, 0] == 3.0


def test_nearest_neighbor_mixing_by_hand() -> None:
    rows = np.array([[0.0], [1.0], [3.0], [100.0]])
    near(rules.nearest_neighbor_mixing(rows, 0), np.full((4, 1), 26.0))
    near(rules.nearest_neighbor_mixing(rows, 1)[:, 0], [4 / 3, 4 / 3, 4 / 3, 104 / 3])
    near(rules.nearest_neighbor_mixing(rows, 3), rows)


def test_nearest_neighbor_mixing_keeps_itself_and_breaks_ties_by_index() -> None:
    # Row 1 is equally far from rows 0 and 2. Rows 3, 4, 5 coincide but each counts once.
    rows = np.array([[0.0], [1.0], [2.0], [9.0], [9.0], [9.0]])
    near(rules.nearest_neighbor_mixing(rows, 4)[:, 0], [0.5, 0.5, 1.5, 9, 9, 9])
    with pytest.raises(ValueError, match="found n=6, f=6"):
        rules.nearest_neighbor_mixing(rows, 6)


def test_bucketing_by_hand() -> None:
    rows = np.array([[0.0], [10.0], [20.0], [30.0], [40.0]])
    near(rules.bucketing(rows, 2, [4, 0, 3, 1, 2])[:, 0], [20, 20, 20])
    near(rules.bucketing(rows, 2, [0, 1, 2, 3, 4])[:, 0], [5, 25, 40])
    near(rules.bucketing(rows, 1, [4, 3, 2, 1, 0]), rows[::-1])
    near(rules.bucketing(rows, 9, range(5)), [rules.mean(rows)])


def test_resampling_by_hand() -> None:
    rows = np.array([[0.0], [10.0], [20.0]])
    # Places 0 1 are those of row 0, 2 3 of row 1, 4 5 of row 2.
    near(rules.resample(rows, 2, [0, 1, 2, 4, 5, 3])[:, 0], [0, 15, 15])
    near(rules.resample(rows, 1, [2, 0, 1])[:, 0], [20, 0, 10])
    with pytest.raises(ValueError, match="bucketing"):
        rules.resample(rows, 2, range(3))


@pytest.mark.parametrize(("s", "permutation"), [(0, [0, 1, 2]), (2, [0, 0, 2]), (2, [0, 1])])
def test_bucketing_checks_its_arguments(s: int, permutation: list[int]) -> None:
    with pytest.raises(ValueError, match="bucketing"):
        rules.bucketing(np.zeros((3, 1)), s, permutation)


def test_honest_ratio_by_hand() -> None:
    honest = np.array([[0.0, 0.0], [2.0, 0.0], [1.0, 3.0]])
    # mean (1, 1), variance ((1+1) + (1+1) + 4) / 3
    assert rules.honest_ratio(np.array([1.0, 5.0]), honest) == pytest.approx(16 / (8 / 3))
    assert rules.honest_ratio(np.array([1.0, 1.0]), honest) == 0.0
    with pytest.raises(ValueError, match="must differ"):
        rules.honest_ratio(np.zeros(2), np.ones((3, 2)))
