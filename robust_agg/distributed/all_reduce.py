"""An all-reduce by a robust rule: every rank gives a row, every rank gets their aggregate.

The rows are exchanged once, so that each rank holds all rows in one slice of the coordinates, and
the slices of the result are collected: about the bytes of a plain all-reduce. In between the rule
acts on the slice; what it must know of whole rows (a Gram matrix, distances) it sums over ranks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, overload

import torch
import torch.distributed as dist
from torch import Tensor

from robust_agg.aggregator import Aggregator, Explanation
from robust_agg.distributed.header import Header, check_usable
from robust_agg.distributed.layout import Layout
from robust_agg.distributed.ranks import Ranks
from robust_agg.distributed.sharded_rule import ShardedRule
from robust_agg.distributed.slices import Slices
from robust_agg.errors import as_integer
from robust_agg.online.estimator import ESTIMATE, Estimator
from robust_agg.specification import specification
from robust_agg.types import State

TIMEOUT = 60.0
"""Seconds that a collective may take, unless told otherwise."""

_ONCE = "robust_all_reduce"
_calls: Counter[str] = Counter()
# By the group's name: how often the function was called, which is its step.


@overload
def robust_all_reduce(
    tensor: Tensor, aggregator: Aggregator, group: dist.ProcessGroup | None = None, *,
    f: int | None = None, seed: int = 0, timeout: float = TIMEOUT,
) -> Tensor: ...  # fmt: skip


@overload
def robust_all_reduce(
    tensor: Sequence[Tensor], aggregator: Aggregator, group: dist.ProcessGroup | None = None, *,
    f: int | None = None, seed: int = 0, timeout: float = TIMEOUT,
) -> list[Tensor]: ...  # fmt: skip


def robust_all_reduce(
    tensor: Tensor | Sequence[Tensor],
    aggregator: Aggregator,
    group: dist.ProcessGroup | None = None,
    *,
    f: int | None = None,
    seed: int = 0,
    timeout: float = TIMEOUT,
) -> Tensor | list[Tensor]:
    """The aggregate of all ranks' tensors, the same to the bit on every rank.

    Ranks may give any numbers (bad hardware, bad data), but they are trusted to run this collective
    as it is written: a rank that lies within it, or stalls it, is not withstood.

    Args:
        tensor: this rank's row, of any shape; or several tensors that are one row together, which
            may be of several dtypes. Not changed.
        aggregator: the rule, with the same parameters on every rank.
        group: the ranks; all of them if None.
        f: declared number of bad ranks, if the rule is to be checked against it.
        seed: of a random rule's draws, with the number of the call.
        timeout: seconds a collective may take.

    Raises:
        DisagreementError: ranks give different shapes, dtypes or rules; before data moves.
        ConstraintError, TooManyRejectedError, ValueError: the rule's own, on every rank; or a rule
            that cannot be sharded.
        RankError: a rank is gone, or stalls.
    """
    once = RobustAllReduce(aggregator, group, f=f, seed=seed, timeout=timeout, name=_ONCE)
    called = once.ranks.group.group_name
    once.ranks.step = _calls[called]
    _calls[called] += 1
    return once(tensor)


class RobustAllReduce:
    """A robust all-reduce with memory: of a rule, or of an online estimator whose state it shards.

    Each rank holds the estimate's slice of the coordinates that it aggregates, in at least float32.

    Args:
        rule: an aggregator, or an estimator; the same on every rank.
        group: the ranks; all of them if None.
        f: declared number of bad ranks, if the rule is to be checked against it. More than f rows
            that are non-finite are then an error whatever the rule bears; for rules that do not
            look at whole rows this costs what ``distances`` does.
        seed: of random draws, with the number of the step.
        timeout: seconds a collective may take, the wait for the slowest rank included.
        distances: whether ``explanation`` has the rows' distances to the result: one more pass over
            the slice and one more small all-reduce.
        name: of this among the group's robust collectives, the same on every rank; two that are
            used at the same time must have different ones.

    Raises:
        ConstraintError, ValueError: the rule cannot be sharded, or does not go with n and f.
    """

    def __init__(
        self,
        rule: Aggregator | Estimator,
        group: dist.ProcessGroup | None = None,
        *,
        f: int | None = None,
        seed: int = 0,
        timeout: float = TIMEOUT,
        distances: bool = False,
        name: str = "RobustAllReduce",
    ) -> None:
        self.ranks = Ranks(group, who=name, timeout=timeout)
        self._sharded = ShardedRule(rule, self.ranks, f=f, seed=seed, distances=distances)
        self._specification = specification(rule)
        # Of all that ranks must have alike, or their collectives or their draws would not.
        self._asked = f"{self._specification}, f={f}, seed={seed}, distances={distances}"
        self._layout: Layout | None = None
        self._loaded: State = {}

    @property
    def step(self) -> int:
        """How many steps are done."""
        return self.ranks.step

    @property
    def explanation(self) -> Explanation | None:
        """Why the last result came out as it did: weights, rejected ranks, distances.

        Its output is this rank's slice. None before there is one.
        """
        return self._sharded.explanation

    @overload
    def __call__(self, tensor: Tensor) -> Tensor: ...

    @overload
    def __call__(self, tensor: Sequence[Tensor]) -> list[Tensor]: ...

    def __call__(self, tensor: Tensor | Sequence[Tensor]) -> Tensor | list[Tensor]:
        """The aggregate of all ranks' tensors; arguments and errors of :func:`robust_all_reduce`.

        A step that raises, but by ``RankError``, leaves the state as it was, and may be done again.
        """
        tensors = _listed(tensor)
        header = Header.of(tensors, step=self.step, rule=self._asked)
        self.ranks.agree(header, lambda numbers: Header(*numbers).words)
        layout = check_usable(self.ranks.who, tensors)
        self._settle(layout)
        slices = self._slices(layout)
        pending = [
            self.ranks.exchange(vector, part)
            for vector, part in zip(layout.flatten(tensors), slices, strict=True)
        ]
        rows = _side_by_side([rows.result() for rows in pending], layout.dtype)
        counts = [sum(part.size(rank) for part in slices) for rank in range(self.ranks.size)]
        output = self._sharded.aggregate(rows, counts)
        found = layout.unflatten(self._collect(output, slices, layout.kinds))
        self.ranks.step += 1
        return found[0] if isinstance(tensor, Tensor) else found

    def _settle(self, layout: Layout) -> None:
        """Make the state that of rows of this layout; it is the same on all ranks.

        Raises:
            ValueError: the state is that of rows of another layout.
        """
        if self._sharded.state and self._layout != layout:
            raise ValueError(
                f"{self.ranks.who}: tensor must have the shapes and dtypes of the first step"
            )
        if self._loaded:
            whole = self._loaded[ESTIMATE]
            if len(whole) != layout.d:
                raise ValueError(
                    f"{self.ranks.who}: tensor must have the {len(whole)} numbers of the state "
                    f"that was loaded, found {layout.d}"
                )
            parts = zip(torch.split(whole, list(layout.lengths)), self._slices(layout), strict=True)
            here = [vector[part.of(self.ranks.rank)][None] for vector, part in parts]
            own = _side_by_side(here, whole.dtype)[0].clone()
            self._sharded.state = {**self._loaded, ESTIMATE: own}
            self._loaded = {}
        self._layout = layout

    def _slices(self, layout: Layout) -> list[Slices]:
        return [Slices(length, self.ranks.size) for length in layout.lengths]

    def _collect(
        self, output: Tensor, slices: Sequence[Slices], dtypes: Sequence[torch.dtype]
    ) -> list[Tensor]:
        """The vectors of each kind, of which ``output`` has this rank's slices side by side."""
        sizes = [part.size(self.ranks.rank) for part in slices]
        pieces = torch.split(output[: sum(sizes)], sizes)
        pending = [
            self.ranks.collect(_narrowed(piece, dtype), part)
            for piece, part, dtype in zip(pieces, slices, dtypes, strict=True)
        ]
        return [vector.result() for vector in pending]

    def state_dict(self) -> dict[str, Any]:
        """Step, rule and the estimator's whole state, as a tree for ``save_checkpoint``.

        All ranks must call it, for the slices of the estimate are collected; all get the same.
        """
        state = dict(self._loaded or self._sharded.state)
        if ESTIMATE in state and self._layout is not None:
            own = state[ESTIMATE]
            kinds = [own.dtype] * len(self._layout.kinds)
            state[ESTIMATE] = torch.cat(self._collect(own, self._slices(self._layout), kinds))
        return {"step": self.step, "rule": self._specification, "estimator": state}

    def load_state_dict(self, tree: Mapping[str, Any]) -> None:
        """Continue where :meth:`state_dict` was taken, with any number of ranks.

        Raises:
            ValueError: it is of another rule, or of the same one with other parameters.
        """
        who = self.ranks.who
        for name in ("step", "rule", "estimator"):
            if name not in tree:
                raise ValueError(f"{who}: a state must have {name!r}, found {sorted(tree)}")
        if tree["rule"] != self._specification:
            raise ValueError(
                f"{who}: rule must be the state's {tree['rule']}, found {self._specification}"
            )
        self.ranks.step = as_integer(who, "step", tree["step"])
        self._layout, self._sharded.state = None, {}
        device = self.ranks.device
        self._loaded = {
            name: value.to(device) if name == ESTIMATE else value
            for name, value in tree["estimator"].items()
        }


def _listed(given: object) -> list[Any]:
    """What is no tensor too: that is for all ranks to learn before it is refused."""
    if isinstance(given, Tensor) or not isinstance(given, Iterable):
        return [given]
    return list(given)


def _narrowed(piece: Tensor, dtype: torch.dtype) -> Tensor:
    """As numbers of ``dtype``: what it cannot hold must not become Inf."""
    if piece.dtype == dtype:
        return piece
    limit = torch.finfo(dtype).max
    return piece.clamp(-limit, limit).to(dtype)


def _side_by_side(parts: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    """``(n, k)`` of one dtype from the parts; a column of zeros where there is none."""
    rows = parts[0] if len(parts) == 1 else torch.cat([part.to(dtype) for part in parts], dim=1)
    return rows if rows.shape[1] else rows.new_zeros(rows.shape[0], 1)
