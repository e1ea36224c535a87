"""What the tests have ranks do: functions and rules that a rank's process can import."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor

from robust_agg import Aggregator, Divergence, Explanation, GeometricMedian, Invariance, Mean
from robust_agg.aggregator import Weighing, Weighted
from robust_agg.checkpoint import load_checkpoint, save_checkpoint
from robust_agg.distributed import RobustAllReduce, robust_all_reduce
from robust_agg.distributed.ranks import Ranks
from robust_agg.online.estimator import Estimator
from robust_agg.shards import WHOLE, Shards
from robust_agg.span import Geometry
from robust_agg.weightings import geometric_median

Rule = Aggregator | Estimator
Given = Tensor | list[Tensor]


def own(cases: Sequence[Any]) -> Any:
    """Of things by rank, this rank's."""
    return cases[dist.get_rank()]


def reduced(
    rule: Rule, steps: Sequence[Sequence[Given]], options: dict[str, Any]
) -> list[Given | Exception]:
    """What comes of a reduction's steps, in each of which every rank has something to give."""
    reduction = RobustAllReduce(rule, **options)
    return [attempted(reduction, own(given)) for given in steps]


def several(rule: Rule, runs: Sequence[Sequence[Sequence[Given]]]) -> list[list[Given | Exception]]:
    """One reduction after another, each with its own steps."""
    return [reduced(rule, steps, {}) for steps in runs]


def attempted(reduction: RobustAllReduce, given: Given) -> Given | Exception:
    """A step, or the error that it raises, alike on all ranks."""
    before = copied(given)
    try:
        return reduction(given)
    except ValueError as error:
        return error
    finally:
        assert same_bytes(given, before), "the reduction changed its input"


def called(rule: Rule, steps: Sequence[Sequence[Given]], members: list[int] | None) -> list[Given]:
    """``robust_all_reduce`` a few times, in a new group: its count of calls begins there."""
    group = dist.new_group(members)
    if members is not None and dist.get_rank() not in members:
        return []
    place = dist.get_rank(group)
    return [robust_all_reduce(given[place], rule, group, timeout=20) for given in steps]


def explained(rule: Rule, rows: Sequence[Tensor]) -> Any:
    """Weights, distances and rejected ranks, with this rank's slice of the output."""
    reduction = RobustAllReduce(rule, distances=True)
    assert reduction.explanation is None
    whole = reduction(own(rows))
    return whole, reduction.explanation


def copied(given: Given) -> Given:
    return given.clone() if isinstance(given, Tensor) else [part.clone() for part in given]


def bits(tensor: Tensor) -> Tensor:
    return tensor.detach().contiguous().view(-1).view(torch.uint8)


def same_bytes(one: object, other: object) -> bool:
    """Whether they have the same shapes, dtypes and bits: NaN is equal to itself here."""
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        alike = one.shape == other.shape and one.dtype == other.dtype
        return alike and torch.equal(bits(one), bits(other))
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same_bytes, one, other))
    if isinstance(one, Exception):
        return type(one) is type(other) and str(one) == str(other)
    return bool(one == other)


def median_by_passes(rows: Tensor) -> list[Any]:
    """The geometric median, as of more rows than there can be ranks in a test."""
    before, geometric_median.GRAM_UP_TO = geometric_median.GRAM_UP_TO, 2
    try:
        reduction = RobustAllReduce(GeometricMedian())
        found = reduction(own(rows))
    finally:
        geometric_median.GRAM_UP_TO = before
    assert reduction.explanation is not None
    assert reduction.explanation.solver is not None
    return [found, reduction.explanation.solver.reason]


def saving(
    rule: Rule, steps: Sequence[Sequence[Given]], after: int, path: str
) -> tuple[list[Given], Any]:
    """All steps, and the state after some of them, which rank 0 writes to a file."""
    reduction = RobustAllReduce(rule)
    found = []
    for number in range(len(steps) + 1):
        if number == after:
            tree = reduction.state_dict()
        if number < len(steps):
            found.append(reduction(own(steps[number])))
    if dist.get_rank() == 0:
        save_checkpoint(path, tree)
    return found, tree


def continued(rule: Rule, steps: Sequence[Sequence[Given]], path: str) -> list[Given]:
    """The steps that follow on a state."""
    reduction = RobustAllReduce(rule)
    reduction.load_state_dict(load_checkpoint(path))
    return [reduction(own(given)) for given in steps]


def loaded(rule: Rule, path: str) -> Any:
    """The state, as it is after it was loaded."""
    reduction = RobustAllReduce(rule)
    reduction.load_state_dict(load_checkpoint(path))
    return reduction.state_dict()


def refused_state(rule: Rule, rows: Sequence[Tensor], path: str) -> Exception | None:
    """The error of a state that does not go with this rule and these rows."""
    try:
        continued(rule, [rows], path)
    except ValueError as error:
        return error
    return None


def refused(by_rank: Sequence[tuple[Rule, Any, dict[str, Any]]]) -> tuple[Exception | None, Given]:
    """The error of what this rank asks for, and that the ranks go on together after it."""
    rule, given, options = own(by_rank)
    found = None
    try:
        RobustAllReduce(rule, timeout=20, **options)(given)
    except (ValueError, TypeError) as error:
        found = error
    return found, robust_all_reduce(torch.tensor([float(dist.get_rank())]), Mean(), timeout=20)


def called_with(rule: Any) -> Exception | None:
    """The error of the function where it is given another rule than it takes."""
    try:
        robust_all_reduce(torch.zeros(3), rule, timeout=20)
    except ValueError as error:
        return error
    return None


def asking_alone(rule: Rule) -> Exception | None:
    """What each rank is told where rank 0 asks for the state, and the others make a step."""
    reduction = RobustAllReduce(rule, timeout=20)
    reduction(torch.ones(5))
    try:
        if dist.get_rank() == 0:
            reduction.state_dict()
        else:
            reduction(torch.ones(5))
    except ValueError as error:
        return error
    return None


def refused_timeout(timeout: Any) -> Exception | None:
    try:
        robust_all_reduce(torch.zeros(1), Mean(), timeout=timeout)
    except ValueError as error:
        return error
    return None


def outside(members: list[int]) -> Exception | None:
    """The error of a process that is not of the group whose rows it asks for."""
    group = dist.new_group(members)
    try:
        robust_all_reduce(torch.zeros(1), Mean(), group, timeout=20)
    except ValueError as error:
        return error
    return None


@dataclass(frozen=True)
class Second(Aggregator):
    """The row of rank 1: a rule of one's own that says nothing of columns."""

    @property
    def invariances(self) -> frozenset[Invariance]:
        return frozenset()

    def check(self, n: int) -> None:
        pass

    def max_rejected(self, n: int) -> int:
        return 0

    def _explain(
        self,
        rows: Tensor,
        generator: torch.Generator | None,
        *,
        distances: bool,
        shards: Shards = WHOLE,
    ) -> Explanation:
        return Explanation(output=rows[1].clone(), distances=torch.empty(0))


@dataclass(frozen=True)
class Nearest(Weighted):
    """The row nearest to all others: a weighted rule of one's own, which is its weights."""

    @property
    def invariances(self) -> frozenset[Invariance]:
        return frozenset(Invariance)

    def check(self, n: int) -> None:
        pass

    def max_rejected(self, n: int) -> int:
        return 0

    def weigh(self, geometry: Geometry, generator: torch.Generator | None) -> Weighing:
        weights = torch.zeros(len(geometry), dtype=torch.float64)
        weights[geometry.squared_distances.sqrt().sum(dim=0).argmin()] = 1
        return Weighing(weights)


class Halfway(Divergence):
    """``½‖v‖²`` as one would write it oneself; ``separable`` says that coordinates are alone."""

    invariances = frozenset(Invariance)
    separable = True

    def prox(self, row: Tensor, m: Tensor, tau: float) -> Tensor:
        return (m + tau * row) / (1 + tau)

    def subgradient(self, row: Tensor, m: Tensor) -> Tensor:
        return m - row


class Together(Halfway):
    """A divergence that does not say so."""

    separable = False


def struck(
    rule: Rule,
    steps: Sequence[Sequence[Given]],
    victim: int,
    place: str,
    fault: int,
    timeout: float,
) -> list[Given]:
    """All steps, but that a signal reaches one rank at a place of the last one."""
    reduction = RobustAllReduce(rule, timeout=timeout)
    found = [reduction(own(given)) for given in steps[:-1]]
    if dist.get_rank() == victim:

        def strike(*_: object) -> None:
            os.kill(os.getpid(), fault)

        if place == "before the step":
            strike()
        setattr(reduction.ranks, place, strike)
    return [*found, reduction(own(steps[-1]))]


def late(rule: Rule, rows: Sequence[Tensor], rank: int, seconds: float, timeout: float) -> Given:
    if dist.get_rank() == rank:
        time.sleep(seconds)
    return RobustAllReduce(rule, timeout=timeout)(own(rows))


class EndedMeanwhile:
    """A collective that ends between the end of the first wait for it and the next look at it."""

    def __init__(self) -> None:
        self.waits = 0

    def wait(self, timeout: timedelta) -> bool:
        self.waits += 1
        if self.waits == 1:
            raise RuntimeError("Operation timed out!")
        return True

    def is_completed(self) -> bool:
        return self.waits > 0


def ended_meanwhile() -> int:
    """How often such a collective is waited for."""
    work = EndedMeanwhile()
    Ranks(who="test", timeout=20).wait(cast(dist.Work, work), "a collective")
    return work.waits


def hung(rank: int) -> None:
    if dist.get_rank() == rank:
        time.sleep(3600)
