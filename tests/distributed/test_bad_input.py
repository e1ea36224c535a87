"""What ranks must have alike, or right, raises on all of them before data moves."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import rank_jobs
import torch
from dense import check, draw
from rank_processes import RankGroups
from torch import Tensor

import robust_agg as ra
from robust_agg.distributed import DisagreementError, RobustAllReduce, robust_all_reduce
from robust_agg.errors import ConstraintError

N = 5
USUAL: tuple[Any, Any, dict[str, Any]] = (ra.TrimmedMean(f=1), torch.zeros(2, 3), {})


def errors(ranks: RankGroups, by_rank: list[tuple[Any, Any, dict[str, Any]]]) -> list[Exception]:
    """One on each rank, of one line; the group is as good as before."""
    answers = ranks(len(by_rank)).run(rank_jobs.refused, by_rank)
    for error, after in answers:
        assert isinstance(error, Exception)
        assert "\n" not in str(error)
        assert after.tolist() == [(len(by_rank) - 1) / 2]
    return [error for error, _ in answers]


OTHERS: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "shape": (USUAL[0], torch.zeros(3, 2), {}),
    "size": (USUAL[0], torch.zeros(7), {}),
    "dtype": (USUAL[0], torch.zeros(2, 3, dtype=torch.float64), {}),
    "two tensors": (USUAL[0], [torch.zeros(3), torch.zeros(3)], {}),
    "no tensor": (USUAL[0], [], {}),
    "an empty tensor": (USUAL[0], torch.zeros(0), {}),
    "integers": (USUAL[0], torch.zeros(2, 3, dtype=torch.int64), {}),
    "a sparse tensor": (USUAL[0], torch.zeros(2, 3).to_sparse(), {}),
    "None": (USUAL[0], None, {}),
    "a number": (USUAL[0], 1.0, {}),
    "rule": (ra.CoordinateWiseMedian(), *USUAL[1:]),
    "parameter": (ra.TrimmedMean(f=2), *USUAL[1:]),
    "estimator": (ra.VClip(), *USUAL[1:]),
    "f": (*USUAL[:2], {"f": 1}),
    "seed": (*USUAL[:2], {"seed": 1}),
    "distances": (*USUAL[:2], {"distances": True}),
    "trust": (*USUAL[:2], {"trust": "replicated"}),
}


@pytest.mark.parametrize("rank", [0, 3])
@pytest.mark.parametrize("what", OTHERS)
def test_one_rank_that_asks_for_something_else(ranks: RankGroups, what: str, rank: int) -> None:
    found = errors(ranks, [OTHERS[what] if i == rank else USUAL for i in range(N)])
    assert {type(error) for error in found} == {DisagreementError}
    assert len({str(error) for error in found}) == 1
    assert "on rank 0 and " in str(found[0])
    assert str(found[0]).endswith(f"on rank {rank or 1}")
    assert "TrimmedMean(f=1)" in str(found[0])


NO_ROWS = {
    "integers": (
        torch.zeros(3, dtype=torch.int32),
        "torch.int32, torch.strided of shape (3,) on cpu",
    ),
    "booleans": (
        torch.zeros(3, dtype=torch.bool),
        "torch.bool, torch.strided of shape (3,) on cpu",
    ),
    "complex": (
        torch.zeros(1, dtype=torch.complex64),
        "torch.complex64, torch.strided of shape (1,) on cpu",
    ),
    "an empty tensor": (torch.zeros(0), "torch.float32, torch.strided of shape (0,) on cpu"),
    "no tensor": ([], "none"),
    "empty tensors": (
        [torch.zeros(0), torch.zeros(2, 0)],
        "torch.float32, torch.strided of shape (0,) on cpu; "
        "torch.float32, torch.strided of shape (2, 0) on cpu",
    ),
    "sparse": (torch.eye(3).to_sparse(), "torch.float32, torch.sparse_coo of shape (3, 3) on cpu"),
    "one of several is none": (
        [torch.zeros(3), 1.0],
        "torch.float32, torch.strided of shape (3,) on cpu; float",
    ),
    "an array": (np.zeros((2, 900)), "ndarray of float64, of shape (2, 900)"),
    "numbers": ([0.5] * 1000, "float"),
    "None": (None, "NoneType"),
    "a number": (3.0, "float"),
    "a text": ("row", "str"),
}


@pytest.mark.parametrize("what", NO_ROWS)
def test_what_is_no_row(ranks: RankGroups, what: str) -> None:
    """It is told by its kind: its numbers may be a million."""
    given, kind = NO_ROWS[what]
    found = errors(ranks, [(ra.Mean(), given, {})] * N)
    assert {type(error) for error in found} == {ValueError}
    assert "tensor must be one or more dense tensors" in str(found[0])
    assert str(found[0]).endswith(f", found {kind}")


UNFIT: dict[str, tuple[Any, dict[str, Any], type[Exception], str]] = {
    "n <= 2f": (ra.CoordinateWiseMedian(), {"f": 3}, ConstraintError, "n >= 2f [+] 1 .*n=5, f=3"),
    "a rule's own f": (ra.TrimmedMean(f=3), {}, ConstraintError, "n=5, f=3"),
    "a smaller f": (ra.TrimmedMean(f=1), {"f": 2}, ConstraintError, "withstand f=2"),
    "Krum's n": (ra.Krum(f=2), {}, ConstraintError, "n >= 2f [+] 3"),
    "quantile": (ra.VClip(tau=ra.Adaptive(quantile=0.9)), {"f": 1}, ConstraintError, "quantile"),
    "a start": (ra.CenteredClipping(start=torch.zeros(6)), {}, ValueError, "needs whole rows"),
    "noise": (ra.FLAME(), {}, ValueError, "found FLAME, which needs whole rows"),
    "a reference": (ra.FLTrust(reference=torch.ones(6)), {}, ValueError, "needs whole rows"),
    "chained": (
        ra.chain(ra.Clip(threshold=1.0), ra.CenteredClipping(start=torch.zeros(6))),
        {},
        ValueError,
        "needs whole rows",
    ),
    "BlockL2": (
        ra.OnlineMedian(divergence=ra.BlockL2((2, 4)), tau=1.0),
        {},
        ValueError,
        "needs whole rows",
    ),
    "a rule of one's own": (rank_jobs.Second(), {}, ValueError, "found Second, which needs whole"),
    "a divergence of one's own": (
        ra.OnlineMedian(divergence=rank_jobs.Together(), tau=1.0),
        {},
        ValueError,
        "needs whole rows",
    ),
    "no rule": ("median", {}, ValueError, "rule must be an aggregator or an estimator"),
    "a class": (ra.Mean, {}, ValueError, "rule must be an aggregator or an estimator"),
    "f is no count": (ra.Mean(), {"f": -1}, ValueError, "f must be an integer >= 0"),
}


@pytest.mark.parametrize("what", UNFIT)
def test_what_does_not_go_with_the_group(ranks: RankGroups, what: str) -> None:
    rule, options, kind, message = UNFIT[what]
    found = errors(ranks, [(rule, torch.zeros(2, 3), options)] * N)
    for error in found:
        assert type(error) is kind
        with pytest.raises(
            kind, match=f"^RobustAllReduce: .*{message}|^[A-Z][A-Za-z]+: .*{message}"
        ):
            raise error


def test_what_cannot_be_on_one_rank_is_told_to_the_others(ranks: RankGroups) -> None:
    bad = (ra.TrimmedMean(f=3), *USUAL[1:])
    found = errors(ranks, [bad if rank == 2 else USUAL for rank in range(N)])
    own = found.pop(2)
    assert type(own) is ConstraintError
    assert {type(error) for error in found} == {DisagreementError}
    assert str(found[0]).endswith(f"what cannot be ({own}) on rank 2")


@pytest.mark.parametrize("options", [{"trust": "blind"}, {"groups": 2}, {"groups": 5}], ids=str)
def test_options_that_one_rank_alone_has(ranks: RankGroups, options: dict[str, Any]) -> None:
    other = (*USUAL[:2], options)
    found = errors(ranks, [other if rank == 2 else USUAL for rank in range(N)])
    own = found.pop(2)
    assert {type(error) for error in found} == {DisagreementError}
    assert type(own) is (DisagreementError if options == {"groups": 5} else ValueError)


def test_a_rule_with_memory_is_none_for_a_single_call(ranks: RankGroups) -> None:
    for error in ranks(2).run(rank_jobs.called_with, ra.VClip()):
        assert type(error) is ValueError
        assert "aggregator must have no memory from call to call, found VClip" in str(error)


def test_a_state_that_one_rank_alone_asks_for(ranks: RankGroups) -> None:
    for error in ranks(3).run(rank_jobs.asking_alone, ra.VClip()):
        assert type(error) is DisagreementError
        assert "the state at step 1" in str(error)
        assert "step 1 of VClip(" in str(error)


@pytest.mark.parametrize("timeout", [0, -1.0, float("nan"), float("inf"), "1", None])
def test_a_timeout_is_positive(ranks: RankGroups, timeout: Any) -> None:
    for error in ranks(2).run(rank_jobs.refused_timeout, timeout):
        assert type(error) is ValueError
        assert str(error).startswith("robust_all_reduce: timeout must be a positive finite number")


def test_a_process_that_is_not_of_the_group(ranks: RankGroups) -> None:
    first, second, third = ranks(3).run(rank_jobs.outside, [0, 2])
    assert first is None
    assert third is None
    assert type(second) is ValueError
    assert str(second).startswith("robust_all_reduce: group must have this process")


def test_a_process_that_is_in_no_group() -> None:
    message = "torch.distributed must be initialised, found no process group"
    with pytest.raises(ValueError, match=f"^robust_all_reduce: {message}$"):
        robust_all_reduce(torch.zeros(1), ra.Mean())
    with pytest.raises(ValueError, match=f"^RobustAllReduce: {message}$"):
        RobustAllReduce(ra.Mean())


def rows(n: int, seed: int = 0) -> Tensor:
    return draw(n, 40, seed=seed)


@pytest.mark.parametrize(
    "rule",
    [
        rank_jobs.Nearest(),
        ra.chain(ra.NearestNeighborMixing(f=1), rank_jobs.Nearest()),
        ra.OnlineMedian(divergence=rank_jobs.Halfway(), tau=0.5),
        ra.OnlineMedian(divergence=rank_jobs.Halfway(), method="subgradient", tau=0.5),
        ra.OnlineMedian(divergence=rank_jobs.Halfway(), tau=0.5, fusion="sequential"),
        ra.OnlineMedian(divergence=rank_jobs.Halfway()),
    ],
    ids=["weighted", "chained", "prox", "subgradient", "sequential", "adaptive"],
)
def test_rules_and_divergences_of_one_s_own_are_shared_out(
    ranks: RankGroups, rule: ra.Aggregator | ra.OnlineMedian
) -> None:
    check(ranks, rule, [[rows(5, seed) for seed in range(3)]])
