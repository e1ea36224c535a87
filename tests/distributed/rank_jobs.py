"""What the tests have ranks do: functions and rules that a rank's process can import."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from robust_agg import Aggregator, GeometricMedian
from robust_agg.checkpoint import load_checkpoint, save_checkpoint
from robust_agg.distributed import RobustAllReduce, robust_all_reduce
from robust_agg.online.estimator import Estimator
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
