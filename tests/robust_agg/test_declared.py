"""A rule must withstand what is declared: the same checks up front as in a server's round."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from rule_table import RULES, F, Row

import robust_agg as ra
from robust_agg.declared import check_declared
from robust_agg.messages import Update
from robust_agg.server import Server

Rule = ra.Aggregator | ra.Estimator


def nnm(f: int, rule: ra.Aggregator) -> ra.Aggregator:
    return ra.chain(ra.NearestNeighborMixing(f=f), rule)


@pytest.mark.parametrize(
    ("rule", "found"),
    [
        (ra.Krum(f=1), r"Krum\(f=1\)"),
        (ra.TrimmedMean(f=0), r"TrimmedMean\(f=0\)"),
        (nnm(1, ra.Krum(f=2)), r"NearestNeighborMixing\(f=1\)"),
        (nnm(2, ra.Krum(f=1)), r"Krum\(f=1\)"),
        (ra.Chain(mixings=[], rule=nnm(2, ra.Krum(f=1))), r"Krum\(f=1\)"),
        (ra.Krum(f=np.int64(1)), r"Krum\(f=1\)"),
        (ra.chain(ra.Bucketing(s=2), ra.Krum(f=1)), r"Krum\(f=1\)"),
    ],
    ids=lambda p: p if isinstance(p, str) else p.name,
)
def test_a_rule_that_knows_a_smaller_f_is_refused(rule: Rule, found: str) -> None:
    with pytest.raises(
        ra.ConstraintError, match=f"^Server: rule must withstand f=2, found {found}$"
    ):
        check_declared(rule, f=2)


@pytest.mark.parametrize(
    "rule",
    [ra.Krum(f=2), ra.Krum(f=3), ra.Mean(), ra.VClip(), nnm(2, ra.TrimmedMean(f=2))],
    ids=lambda rule: rule.name,
)
def test_a_rule_that_withstands_f_passes_with_and_without_n(rule: Rule) -> None:
    check_declared(rule, f=2)
    check_declared(rule, f=2, n=9)


@pytest.mark.parametrize(
    ("rule", "f", "n", "message"),
    [
        (ra.Mean(), 2, 4, r"^me: n >= 2f \+ 1 is required, found n=4, f=2$"),
        (ra.VClip(), 0, 0, r"^me: n >= 2f \+ 1 is required, found n=0, f=0$"),
        (ra.Krum(f=2), 2, 6, r"^Krum: n >= 2f \+ 3 is required, found n=6, f=2$"),
        (
            ra.chain(ra.Bucketing(s=2), ra.TrimmedMean(f=1)),
            1,
            4,
            r"^TrimmedMean: n >= 2f \+ 1 is required, found n=2, f=1$",
        ),
        (
            ra.BetaTrimmedMean(beta=0.1),
            2,
            10,
            "^me: rule must withstand f=2 of n=10 rows, found BetaTrimmedMean, which withstands 1$",
        ),
        (
            nnm(2, ra.BetaTrimmedMean(beta=0.1)),
            2,
            10,
            "^me: rule must withstand f=2 of n=10 rows, found BetaTrimmedMean, which withstands 1$",
        ),
        # 7 points of 20 rows, and 20 of 20.
        (
            ra.chain(ra.Bucketing(s=3), ra.CoordinateWiseMedian()),
            4,
            20,
            "^me: rule must withstand 4 of 7 points, which f=4 of n=20 rows may spoil, "
            "found CoordinateWiseMedian, which withstands 3$",
        ),
        (
            ra.chain(ra.Resample(s=3), ra.Clip(threshold=1.0), ra.GeometricMedian()),
            4,
            20,
            "^me: rule must withstand 12 of 20 points, which f=4 of n=20 rows may spoil, "
            "found GeometricMedian, which withstands 9$",
        ),
        # As many as there are, where that is less than s·f.
        (
            ra.chain(ra.Resample(s=3), ra.SignGuard()),
            4,
            9,
            "^me: rule must withstand 9 of 9 points, which f=4 of n=9 rows may spoil, "
            "found SignGuard, which withstands 4$",
        ),
        (
            ra.VClip(tau=ra.Adaptive(quantile=0.9)),
            2,
            10,
            r"^me: the rule's quantile must be at most \(n - f\)/n, found 0\.9 with n=10, f=2$",
        ),
    ],
)
def test_n_rows_that_are_too_few_are_named(rule: Rule, f: int, n: int, message: str) -> None:
    check_declared(rule, f=f, who="me")
    with pytest.raises(ra.ConstraintError, match=message) as caught:
        check_declared(rule, f=f, n=n, who="me")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("rule", "found"),
    [
        (ra.TrimmedMean(f=2), "TrimmedMean"),
        (ra.chain(ra.NearestNeighborMixing(f=2), ra.TrimmedMean(f=4)), "NearestNeighborMixing"),
        (ra.chain(ra.Resample(s=1), ra.Krum(f=3)), "Krum"),
    ],
    ids=lambda p: getattr(p, "name", ""),
)
def test_a_rule_must_know_of_all_points_that_are_spoiled(rule: ra.Aggregator, found: str) -> None:
    """Whatever n: a server does not know it before its rounds."""
    resampled = ra.chain(ra.Resample(s=2), rule)
    check_declared(resampled, f=1, n=20)
    message = (
        r"^Server: rule must withstand f=2, of which 4 points may be bad, "
        rf"found {found}\(f=\d\)$"
    )
    with pytest.raises(ra.ConstraintError, match=message) as caught:
        check_declared(resampled, f=2)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("row", RULES, ids=str)
def test_a_rule_is_accepted_from_as_many_rows_on_as_it_bears_f(row: Row) -> None:
    accepted = []
    for n in range(2 * F + 1, 40):
        try:
            check_declared(row.make(), f=F, n=n)
        except ra.ConstraintError:
            continue
        accepted.append(n)
    assert accepted == list(range(max(row.smallest, row.bears), 40))


def test_chains_that_are_in_use_are_accepted() -> None:
    check_declared(ra.chain(ra.Bucketing(s=2), ra.GeometricMedian()), f=4, n=20)
    check_declared(ra.chain(ra.Bucketing(s=2), ra.TrimmedMean(f=4)), f=4, n=20)
    check_declared(ra.chain(ra.Resample(s=2), ra.TrimmedMean(f=8)), f=4, n=20)


TRUSTING = [ra.MoNNA(f=2, reference=1), ra.CenteredClipping(start=1)]
every_trusting = pytest.mark.parametrize("rule", TRUSTING, ids=lambda rule: rule.name)


@every_trusting
@pytest.mark.parametrize(
    "mixing",
    [ra.Bucketing(s=1), ra.Bucketing(s=2), ra.Resample(s=1), ra.KrumSelection(f=2)],
    ids=repr,
)
def test_a_trusted_row_must_be_in_its_place(rule: ra.Aggregator, mixing: ra.Mixing) -> None:
    message = (
        f"^Server: the row that {rule.name} trusts must be in its place, "
        f"found {mixing.name} before it$"
    )
    for stages in ([mixing], [ra.Clip(threshold=1.0), mixing], [mixing, ra.Clip(threshold=1.0)]):
        with pytest.raises(ra.ConstraintError, match=message):
            check_declared(ra.chain(*stages, rule), f=2)
    with pytest.raises(ra.ConstraintError, match=message):
        check_declared(ra.chain(mixing, ra.Chain(mixings=[], rule=rule)), f=2)


@every_trusting
@pytest.mark.parametrize(
    "mixing",
    [ra.Clip(threshold=1.0), ra.AdaptiveClip(f=2), ra.NearestNeighborMixing(f=2)],
    ids=lambda mixing: mixing.name,
)
def test_a_trusted_row_is_in_its_place_after_what_keeps_rows_there(
    rule: ra.Aggregator, mixing: ra.Mixing
) -> None:
    check_declared(ra.chain(mixing, rule), f=2, n=9)
    check_declared(ra.chain(ra.Bucketing(s=2), mixing, ra.CenteredClipping()), f=2, n=9)


@pytest.mark.parametrize(
    ("rule", "options", "message"),
    [
        (ra.Mean(), {"f": -1}, "^Server: f must be an integer >= 0, found -1$"),
        (ra.Mean(), {"f": "1"}, "^Server: f must be an integer >= 0, found '1'$"),
        (ra.Mean(), {"f": 0, "n": 2.0}, r"^Server: n must be an integer >= 0, found 2\.0$"),
        (ra.Mean, {"f": 0}, "^Server: rule must be an aggregator or an estimator, found <class"),
        ("Mean", {"f": 0}, "^Server: rule must be an aggregator or an estimator, found 'Mean'$"),
        (
            ra.Clip(threshold=1.0),
            {"f": 0},
            r"^Server: rule must be an aggregator or an estimator, found Clip\(threshold=1\.0\)$",
        ),
    ],
)
def test_what_is_no_declaration_is_named(rule: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        check_declared(rule, **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("quantile", [0.05, 0.1, 0.3, 0.5, 0.55, 0.58, 0.7, 0.9, 0.95])
def test_no_f_rows_choose_the_quantile_of_a_rule_that_passes(quantile: float) -> None:
    adaptive = ra.Adaptive(quantile=quantile)
    passed = 0
    for n, f in [(total, bad) for total in range(2, 60) for bad in range((total + 1) // 2)]:
        try:
            check_declared(ra.VClip(tau=adaptive), f=f, n=n)
        except ra.ConstraintError:
            assert quantile > (n - f) / n
            continue
        gaps = torch.ones(n, dtype=torch.float64)
        gaps[n - f :] = 1e9
        assert adaptive.step(gaps, {}, steps=0, one_at_a_time=False)[0] == 1
        passed += 1
    assert passed > 100


@pytest.mark.parametrize(
    ("make", "f", "n"),
    [
        (lambda: ra.Krum(f=1), 1, 4),
        (ra.Mean, 2, 4),
        (lambda: ra.BetaTrimmedMean(beta=0.1), 2, 10),
        (lambda: ra.VClip(tau=ra.Adaptive(quantile=0.9)), 2, 10),
        (lambda: ra.chain(ra.Bucketing(s=2), ra.TrimmedMean(f=1)), 1, 4),
    ],
)
def test_a_server_skips_what_would_be_refused_up_front(
    make: Callable[[], Rule], f: int, n: int
) -> None:
    net = torch.nn.Linear(3, 2)
    server = Server(net, torch.optim.SGD(net.parameters(), lr=0.1), make(), f=f, device="cpu")
    with pytest.raises(ra.ConstraintError) as refused:
        check_declared(make(), f=f, n=n)
    rows = torch.randn(n, server.parameters().numel())
    record = server.step([Update(i, 0, row) for i, row in enumerate(rows)])
    assert record.skipped == str(refused.value)
