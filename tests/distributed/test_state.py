"""An estimator's state is whole in a checkpoint, and in slices on the ranks."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import rank_jobs
import torch
from dense import alike, check_close, dense, draw
from rank_processes import RankGroups

import robust_agg as ra
from robust_agg.checkpoint import load_checkpoint, save_checkpoint
from robust_agg.errors import TooManyRejectedError
from robust_agg.online.estimator import ESTIMATE

ESTIMATORS = [
    ra.VClip(),
    ra.VClip(fusion="sequential"),
    ra.CClip(tau=0.5),
    ra.Momentum(beta=0.9, method="prox"),
]
every_estimator = pytest.mark.parametrize(
    "rule", ESTIMATORS, ids=lambda rule: f"{rule.name}-{rule.fusion}"
)


@every_estimator
@pytest.mark.parametrize("d", [3, 100])
def test_a_state_continues_to_the_bit(
    ranks: RankGroups, tmp_path: Path, rule: ra.OnlineMedian, d: int
) -> None:
    steps = [draw(5, d, seed=seed) for seed in range(6)]
    path = str(tmp_path / "state")
    without, trees = zip(*ranks(5).run(rank_jobs.saving, rule, steps, 3, path), strict=True)
    found = alike(ranks(5).run(rank_jobs.continued, rule, steps[3:], path))
    assert rank_jobs.same_bytes(found, alike(without)[3:])
    alike([tree["estimator"][ESTIMATE] for tree in trees])
    for tree in trees:
        assert tree["step"] == 3
        assert tree["estimator"][ESTIMATE].shape == (d,)
        check_close(tree["estimator"][ESTIMATE], dense(rule, steps[:3])[-1])


@every_estimator
@pytest.mark.parametrize("n", [1, 2, 7])
def test_another_number_of_ranks_may_continue(
    ranks: RankGroups, tmp_path: Path, rule: ra.OnlineMedian, n: int
) -> None:
    steps = [draw(5, 100, seed=seed) for seed in range(3)]
    later = [draw(n, 100, seed=seed) for seed in range(3, 6)]
    path = str(tmp_path / "state")
    ranks(5).run(rank_jobs.saving, rule, steps, 3, path)
    found = alike(ranks(n).run(rank_jobs.continued, rule, later, path))
    for one, expected in zip(found, dense(rule, [*steps, *later])[3:], strict=True):
        check_close(one, expected)


def test_a_state_of_several_dtypes_is_one_vector(ranks: RankGroups, tmp_path: Path) -> None:
    steps = [[[row[:40].double(), row[40:]] for row in draw(5, 90, seed=s)] for s in range(4)]
    path = str(tmp_path / "state")
    without, trees = zip(*ranks(5).run(rank_jobs.saving, ra.VClip(), steps, 2, path), strict=True)
    found = alike(ranks(5).run(rank_jobs.continued, ra.VClip(), steps[2:], path))
    assert rank_jobs.same_bytes(found, alike(without)[2:])
    assert trees[0]["estimator"][ESTIMATE].dtype == torch.float64
    assert trees[0]["estimator"][ESTIMATE].shape == (90,)


@pytest.mark.parametrize("rule", [ra.VClip(), ra.CoordinateWiseMedian()], ids=lambda r: r.name)
def test_before_the_first_step_there_is_a_state_too(
    ranks: RankGroups, tmp_path: Path, rule: ra.Aggregator | ra.OnlineMedian
) -> None:
    steps = [draw(3, 10, seed=seed) for seed in range(2)]
    path = str(tmp_path / "state")
    ranks(3).run(rank_jobs.saving, rule, steps, 0, path)
    assert load_checkpoint(path)["estimator"] == {}
    found = alike(ranks(3).run(rank_jobs.continued, rule, steps, path))
    for one, expected in zip(found, dense(rule, steps), strict=True):
        check_close(one, expected)


def test_a_random_rule_goes_on_with_its_draws(ranks: RankGroups, tmp_path: Path) -> None:
    rule = ra.chain(ra.Bucketing(s=2), ra.CoordinateWiseMedian())
    steps, path = [draw(5, 20)] * 4, str(tmp_path / "state")
    without = alike([run for run, _ in ranks(5).run(rank_jobs.saving, rule, steps, 2, path)])
    found = alike(ranks(5).run(rank_jobs.continued, rule, steps[2:], path))
    assert rank_jobs.same_bytes(found, without[2:])
    assert not rank_jobs.same_bytes(without[2:], without[:2])


def test_what_was_loaded_can_be_saved_again_at_once(ranks: RankGroups, tmp_path: Path) -> None:
    path = str(tmp_path / "state")
    ranks(5).run(rank_jobs.saving, ra.VClip(), [draw(5, 20)], 1, path)
    for tree in ranks(3).run(rank_jobs.loaded, ra.VClip(), path):
        assert tree["step"] == 1
        assert torch.equal(
            tree["estimator"][ESTIMATE], load_checkpoint(path)["estimator"][ESTIMATE]
        )


@pytest.mark.parametrize(
    ("rule", "d", "message"),
    [
        (ra.CClip(), 20, r"rule must be the state's VClip\(.*, found CClip\("),
        (ra.VClip(tau=0.5), 20, r"rule must be the state's VClip\(.*, found VClip\(.*0\.5"),
        (ra.Mean(), 20, r"rule must be the state's VClip\(.*, found Mean\("),
        (ra.VClip(), 21, "tensor must have the 20 numbers of the state that was loaded, found 21"),
        (ra.VClip(), 3, "tensor must have the 20 numbers of the state that was loaded, found 3"),
    ],
    ids=["divergence", "tau", "aggregator", "more numbers", "fewer numbers"],
)
def test_a_state_of_something_else_is_refused(
    ranks: RankGroups, tmp_path: Path, rule: Any, d: int, message: str
) -> None:
    path = str(tmp_path / "state")
    ranks(5).run(rank_jobs.saving, ra.VClip(), [draw(5, 20)], 1, path)
    error = alike(ranks(5).run(rank_jobs.refused_state, rule, draw(5, d), path))
    assert type(error) is ValueError
    assert re.match(f"RobustAllReduce: {message}", str(error)), error
    assert "\n" not in str(error)


@pytest.mark.parametrize("name", ["step", "rule", "estimator"])
def test_what_is_no_state_is_refused(ranks: RankGroups, tmp_path: Path, name: str) -> None:
    path = tmp_path / "state"
    ranks(3).run(rank_jobs.saving, ra.VClip(), [draw(3, 20)], 1, str(path))
    tree = load_checkpoint(path)
    del tree[name]
    save_checkpoint(path, tree)
    error = alike(ranks(3).run(rank_jobs.refused_state, ra.VClip(), draw(3, 20), str(path)))
    assert type(error) is ValueError
    assert f"a state must have '{name}'" in str(error)


def test_rows_of_another_layout_are_not_the_state_s(ranks: RankGroups) -> None:
    """And are no step: the first layout goes on."""
    steps = [draw(3, 8), draw(3, 9), draw(3, 8, torch.float64), draw(3, 8, seed=1)]
    found = alike(ranks(3).run(rank_jobs.reduced, ra.VClip(), steps, {}))
    for error in found[1:3]:
        assert type(error) is ValueError
        assert "tensor must have the shapes and dtypes of the first step" in str(error)
    check_close(found[3], dense(ra.VClip(), [steps[0], steps[3]])[1])


def test_a_first_step_that_failed_binds_to_no_layout(ranks: RankGroups) -> None:
    steps = [torch.full((3, 8), float("nan")), draw(3, 9)]
    found = alike(ranks(3).run(rank_jobs.reduced, ra.VClip(), steps, {}))
    assert type(found[0]) is TooManyRejectedError
    check_close(found[1], dense(ra.VClip(), steps[1:])[0])


def test_a_rule_without_memory_takes_any_layout(ranks: RankGroups) -> None:
    steps = [draw(3, 8), draw(3, 9), draw(3, 8, torch.float64)]
    found = alike(ranks(3).run(rank_jobs.reduced, ra.Krum(f=0), steps, {}))
    for one, expected in zip(found, dense(ra.Krum(f=0), steps), strict=True):
        check_close(one, expected)
