"""Properties that every rule declares or owes: invariances, robustness, purity, dtypes."""

from __future__ import annotations

import math
from itertools import product
from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rule_table import RULES, D, F, Row
from torch import Tensor

from robust_agg import (
    Aggregator,
    ConstraintError,
    Invariance,
    Mean,
    MultiKrum,
    TooManyRejectedError,
)
from robust_agg.weightings.krum import Distances, Neighbours

TOLERANCE = {torch.float64: 1e-7, torch.float32: 1e-4, torch.bfloat16: 2e-2, torch.float16: 4e-3}
seeds = st.integers(0, 2**31)
every_rule = pytest.mark.parametrize("row", RULES, ids=str)
every_dtype = pytest.mark.parametrize("dtype", TOLERANCE, ids=str)


def draw(seed: int, n: int, d: int = D, dtype: torch.dtype = torch.float64) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    shift = torch.randn(d, generator=g, dtype=torch.float64)
    return (torch.randn(n, d, generator=g, dtype=torch.float64) + shift).to(dtype)


def run(rule: Aggregator, rows: Tensor) -> Tensor:
    return rule(rows, generator=torch.Generator().manual_seed(5))


def close(a: Tensor, b: Tensor, rows: Tensor) -> bool:
    scale = float(rows.double().abs().max())
    tolerance = TOLERANCE[rows.dtype] * max(scale, 1e-30)
    return float((a.double() - b.double()).abs().max()) <= tolerance


def rotation(seed: int, d: int) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(d, d, generator=g, dtype=torch.float64)).Q


def signed_permutation(seed: int, d: int) -> Tensor:
    """An orthogonal map that is exact in every dtype."""
    g = torch.Generator().manual_seed(seed)
    signs = torch.randint(0, 2, (d,), generator=g) * 2.0 - 1.0
    return torch.diag(signs).double()[torch.randperm(d, generator=g)]


def follows(rule: Aggregator, invariance: Invariance, rows: Tensor, seed: int) -> bool:
    """Whether the output follows a transformation that is exact in the rows' dtype.

    In float32 and float64 also those that round: the tolerance covers it.
    """
    g = torch.Generator().manual_seed(seed)
    n, d = rows.shape
    out = run(rule, rows)
    if invariance is Invariance.PERMUTATION:
        return close(run(rule, rows[torch.randperm(n, generator=g)]), out, rows)
    if invariance is Invariance.SCALING:
        factor = 2.0 ** int(torch.randint(-12, 13, (1,), generator=g))
        return close(run(rule, rows * factor) / factor, out, rows)
    if invariance is Invariance.TRANSLATION:
        shift = torch.randint(-3, 4, (d,), generator=g).to(rows.dtype)
        if rows.dtype.itemsize == 2:
            # Small integers: their sums are exact in 16 bits, so that distances do not change.
            rows = (rows * 2).round()
            out = run(rule, rows)
        return close(run(rule, rows + shift) - shift, out, rows + shift)
    wide = rows.dtype.itemsize > 2
    turn = (rotation(seed, d) if wide else signed_permutation(seed, d)).to(rows.dtype)
    return close(run(rule, rows @ turn.T), (turn @ out).to(rows.dtype), rows)


@every_rule
@every_dtype
@settings(max_examples=12)
@given(seed=seeds, extra=st.integers(0, 6))
def test_declared_invariances_hold(row: Row, dtype: torch.dtype, seed: int, extra: int) -> None:
    rule = row.make()
    rows = draw(seed, row.smallest + extra, dtype=dtype)
    for invariance in rule.invariances:
        assert follows(rule, invariance, rows, seed), invariance


PERMUTED = [row for row in RULES if Invariance.PERMUTATION in row.make().invariances]


@pytest.mark.parametrize("row", PERMUTED, ids=str)
@settings(max_examples=12)
@given(seed=seeds, extra=st.integers(0, 6))
def test_declared_permutations_hold_along_a_line(row: Row, seed: int, extra: int) -> None:
    """Where many a score is the same sum of distances."""
    rows = draw(seed, row.smallest + extra, 1)
    assert follows(row.make(), Invariance.PERMUTATION, rows, seed)


@every_rule
def test_what_is_not_declared_does_not_hold(row: Row) -> None:
    rule = row.make()
    for invariance in set(Invariance) - rule.invariances:
        tried = (
            follows(rule, invariance, draw(s, row.smallest + 5, d), s)
            for d in (D, 1)
            for s in range(40)
        )
        assert not all(tried), invariance


def accepts(rule: Aggregator, n: int) -> bool:
    try:
        rule.check(n)
    except ConstraintError:
        return False
    return True


KRUMS = [
    MultiKrum(f=f, m=m, neighbours=neighbours, distances=distances)
    for f in (0, 1, 2)
    for m in (None, 1)
    for neighbours in get_args(Neighbours)
    for distances in get_args(Distances)
]


@pytest.mark.parametrize("rule", KRUMS, ids=repr)
def test_krum_follows_permutations_but_where_two_scores_are_always_the_same(
    rule: MultiKrum,
) -> None:
    followed = all(
        follows(rule, Invariance.PERMUTATION, draw(seed, n, d), seed)
        for n in range(1, 2 * rule.f + 8)
        if accepts(rule, n)
        for d in (1, 3)
        for seed in range(4)
    )
    declared = Invariance.PERMUTATION in rule.invariances
    assert followed == declared if rule.m == 1 else followed or not declared


def test_krum_of_plain_distances_may_leave_out_one_of_two_rows_in_the_middle() -> None:
    # Of the last four along a line, the two in the middle are the fifth and the sixth best.
    rows = torch.tensor([[0.0], [1.0], [2.0], [3.0], [13.0], [14.0], [17.0]], dtype=torch.float64)
    rule = MultiKrum(f=2, distances="plain")
    assert Invariance.PERMUTATION not in rule.invariances
    assert run(rule, rows).item() == pytest.approx((0 + 1 + 2 + 3 + 13) / 5)
    assert run(rule, rows[[0, 1, 2, 3, 5, 4, 6]]).item() == pytest.approx((0 + 1 + 2 + 3 + 14) / 5)


RETURNS = [row for row in RULES if row.estimates and "Clip+" not in str(row)]


@pytest.mark.parametrize("row", RETURNS, ids=str)
@every_dtype
def test_identical_rows_give_that_row(row: Row, dtype: torch.dtype) -> None:
    # Not after Clip, which shortens the rows.
    rule = row.make()
    x = draw(3, 1, 11, dtype)
    for n in (row.smallest, row.smallest + 1, row.smallest + 8):
        assert close(run(rule, x.repeat(n, 1)), x[0], x)


@pytest.mark.parametrize("row", [row for row in RULES if row.estimates], ids=str)
@every_dtype
def test_one_row_is_its_own_aggregate_or_an_error(row: Row, dtype: torch.dtype) -> None:
    x = draw(4, 1, dtype=dtype) / 10  # shorter than every clipping threshold
    rule = row.make()
    if row.smallest == 1:
        assert close(run(rule, x), x[0], x)
    else:
        with pytest.raises(ValueError, match=r"n >= \d?f|required, found n="):
            run(rule, x)


@every_rule
@every_dtype
@settings(max_examples=8)
@given(seed=seeds, extra=st.integers(0, 5), d=st.integers(1, 40))
def test_input_is_untouched_and_dtype_kept(
    row: Row, dtype: torch.dtype, seed: int, extra: int, d: int
) -> None:
    rows = draw(seed, row.smallest + extra, d, dtype)
    before = rows.clone()
    out = run(row.make(), rows)
    assert out.dtype == dtype
    assert out.shape == (d,)
    assert bool(out.isfinite().all())
    assert torch.equal(rows, before)


@every_rule
def test_strided_rows_give_the_same(row: Row) -> None:
    rows = draw(9, row.smallest + 3, 8, torch.float32)
    out = run(row.make(), rows)
    column_major = rows.T.contiguous().T
    every_second = torch.zeros(len(rows), 16)
    every_second[:, ::2] = rows
    assert close(run(row.make(), column_major), out, rows)
    assert close(run(row.make(), every_second[:, ::2]), out, rows)


CORRUPTIONS = {
    "nan": math.nan,
    "inf": math.inf,
    "-inf": -math.inf,
    "huge": 3e38,
    "-huge": -3e38,
    "1e20": 1e20,
    "1e6": 1e6,
}


def corrupted(seed: int, n: int, kinds: list[str], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Rows with the first len(kinds) replaced, shuffled; and which rows are honest."""
    rows = draw(seed, n, dtype=dtype)
    g = torch.Generator().manual_seed(seed)
    for i, kind in enumerate(kinds):
        if kind == "random":
            rows[i] = (torch.randn(D, generator=g) * 10 ** (i + 1)).to(dtype)
        elif kind == "one coordinate":
            rows[i, seed % D] = math.nan
        elif kind == "mixed":
            rows[i] = torch.tensor([math.nan, math.inf, -math.inf, 3e38, -3e38, 0.0]).to(dtype)
        else:
            rows[i] = CORRUPTIONS[kind]
    order = torch.randperm(n, generator=g)
    return rows[order], order >= len(kinds)


kinds = st.sampled_from([*CORRUPTIONS, "random", "one coordinate", "mixed"])


@pytest.mark.parametrize("row", [r for r in RULES if r.robust], ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@settings(max_examples=40)
@given(seed=seeds, extra=st.integers(0, 8), bad=st.lists(kinds, min_size=0, max_size=F))
def test_up_to_f_bad_rows_leave_a_finite_result_within_bounds(
    row: Row, dtype: torch.dtype, seed: int, extra: int, bad: list[str]
) -> None:
    rule = row.make()
    n = max(row.smallest, row.bears) + extra
    rows, honest = corrupted(seed, n, bad, dtype)
    out = run(rule, rows)
    assert bool(out.isfinite().all())
    good = rows[honest].double()
    rounding = TOLERANCE[dtype] * float(good.abs().max()) * math.sqrt(D)
    # The constant is for every set of n - f rows that are honest, and for every f up to F.
    for f in {len(bad), F}:
        kappa = rule.kappa(n, f)
        if n >= row.known:
            assert (kappa is None) == (row.reach is not None or row.dragged)
        if kappa is not None:
            some = good[: n - f]
            mean = some.mean(dim=0)
            variance = float((some - mean).square().sum(dim=1).mean())
            error = float((out.double() - mean).norm())
            assert error <= math.sqrt(kappa * variance) + rounding
    if row.reach is not None:
        centre, reach = row.reach(good)
        assert float((out.double() - centre).norm()) <= reach + rounding


@pytest.mark.parametrize("row", [r for r in RULES if r.dragged], ids=str)
@pytest.mark.parametrize("far", [1e6, 1e9])
def test_one_row_drags_what_has_no_bound_in_proportion(row: Row, far: float) -> None:
    rows = draw(0, max(row.smallest, row.bears))
    moved = []
    for coordinate, seed in product(range(D), range(5)):
        rows_and_one = rows.clone()
        rows_and_one[0, coordinate] = far
        # A draw that happens to take every coordinate in its turn sees it.
        out = row.make()(rows_and_one, generator=torch.Generator().manual_seed(seed))
        moved.append(float((out - rows[1:].mean(dim=0)).norm()))
    assert max(moved) > 1e-4 * far


@settings(max_examples=40)
@given(seed=seeds, n=st.integers(2, 9), bad=st.lists(kinds, min_size=1, max_size=8))
def test_the_mean_is_finite_while_one_row_is(seed: int, n: int, bad: list[str]) -> None:
    rows, _ = corrupted(seed, n, bad[: n - 1], torch.float32)
    assert bool(Mean()(rows).isfinite().all())


@every_rule
def test_more_than_the_tolerated_number_of_nan_rows_raises(row: Row) -> None:
    rule = row.make()
    n = row.smallest + 4
    rows = draw(0, n)
    # Groups average over their finite members, so only all of them are certainly too many.
    grouped = rule.name.startswith(("Bucketing", "Resample"))
    count = n if grouped else rule.max_rejected(n) + 1
    rows[:count] = math.nan
    with pytest.raises(TooManyRejectedError, match=rule.name.replace("+", "|")) as caught:
        run(rule, rows)
    assert "\n" not in str(caught.value)


@every_rule
@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (torch.zeros(5), r"rows must have shape \(n, d\) with n, d >= 1, found \(5,\)"),
        (torch.zeros(0, 5), r"rows must have shape .*found \(0, 5\)"),
        (torch.zeros(5, 0), r"rows must have shape .*found \(5, 0\)"),
        (
            torch.zeros(9, 5, dtype=torch.int64),
            r"rows must have a floating dtype of 16 bits or more, found torch.int64",
        ),
        (
            torch.zeros(9, 5, dtype=torch.float8_e4m3fn),
            r"rows must have a floating dtype of 16 bits or more, found torch.float8_e4m3fn",
        ),
        (
            torch.ones(9, 3, device="meta"),
            "rows must be on a device that keeps numbers, found meta",
        ),
    ],
)
def test_bad_rows_are_named(row: Row, rows: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        row.make()(rows)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("row", [r for r in RULES if r.smallest > 1], ids=str)
def test_n_too_small_for_f_names_both(row: Row) -> None:
    rule = row.make()
    with pytest.raises(ValueError, match=rf"found n=\d+, f={F}"):
        run(rule, draw(0, row.smallest - 1))


@pytest.mark.parametrize("row", RULES, ids=str)
def test_explanations_account_for_the_output(row: Row) -> None:
    rule = row.make()
    rows, honest = corrupted(1, 13, ["nan", "1e20"], torch.float32)
    why = rule.explain(rows, generator=torch.Generator().manual_seed(5))
    assert torch.equal(why.output, run(rule, rows))
    assert why.distances.shape == (13,)
    measured = (rows[honest].double() - why.output.double()).norm(dim=1)
    assert torch.allclose(why.distances[honest], measured, rtol=1e-5)
    nan_row = int(rows.isnan().any(dim=1).nonzero())
    assert nan_row in why.rejected
    if why.weights is None:
        with pytest.raises(TypeError, match="no weights"):
            rule.weights(rows, generator=torch.Generator())
        return
    assert why.weights[nan_row] == 0
    if rule.kappa(13, F) is not None and abs(float(why.weights.sum()) - 1) < 1e-9:
        assert close(why.weights[honest] @ rows[honest].double(), why.output, rows[honest])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16], ids=str)
@pytest.mark.parametrize("n", [1, 7, 11, 13, 41, 49])
@pytest.mark.parametrize("sign", [-1, 1])
def test_the_mean_of_the_largest_number_is_finite(dtype: torch.dtype, n: int, sign: int) -> None:
    largest = min(torch.finfo(dtype).max, 1e154)  # beyond, a float64 row is too far to measure
    found = Mean()(torch.full((n, 1), sign * largest, dtype=dtype))
    torch.testing.assert_close(found, torch.tensor([sign * largest], dtype=dtype))
