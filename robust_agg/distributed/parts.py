"""A step of a rule on a gradient that comes in parts, such as the buckets of a backward pass."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from math import isfinite
from typing import Any

import torch
from torch import Tensor

from robust_agg import kernels
from robust_agg.aggregator import Explanation
from robust_agg.distributed.estimates import Estimates, OneVector, Part, Placement
from robust_agg.distributed.layout import side_by_side
from robust_agg.distributed.sharded_rule import ShardedRule
from robust_agg.errors import TooManyRejectedError, as_integer
from robust_agg.online.estimator import ESTIMATE, Estimator
from robust_agg.shards import Shards
from robust_agg.span import too_far
from robust_agg.types import State


class _OnePart(Shards):
    """The columns of one part, for a rule to which the others do not matter.

    Whether all of its numbers are finite is asked of all ranks once, when all parts are there.
    """

    def __init__(self) -> None:
        self.reached = 0.0

    def finite(self, value: float) -> bool:
        self.reached = max(self.reached, value)
        return True


@dataclass
class _Arrived:
    """A part that has come, and what a separable rule has made of it.

    Attributes:
        parameters: whose gradients it has.
        rows: ``(n, k)``, all rows in the k columns that are here.
        counts: how many columns each rank has.
        state: the estimator's, after it.
        squares: ``(n,)``, of the rows' distances to the result in these columns.
    """

    parameters: tuple[Tensor, ...]
    rows: Tensor
    counts: Sequence[int]
    state: State
    squares: Tensor | None = None

    @property
    def width(self) -> int:
        """k."""
        return self.rows.shape[1]


class Parts:
    """What a rule makes of a gradient that comes in parts; holds an estimator's state.

    A separable rule acts on each part as it comes. Any other acts on all when they are there: their
    rows are kept until then, as many numbers a rank as a whole gradient has, and for a moment twice
    as many.

    Args:
        sharded: the rule.
        placement: which numbers of a part are whose, where its parameters are not one vector and
            parts are the same in all steps; see :class:`Estimates`.

    Attributes:
        explanation: of the last step; None before it, and where the rule itself has failed. Its
            output is empty, and of a separable rule it has no weights.
    """

    def __init__(self, sharded: ShardedRule, placement: Placement | None = None) -> None:
        self._sharded, self._ranks = sharded, sharded.exchange.ranks
        self._estimates = Estimates(
            self._ranks.who,
            placement or OneVector(sharded.exchange),
            fixed=placement is not None,
        )
        self._memory: State = {}
        # What the estimator remembers beside the estimate.
        self._arrived: list[_Arrived] = []
        self._one = _OnePart()
        self._scale = 1.0
        self.explanation: Explanation | None = None

    def begin(self, scale: float = 1.0) -> None:
        """Begin a step, whatever became of the last; its rows are ``scale`` times what they are."""
        self._arrived, self._one, self._scale = [], _OnePart(), scale

    def add(
        self, parameters: Sequence[Tensor], rows: Tensor, counts: Sequence[int]
    ) -> Tensor | None:
        """A part has come.

        Args:
            parameters: whose gradients it has, in order.
            rows: ``(n, k)``, all rows in the k columns of it that are here.
            counts: how many columns each rank has.

        Returns:
            The columns ``(k,)`` of the result that are here, of a separable rule: :meth:`finish`
            tells whether they count. None of any other rule.
        """
        part = _Arrived(tuple(parameters), rows, counts, {})
        self._arrived.append(part)
        if not self._sharded.rule.separable:
            return None
        block = self._block([part])
        state = self._state([part], block)
        why, part.state = self._sharded.step(block, state, self._one, distances=False)
        if self._sharded.distances:
            part.squares = kernels.row_distances(block, why.output).square()
        part.rows = rows.new_empty(0, part.width)  # they are not needed any more
        return self._rescaled(why.output)[: part.width]

    def finish(self) -> list[Tensor]:
        """All parts are there: their columns ``(k,)`` of the result; the state takes the step.

        Of a separable rule the list is empty, for :meth:`add` has given them.

        Raises:
            TooManyRejectedError, ValueError: as the rule's, on every rank; the state is as it was.
            A separable rule may have found one of its numbers not finite: rows that are not, or
            steps beyond what a number can be.
        """
        arrived, self._arrived = self._arrived, []
        self.explanation = None  # of a step in which the rule fails there is none
        widths = [part.width for part in arrived]
        outputs: Sequence[Tensor] = ()
        if self._sharded.rule.separable:
            why = self._settled(arrived)
            state = arrived[-1].state
            estimates = [part.state.get(ESTIMATE) for part in arrived]
        else:
            block = self._block(arrived)
            columns = self._sharded.exchange.columns(_total(arrived))
            why, state = self._sharded.step(block, self._state(arrived, block), columns)
            output = why.output
            why = replace(why, output=output.new_empty(0))
            self._check_rejected(why)
            outputs = _split(self._rescaled(output), widths)
            estimates = [*_split(state[ESTIMATE], widths)] if state else []
        self.explanation = why
        if state:
            self._memory = {name: value for name, value in state.items() if name != ESTIMATE}
            self._estimates.put(
                Part(part.parameters, own[: part.width])
                for part, own in zip(arrived, estimates, strict=True)
                if own is not None
            )
        return list(outputs)

    def _settled(self, arrived: Sequence[_Arrived]) -> Explanation:
        """Of a separable rule: whether the step counts, and distances where they are wanted."""
        who, name = self._ranks.who, self._sharded.rule.name
        if not isfinite(self._ranks.largest(self._one.reached)):
            f, n = self._sharded.f, self._sharded.exchange.n
            declared = "" if f is None else f", of which f={f} may be bad,"
            # Only what goes on from an estimate makes steps.
            memory = isinstance(self._sharded.rule, Estimator)
            steps = ", or its steps are too long" if memory else ""
            raise TooManyRejectedError(
                f"{who}: the result of {name} must be finite, found a number that is not: too many "
                f"of the n={n} rows{declared} are non-finite{steps}"
            )
        nothing = torch.empty(0, dtype=torch.float64, device="cpu")
        squares = [part.squares for part in arrived if part.squares is not None]
        if not squares:
            return Explanation(nothing, nothing)
        columns = self._sharded.exchange.columns(_total(arrived))
        distances = columns.sum(torch.stack(squares).sum(dim=0)).sqrt()
        dtype = reduce(torch.promote_types, (part.rows.dtype for part in arrived), torch.float32)
        far = ~(distances <= too_far(dtype))
        why = Explanation(nothing, distances, rejected=tuple(far.nonzero().flatten().tolist()))
        self._check_rejected(why)
        return why

    def _check_rejected(self, why: Explanation) -> None:
        """Raise where more than f rows are rejected; the explanation tells which, all the same."""
        self.explanation = why
        self._sharded.check_rejected(why.rejected)

    def _block(self, parts: Sequence[_Arrived]) -> Tensor:
        """The rows ``(n, k)`` of the parts side by side, in the units of the gradient."""
        dtype = reduce(torch.promote_types, (part.rows.dtype for part in parts))
        block = side_by_side([part.rows for part in parts], dtype)
        if self._scale == 1.0:
            return block
        # In at least float32: a scale is there because 16 bits cannot hold what it is divided from.
        return block.to(torch.promote_types(dtype, torch.float32)) / self._scale

    def _rescaled(self, output: Tensor) -> Tensor:
        return output if self._scale == 1.0 else output * self._scale

    def _state(self, parts: Sequence[_Arrived], block: Tensor) -> State:
        """The estimator's state for these parts; empty for an aggregator."""
        if not isinstance(self._sharded.rule, Estimator):
            return {}
        fresh = self._sharded.rule.init(block[0])
        widths = [part.width for part in parts]
        starts = _split(fresh[ESTIMATE], widths)
        own = fresh[ESTIMATE].clone()
        own[: sum(widths)] = torch.cat(
            [
                self._estimates.of(part.parameters, start)
                for part, start in zip(parts, starts, strict=True)
            ]
        )
        return {**fresh, **self._memory, ESTIMATE: own}

    def state_dict(self, parameters: Mapping[str, Tensor]) -> dict[str, Any]:
        """Step, rule and the estimator's state, its estimate by the names of the parameters.

        All ranks must call it, for the slices of the estimate are collected; all get the same.
        """
        names = {id(parameter): name for name, parameter in parameters.items()}
        estimate = {names[id(parameter)]: value for parameter, value in self._estimates.collected()}
        return {
            "step": self._ranks.step,
            "rule": self._sharded.specification,
            "memory": dict(self._memory),
            "estimate": estimate,
        }

    def load_state_dict(self, tree: Mapping[str, Any], parameters: Mapping[str, Tensor]) -> None:
        """Continue where :meth:`state_dict` was taken, with any number of ranks; all call it.

        Raises:
            ValueError: it is of another rule, of the same one with other parameters, or of another
                model.
            DisagreementError: on another rank it is of another step, or cannot be loaded.
        """
        with self._ranks.telling_refusals():
            self._load(tree, parameters)
        self._ranks.agree(f"the state of step {self._ranks.step}")

    def _load(self, tree: Mapping[str, Any], parameters: Mapping[str, Tensor]) -> None:
        who = self._ranks.who
        for name in ("step", "rule", "memory", "estimate"):
            if name not in tree:
                raise ValueError(f"{who}: a state must have {name!r}, found {sorted(tree)}")
        if tree["rule"] != self._sharded.specification:
            raise ValueError(
                f"{who}: rule must be the state's {tree['rule']}, "
                f"found {self._sharded.specification}"
            )
        for name, value in tree["estimate"].items():
            shape = tuple(parameters[name].shape) if name in parameters else None
            if shape != tuple(value.shape):
                raise ValueError(
                    f"{who}: model must have a parameter {name!r} of shape {tuple(value.shape)}, "
                    f"found {'none' if shape is None else shape}"
                )
        self._ranks.step = as_integer(who, "step", tree["step"])
        self._memory = dict(tree["memory"])
        self._estimates.load(
            (parameters[name], value.to(parameters[name].device))
            for name, value in tree["estimate"].items()
        )


def _total(parts: Sequence[_Arrived]) -> list[int]:
    """How many columns of all parts each rank has."""
    return [sum(of_rank) for of_rank in zip(*(part.counts for part in parts), strict=True)]


def _split(vector: Tensor, widths: Sequence[int]) -> Sequence[Tensor]:
    """The vector's parts; what is left, a column of zeros of a rank that has none, is dropped."""
    parts: Sequence[Tensor] = torch.split(vector[: sum(widths)], list(widths))
    return parts
