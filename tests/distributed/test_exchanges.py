"""How rows meet: slices, whole rows, means of groups; and back."""

from __future__ import annotations

from typing import Any

import exchange_jobs
import pytest
import rank_jobs
import torch
from dense import alike, check_close, draw
from rank_processes import RankDiedError, RankGroups

import robust_agg as ra
from robust_agg.distributed import DisagreementError, EquivocationError, RankError

OPTIONS: list[dict[str, Any]] = [
    {"trust": "sharded"},
    {"trust": "replicated"},
    {"groups": 1},
    {"groups": 2},
    {"groups": 3},
    {"groups": 6},
]
N = 6


def met(rows: torch.Tensor, options: dict[str, Any]) -> torch.Tensor:
    """The rows that the rule is to see."""
    groups = options.get("groups", N)
    return rows.view(groups, N // groups, -1).mean(dim=1)


@pytest.mark.parametrize("d", [1, 5, 6, 97, 1000])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_there_and_back(ranks: RankGroups, options: dict[str, Any], d: int) -> None:
    rows = draw(N, d)
    answers = ranks(N).run(exchange_jobs.there_and_back, list(rows), options)
    expected = met(rows, options)
    counts = answers[0]["counts"]
    assert [answer["rows"].shape[1] for answer in answers] == counts
    for answer in answers:
        assert answer["counts"] == counts
        assert answer["in room"] or options.get("trust") == "replicated" or 0 in counts
        assert answer["same rows"]
        check_close(answer["whole"], expected[0])
        check_close(answer["out"], expected[0])
    if options.get("trust") == "replicated":
        assert counts == [d] * N
        assert all(torch.equal(answer["rows"], rows) for answer in answers)
        return
    assert sum(counts) == d
    for answer in answers:
        # Its columns of the first row tell which they are, no two numbers being alike.
        places = [int((rows[0] == value).nonzero()) for value in answer["own"]]
        assert answer["rows"].shape == (len(expected), len(places))
        if places:
            check_close(answer["rows"], expected[:, places])


@pytest.mark.parametrize("d", [1, 4, 63, 1000])
def test_slices_come_together_in_three_ways(ranks: RankGroups, d: int) -> None:
    rows = draw(5, d)
    for found in alike(ranks(5).run(exchange_jobs.all_collections, list(rows))):
        assert torch.equal(found, rows[0])


def test_sums_are_those_of_all_parts(ranks: RankGroups) -> None:
    parts = draw(5, 3000, torch.float64)
    found = alike(ranks(5).run(exchange_jobs.sums, list(parts)))
    few, many, largest = found[:3]
    assert few.shape == (7, 1)
    torch.testing.assert_close(few[:, 0], parts[:, :7].sum(dim=0))
    torch.testing.assert_close(many, parts.sum(dim=0))
    assert float(largest) == float(parts[:, 0].max())
    for one, other in zip(found[:3], found[3:], strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("options", OPTIONS[1:5], ids=str)
@pytest.mark.parametrize(
    "rule",
    [
        ra.Mean(),
        ra.CoordinateWiseMedian(),
        ra.GeometricMedian(),
        ra.chain(ra.AdaptiveClip(f=0), ra.CoordinateWiseMedian()),
        ra.VClip(),
        ra.VClip(fusion="batch"),
        ra.CClip(),
    ],
    ids=repr,
)
def test_the_rule_sees_these_rows(ranks: RankGroups, rule: Any, options: dict[str, Any]) -> None:
    steps = [draw(N, 333, seed=seed) for seed in range(3)]
    found = alike(ranks(N).run(rank_jobs.reduced, rule, [list(rows) for rows in steps], options))
    state: Any = {}
    for rows, one in zip(steps, found, strict=True):
        seen = met(rows, options)
        if isinstance(rule, ra.Aggregator):
            expected = rule(seen)
        else:
            expected, state = rule.step(seen, state or rule.init(seen[0]))
        torch.testing.assert_close(one, expected, rtol=2e-5, atol=1e-5)


def test_a_rule_that_needs_whole_rows_has_them_where_all_are_replicated(ranks: RankGroups) -> None:
    rule = ra.CenteredClipping(start=torch.zeros(50))
    rows = draw(N, 50)
    options = {"trust": "replicated"}
    found = alike(ranks(N).run(rank_jobs.reduced, rule, [list(rows)], options))
    check_close(found[0], rule(rows))


@pytest.mark.parametrize(("liar", "row"), [(0, 2), (2, 2), (3, 0)])
def test_a_row_that_is_not_the_same_everywhere_is_told_on_every_rank(
    ranks: RankGroups, liar: int, row: int
) -> None:
    errors = ranks(4).run(exchange_jobs.equivocal, ra.Mean(), list(draw(4, 33)), liar, row)
    for rank, error in enumerate(errors):
        assert isinstance(error, EquivocationError), error
        others = "0, 1, 2, 3".replace(f"{liar}, ", "").replace(f", {liar}", "")
        peers = others if rank == liar else str(liar)
        assert f"found row {row} to differ from what rank {peers} received" in str(error)


def test_rows_that_are_nan_are_the_same_everywhere(ranks: RankGroups) -> None:
    rows = draw(4, 33)
    rows[1] = torch.nan
    found = alike(
        ranks(4).run(rank_jobs.reduced, ra.GeometricMedian(), [list(rows)], {"trust": "replicated"})
    )
    check_close(found[0], ra.GeometricMedian()(rows))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"groups": 4}, "groups must divide the number of all ranks, found groups=4 of 6 ranks"),
        ({"groups": 0}, "groups must be an integer >= 1, found 0"),
        ({"groups": 2, "trust": "replicated"}, "groups needs trust='sharded'"),
        ({"trust": "blind"}, "trust must be 'sharded' or 'replicated', found 'blind'"),
    ],
    ids=str,
)
def test_options_that_do_not_go_together(
    ranks: RankGroups, options: dict[str, Any], said: str
) -> None:
    for error in ranks(N).outcomes(rank_jobs.reduced, ra.Mean(), [], options):
        assert isinstance(error, ValueError)
        assert said in str(error)


def test_too_few_groups_for_f_are_refused(ranks: RankGroups) -> None:
    """The rows are the groups: six ranks bear two bad ones, three groups of them one."""
    options = {"groups": 3, "f": 2}
    for error in ranks(N).outcomes(rank_jobs.reduced, ra.TrimmedMean(f=2), [], options):
        assert isinstance(error, ra.ConstraintError)
        assert "n=3, f=2" in str(error)


@pytest.mark.parametrize("rule", [ra.CoordinateWiseMedian(), ra.VClip(tau=0.5)], ids=repr)
def test_a_result_may_go_where_the_row_was(ranks: RankGroups, rule: Any) -> None:
    rows = draw(4, 1003)
    expected = alike(ranks(4).run(rank_jobs.reduced, rule, [list(rows)], {}))[0]
    for found, there in ranks(4).run(exchange_jobs.in_place, rule, list(rows)):
        assert there
        assert torch.equal(found, expected)


@pytest.mark.parametrize(
    ("case", "found"),
    [
        ("shape", "torch.float32, torch.strided of shape (24,) on cpu"),
        ("dtype", "torch.float64, torch.strided of shape (4, 6) on cpu"),
        ("strided", "torch.float32, torch.strided, not contiguous of shape (4, 6) on cpu"),
        ("an array", "ndarray of float64, of shape (4, 6)"),
        ("a list", "list"),
        ("one rank", ""),
    ],
)
def test_a_result_that_cannot_go_there_is_an_error_on_every_rank(
    ranks: RankGroups, case: str, found: str
) -> None:
    for error in ranks(3).run(exchange_jobs.badly_out, ra.Mean(), case):
        if case == "one rank":
            assert isinstance(error, DisagreementError)
        else:
            assert "out must be a contiguous tensor of tensor's shape" in str(error)
            assert str(error).endswith(f", found {found}")


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("rule", [ra.CoordinateWiseMedian(), ra.VClip(tau=0.5)], ids=repr)
def test_distances_are_those_of_whole_rows(
    ranks: RankGroups, rule: Any, options: dict[str, Any]
) -> None:
    rows = draw(N, 333)
    rows[4, 5] = torch.nan
    seen = met(rows, options)
    if len(seen) < 3:
        pytest.skip("two rows, one of NaN: nothing robust is left")
    if isinstance(rule, ra.Aggregator):
        expected = rule.explain(seen)
    else:
        expected, _ = rule.explain(seen, rule.init(seen[0]))
    for distances, rejected in ranks(N).run(exchange_jobs.explained, rule, list(rows), options):
        torch.testing.assert_close(distances, expected.distances, equal_nan=True)
        assert rejected == expected.rejected == (len(seen) * 4 // N,)


@pytest.mark.parametrize("victim", [1, 3])
def test_a_rank_killed_among_groups_is_named_by_its_own_number(
    ranks: RankGroups, victim: int
) -> None:
    job = (exchange_jobs.struck_in_groups, ra.Mean(), list(draw(4, 50)), victim, 20.0)
    answers = ranks(4).outcomes(*job)
    assert isinstance(answers.pop(victim), RankDiedError)
    for error in answers:
        assert isinstance(error, RankError), error
        assert victim in error.ranks
        assert error.step == 1


@pytest.mark.parametrize("rule", [ra.VClip(tau=0.5), ra.CClip(tau=0.1)], ids=repr)
def test_a_state_outlives_a_step_that_fails_after_it_was_loaded(
    ranks: RankGroups, rule: Any
) -> None:
    for before, after, error in ranks(3).run(
        exchange_jobs.loaded_then_failed, rule, draw(3, 40), 2
    ):
        assert isinstance(error, ra.TooManyRejectedError)
        assert torch.equal(before, after)


def test_a_row_elsewhere_on_one_rank_is_told_on_every_rank(ranks: RankGroups) -> None:
    for error in ranks(3).run(exchange_jobs.elsewhere, ra.Mean(), 1):
        assert isinstance(error, DisagreementError), error


@pytest.mark.parametrize(
    ("rule", "options"),
    [("no rule", {}), (ra.Mean(), {"f": 9}), (ra.CenteredClipping(start=torch.zeros(7)), {})],
    ids=["no rule", "f", "whole rows"],
)
def test_a_rule_that_cannot_be_on_one_rank_is_told_on_every_rank(
    ranks: RankGroups, rule: Any, options: dict[str, Any]
) -> None:
    """And the ranks are in step afterwards."""
    rules, given = [ra.Mean(), rule, ra.Mean()], [{}, options, {}]
    answers = ranks(3).run(exchange_jobs.refused_by_one, rules, given)
    refusal = answers[1][0]
    for rank, (first, second) in enumerate(answers):
        if rank == 1:
            assert isinstance(refusal, ValueError)
            assert not isinstance(refusal, DisagreementError)
        else:
            assert isinstance(first, DisagreementError), first
            assert str(first).endswith(f"what cannot be ({refusal}) on rank 1")
        assert torch.equal(second, torch.ones(7))
    errors = ranks(3).run(exchange_jobs.refused_reduction, rules, given)
    assert [isinstance(error, DisagreementError) for error in errors] == [True, False, True]
