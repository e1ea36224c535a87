"""Ranks that die, stop or are late: the others learn which, and are never left waiting."""

from __future__ import annotations

import os
import pickle
import signal
from typing import Any

import pytest
import rank_jobs
from dense import alike, check_close, draw
from rank_processes import RankDiedError, RankGroup, RankGroups

import robust_agg as ra
from robust_agg.distributed import RankError

N = 4


def survivors(ranks: RankGroups, victim: int, place: str, fault: signal.Signals) -> list[Any]:
    """What the others raise in their second step, where a signal reaches one of them."""
    steps = [draw(N, 200, seed=seed) for seed in range(2)]
    silent = {victim} if fault == signal.SIGSTOP else set()
    job = (rank_jobs.struck, ra.VClip(), steps, victim, place, int(fault), 2.0)
    answers = ranks(N).outcomes(*job, silent=silent)
    if fault == signal.SIGKILL:
        assert isinstance(answers[victim], RankDiedError)
    return [answer for rank, answer in enumerate(answers) if rank != victim]


def check_named(errors: list[Any], victim: int) -> None:
    for error in errors:
        assert type(error) is RankError, error
        assert error.ranks == (victim,)
        assert error.step == 1
        assert str(error).startswith("RobustAllReduce: step 1: ")
        assert f"rank {victim} (" in str(error)


@pytest.mark.parametrize("place", ["before the step", "exchange", "sum", "collect"])
def test_a_rank_that_is_killed_is_named(ranks: RankGroups, place: str) -> None:
    check_named(survivors(ranks, 2, place, signal.SIGKILL), 2)


@pytest.mark.parametrize("place", ["before the step", "sum"])
def test_a_rank_that_stops_is_named(ranks: RankGroups, place: str) -> None:
    check_named(survivors(ranks, 2, place, signal.SIGSTOP), 2)


@pytest.mark.parametrize("fault", [signal.SIGKILL, signal.SIGSTOP], ids=lambda fault: fault.name)
def test_the_rank_that_holds_the_store_may_be_the_one(
    ranks: RankGroups, fault: signal.Signals
) -> None:
    """Nobody can say then who still answers; that the step failed, all learn."""
    for error in survivors(ranks, 0, "exchange", fault):
        assert type(error) is RankError, error
        assert error.ranks in ((), (0,))
        assert error.ranks or "which rank is missing is not known, for" in str(error)
        assert error.step == 1


def test_a_rank_that_is_late_is_no_error(ranks: RankGroups) -> None:
    rows = draw(3, 50)
    found = alike(ranks(3).run(rank_jobs.late, ra.CoordinateWiseMedian(), rows, 1, 1.0, 20.0))
    check_close(found, ra.CoordinateWiseMedian()(rows), exact=True)


def test_what_ends_as_a_wait_is_given_up_has_ended_well(ranks: RankGroups) -> None:
    assert ranks(1).run(rank_jobs.ended_meanwhile) == [2]


def test_a_rank_that_is_too_late_is_named(ranks: RankGroups) -> None:
    answers = ranks(3).outcomes(rank_jobs.late, ra.Mean(), draw(3, 50), 1, 6.0, 1.0, silent={1})
    for error in (answers[0], answers[2]):
        assert type(error) is RankError
        assert error.ranks == (1,)
        assert "did not end within 1 s" in str(error)


def test_the_error_survives_another_process() -> None:
    error = pickle.loads(pickle.dumps(RankError("text", ranks=(1, 2), step=3)))
    assert (str(error), error.ranks, error.step) == ("text", (1, 2), 3)


# --- the harness itself --------------------------------------------------------------------------


def test_a_rank_that_hangs_is_killed_with_its_group() -> None:
    group = RankGroup(2, limit=20.0)
    group.run(rank_jobs.own, ["a", "b"])
    pids, group.limit = group.pids, 0.5
    with pytest.raises(TimeoutError, match=r"ranks \[1\] of 2 did not answer within 0\.5 s"):
        group.run(rank_jobs.hung, 1)
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_a_rank_that_raises_makes_the_group_new() -> None:
    group = RankGroup(2)
    try:
        assert group.run(rank_jobs.own, ["a", "b"]) == ["a", "b"]
        before = group.pids
        with pytest.raises(IndexError):
            group.run(rank_jobs.own, ["a"])
        assert group.run(rank_jobs.own, ["a", "b"]) == ["a", "b"]
        assert not set(group.pids) & set(before)
    finally:
        group.close()
