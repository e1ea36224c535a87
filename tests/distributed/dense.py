"""What one process finds that has all rows, to compare ranks with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import rank_jobs
import torch
from rank_processes import RankGroups
from torch import Tensor

import robust_agg as ra
from robust_agg.aggregator import Coordinatewise
from robust_agg.seeding import generator

Rule = ra.Aggregator | ra.OnlineMedian


def draw(n: int, d: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    """Rows about a common centre, a quarter of them farther out."""
    g = generator(seed, "rows", n, d)
    rows = torch.randn(n, d, generator=g, dtype=torch.float64) + 1
    rows[: n // 4] *= 5
    return rows.to(dtype)


def dense(rule: Rule, steps: Sequence[Tensor], *, seed: int = 0) -> list[Tensor | Exception]:
    """The results of one process, from the same draws; a step that fails counts for nothing."""
    found: list[Tensor | Exception] = []
    state: dict[str, Any] = {}
    done = 0
    for rows in steps:
        g = generator(seed, "robust all-reduce", done)
        try:
            if isinstance(rule, ra.Aggregator):
                found.append(rule(rows, generator=g))
            else:
                output, state = rule.step(rows, state or rule.init(rows[0]), generator=g)
                found.append(output)
            done += 1
        except ValueError as error:
            found.append(error)
    return found


def check_close(found: Tensor, expected: Tensor, *, exact: bool = False) -> None:
    """Equal to the rounding of sums that are formed in another order, or to the bit."""
    assert found.dtype == expected.dtype
    if exact:
        assert torch.equal(found, expected)
        return
    eps = max(torch.finfo(found.dtype).eps, 1e-10 if found.dtype == torch.float64 else 1e-6)
    scale = float(expected.double().abs().max())
    torch.testing.assert_close(found, expected, rtol=4 * eps, atol=4 * eps * scale)


def alike(answers: Sequence[Any]) -> Any:
    """What all ranks answer, which must be the same bytes."""
    for other in answers[1:]:
        assert rank_jobs.same_bytes(answers[0], other)
    return answers[0]


def check(ranks: RankGroups, rule: Rule, runs: Sequence[Sequence[Tensor]]) -> None:
    """All ranks have the same bytes, or the same errors, and they are those of the dense rule."""
    answers = alike(ranks(len(runs[0][0])).run(rank_jobs.several, rule, runs))
    for steps, found in zip(runs, answers, strict=True):
        for one, expected in zip(found, dense(rule, steps), strict=True):
            if isinstance(expected, Exception):
                assert type(one) is type(expected), one
            else:
                assert isinstance(one, Tensor), one
                check_close(one, expected, exact=isinstance(rule, Coordinatewise))
