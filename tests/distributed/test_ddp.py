"""DistributedDataParallel with the robust hook: the gradients of the dense rule, in any buckets."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import model_jobs
import pytest
import torch
from rank_processes import RankDiedError, RankGroups
from torch import Tensor

import robust_agg as ra
from robust_agg import ConstraintError, TooManyRejectedError
from robust_agg.distributed import DisagreementError, RankError

N = 5
Rule = ra.Aggregator | ra.OnlineMedian
SEPARABLE: list[Rule] = [
    ra.CoordinateWiseMedian(),
    ra.TrimmedMean(f=1),
    ra.Momentum(tau=0.3),
    ra.CClip(tau=0.01),
    ra.CClip(tau=0.01, fusion="batch"),
    ra.SignMajority(),
    ra.SignedIncrement(tau=0.01),
]
WHOLE: list[Rule] = [
    ra.Mean(),
    ra.GeometricMedian(),
    ra.Krum(f=1),
    ra.chain(ra.NearestNeighborMixing(f=1), ra.TrimmedMean(f=1)),
    ra.chain(ra.Bucketing(s=2), ra.CoordinateWiseMedian()),
    ra.VClip(tau=0.5),
    ra.VClip(iterations=2),
    ra.VClip(fusion="batch"),
    ra.VClip(fusion="sequential"),
    ra.CClip(),
    ra.ClippedClustering(),
]


def name(rule: Rule) -> str:
    return repr(rule)


def close(pairs: list[tuple[Tensor, Tensor]]) -> None:
    for found, expected in pairs:
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6 * float(expected.norm()))


@pytest.mark.parametrize("rule", [*SEPARABLE, *WHOLE], ids=name)
def test_gradients_are_the_dense_rule_s(ranks: RankGroups, rule: Rule) -> None:
    """Over four steps: the buckets change after the first, and an estimate has to follow."""
    assert rule.separable == (rule in SEPARABLE)
    for pairs in ranks(N).run(model_jobs.ddp_steps, rule, 4, {}):
        close(pairs)


@pytest.mark.parametrize("options", [{"trust": "replicated"}, {"groups": 3}], ids=str)
@pytest.mark.parametrize(
    "rule", [ra.CoordinateWiseMedian(), ra.VClip(tau=0.5), ra.GeometricMedian()], ids=name
)
def test_gradients_under_other_exchanges(
    ranks: RankGroups, rule: Rule, options: dict[str, Any]
) -> None:
    n = 6 if "groups" in options else 3
    answers = ranks(n).run(model_jobs.ddp_steps, rule, 3, options)
    gradients = [[found for found, _ in pairs] for pairs in answers]
    for others in gradients[1:]:
        assert all(torch.equal(a, b) for a, b in zip(gradients[0], others, strict=True))
    close(answers[0])


@pytest.mark.parametrize("rule", [ra.CoordinateWiseMedian(), ra.VClip(tau=0.5)], ids=name)
def test_gradients_are_accumulated_before(ranks: RankGroups, rule: Rule) -> None:
    for pair in ranks(3).run(model_jobs.accumulated, rule):
        close([pair])


@pytest.mark.parametrize("rule", [ra.CoordinateWiseMedian(), ra.GeometricMedian()], ids=name)
def test_parameters_may_be_unused(ranks: RankGroups, rule: Rule) -> None:
    for used in ranks(3).run(model_jobs.unused, rule):
        assert used == [*[True] * 6, *[False] * 2]


@pytest.mark.parametrize(
    "rule", [ra.CoordinateWiseMedian(), ra.VClip(tau=0.5), ra.CClip(tau=0.01)], ids=name
)
def test_a_scaler_skips_a_step_with_too_many_bad_rows(ranks: RankGroups, rule: Rule) -> None:
    """And the estimate is as before it; its units are those of the gradient, not of the scale."""
    for found in ranks(3).run(model_jobs.scaled, rule, 2, {"f": 1}):
        assert found["scales"] == [1024.0, 512.0, 512.0]
        assert found["moved"] == [True, False, True]
        close(found["steps"])


def test_a_scaler_does_not_mind_what_the_rule_bears(ranks: RankGroups) -> None:
    for found in ranks(3).run(model_jobs.scaled, ra.CoordinateWiseMedian(), 1, {"f": 1}):
        assert found["scales"] == [1024.0] * 3
        assert found["moved"] == [True] * 3


@pytest.mark.parametrize("rule", [ra.GeometricMedian(), ra.CoordinateWiseMedian()], ids=name)
def test_without_a_scaler_too_many_bad_rows_are_an_error_on_every_rank(
    ranks: RankGroups, rule: Rule
) -> None:
    errors = ranks(3).run(model_jobs.raising, rule, {}, 2)
    assert all(isinstance(error, TooManyRejectedError) for error in errors)
    assert len({str(error) for error in errors}) == 1
    assert "n=3 rows" in str(errors[0])
    assert "steps" not in str(errors[0])


@pytest.mark.parametrize(
    ("rule", "options", "said"),
    [
        (ra.CoordinateWiseMedian(), {"f": 1}, "n=3 rows, of which f=1 may be bad, are non-finite"),
        (
            ra.SignedIncrement(tau=3e38, iterations=4),
            {},
            "n=3 rows are non-finite, or its steps are too long",
        ),
    ],
    ids=["a median", "an estimator"],
)
def test_it_is_said_what_is_known_of_too_many_bad_rows(
    ranks: RankGroups, rule: Rule, options: dict[str, Any], said: str
) -> None:
    for error in ranks(3).run(model_jobs.raising, rule, options, 3):
        assert isinstance(error, TooManyRejectedError)
        assert str(error).endswith(f"found a number that is not: too many of the {said}")


@pytest.mark.parametrize(
    "rule",
    [ra.VClip(tau=0.5), ra.VClip(), ra.CClip(tau=0.01), ra.ClippedClustering()],
    ids=name,
)
def test_a_hook_s_state_goes_into_a_checkpoint(
    ranks: RankGroups, rule: Rule, tmp_path: Path
) -> None:
    """And into other buckets."""
    for pairs in ranks(3).run(model_jobs.saved, rule, str(tmp_path / "hook.safetensors")):
        close(pairs)


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_different_rules_are_told_on_every_rank(ranks: RankGroups, kind: str) -> None:
    rules = [ra.Mean(), ra.Mean(), ra.GeometricMedian()]
    for error in ranks(3).run(model_jobs.different_rules, rules, kind):
        assert isinstance(error, DisagreementError)
        assert "found Mean(), Sharded of 3" in str(error)


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_a_rule_that_cannot_be_on_one_rank_is_told_on_every_rank(
    ranks: RankGroups, kind: str
) -> None:
    rules = [ra.Mean(), ra.CenteredClipping(start=torch.zeros(3)), ra.Mean()]
    errors = ranks(3).run(model_jobs.different_rules, rules, kind)
    assert [isinstance(error, DisagreementError) for error in errors] == [True, False, True]
    assert "which needs whole rows" in str(errors[1])
    assert str(errors[0]).endswith(f"what cannot be ({errors[1]}) on rank 1")


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
@pytest.mark.parametrize("fill", [float("nan"), 1e30])
@pytest.mark.parametrize(
    "rule",
    [
        ra.Momentum(tau=0.3, fusion="sequential"),
        ra.Momentum(tau=0.3),
        ra.CoordinateWiseMedian(),
        ra.VClip(tau=0.5),
    ],
    ids=name,
)
def test_a_bad_row_is_left_out_as_by_the_dense_rule(
    ranks: RankGroups, rule: Rule, fill: float, kind: str
) -> None:
    for found, expected in ranks(3).run(model_jobs.with_bad_row, rule, fill, kind):
        assert bool(found.isfinite().all())
        close([(found, expected)])


@pytest.mark.parametrize("rule", [ra.CoordinateWiseMedian(), ra.VClip(tau=0.5)], ids=name)
@pytest.mark.parametrize("option", ["static_graph", "gradient_as_bucket_view"])
def test_gradients_under_ddp_s_own_options(ranks: RankGroups, rule: Rule, option: str) -> None:
    for pairs in ranks(3).run(model_jobs.ddp_steps, rule, 3, {}, {option: True}):
        close(pairs)
    if option == "static_graph":  # of which nothing tells the last of several buckets
        for error in ranks(3).outcomes(model_jobs.of_two_dtypes, rule, {option: True}):
            assert isinstance(error, ValueError), error
            assert "model must have one bucket in its first step" in str(error)
        return
    for pairs in ranks(3).run(model_jobs.of_two_dtypes, rule, {option: True}):
        close(pairs)


@pytest.mark.parametrize("rule", [ra.CoordinateWiseMedian(), ra.VClip(tau=0.5)], ids=name)
def test_parameters_may_be_of_two_dtypes(ranks: RankGroups, rule: Rule) -> None:
    for pairs in ranks(3).run(model_jobs.of_two_dtypes, rule):
        close(pairs)


@pytest.mark.parametrize("rule", [ra.VClip(tau=0.5), ra.CClip(tau=0.01)], ids=name)
def test_a_scale_that_makes_all_rows_overflow_is_noticed_without_f(
    ranks: RankGroups, rule: Rule
) -> None:
    for found in ranks(3).run(model_jobs.scaled, rule, 3, {}):
        assert found["scales"] == [1024.0, 512.0, 512.0]
        assert found["moved"] == [True, False, True]
        close(found["steps"])


def test_a_state_is_by_indices_whatever_the_order_in_memory(
    ranks: RankGroups, tmp_path: Path
) -> None:
    path = str(tmp_path / "hook.safetensors")
    for pairs in ranks(3).run(model_jobs.in_another_order, ra.VClip(tau=0.5), path):
        close(pairs)


def test_what_is_trained_later_does_not_reset_the_others(ranks: RankGroups, tmp_path: Path) -> None:
    path = str(tmp_path / "hook.safetensors")
    rule = ra.Momentum(tau=0.3)
    for before, after in ranks(3).run(model_jobs.unfrozen_later, rule, path):
        torch.testing.assert_close(after, 0.7 * before)


def test_a_rule_that_cannot_be_sharded_is_refused(ranks: RankGroups) -> None:
    rule = ra.CenteredClipping(start=torch.zeros(3))
    for error in ranks(3).outcomes(model_jobs.ddp_steps, rule, 1, {}):
        assert isinstance(error, ValueError)
        assert "which needs whole rows: trust='replicated'" in str(error)


def test_too_few_ranks_for_f_are_refused(ranks: RankGroups) -> None:
    for error in ranks(3).outcomes(model_jobs.ddp_steps, ra.TrimmedMean(f=2), 1, {}):
        assert isinstance(error, ConstraintError)


@pytest.mark.parametrize("fault", [signal.SIGKILL, signal.SIGSTOP], ids=lambda fault: fault.name)
@pytest.mark.parametrize("rule", [ra.CoordinateWiseMedian(), ra.GeometricMedian()], ids=name)
def test_a_rank_struck_in_its_backward_pass_is_named(
    ranks: RankGroups, rule: Rule, fault: signal.Signals
) -> None:
    job = (model_jobs.struck_in_backward, rule, 1, int(fault), 4.0)
    silent = {1} if fault == signal.SIGSTOP else set()
    answers = ranks(3).outcomes(*job, silent=silent)
    if fault == signal.SIGKILL:
        assert isinstance(answers[1], RankDiedError)
    for error in (answers[0], answers[2]):
        assert isinstance(error, RankError), error
        assert error.ranks == (1,)
        assert error.step == 1
