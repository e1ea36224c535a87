"""FSDP2 with the robust reduce-scatter: the dense rule's gradients."""

from __future__ import annotations

from pathlib import Path

import model_jobs
import pytest
import torch
from rank_processes import RankGroups
from test_ddp import SEPARABLE, WHOLE, Rule, close, name

import robust_agg as ra
from robust_agg import TooManyRejectedError

N = 5
# An adaptive τ of ‖·‖₁ is read from a sample of the columns, which are in another order here.
EXACT = [rule for rule in [*SEPARABLE, *WHOLE] if rule != ra.CClip()]


@pytest.mark.parametrize("rule", EXACT, ids=name)
def test_gradients_are_the_dense_rule_s(ranks: RankGroups, rule: Rule) -> None:
    for pairs in ranks(N).run(model_jobs.fsdp_steps, rule, 3, {}):
        close(pairs)


@pytest.mark.parametrize("rule", [ra.CoordinateWiseMedian(), ra.VClip(tau=0.5)], ids=name)
def test_an_optimizer_s_step_finishes_the_gradient(ranks: RankGroups, rule: Rule) -> None:
    for own, dense in ranks(3).run(model_jobs.stepping_finishes, rule):
        torch.testing.assert_close(own, dense, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("case", "said"),
    [
        ("nothing sharded", "must be sharded by fully_shard over one mesh of one dimension"),
        ("half precision", "must be reduced in float32 or bfloat16"),
        ("copied", "must find it in the dtype it was reduced in"),
        ("computed in bfloat16", "from torch.bfloat16; MixedPrecisionPolicy(reduce_dtype=torch.f"),
        ("added", "must find it in the dtype it was reduced in"),
        ("twice", "finish must run between two backward passes"),
    ],
)
def test_what_cannot_be_made_robust_is_an_error(ranks: RankGroups, case: str, said: str) -> None:
    for error in ranks(3).run(model_jobs.badly_sharded, case, ra.GeometricMedian()):
        assert isinstance(error, ValueError), error
        assert said in str(error)


def test_one_rank_is_refused(ranks: RankGroups) -> None:
    for error in ranks(1).run(model_jobs.badly_sharded, "alone", ra.Mean()):
        assert "must be sharded over two ranks or more" in str(error)


@pytest.mark.parametrize("rule", [ra.CClip(tau=0.01), ra.VClip(tau=0.5)], ids=name)
def test_a_step_may_be_without_some_groups(ranks: RankGroups, rule: Rule) -> None:
    for found in ranks(3).run(model_jobs.fsdp_partly, rule):
        assert found == [True] * 3


@pytest.mark.parametrize("rule", [ra.CoordinateWiseMedian(), ra.GeometricMedian()], ids=name)
def test_too_many_bad_rows_are_an_error_on_every_rank(ranks: RankGroups, rule: Rule) -> None:
    errors = ranks(3).run(model_jobs.fsdp_raising, rule, 2)
    assert all(isinstance(error, TooManyRejectedError) for error in errors), errors
    assert len({str(error) for error in errors}) == 1


ESTIMATORS = [ra.VClip(), ra.CClip(tau=0.01), ra.Momentum(beta=0.9)]


@pytest.mark.parametrize("rule", ESTIMATORS, ids=name)
@pytest.mark.parametrize("n", [N, 3])
def test_a_state_is_continued_by_any_number_of_ranks(
    ranks: RankGroups, tmp_path: Path, rule: Rule, n: int
) -> None:
    path = str(tmp_path / "state")
    for kept, loaded in ranks(N).run(model_jobs.fsdp_saving, rule, path):
        assert kept["step"] == loaded["step"] == 2
        assert kept["rule"] == loaded["rule"]
        assert kept["estimate"].keys() == loaded["estimate"].keys()
        for parameter, value in kept["estimate"].items():
            assert torch.equal(value, loaded["estimate"][parameter])
    for pairs in ranks(n).run(model_jobs.fsdp_continued, rule, path, N):
        close(pairs)


def test_a_state_of_ddp_is_continued(ranks: RankGroups, tmp_path: Path) -> None:
    path = str(tmp_path / "state")
    ranks(N).run(model_jobs.saved, ra.VClip(), path)
    for pairs in ranks(3).run(model_jobs.fsdp_continued, ra.VClip(), path, N):
        close(pairs)


def test_a_state_of_another_rule_is_refused(ranks: RankGroups, tmp_path: Path) -> None:
    path = str(tmp_path / "state")
    ranks(3).run(model_jobs.fsdp_saving, ra.VClip(), path)
    for error in ranks(3).run(model_jobs.fsdp_refusing, ra.CClip(tau=0.5), path):
        assert type(error) is ValueError
        assert "rule must be the state's VClip(" in str(error)


@pytest.mark.parametrize("rule", [ra.GeometricMedian(), ra.CoordinateWiseMedian()], ids=name)
def test_a_closure_s_gradient_is_finished_too(ranks: RankGroups, rule: Rule) -> None:
    for pairs in ranks(3).run(model_jobs.fsdp_by_closure, rule):
        close(pairs)


@pytest.mark.parametrize("rule", [ra.VClip(tau=0.5), ra.CClip(tau=0.01)], ids=name)
def test_a_state_is_of_what_is_trained(ranks: RankGroups, rule: Rule) -> None:
    for known in ranks(3).run(model_jobs.fsdp_frozen, rule):
        assert known == ["0.weight", "2.weight", "4.weight"]
