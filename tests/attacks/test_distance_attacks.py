"""Attacks that keep within distances of the honest rows, against bisection and counting."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from attack_rounds import as_numpy, check, forge, random_rows
from oracles import attacks as oracle
from oracles import rules

from attacks import Attack, FangAttack, MinMax, MinSum
from robust_agg import Krum

DTYPES = [torch.float32, torch.float64, torch.bfloat16]
SIZES = [(1, 2), (1, 6), (2, 3), (3, 5), (4, 4)]
KINDS = ["std", "unit", "sign"]


@pytest.mark.parametrize(("k", "h"), SIZES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shift", [0.0, 1.0, 30.0])
def test_min_max_and_min_sum(k: int, h: int, dtype: torch.dtype, kind, shift: float) -> None:
    own, honest = random_rows(k, 5, dtype, seed=1), random_rows(h, 5, dtype, seed=2, shift=shift)
    for attack, expected in ((MinMax, oracle.min_max), (MinSum, oracle.min_sum)):
        row = expected(as_numpy(honest), kind)
        check(forge(attack(perturbation=kind), own, honest), np.tile(row, (k, 1)), own, factor=5)


@pytest.mark.parametrize("kind", KINDS)
def test_they_touch_their_bounds(kind) -> None:
    honest = random_rows(8, 30, seed=5)
    own = honest[:2]
    rows, between = as_numpy(honest), torch.cdist(honest, honest)
    for attack in (MinMax(perturbation=kind), MinSum(perturbation=kind)):
        row = as_numpy(forge(attack, own, honest))[0]
        gaps = np.sqrt(((rows - row) ** 2).sum(axis=1))
        if isinstance(attack, MinMax):
            assert gaps.max() == pytest.approx(float(between.max()), rel=1e-12)
        else:
            largest = float(between.square().sum(dim=1).max())
            assert (gaps**2).sum() == pytest.approx(largest, rel=1e-12)


def test_equal_honest_rows_leave_no_room() -> None:
    honest = torch.ones(4, 3, dtype=torch.float64)
    for kind in KINDS:
        for attack in (MinMax(perturbation=kind), MinSum(perturbation=kind)):
            assert torch.equal(forge(attack, honest[:2], honest), honest[:2])


@pytest.mark.parametrize("attack", [MinMax(), MinSum()])
def test_one_honest_row_has_no_distance(attack: Attack) -> None:
    rows = random_rows(3, 4)
    name = type(attack).__name__
    with pytest.raises(ValueError, match=rf"^{name}: at least 2 honest rows are required"):
        forge(attack, rows[:2], rows[:1])


# --- local model poisoning ------------------------------------------------------------------------


@pytest.mark.parametrize(("k", "h"), [(1, 1), *SIZES])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("b", [1.5, 2.0])
@pytest.mark.parametrize("shift", [-4.0, 0.0, 4.0])
def test_fang_against_the_trimmed_mean(
    k: int, h: int, dtype: torch.dtype, b: float, shift: float
) -> None:
    own, honest = random_rows(k, 40, dtype, seed=1), random_rows(h, 40, dtype, seed=2, shift=shift)
    found = forge(FangAttack(b=b), own, honest)
    assert found.dtype == dtype
    within(found, *oracle.fang_bounds(as_numpy(honest), b))


@pytest.mark.parametrize("k", [2, 5])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_fang_with_partial_knowledge(k: int, dtype: torch.dtype) -> None:
    own = random_rows(k, 40, dtype, seed=1, shift=0.2)
    found = forge(FangAttack(of="own"), own, own)
    within(found, *oracle.fang_own_bounds(as_numpy(own)))


def within(found: torch.Tensor, low: np.ndarray, high: np.ndarray) -> None:
    """All in their ranges, and drawn uniformly from them."""
    rows = as_numpy(found)
    slack = {torch.float64: 1e-12, torch.float32: 2e-6, torch.bfloat16: 2e-2}[found.dtype]
    slack *= 1 + np.maximum(np.abs(low), np.abs(high))
    assert (rows >= low - slack).all()
    assert (rows <= high + slack).all()
    wide = high - low > 0.05
    shares = ((rows - low) / np.where(wide, high - low, 1.0))[:, wide]
    # Five standard errors of a mean of uniform numbers.
    assert abs(shares.mean() - 0.5) < 5 / math.sqrt(12 * shares.size) + 0.02


def test_fang_draws_every_number_anew() -> None:
    honest = random_rows(5, 50)
    first, second = (forge(FangAttack(), honest[:2], honest, seed=seed) for seed in (0, 1))
    assert not torch.equal(first, second)
    assert not torch.equal(first[0], first[1])
    assert torch.equal(first, forge(FangAttack(), honest[:2], honest, seed=0))


@pytest.mark.parametrize(("k", "h"), [(1, 4), (1, 9), (2, 5), (3, 6), (4, 12)])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shift", [0.0, 2.0])
def test_fang_against_krum(k: int, h: int, dtype: torch.dtype, shift: float) -> None:
    own = random_rows(k, 7, dtype, seed=1)
    honest = random_rows(h, 7, dtype, seed=2, shift=shift)
    row = oracle.fang_krum(as_numpy(honest), k, 1e-5)
    check(forge(FangAttack(against="krum"), own, honest), np.tile(row, (k, 1)), own, factor=5)


def test_krum_chooses_what_fang_sends() -> None:
    chosen = 0
    for seed in range(20):
        honest = random_rows(9, 20, seed=seed, shift=0.3)
        rows = forge(FangAttack(against="krum"), honest[:4], honest)
        answer = Krum(f=4)(torch.cat([honest, rows]))
        chosen += torch.equal(answer, rows[0])
        assert torch.equal(rows[0].sign(), -honest.mean(dim=0).sign())
    assert chosen >= 18


def test_fang_stops_at_its_threshold() -> None:
    """One attacker among scattered rows is chosen at no λ: the last one is below the threshold."""
    honest = random_rows(6, 3, shift=0.0) * 100
    rows = forge(FangAttack(against="krum", threshold=0.5), honest[:1], honest)
    factor = float(rows[0].abs().max())
    expected = oracle.fang_krum(as_numpy(honest), 1, 0.5)
    assert factor == pytest.approx(float(np.abs(expected).max()), rel=1e-12)
    scores = rules.krum_scores(np.concatenate([as_numpy(honest), as_numpy(rows)]), 1)
    assert (factor < 0.5) == (scores[6] >= scores[:6].min())


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"against": "median"}, "FangAttack: against must be 'trimmed_mean' or 'krum', found 'med"),
        ({"of": "all"}, "FangAttack: of must be 'honest' or 'own', found 'all'"),
        ({"of": "own", "against": "krum"}, "of='own' needs against='trimmed_mean', found 'krum'"),
        ({"b": 1.0}, "FangAttack: b must be a finite number > 1, found 1.0"),
        ({"b": math.inf}, "FangAttack: b must be a finite number > 1, found inf"),
        ({"threshold": 0.0}, "FangAttack: threshold must be a positive finite number, found 0.0"),
    ],
)
def test_bad_parameters_of_fang(parameters, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FangAttack(**parameters)


def test_rounds_too_small_for_fang() -> None:
    rows = random_rows(8, 3)
    with pytest.raises(ValueError, match=r"^FangAttack: .* n >= 2k \+ 3 rows, found n=6, k=2$"):
        forge(FangAttack(against="krum"), rows[:2], rows[2:6])
    with pytest.raises(ValueError, match=r"^FangAttack: at least 2 own rows are required, fo"):
        forge(FangAttack(of="own"), rows[:1], rows[2:])


@pytest.mark.parametrize("attack", [MinMax, MinSum])
def test_bad_perturbations(attack) -> None:
    message = rf"^{attack.__name__}: perturbation must be 'std', 'unit' or 'sign', found 'mean'$"
    with pytest.raises(ValueError, match=message):
        attack(perturbation="mean")
