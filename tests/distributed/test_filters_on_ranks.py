"""Filters among ranks: the draws and the memory of one process."""

from __future__ import annotations

from pathlib import Path

import pytest
import rank_jobs
import torch
from dense import alike, check, check_close, dense, draw
from rank_processes import RankGroups
from test_bad_rows import TRIED, spoilt
from test_dense import CASES

import robust_agg as ra
from robust_agg.filters.clipped_clustering import NORMS
from robust_agg.online.estimator import ESTIMATE


@pytest.mark.parametrize("n", [5, 7])
def test_clipped_clustering_steps_as_in_one_process(ranks: RankGroups, n: int) -> None:
    runs = [[draw(n, d, dtype, seed) for seed in range(3)] for d, dtype in CASES[n]]
    check(ranks, ra.ClippedClustering(), runs)


def test_clipped_clustering_makes_of_bad_rows_what_it_does_in_one_process(
    ranks: RankGroups,
) -> None:
    runs = [[draw(5, 45, dtype, seed=1), spoilt(5, 2, fault, dtype)] for fault, dtype in TRIED]
    check(ranks, ra.ClippedClustering(), runs)


def test_its_memory_continues(ranks: RankGroups, tmp_path: Path) -> None:
    rule = ra.ClippedClustering(window=12)
    steps = [draw(5, 100, seed=seed) for seed in range(6)]
    path = str(tmp_path / "state")
    without, trees = zip(*ranks(5).run(rank_jobs.saving, rule, steps, 3, path), strict=True)
    found = alike(ranks(5).run(rank_jobs.continued, rule, steps[3:], path))
    assert rank_jobs.same_bytes(found, alike(without)[3:])
    for tree in trees:
        check_close(tree["estimator"][ESTIMATE], dense(rule, steps[:3])[-1])
        assert bool(tree["estimator"][NORMS].isfinite().all())


@pytest.mark.parametrize("d", [1, 3, 40, 1003])
@pytest.mark.parametrize(
    "rule",
    [
        ra.DivideAndConquer(f=1, iterations=4, coordinates=7),
        ra.DivideAndConquer(f=1, iterations=4, coordinates=1),
        ra.SignGuard(share=0.03),
        ra.SignGuard(share=0.9),
    ],
    ids=str,
)
def test_ranks_draw_among_all_columns(ranks: RankGroups, rule: ra.Aggregator, d: int) -> None:
    """Some ranks have none of those that are drawn, or none at all."""
    steps = [draw(7, d, torch.float64, seed) for seed in range(3)]
    check(ranks, rule, [steps])
