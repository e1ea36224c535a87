"""The study of κ at smoke size, and that it finds what it looks for."""

from __future__ import annotations

import csv
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles.rules import honest_ratio

import robust_agg as ra
from experiments.cli import main
from experiments.robustness.kappa import ALONE, Kappa, bounded_rules
from experiments.robustness.ratios import climb, honest_sets, inputs, ratio_of


def test_the_study(tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as exited:
        main(["study", "kappa", "--preset", "smoke", "--out", str(tmp_path)])
    assert exited.value.code == 0
    with (tmp_path / "numbers.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["mixing"] for row in rows} >= {ALONE, "NearestNeighborMixing"}
    for row in rows:
        # Some constants are sharp: rounding is no violation.
        least, most = float(row["least"]) * (1 - 1e-6), float(row["constant"]) * (1 + 1e-6)
        assert least <= float(row["found"]) <= most
    page = (tmp_path / "README.md").read_text()
    assert "| No rule errs by more than its constant allows |" in page
    assert "not decided here" in page
    assert (tmp_path / "kappa.png").stat().st_size > 10_000


def test_every_rule_with_a_constant_is_there() -> None:
    found = {(name, mixing) for name, mixing, _, _ in bounded_rules(7, 2)}
    names = {"CoordinateWiseMedian", "GeometricMedian", "Krum", "MultiKrum", "TrimmedMean"}
    assert {name for name, _ in found} >= names | {"CenteredClipping"}
    assert ("Krum", "NearestNeighborMixing") in found
    assert not {name for name, _ in found} & {"Mean", "SignMajority", "SignGuard"}
    # Krum needs n >= 2f + 3.
    assert "Krum" not in {name for name, _, _, _ in bounded_rules(5, 2)}


@settings(max_examples=40)
@given(seed=st.integers(0, 2**31), d=st.integers(1, 3))
def test_a_ratio_is_the_largest_of_all_honest_sets(seed: int, d: int) -> None:
    rows = np.random.default_rng(seed).normal(size=(6, d)) + 5
    rule = ra.CoordinateWiseMedian()
    out = rule(torch.from_numpy(rows)).numpy()
    expected = max(honest_ratio(out, rows[list(some)]) for some in combinations(range(6), 4))
    assert ratio_of(rule, honest_sets(6, 2))(rows) == pytest.approx(expected)


def test_rows_in_one_place_have_no_ratio_and_must_be_the_result() -> None:
    sets = honest_sets(5, 1)
    rows = np.array([[1.0], [1.0], [1.0], [1.0], [50.0]])
    assert ratio_of(ra.Mean(), sets)(rows) == np.inf
    assert ratio_of(ra.Krum(f=1), sets)(rows) == pytest.approx(1 / 3)
    assert ratio_of(ra.Krum(f=1), sets)(np.ones((5, 2)) / 3) == 0.0


def test_a_mean_is_found_to_have_no_constant() -> None:
    draw = np.random.default_rng(0)
    ratio = ratio_of(ra.Mean(), honest_sets(7, 2))
    assert max(ratio(rows) for rows in inputs(7, 2, 50, draw)) == np.inf


def test_a_climb_ends_where_the_least_constant_of_a_median_is() -> None:
    """⌊n/2⌋/(⌈n/2⌉ - f), of odd n: by Cantelli's inequality no median errs by more."""
    ratio = ratio_of(ra.CoordinateWiseMedian(), honest_sets(7, 2))
    draw = np.random.default_rng(0)
    start = max(inputs(7, 2, 30, draw), key=ratio)
    _, found = climb(ratio, start, 400, draw)
    assert ratio(start) <= found
    assert 0.95 * 3 / 2 <= found <= 3 / 2 * (1 + 1e-9)


def test_inputs_are_as_many_as_asked_for() -> None:
    for rows in (found := list(inputs(9, 3, 40, np.random.default_rng(0)))):
        assert len(rows) == 9
        assert np.isfinite(rows).all()
    assert len(found) == 40
    assert found[0].ravel().tolist() == [0.0] * 6 + [1.0] * 3


def test_the_presets_differ_in_what_they_decide() -> None:
    assert not Kappa.preset("smoke").decides
    assert Kappa.preset("default").samples >= 1000
    assert Kappa.preset("full").samples > Kappa.preset("default").samples
