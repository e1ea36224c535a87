"""Ranks that stand out are named, and each step has its line."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import model_jobs
import pytest
import torch
from rank_processes import RankGroups

import robust_agg as ra
from robust_agg import Explanation
from robust_agg.distributed import Evidence
from robust_agg.ledger import Ledger


@pytest.mark.parametrize("reducer", ["ddp", "fsdp"])
@pytest.mark.parametrize("rule", [ra.CoordinateWiseMedian(), ra.GeometricMedian()], ids=repr)
def test_the_rank_with_long_gradients_is_the_suspect(
    ranks: RankGroups, rule: Any, reducer: str, tmp_path: Path
) -> None:
    path = tmp_path / "ledger.jsonl"
    answers = ranks(5).run(model_jobs.suspected, rule, str(path), reducer)
    for found in answers:
        assert found["flags"] == [[1]] * 3
        (suspect,) = found["suspects"]
        assert suspect.startswith("rank 1 (")
        assert f"pid {answers[1]['pid']}, cpu" in suspect
        assert suspect.endswith("flagged in 3 of the last 3 steps")
    lines = list(Ledger(path))
    assert [line["round"] for line in lines] == [0, 1, 2]
    for line in lines:
        assert max(line["distances"]) == line["distances"][1]
        assert (line["weights"] is None) == isinstance(rule, ra.CoordinateWiseMedian)


@dataclass
class Made:
    """What Evidence asks of a reducer."""

    explanation: Explanation | None
    ranks: Any


def made(distances: list[float], rejected: tuple[int, ...] = ()) -> Made:
    ranks = SimpleNamespace(size=4, rank=0, step=1, place=lambda rank: f"rank {rank}")
    gaps = torch.tensor(distances, dtype=torch.float64)
    return Made(Explanation(torch.empty(0), gaps, rejected=rejected), ranks)


def test_rejected_rows_are_flagged_and_most_flagged_come_first() -> None:
    reducer = made([1.0, 1.0, 1.0, 9.0])
    evidence = Evidence(reducer, share=0.5, window=4)
    assert evidence.update() == {3}
    reducer.explanation = made([1.0, float("nan"), 1.0, 9.0], (1,)).explanation
    assert evidence.update() == {1, 3}
    assert [(s.rank, s.flagged, s.steps) for s in evidence.suspects] == [(3, 2, 2), (1, 1, 2)]
    reducer.explanation = made([1.0] * 4).explanation
    for _ in range(4):
        assert evidence.update() == frozenset()
    assert evidence.suspects == []


def test_a_step_in_which_the_rule_has_failed_flags_nobody(tmp_path: Path) -> None:
    reducer = made([1.0, 1.0, 1.0, 9.0])
    evidence = Evidence(reducer, share=0.5, ledger=Ledger(tmp_path / "ledger.jsonl"))
    evidence.update()
    reducer.explanation = None
    assert evidence.update() == frozenset()
    assert [(s.rank, s.flagged, s.steps) for s in evidence.suspects] == [(3, 1, 2)]
    lines = list(Ledger(tmp_path / "ledger.jsonl"))
    assert [line["skipped"] for line in lines] == [None, "the rule has failed"]


def test_steps_without_distances_are_refused() -> None:
    before = SimpleNamespace(size=4, rank=0, step=0)
    with pytest.raises(ValueError, match="found no step"):
        Evidence(Made(None, before)).update()
    with pytest.raises(ValueError, match="found 0 distances"):
        Evidence(made([])).update()


@pytest.mark.parametrize("given", [{"factor": 0.0}, {"share": 1.0}, {"window": 0}], ids=str)
def test_numbers_out_of_range_are_refused(given: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(given))):
        Evidence(made([1.0] * 4), **given)
