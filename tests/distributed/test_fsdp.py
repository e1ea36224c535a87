"""FSDP2 with the robust reduce-scatter: the dense rule's gradients."""

from __future__ import annotations

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
